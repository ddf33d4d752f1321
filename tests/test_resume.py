"""Killed anywhere, a run goes on: the same weights and scores, bit for bit, and no finished work is done twice."""

from __future__ import annotations

import fcntl
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from algorist import recipe as recipes
from algorist import store
from algorist.pipeline import fingerprint
from algorist.recipe import Recipe
from algorist.records import Problem, Rollout, content_id
from algorist.tasks import sections, tasks
from conftest import ROOT

SMOKE = ROOT / "recipes" / "smoke.toml"
STAGES = ("base", "midtrain", "sft", "dpo", "rlvr")
CHANGES = 800  # to files, about, in a whole run with saves on the way
LEFT_OUT = {".lock", "stdout.txt", "log.txt", "recipe.toml", "report.md"}  # the last shows scores.json, rounded
LOG = "answers.sqlite"  # in which answers lie in the order in which they came

# Runs the command line and kills it just before it changes a file: at the `after`-th change from the first one on
# that matches `pattern`. A change reads as "os.rename /a/draft", "open /a/file", "os.remove name-inside-a-rmtree".
KILLER = r"""
import os, re, sys
root, pattern, after = sys.argv.pop(1), re.compile(sys.argv.pop(1)), int(sys.argv.pop(1))
kinds = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "open"}
seen = False
def watch(event, args):
    global seen, after
    if event not in kinds or event == "open" and not set(args[1] or "") & set("wax"):
        return
    path = str(args[0])
    if not path.startswith(root) and (os.path.isabs(path) or event == "open"):
        return
    seen = seen or pattern.search(f"{event} {path}") is not None
    after -= seen
    if seen and after < 0:
        os.kill(os.getpid(), 9)
sys.addaudithook(watch)
sys.argv[0] = "algorist"
from algorist.cli import main
main()
"""


def begin(
    folder: Path, *overrides: str, until: str = "", killer: tuple[str, int] | None = None
) -> subprocess.Popen[Any]:
    """`algorist run recipes/smoke.toml` in a process of its own; what it says goes to log.txt in the run folder."""
    program = ["-m", "algorist"] if killer is None else ["-c", KILLER, str(folder), killer[0], str(killer[1])]
    words = [sys.executable, *program, "run", str(SMOKE), "--out", str(folder)]
    words += [word for override in overrides for word in ("--set", override)]
    words += ["--until", until] if until else []
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    with open(folder.with_suffix(".log"), "w", encoding="utf-8") as log:
        return subprocess.Popen(words, env=environment, stdout=log, stderr=log)


def said(folder: Path) -> str:
    """What the latest process said."""
    return folder.with_suffix(".log").read_text(encoding="utf-8")


def finish(folder: Path, *overrides: str, until: str = "") -> str:
    """Run to the end; what was said."""
    status = begin(folder, *overrides, until=until).wait(timeout=300)
    assert status == 0, said(folder)
    return said(folder)


def killed_at(folder: Path, pattern: str, *overrides: str, after: int = 0, until: str = "") -> str:
    """Run, and be killed before a change to a file (see KILLER); what was said until then."""
    status = begin(folder, *overrides, until=until, killer=(pattern, after)).wait(timeout=300)
    assert status == -signal.SIGKILL, said(folder)
    assert_lock_free(folder)
    return said(folder)


def killed_when(folder: Path, due: Callable[[], bool], *overrides: str) -> str:
    """Run, and be killed from outside as soon as `due`; what was said until then."""
    process = begin(folder, *overrides)
    while not due() and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL, said(folder)
    assert_lock_free(folder)
    return said(folder)


