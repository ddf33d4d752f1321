"""The ablation table, from rollouts and verdicts that were made by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from algorist import store
from algorist.evals import report
from algorist.numerics.estimates import mean_interval, paired_change
from algorist.records import Checkpoint, Rollout, Score, Verdict

CARDS = [("base", Checkpoint("b", "base", 9)), ("sft", Checkpoint("s", "sft", 7, ("b",), 12_345, 61.7))]


def write(folder: Path, stage: str, rights: dict[str, Sequence[bool | None]], *, cut: int = 0, silent: int = 0) -> None:
    """Stored rollouts and verdicts: problem → verdicts of its samples; the last `cut` end by the limit, and of the
    last `silent` no answer was found."""
    rollouts, verdicts = [], []
    flat = [(problem, index, right) for problem, samples in rights.items() for index, right in enumerate(samples)]
    for place, (problem, index, right) in enumerate(flat):
        left = len(flat) - place
        finish = "length" if left <= cut else "stop"
        one = Rollout.of(problem, "text", stage, index=index, finish=finish, num_tokens=10 * (place + 1))
        rollouts.append(one)
        verdicts.append(Verdict(one.id, right, "reason", "" if left <= silent else "3", "test"))
    store.write(folder / stage / "toy" / "rollouts", Rollout, rollouts)
    store.write(folder / stage / "toy" / "verdicts", Verdict, verdicts[::-1])  # matched by id, not by place


@pytest.fixture
def scored(tmp_path: Path) -> list[Score]:
    write(tmp_path, "base", {"p": [True, False], "q": [False, False], "r": [None, False], "s": [True, True]})
    after: dict[str, Sequence[bool | None]] = {"s": [True, True], "p": [True, True], "q": [True, False]}
    write(tmp_path, "sft", {**after, "r": [None, False]}, cut=2, silent=1)
    return report.scores(tmp_path, CARDS, ["toy"])


def test_values_by_hand(scored: list[Score]) -> None:
    base, sft = scored
    assert (base.value, sft.value) == (3 / 8, 5 / 8)
    assert (base.value, base.low, base.high) == mean_interval([0.5, 0.0, 0.0, 1.0])
    assert (base.problems, base.samples, base.metric, base.benchmark) == (4, 2, "accuracy", "toy")
    assert (sft.mean_len, sft.ended, sft.no_answer) == (45.0, 6 / 8, 1 / 8)
    assert (base.ended, base.no_answer) == (1.0, 0.0)
    assert (sft.checkpoint_id, sft.tokens, sft.seconds) == ("s", 12_345, 61.7)


def test_the_change_is_paired_by_problem_whatever_the_order(scored: list[Score]) -> None:
    base, sft = scored
    assert (base.change, base.change_low, base.change_high) == (None, None, None)
    assert sft.change == 0.25
    expected = paired_change([1.0, 0.5, 0.0, 0.0], [1.0, 1.0, 0.5, 0.0])
    assert (sft.change, sft.change_low, sft.change_high) == pytest.approx(expected)


def test_what_could_not_be_judged_is_not_right_and_is_said(scored: list[Score]) -> None:
    assert [score.unjudged for score in scored] == [1 / 8, 1 / 8]
    assert scored[0].value == 3 / 8  # of 8 samples, not of 7 judged ones


def test_each_benchmark_starts_anew(tmp_path: Path) -> None:
    for stage in ("base", "sft"):
        write(tmp_path, stage, {"p": [True]})
        for kind in ("rollouts", "verdicts"):
            source, target = tmp_path / stage / "toy" / kind, tmp_path / stage / "exam" / kind
            target.parent.mkdir(exist_ok=True)
            source.rename(target)
        write(tmp_path, stage, {"q": [False]})
    found = report.scores(tmp_path, CARDS, ["toy", "exam"])
    assert [(s.benchmark, s.stage, s.value, s.change) for s in found] == [
        ("toy", "base", 0.0, None),
        ("toy", "sft", 0.0, 0.0),
        ("exam", "base", 1.0, None),
        ("exam", "sft", 1.0, 0.0),
    ]


def made(stage: str, value: float, change: float | None, tokens: int, seconds: float, benchmark: str = "toy") -> Score:
    around = (None, None) if change is None else (change - 0.02, change + 0.02)
    shares = {"ended": 0.985, "no_answer": 0.01, "unjudged": 0.0}
    return Score(
        stage=stage,
        checkpoint_id="c",
        benchmark=benchmark,
        metric="accuracy",
        value=value,
        low=value - 0.03,
        high=value + 0.03,
        change=change,
        change_low=around[0],
        change_high=around[1],
        problems=500,
        samples=4,
        mean_len=87.6,
        tokens=tokens,
        seconds=seconds,
        **shares,
    )


TABLE = """\
**toy**: 500 problems, 4 samples each

| stage | accuracy | 95 % interval | change | 95 % interval  | length | ends   | tokens    | seconds |
|-------|----------|---------------|--------|----------------|--------|--------|-----------|---------|
| base  | 10.0 %   | 7.0 to 13.0   |        |                | 88     | 98.5 % | 1,234,567 | 300     |
| sft   | 55.2 %   | 52.2 to 58.2  | +45.2  | +43.2 to +47.2 | 88     | 98.5 % | 98        | 1       |
| rlvr  | 54.2 %   | 51.2 to 57.2  | -1.0   | -3.0 to +1.0   | 88     | 98.5 % | 0         | 20      |"""
MADE = [
    made("base", 0.1, None, 1_234_567, 300.4),
    made("sft", 0.552, 0.452, 98, 0.6),
    made("rlvr", 0.542, -0.01, 0, 20.0),
]


def test_the_table_word_for_word() -> None:
    assert report.table(MADE) == TABLE


def test_one_table_a_benchmark() -> None:
    exam = made("base", 0.1, None, 1_234_567, 300.4, benchmark="exam")
    text = report.table([MADE[0], exam, *MADE[1:]])
    first, second = text.split("\n\n**exam**")
    assert first == TABLE and second.startswith(": 500 problems") and second.count("\n") == 4


def test_the_report_is_written_with_its_numbers(tmp_path: Path) -> None:
    text = report.write(tmp_path, "tiny", MADE)
    assert (tmp_path / "report.md").read_text(encoding="utf-8") == text
    assert text.startswith(f"# tiny\n\n{TABLE}\n\nAccuracy is the share of right answers over all samples;")
    assert [Score(**row) for row in json.loads((tmp_path / "scores.json").read_text())] == MADE
