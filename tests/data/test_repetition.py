"""Loops, restatements and mixed languages: what mathematics writes is left alone, what teachers do wrong is found."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from algorist.data.repetition import Settings, evidence, flag, foreign_words
from algorist.numerics.estimates import mean_interval

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
CASES = Path(__file__).parent / "cases" / "repetition.jsonl"
SETTINGS = Settings()
WORDS = "so let then point angle line circle sum of product is equal to side and half from which follows".split()  # noqa: SIM905


def prose(seed: int, count: int) -> str:
    """Words without a pattern."""
    return " ".join(np.random.default_rng(seed).choice(WORDS, count)) + ". "


def solution(seed: int) -> str:
    """A short chain that ends as it should."""
    return prose(seed, 300) + r"Therefore the answer is \boxed{7}."


# The end of a text that loops: the block, how often, and what stands behind.
LOOPS = {
    "a sentence": ("Wait, no, the roots must be distinct, so this is invalid. ", 30, "Wait, no, the ro"),
    "two words": ("the same ", 60, ""),
    "a box": (r"\boxed{}. ", 80, r"\bo"),
    "digits": ("142857", 100, "14"),
    "one digit": ("0", 400, ""),
    "white space": ("\n", 8_000, ""),
    "a page": (prose(1, 700), 3, prose(1, 700)[:200]),
    "a long page, two and a half times": (prose(2, 1_200), 2, prose(2, 1_200)[:3_000]),
    "Chinese": ("因此我们需要重新考虑这个问题。", 20, "因此我们"),
    "a block that repeats itself within": ("No. No. No. Let us see, no. No. No. What if not? ", 20, "No."),
    "a forced answer": ("Let me check this sum again, it may be wrong. ", 60, r"</think> The answer is \boxed{12}."),
}


@pytest.mark.parametrize("name", LOOPS)
def test_loops_are_found(name: str) -> None:
    block, copies, rest = LOOPS[name]
    text = prose(9, 200) + block * copies + rest
    assert flag(text, "What is 3 + 4? 我们", SETTINGS) == "loop"
    found = evidence(text, "", SETTINGS)
    assert found.copies > 2.2 and found.loop


def test_a_loop_that_counts_is_found() -> None:
    told = "".join(
        f"If n = {n}, then n + 4 = {n + 4} is losing, so n = {n} is no solution either.\n" for n in range(90)
    )
    text = prose(3, 100) + told
    assert flag(text, "", SETTINGS) == "loop"
    assert flag(text + "If n = 9", "", SETTINGS) == "loop"
    # The same cases are mathematics where a conclusion is drawn from them.
    assert flag(text + "So there are no solutions below 90, and none above by symmetry.", "", SETTINGS) == ""


MATHEMATICS = {
    "a chain of equations": "".join(f"x_{n + 1} = 2 x_{n} + 1 = 2 \\cdot {n} + 1 = {2 * n + 1},\n" for n in range(60))
    + "and so on, which proves the claim for all of them by induction on the index.",
    "cases": "".join(
        f"Case {n}: if the digit is {n}, then there are {10 - n} choices left for it.\n" for n in range(10)
    )
    + "Adding the cases gives 55 choices.",
    "a matrix of zeros": r"\begin{pmatrix}" + (" & ".join("0" * 12) + r" \\ ") * 12 + r"\end{pmatrix} has rank 0.",
    "a table": "| n | f(n) |\n|---|---|\n" + "".join(f"| {n} | {n % 3} |\n" for n in range(80)) + "The period is 3.",
    "a long sum": "+".join(["1"] * 60) + " = 60",
    "a rule under a heading": "Solution\n" + "-" * 80 + "\n" + prose(4, 80),
    "an answer said three times": prose(5, 200) + r"The answer is \boxed{4}. " * 3,
    "a period of a fraction": "1/7 = 0.142857142857142857142857142857... repeats with period 6.",
}


@pytest.mark.parametrize("name", MATHEMATICS)
def test_mathematics_repeats_itself_and_is_left_alone(name: str) -> None:
    assert flag(MATHEMATICS[name], "", SETTINGS) == ""


def test_thoughts_and_a_solution_in_the_same_words_are_left_alone() -> None:
    chain = solution(6)
    assert flag(f"<think>{chain}</think>{chain}", "", SETTINGS) == ""
    assert flag(chain + chain, "", SETTINGS) == ""
    assert flag(chain * 3, "", SETTINGS) == "loop"


def rambling(times: int) -> str:
    """Four passages, each told `times` times in changing order with something new between them, and an end."""
    order = np.random.default_rng(8)
    passages = [prose(20 + n, 60) for n in range(4)]
    told = [passages[n] + prose(100 + 7 * turn + n, 20) for turn in range(times) for n in order.permutation(4)]
    return "".join(told) + prose(99, 120)


def test_restatements_are_found() -> None:
    assert flag(rambling(5), "", SETTINGS) == "repeats"
    assert flag(rambling(2), "", SETTINGS) == ""  # one restatement is free
    assert evidence(rambling(5), "", SETTINGS).share > 0.4


@pytest.mark.parametrize("key", ["times", "share", "prose", "ngram"])
def test_every_threshold_of_restatements_counts(key: str) -> None:
    stricter = {"times": 6, "share": 0.9, "prose": 1_000, "ngram": 70}[key]
    assert flag(rambling(5), "", replace(SETTINGS, **{key: stricter})) == ""


def test_every_threshold_of_loops_counts() -> None:
    block = "Wait, that cannot be right. "
    assert flag(block * 9, "", SETTINGS) == "loop"
    assert flag(block * 9, "", replace(SETTINGS, copies=10.0)) == ""
    assert flag(block * 9, "", replace(SETTINGS, stretch=300)) == ""
    behind = "It is four, as was seen above in the first part."
    assert flag(block * 9 + behind, "", SETTINGS) == ""
    assert flag(block * 90 + behind, "", SETTINGS) == "loop"
    assert flag(block * 90 + behind, "", replace(SETTINGS, behind=5)) == "repeats"
    page = prose(2, 300)
    assert flag(page * 2 + page[:500], "", SETTINGS) == "loop"
    assert flag(page * 2 + page[:500], "", replace(SETTINGS, long=9_000)) == ""
    counting = "".join(f"Now {n} is not prime, and so we go on to the next of all these numbers. " for n in range(40))
    assert flag(counting, "", SETTINGS) == "loop"
    assert flag(counting, "", replace(SETTINGS, counting=50)) == ""


ENGLISH = "How far from city A are they when they meet?"
MIXED = {
    "This seems like a相遇 problem.": ("相遇",),
    "Let us думать about it.": ("думать",),
    "So x = 2, и поэтому y = 3.": ("поэтому",),
    "Thus \\text{因此} holds.": ("因此",),
    "ثم نحسب the sum": ("ثم", "نحسب"),
    "(因此我们需要重新考虑这个问题的所有可能的情况)": ("因此我们需要重新考虑这个问题的所有可能的情况",),
    "정리에 의해 done": ("정리에", "의해"),
    "だから done": ("だから",),
}
ONE_LANGUAGE = (
    "The Tate-Shafarevich group Ш and the letter א are symbols, α + β ≤ γ, ∑ and ∞ too.",
    "𝑓(𝑥) = 𝔼[X], ℝ ⊂ ℂ, ½ × ²√3, ｆｕｌｌ, naïve Gödel, Erdős, Hölder, straße",
    "Zu Chongzhi (祖冲之) and Lobachevsky (Николай Лобачевский) knew it, “勾股” is its name.",
    "G โ\x89\x88 Z^r โ\x8a\x95 Z",  # one letter at a time: an encoding that was broken
    "",
)


@pytest.mark.parametrize("text", MIXED)
def test_languages_are_told_apart(text: str) -> None:
    assert foreign_words(text, ENGLISH) == MIXED[text]
    assert flag(solution(1) + text + solution(2), ENGLISH, SETTINGS) == "languages"


@pytest.mark.parametrize("text", ONE_LANGUAGE)
def test_symbols_and_names_are_no_language(text: str) -> None:
    assert foreign_words(text, ENGLISH) == ()
    assert flag(solution(1) + text + solution(2), ENGLISH, SETTINGS) == ""


def test_a_script_of_the_problem_is_not_foreign() -> None:
    assert foreign_words("因此 x = 2. だから 3.", "求 x。") == ()
    assert foreign_words("Поэтому x = 2.", "Найдите x.") == ()
    assert foreign_words("因此 x = 2.", "Найдите x.") == ("因此",)
    assert flag("a 相遇 b " * 1, ENGLISH, replace(SETTINGS, foreign=3)) == ""


@pytest.mark.parametrize("text", ["", " ", "\n" * 50, "a", "\x00", "\udc80\udfff", "🙂" * 30, "4", "\u200b" * 40])
def test_small_and_odd_texts_are_nothing_special(text: str) -> None:
    assert flag(text, text, SETTINGS) == ""


def test_time_is_linear_in_hostile_texts() -> None:
    hostile = [
        "a" * 2_000_000,
        "因 " * 600_000,
        "因.因-" * 400_000,
        "(因" * 500_000,
        "\\ " * 900_000,
        "ab ab ac " * 200_000,
    ]
    for text in hostile:
        before = time.process_time()
        flag(text, text[:1000], SETTINGS)
        assert time.process_time() - before < 6.0, text[:10]


def test_settings_are_checked() -> None:
    for wrong in ({"copies": 2.0}, {"counting": 2}, {"ngram": 1}, {"times": 1}, {"share": 0.0}, {"share": 1.5},
                  {"stretch": 0}, {"long": 0}, {"prose": 0}, {"foreign": 0}, {"behind": -1}):  # fmt: skip
        with pytest.raises(ValueError, match="at least|above"):
            Settings(**wrong)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not here")
def test_precision_and_recall_on_real_rollouts() -> None:
    """Every flagged row was read; of the long rows without a flag a random hundred, without those flagged since."""
    cases = {case["id"]: case for case in map(json.loads, CASES.read_text(encoding="utf-8").splitlines())}
    with open(SHARED / "rollouts_real.jsonl", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    flags = {row["id"]: flag(row["completion"], row["question"], SETTINGS) for row in rows}
    flagged = {name: found for name, found in flags.items() if found}
    assert flagged.keys() <= cases.keys(), "rows are flagged that nobody has read: read them and add them to the cases"
    right = Counter(found for name, found in flagged.items() if found in cases[name]["labels"])
    assert right == Counter(flagged.values()) == {"loop": 167, "repeats": 6, "languages": 4}
    assert mean_interval([1.0] * right["loop"])[1] > 0.97
    sample = [name for name, case in cases.items() if case["drawn"] == "sample"]
    assert len(sample) == 94 and sum(bool(cases[name]["labels"]) for name in sample) == 1


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not here")
@pytest.mark.parametrize(("name", "most"), [("math_train", 1), ("gsm8k_train", 0), ("olympiadbench_en", 0)])
def test_solutions_written_by_people_are_left_alone(name: str, most: int) -> None:
    with open(SHARED / f"{name}.jsonl", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    found = Counter(flag(row["solution"], row["question"], SETTINGS) for row in rows if row.get("solution"))
    assert found.total() - found[""] <= most