def assert_lock_free(folder: Path) -> None:
    """Whoever was killed holds the run folder no longer, nor does a child of it."""
    with open(folder / ".lock", "a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def num_lines(path: Path) -> int:
    """Whole lines, 0 where there is no file."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def without_seconds(value: Any) -> Any:
    """The value without what the clock says."""
    if isinstance(value, dict):
        return {key: without_seconds(item) for key, item in value.items() if not key.endswith("seconds")}
    return [without_seconds(item) for item in value] if isinstance(value, list) else value


def content(path: Path) -> Any:
    """What two equal runs have in common of a file: its bytes, or, where the time is noted, all but that."""
    if path.suffix == ".jsonl":
        return [without_seconds(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    return without_seconds(json.loads(path.read_bytes())) if path.suffix == ".json" else path.read_bytes()


def contents(run: Path) -> dict[str, Any]:
    """File → content, of everything that the finished tasks of a run left behind, whatever its name."""
    found = {path.relative_to(run).as_posix(): path for path in run.rglob("*") if path.is_file()}
    return {
        name: content(path)
        for name, path in found.items()
        if name not in LEFT_OUT and not name.startswith((LOG, "superseded/")) and "/healthy-" not in name
    }


def assert_same(run: Path, undisturbed: Path) -> None:
    """Every file of both runs: weights, cards, data, rollouts, verdicts, journals, scores; and no file more."""
    ours, theirs = contents(run), contents(undisturbed)
    assert sorted(ours) == sorted(theirs)
    assert [name for name in ours if ours[name] != theirs[name]] == []
    assert any(name.endswith("rlvr/checkpoint/model.safetensors") for name in ours) or "rlvr" not in os.listdir(run)
    assert not [path for path in run.rglob("*") if "draft" in path.name or path.name.startswith("step-")]


def test_killed_in_each_task_it_goes_on_with_the_same_numbers(smoke_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    often = ("base.save_every=10", "midtrain.save_every=1", "sft.save_every=3", "dpo.save_every=1", "rlvr.save_every=1")
    steps = {stage: num_lines(smoke_run / stage / "journal.jsonl") for stage in ("midtrain", "sft", "dpo", "rlvr")}

    killed_when(run, lambda: num_lines(run / "base" / "journal.jsonl") >= 25, *often)
    log = killed_when(run, lambda: "base: toy: " in said(run), *often)
    assert "benchmarks: done before, skipped\n" in log and "verdicts: done before, skipped\n" in log
    assert re.search(r"^base: goes on at step \d+0 of \d+$", log, re.M)

    # in the middle of the save after step 4
    log = killed_at(run, r"open .*/midtrain/\.step-0000004\.draft/tokenizer", *often)
    assert "base: done before, skipped\n" in log and "goes on" not in log
    # in the middle of deleting the save on the way, when the stage's checkpoint stands
    log = killed_at(run, r"os.rename .*/sft/\.checkpoint\.draft$", *often, after=5)
    assert f"midtrain: goes on at step 3 of {steps['midtrain']}\n" in log
    whole, half = run / "sft" / "checkpoint", run / "sft" / "step-0000003"
    assert 0 < len(os.listdir(half)) < len(os.listdir(whole))
    # between the end of the stage and the mark that says so: the first time this process writes it
    log = killed_at(run, r"open .*/sft/\.task\.json\.draft", *often)
    assert f"sft: {steps['sft']}/{steps['sft']}" not in log and "sft: goes on" not in log  # nothing is trained again
    assert not half.exists()

    # between the token ids of a shard and the shard: the reference is computed again
    log = killed_at(run, r"os.rename .*/dpo/data/\.00000\.parquet\.draft$", *often)
    assert "dpo: reference: " in log
    assert [path.name for path in (run / "dpo" / "data").glob("0*")] == ["00000.ids"]
    assert f"sft: {steps['sft']}/{steps['sft']}" not in log and "sft: done in" in log
    killed_at(run, r"os.rename .*/dpo/\.checkpoint\.draft$", *often)
    log = killed_when(run, lambda: "rlvr: prompts: " in said(run), *often)
    assert f"dpo: goes on at step {steps['dpo'] - 1} of {steps['dpo']}\n" in log
    killed_when(run, lambda: num_lines(run / "rlvr" / "journal.jsonl") >= 2, *often)
    log = finish(run, *often)
    assert re.search(rf"^rlvr: goes on at step [12] of {steps['rlvr']}$", log, re.M)
    assert_same(run, smoke_run)


def test_killed_at_random_moments_it_goes_on_with_the_same_numbers(smoke_run: Path, tmp_path: Path) -> None:
    run, chance = tmp_path / "run", random.Random(17)
    often = [f"{stage}.save_every={steps}" for stage, steps in zip(STAGES, (16, 4, 2, 1, 1), strict=True)]
    for _ in range(6):
        status = begin(run, *often, killer=("", chance.randrange(CHANGES // 3))).wait(timeout=300)
        if status == 0:
            break
        assert status == -signal.SIGKILL, said(run)
        assert_lock_free(run)
    # save_every is the recipe's own again: what the kills left of more frequent saves goes all the same
    finish(run)
    assert_same(run, smoke_run)


def test_killed_amid_reinforcement_learning_it_goes_on_with_the_same_numbers(smoke_run: Path, tmp_path: Path) -> None:
    """In sampling, with rollouts and without verdicts, between two optimizer steps of a generation, and in a save."""
    keys = ("rlvr.updates=2", "rlvr.engine.issue=1.5", "rlvr.save_every=2", "rlvr.learning_rate=0.001")
    undisturbed, run = (shutil.copytree(smoke_run, tmp_path / name) for name in ("undisturbed", "run"))
    log = finish(undisturbed, *keys)
    steps = num_lines(undisturbed / "rlvr" / "journal.jsonl")
    assert steps == 6 and f"rlvr: {steps}/{steps}" in log
    killed_at(run, r"os.rename .*/rlvr/carried/\.00000\.parquet\.draft$", *keys)  # all sampled, nothing stored
    killed_at(run, r"os.rename .*/rlvr/verdicts/\.00000\.parquet\.draft$", *keys)
    assert not num_lines(run / "rlvr" / "journal.jsonl")
    killed_when(run, lambda: num_lines(run / "rlvr" / "journal.jsonl") == 1, *keys)  # the second step is lost
    first = (run / "rlvr" / "verdicts" / "00000.parquet").stat().st_mtime_ns
    killed_at(run, r"open .*/rlvr/\.step-0000002\.draft/tokenizer", *keys)
    killed_at(run, r"os.rename .*/rlvr/rollouts/\.00001\.parquet\.draft$", *keys)
    assert (run / "rlvr" / "step-0000002").exists()
    log = killed_at(run, r"os.rename .*/rlvr/\.step-0000004\.draft$", *keys)
    assert f"rlvr: goes on at step 2 of {steps}\n" in log
    log = finish(run, *keys)
    assert f"rlvr: goes on at step 2 of {steps}\n" in log
    assert (run / "rlvr" / "verdicts" / "00000.parquet").stat().st_mtime_ns == first  # sampled and judged once
    assert_same(run, undisturbed)


def test_shards_of_rollouts_and_verdicts_that_are_finished_stay(tmp_path: Path) -> None:
    many = "toy.problems=2500"  # three shards of rollouts
    undisturbed, run = tmp_path / "undisturbed", tmp_path / "run"
    with begin(undisturbed, many, until="verdicts") as beside:
        killed_at(run, r"os.rename .*/\.recipe\.toml\.draft$", many, until="verdicts")
        killed_at(run, r"os.rename .*/rollouts/\.00001\.parquet\.draft$", many, until="verdicts")
        log = finish(run, many, until="rollouts")
        assert re.search(r"^rollouts: 0 samples of toy-teacher, [\d,]+ were in the log before;?", log, re.M)
        killed_at(run, r"os.rename .*/verdicts/\.00001\.parquet\.draft$", many, until="verdicts")
        assert [path.name for path in (run / "verdicts").glob("[0-9]*")] == ["00000.parquet"]
        kept = (run / "verdicts" / "00000.parquet").stat().st_mtime_ns
        log = finish(run, many, until="verdicts")
        assert "rollouts: done before, skipped\n" in log and "verdicts: done in" in log
        assert kept == (run / "verdicts" / "00000.parquet").stat().st_mtime_ns
    assert beside.returncode == 0, said(undisturbed)
    assert_same(run, undisturbed)

    # a change of mind that was killed before the first mark, and taken back
    killed_at(run, r"os.rename .*/benchmarks/\.task\.json\.draft$", many, "seed=2", until="verdicts")
    log = finish(run, many, until="verdicts")
    assert log.count("done before, skipped\n") == 5 and "done in" not in log
    assert_same(run, undisturbed)


def test_a_change_makes_again_what_depends_on_it_and_can_be_taken_back(smoke_run: Path, tmp_path: Path) -> None:
    run, disturbed = (shutil.copytree(smoke_run, tmp_path / name) for name in ("run", "disturbed"))
    before = {name: value for name, value in contents(smoke_run).items() if name.startswith(("rlvr/", "scores/rlvr/"))}
    change = ("rlvr.algorithm=ppo", "rlvr.updates=2")  # a critic, and generations of two optimizer steps
    journal, number = disturbed / "rlvr" / "journal.jsonl", 2 * num_lines(smoke_run / "rlvr" / "journal.jsonl")
    with begin(run, *change) as beside:
        killed_when(
            disturbed,
            lambda: (disturbed / "superseded").exists() and num_lines(journal) >= 3,
            *change,
            "rlvr.save_every=1",
        )
        log = killed_at(disturbed, r"os.rename .*/rlvr/\.checkpoint\.draft$", *change, "rlvr.save_every=3")
        assert re.search(rf"^rlvr: goes on at step [24] of {number}$", log, re.M)
        log = finish(disturbed, *change, "rlvr.save_every=3")  # a save that is due amid a generation waits for its end
        assert f"rlvr: goes on at step {number - 2} of {number}\n" in log

    assert beside.returncode == 0, said(run)
    assert_same(disturbed, run)
    log = said(run)
    made = "made again: rlvr, made by another recipe, and what comes to another content by it; what was there moves to"
    assert f"{made} {run / 'superseded'}\n" in log
    assert re.findall(r"^(\S+): done in", log, re.M) == ["rlvr", "scores/rlvr"]
    assert log.count(": done before, skipped\n") == 19
    marks = {task: json.loads((smoke_run / task / "task.json").read_text()) for task in ("rlvr", "scores/rlvr")}
    names = {task: content_id(mark["fingerprint"], mark["inputs"]) for task, mark in marks.items()}
    aside = {task: run / "superseded" / f"{task.replace('/', '-')}-{name}" for task, name in names.items()}
    assert {
        f"{task}/{name}": value for task, place in aside.items() for name, value in contents(place).items()
    } == before

    log = finish(run)
    assert log.count(": done before, skipped\n") == 21 and "done in" not in log
    assert_same(run, smoke_run)


def recipe_with(*overrides: str) -> Recipe:
    """The smoke recipe with a few keys changed."""
    return recipes.read(SMOKE, sections(), overrides)


EVERY = [task.name for task in tasks(recipe_with())]


@pytest.mark.parametrize(
    ("override", "again"),
    [
        ("seed=2", [name for name in EVERY if name not in ("problems", "verdicts", "measures", "profiles")]),
        ("model.prompt='Now: {problem}'", [name for name in EVERY if name.startswith("sets/") or "/" not in name
                                           and name in STAGES or name.startswith("scores/")]),
        ("toy.held_out=9", ["benchmarks"]),
        ("toy.most_steps=5", ["benchmarks", "sources"]),
        ("toy.problems=61", ["sources"]),
        ("data.ngram=30", ["base", "measures", "problems"]),
        ("data.near=0.9", ["problems"]),
        ("data.workers=2", []),
        ("data.engine=ray", []),
        ("teacher.samples=5", ["rollouts"]),
        ("teacher.concurrency=3", []),
        ("teacher.model=other", ["rollouts"]),
        ("verify.seconds=2.5", ["sources", "verdicts", "rlvr", *(f"scores/{stage}" for stage in STAGES)]),
        ("judge.model=other", []),
        ("labels.model=other", []),
        ("curate.midtrain.per_problem=3", ["sets/midtrain", "sets/sft"]),
        ("curate.sft.per_problem=3", ["sets/sft"]),
        ("curate.dpo.per_problem=3", ["sets/dpo"]),
        ("curate.rlvr.min_pass_rate=0.5", ["sets/rlvr"]),
        ("base.learning_rate=0.01", ["base"]),
        ("base.save_every=3", []),
        ("midtrain.epochs=3", ["midtrain"]),
        ("midtrain.save_every=3", []),
        ("sft.learning_rate=0.01", ["sft"]),
        ("sft.save_every=3", []),
        ("dpo.beta=0.2", ["dpo"]),
        ("dpo.save_every=3", []),
        ("rlvr.steps=4", ["rlvr"]),
        ("rlvr.prompts.rounds=3", ["rlvr"]),
        ("rlvr.save_every=3", []),
        ("rlvr.health.patience=60.0", []),
        ("rlvr.engine.issue=1.5", ["rlvr"]),
        ("evaluate.temperature=0.5", [f"scores/{stage}" for stage in STAGES]),
    ],
)  # fmt: skip
def test_a_key_is_read_by_these_tasks_and_no_others(override: str, again: list[str]) -> None:
    old, new = recipe_with(), recipe_with(override)
    changed = [one.name for one, two in zip(tasks(old), tasks(new), strict=True)
               if fingerprint(old, one) != fingerprint(new, two)]  # fmt: skip
    assert sorted(changed) == sorted(again)


def test_a_server_may_move_and_the_scripted_teacher_may_not_take_its_place() -> None:
    def rollouts(*overrides: str) -> str:
        read = recipe_with(*overrides)
        return fingerprint(read, next(task for task in tasks(read) if task.name == "rollouts"))

    here, there = (rollouts(f"teacher.url={url}") for url in ("http://a:1/v1", "https://b/v1"))
    assert here == there == rollouts('teacher.url=["http://a:1/v1", "http://b:2/v1"]')
    assert here != rollouts()


def test_other_data_makes_again_what_started_from_it(command, tmp_path: Path) -> None:
    asked, told, run = tmp_path / "asked.jsonl", tmp_path / "told.jsonl", tmp_path / "run"
    asked.write_text('{"question": "What is left over?", "answer": "1"}\n')
    told.write_text('{"question": "What is 1 + 1?", "answer": "2"}\n{"question": "What is 3 + 1?", "answer": "4"}\n')
    overrides = (f'data.problems=["{told}"]', f'data.benchmarks={{own="{asked}"}}')
    words = ("run", SMOKE, "--out", run, "--until", "verdicts", *(x for o in overrides for x in ("--set", o)))

    def made() -> list[str]:
        status, printed, err = command(*words)
        assert status == 0, err
        return re.findall(r"^(\S+): done in", printed + err, re.M)

    def gold() -> set[str]:
        return {problem.answer for problem in store.read(run / "problems", Problem)}

    assert made() == ["benchmarks", "sources", "problems", "rollouts", "verdicts"] and made() == []
    first = told.read_text()
    told.write_text(first.replace('"4"', '"5"'))
    # the same questions bring the same rollouts, whatever the answer
    assert made() == ["sources", "problems", "rollouts", "verdicts"] and gold() == {"2", "5"}
    told.write_text(first)
    assert made() == [] and gold() == {"2", "4"}  # what was there comes back
    asked.write_text('{"question": "What is 3 + 1?", "answer": "4"}\n')
    # the first shard is another, and what is made of it
    assert made() == ["benchmarks", "problems", "rollouts", "verdicts"] and gold() == {"2"}
    shutil.rmtree(run / "rollouts")
    assert made() == ["rollouts"]  # the same texts again: what was made from them stands
    shard = run / "rollouts" / "00000.parquet"
    said = store.read_shard(shard, Rollout)
    store.write(run / "rollouts", Rollout, [replace(rollout, text="other") for rollout in said])
    assert made() == ["verdicts"]
