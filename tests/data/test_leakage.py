"""A planted leak of each kind is found and named; what is clean passes; what is measured is what it is called."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from algorist import store
from algorist.data import leakage
from algorist.data.curate import Dpo
from algorist.data.leakage import PROPERTIES, Reading
from algorist.errors import RunError
from algorist.records import Problem
from algorist.verify.extract import extract
from curation import Told, draw, problem, told, write_run

NAMES = [name for group in PROPERTIES.values() for name in group]
RULES = Dpo(max_length_ratio=100.0, truncated=True, answered=False, same_sampler=False, balance_lengths=False)
Fate = dict[str, Any]
Draw = Callable[[np.random.Generator], Fate]


def words(rng: np.random.Generator, count: int) -> str:
    """A response of no particular form."""
    found = rng.choice(["so", "we", "add", "the", "sum", "12", "7", "\\frac", "wait", "Then", "and\n"], count)
    return " ".join(map(str, found)) + " \\boxed{3}."


def pairs(count: int, right: Draw, wrong: Draw) -> tuple[list[Problem], list[Told]]:
    """Problems with one right and one wrong rollout each, whose fates are drawn."""
    problems, found = [problem(number) for number in range(count)], []
    for number, each in enumerate(problems):
        for index, fate in enumerate((right, wrong)):
            rng = np.random.default_rng([number, index])
            drawn = fate(rng)
            text = drawn.pop("text", None) or words(rng, int(rng.integers(20, 40)))
            found.append(told(each, index == 0, text, index, **{"tokens": len(text.split()), **drawn}))
    return problems, found


def nothing(rng: np.random.Generator) -> Fate:
    return {}


def readings(root: Path) -> dict[tuple[str, str], Reading]:
    said = store.read_json(root / "sets" / "dpo" / "leakage.json")
    return {(one["group"], one["name"]): Reading(**one) for one in said["readings"]}


def planted(group: str, rng: np.random.Generator) -> Fate:
    """What a wrong rollout is like where the group leaks."""
    text = words(rng, 30)
    return {
        "length": {"tokens": 200 + int(rng.integers(0, 300))},
        "format": {"text": text.replace("\\boxed{3}.", "3.")},
        "style": {"text": f"Wait, maybe not. Hmm, {text}"},
        "sampler": {"sampler": "other"},
        "truncation": {"finish": "length"},
    }[group]


def test_where_form_says_nothing_nothing_is_found(tmp_path: Path) -> None:
    write_run(tmp_path, *pairs(300, nothing, nothing), shards=2)
    assert len(draw(tmp_path, "dpo", RULES)) == 300
    found = readings(tmp_path)
    assert {name for _, name in found} == {*NAMES, "all of these"}
    assert all(0.4 < one.auc < 0.6 for one in found.values())
    assert sum(not one.low <= 0.5 <= one.high for one in found.values()) <= 3, "95 % intervals of 20 readings"


@pytest.mark.parametrize(
    ("leak", "group", "by"),
    [
        ("length", "length", "tokens"),
        ("format", "format", "boxes"),
        ("style", "style", "hesitations"),
        ("sampler", "style", "by other"),
        ("truncation", "format", "ended by itself"),
    ],
)
def test_a_planted_leak_stops_the_set_and_is_named(tmp_path: Path, leak: str, group: str, by: str) -> None:
    write_run(tmp_path, *pairs(150, nothing, lambda rng: planted(leak, rng)), shards=2)
    with pytest.raises(RunError) as error:
        draw(tmp_path, "dpo", RULES)
    said = str(error.value)
    assert said.startswith(f"{tmp_path}/sets/dpo: {group} alone tells the right response from the wrong one in ")
    assert f"most of all by {by} (AUC " in said and leakage.KNOBS[group] in said
    assert not (tmp_path / "sets" / "dpo" / store.MANIFEST).exists(), "it is no data set"
    assert readings(tmp_path)[group, "all of these"].auc > 0.9, "but what was found can be read"
    draw(tmp_path, "dpo", Dpo(**{**RULES.__dict__, "max_auc": 1.0}))


def test_the_knobs_that_the_message_names_heal_what_they_are_for(tmp_path: Path) -> None:
    write_run(
        tmp_path, *pairs(60, nothing, lambda rng: {**planted("length", rng), "tokens": int(rng.integers(20, 60))})
    )
    healed = Dpo(**{**RULES.__dict__, "balance_lengths": True})
    draw(tmp_path, "dpo", healed)
    assert readings(tmp_path)["length", "tokens"].auc == 0.5


def test_the_message_word_for_word() -> None:
    found = [Reading("format", "boxes", 0.1, 0.05, 0.2, 0.1, 1.0), Reading("format", "all of these", 0.91, 0.861, 0.95)]
    with pytest.raises(RunError) as error:
        leakage.check(found, 0.7, Path("runs/x/sets/dpo"))
    assert str(error.value) == (
        "runs/x/sets/dpo: format alone tells the right response from the wrong one in 91% of the pairs (at least 86%; "
        "at most 70% was expected), most of all by boxes (AUC 0.10). Set [curate.dpo] truncated = false and "
        "answered = true, or raise max_auc."
    )
    leakage.check(found, 0.87, Path("runs/x/sets/dpo"))


def test_a_lean_that_may_be_chance_stops_nothing(tmp_path: Path) -> None:
    write_run(tmp_path, *pairs(8, nothing, lambda rng: planted("length", rng)))
    assert len(draw(tmp_path, "dpo", RULES)) == 8
    found = readings(tmp_path)
    assert found["length", "tokens"].auc == 0.0 and ("length", "all of these") not in found


def test_a_leak_of_two_properties_together_is_seen_by_the_combined_score(tmp_path: Path) -> None:
    """Each alone varies far more between responses of one kind than between kinds; their sum tells."""

    def fate(shift: int) -> Draw:
        def drawn(rng: np.random.Generator) -> Fate:
            many = int(rng.integers(0, 40))
            return {"text": " ".join(["12"] * many + ["Aa"] * (40 - many + shift) + ["so"] * (60 - shift))}

        return drawn

    write_run(tmp_path, *pairs(200, fate(8), fate(0)))
    draw(tmp_path, "dpo", Dpo(**{**RULES.__dict__, "max_auc": 1.0}))
    found = readings(tmp_path)
    assert max(abs(found["style", name].auc - 0.5) for name in PROPERTIES["style"]) < 0.3
    assert found["style", "all of these"].auc > 0.85 and found["form", "all of these"].auc > 0.85


def test_auc_is_the_share_of_pairs_ranked_right_each_problem_counting_once() -> None:
    chosen, rejected = np.zeros((5, len(NAMES))), np.zeros((5, len(NAMES)))
    chosen[:, 0] = [3, 1, 1, 5, 2]
    rejected[:, 0] = [1, 3, 3, 5, 1]
    vector = leakage.pa.list_(leakage.pa.float32(), len(NAMES))
    table = leakage.pa.table(
        {
            "problem_id": ["a", "b", "b", "c", "c"],
            "chosen_sampler": leakage.pa.array(["t"] * 5).dictionary_encode(),
            "rejected_sampler": leakage.pa.array(["t"] * 5).dictionary_encode(),
            "chosen": leakage.pa.array(chosen.tolist(), vector),
            "rejected": leakage.pa.array(rejected.tolist(), vector),
        }
    )
    one, *others = leakage.readings([table.slice(0, 2), table.slice(2)], 1)
    assert (one.name, one.auc) == ("tokens", pytest.approx((1 + 0 + 0.75) / 3))
    assert (one.chosen, one.rejected) == (pytest.approx(2.4), pytest.approx(2.6))
    assert {(each.auc, each.low, each.high) for each in others} == {(0.5, 0.5, 0.5)}
    assert leakage.readings([], 1) == [] and leakage.readings([table.slice(0, 0)], 1) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\\boxed{1} and \\boxed{2}.", {"boxes": 2, "has a box": 1, "ends a sentence": 1, "LaTeX commands": 2 / 24}),
        ("<think>a</think>b", {"thought is closed": 1, "share outside thoughts": 1 / 17, "boxes": 0}),
        ("<think>a", {"thought is closed": 0, "share outside thoughts": 0, "ends a sentence": 0}),
        ("ab 12\ncde", {"digits": 2 / 9, "line breaks": 1 / 9, "length of last line": 3, "word length": 5 / 3}),
        ("Wait, HMM. However: let me check", {"hesitations": 4 / 6, "upper case": 5 / 32}),
        ("答案 π≤2", {"other scripts": 2 / 13}),
        ("**x** y\n# z", {"emphasis": 3 / 4}),
        ("", {"digits": 0, "hesitations": 0, "length of last line": 0}),
    ],
)
def test_what_is_measured(text: str, expected: dict[str, float]) -> None:
    found = dict(zip(NAMES, leakage.form(text, 7, True), strict=True))
    assert found["tokens"] == 7 and found["ended by itself"] == 1
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_every_group_has_a_knob_and_hostile_text_takes_linear_time() -> None:
    assert set(leakage.KNOBS) == set(PROPERTIES)
    hostile = [
        "<think>" * 20_000,
        "\\boxed{" * 20_000,
        "let me " * 20_000,
        "\n" * 100_000,
        "\ud800" * 20_000,
        "hm" + "m" * 200_000,
    ]
    for text in itertools.chain(hostile, (text[::-1] for text in hostile)):
        assert len(leakage.form(text, 1, False)) == len(NAMES)


REAL = Path(__file__).parents[3] / "shared" / "data" / "rollouts_real.jsonl"
OFF = Dpo(
    levels=(), max_length_ratio=100.0, per_problem=4, truncated=True, answered=False, same_sampler=False,
    balance_lengths=False, max_pass_rate=1.0,
)  # fmt: skip
MIXED = Dpo(levels=(), same_sampler=False, max_pass_rate=1.0)
MODELS = {
    "GSM8K": ("openai-gpt3-",),
    "MATH-500": ("Qwen/Qwen2.5-14B-Instruct", "Qwen/Qwen2.5-Math-7B", "NovaSky/Sky-T1-math-correct-5K-27B"),
}


@pytest.mark.skipif(not REAL.exists(), reason="needs the real rollouts")
@pytest.mark.parametrize(
    ("data", "rules", "refused"),
    [("MATH-500", OFF, "format"), ("MATH-500", MIXED, ""), ("GSM8K", OFF, "style"), ("GSM8K", MIXED, "style")],
)
def test_of_real_rollouts_the_leaky_sets_are_refused(tmp_path: Path, data: str, rules: Dpo, refused: str) -> None:
    """The figures of docs/sets.md; run with -s to see them."""
    problems, found = {}, []
    for line in REAL.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["model"].startswith(MODELS[data]) and row["question"].strip():
            each = problems.setdefault(row["problem_id"], Problem.of(row["question"], row["gold"]))
            text, opened = row["completion"], "<|begin_of_thought|>" in row["completion"]
            more = {"finish": "length" if opened and "<|end_of_thought|>" not in text else "stop"}
            more |= {"extracted": extract(text).answer, "sampler": row["model"], "tokens": len(text) // 4}
            found.append(told(each, bool(row["correct"]), text, len(found), **more))
    write_run(tmp_path, list({each.id: each for each in problems.values()}.values()), found)
    try:
        draw(tmp_path, "dpo", rules)
        assert not refused
    except RunError as error:
        assert refused and f"{refused} alone tells" in str(error)
    told_by = {group: one.auc for (group, name), one in readings(tmp_path).items() if name == leakage.TOGETHER}
    count = store.read_json(tmp_path / "sets" / "dpo" / "leakage.json")["pairs"]
    print(data, count, {group: round(auc, 2) for group, auc in told_by.items()})
