"""Equal: the table of cases, and how well it agrees with answers that other projects labelled."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from algorist.verify.equal import LONGEST_ANSWER, at_sight, equal, light, number, verifier

CASES = Path(__file__).parent / "cases"
DEV = Path(__file__).parents[2] / "../shared/data/verifier_dev.jsonl"
RIGHT = {"right": True, "wrong": False, "unjudged": None}


def rows(name: str) -> list[tuple[str, str, bool | None, str]]:
    with (CASES / name).open(encoding="utf-8", newline="") as table:
        cases = csv.DictReader(table, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [(row["gold"], row["answer"], RIGHT[row["verdict"]], row["reason"]) for row in cases]


@pytest.mark.parametrize(("gold", "answer", "right", "reason"), rows("at_sight.tsv"))
def test_decided_at_sight(gold: str, answer: str, right: bool | None, reason: str) -> None:
    assert at_sight(gold, answer) == (right, reason)


@pytest.mark.parametrize(("gold", "answer", "right", "reason"), rows("algebra.tsv"))
def test_decided_by_algebra(gold: str, answer: str, right: bool | None, reason: str) -> None:
    assert equal(gold, answer) == (right, reason)


@pytest.mark.parametrize(("gold", "answer", "right", "reason"), rows("known_wrong.tsv"))
@pytest.mark.xfail(strict=True, reason="verdicts we know to be wrong; a row that passes moves to algebra.tsv")
def test_known_to_be_wrong(gold: str, answer: str, right: bool | None, reason: str) -> None:
    assert equal(gold, answer) == (right, reason)


def test_a_number_is_read_exactly() -> None:
    assert number("-1,234.50") == Fraction(-2469, 2)
    assert number(r"\frac{-3}{4}") == number("-3/4") == Fraction(-3, 4)
    assert number("1/0") is None
    assert number("12%") is None
    assert number("1e9") is None
    assert number("1,23") is None


def test_light_keeps_two_numbers_apart() -> None:
    assert light("1 234") == "1 234" != light("1234")
    assert light("1, 234") == "1, 234" != light("1,234")
    assert light(r" $\left( x , y \right)$. ") == "(x,y)"


def test_a_long_answer_is_not_read() -> None:
    assert equal("1", "1" * (LONGEST_ANSWER + 1)) == (False, "too long")
    assert equal("1" * (LONGEST_ANSWER + 1), "1") == (None, "gold unreadable")
    assert equal("1" * LONGEST_ANSWER, "1" * LONGEST_ANSWER) == (True, "equal")


def test_the_verifier_names_its_version() -> None:
    assert verifier().startswith("algorist-1/math-verify-")


def test_nothing_heavy_is_imported_for_what_is_decided_at_sight() -> None:
    script = (
        "import sys; from algorist.verify import pool, equal; equal.equal('1/2', '0.5'); "
        "print([name for name in ('torch', 'sympy', 'math_verify', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


@pytest.mark.skipif(not DEV.exists(), reason="the shared data is not here")
def test_agrees_with_labelled_answers() -> None:
    labelled = [row for row in map(json.loads, DEV.read_text().splitlines()) if row["kind"] == "answer"]
    judged = [(row, equal(row["gold"], row["candidate"])[0]) for row in labelled if "policy" not in row]
    assert len(judged) == 305
    assert [row["id"] for row, right in judged if right is not row["equivalent"]] == []
