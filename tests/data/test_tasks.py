"""The data engine's tasks together: a source taken away, another engine, a teacher asked again, what a run leaves."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from algorist import store
from algorist.data import decontaminate
from algorist.errors import RunError
from algorist.records import Defect, Example, Problem, Rollout
from conftest import ROOT, Command

SMOKE = ROOT / "recipes" / "smoke.toml"
RECIPE = """name = "mine"
[data]
problems = {sources}
benchmarks = {{ exam = "{exam}" }}
{more}
[teacher]
url = ""
[curate.sft]
levels = []
[curate.dpo]
levels = []
max_auc = 1.0
"""
MADE = (
    "problems",
    "rollouts",
    "verdicts",
    "measures",
    "profiles",
    "sets/midtrain",
    "sets/sft",
    "sets/dpo",
    "sets/rlvr",
)
Gather = Callable[..., str]
STORIES = {
    "Anna": "Anna has {} sheep and buys {} more at the market. How many are there now?",
    "Bert": "On Monday Bert reads {} pages of a long novel, on Tuesday another {}. What is the sum of both?",
    "Carl": "A train leaves with {} people aboard; at Carl's station {} get on. Count the passengers behind it.",
}


def rows(name: str, count: int) -> list[dict[str, object]]:
    """Traced rows of a source: two right responses and a wrong one to each problem."""
    found: list[dict[str, object]] = []
    for index in range(count):
        asked = STORIES[name].format(index + 2, 7 * index + 3)
        for sample, answer in enumerate((8 * index + 5, 8 * index + 5, 8 * index + 6)):
            said = f"<think>{index + 2} and {7 * index + 3}, try {sample}.</think> So \\boxed{{{answer}}}."
            found.append({"problem": asked, "answer": str(8 * index + 5), "completion": said, "sample": sample})
    return found


@pytest.fixture
def gather(command: Command, tmp_path: Path) -> Gather:
    """`gather("run", "a", "b")` runs the engine on the sources a and b in the folder run; what was said."""
    exam = tmp_path / "exam.jsonl"
    asked = [{"question": STORIES["Carl"].format(3, 10)}, {"question": "What is 1 + 1?", "answer": "2"}]
    exam.write_text("".join(json.dumps(row) + "\n" for row in asked))

    def call(folder: str, *names: str, more: str = "", status: int = 0) -> str:
        sources = [str(tmp_path / f"{name}.jsonl") for name in names]
        recipe = tmp_path / "mine.toml"
        recipe.write_text(RECIPE.format(sources=json.dumps(sources), exam=exam, more=more))
        found, _, err = command("gather", recipe, "--out", tmp_path / folder)
        assert found == status, err
        return err

    for name in ("anna", "bert", "carl"):
        told = rows(name.title(), 4)
        if name == "bert":
            told += rows("Anna", 1)  # which anna.jsonl has too
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))
    return call


def contents(run: Path) -> dict[str, str]:
    return {name: store.manifest(run / name).content for name in MADE}


def test_a_source_taken_away_costs_what_depended_on_it(gather: Gather, tmp_path: Path) -> None:
    said = gather("run", "anna", "bert", "carl")
    assert "same statement twice" in said and "1 in exam" in said
    old = tmp_path / "run" / "measures" / "00002.parquet"
    shard = old.stat().st_ino
    said = gather("run", "bert", "carl")
    gather("fresh", "bert", "carl")
    assert contents(tmp_path / "run") == contents(tmp_path / "fresh")
    # Bert's shard has a problem more now; Carl's is the same file under its new number.
    assert f"measures: 1 of 2 shards taken over from {tmp_path / 'run' / 'superseded'}" in said
    assert (tmp_path / "run" / "measures" / "00001.parquet").stat().st_ino == shard
    again = gather("run", "bert", "carl")
    assert again.count("done before, skipped") == 11
    back = gather("run", "anna", "bert", "carl")
    assert "done in" not in back, "what was superseded comes back"


def test_a_change_goes_no_further_than_its_effect(gather: Gather, tmp_path: Path) -> None:
    gather("run", "anna")
    said = gather("run", "anna", more="near = 0.9")
    assert "problems: done in" in said and said.count("done before, skipped") == 10
    path = tmp_path / "anna.jsonl"
    path.write_text(path.read_text() + "\n")  # another file, the same rows
    said = gather("run", "anna", more="near = 0.9")
    assert "sources: made again, because" in said and said.count("done before, skipped") == 10


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_ray_and_processes_make_the_same_run(gather: Gather, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    for folder, engine in (("one", "workers = 1"), ("two", "workers = 2"), ("ray", 'engine = "ray"\nworkers = 2')):
        gather(folder, "anna", "bert", "carl", more=engine)
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.parquet")]
    assert len(files) > 30
    for file in files:
        same = {(tmp_path / folder / file).read_bytes() for folder in ("one", "two", "ray")}
        assert len(same) == 1, file


def test_what_was_left_out_can_be_read(gather: Gather, tmp_path: Path) -> None:
    gather("run", "anna", "bert", "carl")
    run = tmp_path / "run"
    lost = {defect.reason.split(":")[0]: defect for defect in store.read(run / "problems" / "left-out", Defect)}
    assert set(lost) == {"same statement twice", "in exam"}
    assert lost["in exam"].source.endswith("carl.jsonl") and lost["in exam"].row == 3
    report = decontaminate.read_report(run / "problems")
    assert [hit.test for hit in report.hits] == ["words"] and report.problems == 12
    assert decontaminate.read_report(run / "measures").rollouts == 36  # bert tells of a problem of anna too
    example = store.read(run / "sets" / "midtrain", Example)[0]
    assert [message.role for message in example.messages] == ["user", "assistant"] and "sheep" in example.messages[
        0
    ].content


def test_a_rollout_that_quotes_a_benchmark_is_kept_out_and_listed(gather: Gather, tmp_path: Path) -> None:
    asked = STORIES["Carl"].format(3, 10)
    told = rows("Anna", 2)
    told[0]["completion"] = f"<think>I remember this one: {asked}</think> \\boxed{{5}}"
    (tmp_path / "anna.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))
    assert "measures: 6 rollouts, 1 of them quote a benchmark" in gather("run", "anna")
    run = tmp_path / "run"
    assert store.manifest(run / "sets" / "midtrain").dropped["quotes a benchmark"] == 1
    (hit,) = decontaminate.read_report(run / "measures").hits
    assert hit.rollout_id and hit.benchmark == "exam" and "train leaves with 3 people aboard" in hit.words


def test_training_is_refused_without_the_report_on_the_rollouts(
    smoke_run: Path, tmp_path: Path, command: Command
) -> None:
    import shutil

    run = shutil.copytree(smoke_run, tmp_path / "run")
    for stage in ("midtrain", "sft", "dpo", "rlvr"):
        shutil.rmtree(run / stage)
    (run / "measures" / decontaminate.REPORT).unlink()
    status, _, err = command("run", SMOKE, "--out", run)
    assert status == RunError.exit_status
    assert err.splitlines()[-1].startswith(f"{run}/measures: there is no decontamination report")


def test_problems_without_a_right_sample_are_asked_again(command: Command, tmp_path: Path) -> None:
    words = ["gather", SMOKE, "--out", tmp_path / "run", "--until", "rollouts", "--set", "teacher.samples=1"]
    assert command(*words)[0] == 0
    first = {rollout.id for rollout in store.read(tmp_path / "run" / "rollouts", Rollout)}
    status, _, err = command(*words, "--set", "teacher.max_samples=4")
    assert status == 0 and "problems asked again" in err and "60 were in the log before" in err
    found = store.read(tmp_path / "run" / "rollouts", Rollout)
    count = {problem.id: 0 for problem in store.read(tmp_path / "run" / "problems", Problem)}
    for rollout in found:
        count[rollout.problem_id] += 1
    assert set(count.values()) > {1} and max(count.values()) <= 4 and first < {rollout.id for rollout in found}
