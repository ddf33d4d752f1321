"""Pairs: lines in, verdicts out, in order; bad lines are said with their place and lose nothing."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from conftest import Command


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_a_file_is_judged_in_order(command: Command, tmp_path: Path) -> None:
    pairs, out = tmp_path / "pairs.jsonl", tmp_path / "verdicts.jsonl"
    pairs.write_text(
        lines(
            {"id": "a", "gold": "x+1", "candidate": "1+x", "kind": "answer"},
            {"id": "b", "gold": "42", "candidate": r"so \boxed{41}", "kind": "completion"},
            {"id": "c", "gold": r"\frac{1}{2", "candidate": "3", "kind": "answer"},
            {"gold": 42, "candidate": "The largest $n$ is 42."},
            {"id": "e", "gold": "120", "candidate": r"\boxed{5!}", "kind": "completion"},
            {"id": "f", "gold": "120", "candidate": "5!", "kind": "answer"},
            {"id": "g", "gold": "3", "candidate": "9" * 100_000, "kind": "answer"},
        )
    )
    status, said, told = command("verify", pairs, "--out", out, "--workers", 1)
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert (status, said) == (0, "")
    assert [(row["id"], row["equivalent"], row["reason"]) for row in found] == [
        ("a", True, "equal"),
        ("b", False, "different"),
        ("c", None, "gold unreadable"),
        (4, True, "equal"),
        ("e", False, "not evaluated"),
        ("f", True, "equal"),
        ("g", False, "too long"),
    ]
    assert [row["extracted"] for row in found[1:4]] == ["41", "3", "42"]
    assert len(found[6]["extracted"]) == 2_000
    assert all(0 <= row["seconds"] < 1 for row in found)
    assert told.startswith("verify: 7 pairs (3 equivalent: equal, 1 not judged: gold unreadable, ")


def test_stdin_goes_to_stdout(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines({"id": 7, "gold": "1/2", "candidate": "0.5"})))
    status, said, _ = command("verify")
    assert (status, json.loads(said)["equivalent"], json.loads(said)["id"]) == (0, True, 7)


def test_a_convention_is_set(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines({"gold": r"10\%", "candidate": "10"})))
    _, said, _ = command("verify", "--set", "verify.percent=false")
    assert json.loads(said)["equivalent"] is False


BAD = [
    ("nonsense", "stdin, line 2: is no JSON (Expecting value: line 1 column 1 (char 0)). Mend the line."),
    ("[1]", "stdin, line 2: an object with gold and candidate was expected. Mend the line."),
    ('{"gold": "1"}', "stdin, line 2: candidate is None, a text was expected. Mend the line."),
    (
        '{"gold": "1", "candidate": "1", "kind": "essay"}',
        "stdin, line 2: kind is 'essay', answer or completion was expected.",
    ),
]


@pytest.mark.parametrize(("line", "message"), BAD)
def test_a_bad_line_is_named_and_what_came_before_is_kept(
    command: Command, monkeypatch: pytest.MonkeyPatch, line: str, message: str
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines({"gold": "1", "candidate": "1"}) + line + "\n"))
    status, said, told = command("verify")
    assert (status, told.strip()) == (3, message)
    assert json.loads(said)["equivalent"] is True
