"""Equal: the table of cases, the classes of answers, and agreement with what other projects labelled."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import time
from dataclasses import fields, replace
from fractions import Fraction
from pathlib import Path

import pytest

from algorist.verify.conventions import DEFAULT, Conventions
from algorist.verify.equal import LONGEST_ANSWER, at_sight, equal, number, verifier
from algorist.verify.pairs import judge

CASES = Path(__file__).parent / "cases"
DOCS = Path(__file__).parents[2] / "docs/verify.md"
DEV = Path(__file__).parents[2] / "../shared/data/verifier_dev.jsonl"
RIGHT = {"right": True, "wrong": False, "unjudged": None}
# Rows whose label we do not share; each is a convention, and the note in the file says which.
OTHERWISE = {
    ("4:30", "8:60"),  # as a ratio they are equal, and only one of them can be a time
    ("E", "e^1"),  # a letter of a choice and a number are different, but E alone is read as a name
    ("720", "6!"),  # boxed in a completion: a formula left undone
}
# In the last words of a text without a box or a phrase: what marks them as the answer is their meaning alone.
UNMARKED = ("every week.", "at (2, -1).", "on a Thursday.", "statements are true.")


def rows(name: str) -> list[tuple[str, str, bool | None, str]]:
    with (CASES / name).open(encoding="utf-8", newline="") as table:
        cases = csv.DictReader(table, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [(row["gold"], row["answer"], RIGHT[row["verdict"]], row["reason"]) for row in cases]


@pytest.mark.parametrize(("gold", "answer", "right", "reason"), rows("equal.tsv"))
def test_verdict_and_reason(gold: str, answer: str, right: bool | None, reason: str) -> None:
    assert equal(gold, answer) == (right, reason)


def near() -> list[tuple[str, str, bool]]:
    lines = (CASES / "near.tsv").read_text(encoding="utf-8").splitlines()[1:]
    return [(gold, answer, verdict == "right") for gold, answer, verdict in (line.split("\t") for line in lines)]


@pytest.mark.parametrize(("gold", "answer", "right"), near())
def test_what_a_reviewer_was_paid_for(gold: str, answer: str, right: bool) -> None:
    """Mistakes that an honest model makes and that once passed, and what must pass beside them."""
    assert (judge(gold, rf"\boxed{{{answer}}}", "completion").right is True) == right


@pytest.mark.parametrize(
    "unit", ["x<", "x^2<3,", r"\sin(x^2)+\cos(17x)>0.1,", " ", "x^", "-", r"\sqrt", "1 ", "(A)", "2:"]
)
def test_no_answer_takes_long(unit: str) -> None:
    answer = (unit * LONGEST_ANSWER)[: LONGEST_ANSWER - 2]
    started = time.perf_counter()
    for gold in ("3", "x+1", "(1,2)"):
        equal(gold, f"{answer}3")
    assert time.perf_counter() - started < 2.0


def classes() -> list[dict[str, object]]:
    texts = ((CASES / name).read_text(encoding="utf-8") for name in ("classes.jsonl", "more.jsonl", "held_out.jsonl"))
    return [json.loads(line) for text in texts for line in text.splitlines()]


@pytest.mark.parametrize("name", sorted({str(row["class"]) for row in classes()}))
def test_a_class_of_answers(name: str) -> None:
    wrong = []
    for row in classes():
        gold, candidate = str(row["gold"]), str(row["candidate"])
        otherwise = (gold, judge(gold, candidate, str(row["kind"])).extracted) in OTHERWISE or candidate.endswith(
            UNMARKED
        )
        if row["class"] == name and not otherwise:
            found = judge(gold, candidate, str(row["kind"]))
            if found.right is not row["equivalent"]:
                wrong.append((gold, candidate, row["equivalent"], found))
    assert not wrong


def test_a_number_is_read_exactly() -> None:
    assert number("-1,234.50") == Fraction(-2469, 2)
    assert number(r"\frac{-3}{4}") == number("-3/4") == Fraction(-3, 4)
    assert number("1/0") is None
    assert number("12%") is None
    assert number("1e9") is None
    assert number("1,23") is None


def test_what_is_plain_is_decided_at_sight() -> None:
    for gold, answer in (("18", "18"), ("025", "25"), ("1/2", "0.5"), ("10,000", "10000"), (r"\frac34", "0.75")):
        assert at_sight(gold, answer) == (True, "equal")
    for gold, answer in (("18", "26"), ("3/12", "4"), ("1/4", "2")):
        assert at_sight(gold, answer) == (False, "different")
    assert at_sight("x+1", "1+x") is None


def test_a_long_answer_is_not_read() -> None:
    assert equal("1", "1" * (LONGEST_ANSWER + 1)) == (False, "too long")
    assert equal("1" * (LONGEST_ANSWER + 1), "1") == (None, "gold unreadable")
    assert equal("1" * LONGEST_ANSWER, "1" * LONGEST_ANSWER) == (True, "equal")


def test_gold_and_candidate_are_not_symmetric() -> None:
    """A gold decimal may be met by what rounds to it; a candidate may not leave digits away."""
    assert equal("3.1416", r"\pi")[0] is True
    assert equal(r"\pi", "3.1416")[0] is True
    assert equal("3.1416", "3.14159265")[0] is True
    assert equal("3.14159265", "3.1416")[0] is True
    assert equal("3.14159265", "3.14")[0] is False
    assert equal(r"\frac{1}{2", "3") == (None, "gold unreadable")
    assert equal("3", r"\frac{1}{2") == (False, "answer unreadable")


def conventions() -> list[list[str]]:
    """The table of docs/verify.md."""
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    return [[name, *(cell.strip("` ") for cell in rest.split("|"))] for name, rest in rows]


@pytest.mark.parametrize("row", conventions(), ids=lambda row: row[0])
def test_a_convention_does_what_its_page_says(row: list[str]) -> None:
    name, default, gold, candidate, by_default, otherwise = row
    value, verdict = re.fullmatch(r"with (\S+): (\w+)", otherwise).groups()  # type: ignore[union-attr]
    assert getattr(DEFAULT, name) == json.loads(default)
    assert equal(gold, candidate)[0] is RIGHT[by_default]
    assert equal(gold, candidate, replace(DEFAULT, **{name: json.loads(value)}))[0] is RIGHT[verdict]


def test_every_convention_is_on_its_page() -> None:
    assert [row[0] for row in conventions()] == [field.name for field in fields(Conventions)]


def test_the_verifier_names_its_version() -> None:
    assert verifier().startswith("algorist-")


def test_nothing_heavy_is_imported_for_what_is_decided_at_sight() -> None:
    script = (
        "import sys; from algorist.verify import pool, equal; equal.equal('1/2', '0.5'); "
        "print([name for name in ('torch', 'sympy', 'mpmath', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


@pytest.mark.skipif(not DEV.exists(), reason="the shared data is not here")
def test_agrees_with_labelled_answers() -> None:
    """An empty gold is unreadable to us; all other rows without a convention are judged as labelled."""
    labelled = [json.loads(line) for line in DEV.read_text(encoding="utf-8").splitlines()]
    judged = [(row, judge(row["gold"], row["candidate"], row["kind"]).right) for row in labelled if "policy" not in row]
    assert len(judged) == 399
    assert [row["id"] for row, right in judged if right is not row["equivalent"]] == ["vdev-0235"]
