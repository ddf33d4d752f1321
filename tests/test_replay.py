"""A stored generation is learned from again: the same numbers, and where they are not, which."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from algorist import journal, replay
from algorist import recipe as recipes
from algorist.stage import Run
from algorist.tasks import sections


def test_the_trainer_alone_gives_the_same_numbers(command, smoke_run: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in smoke_run.rglob("*")}
    status, said, err = command("replay", smoke_run)
    assert status == 0, err
    steps = len(journal.read(smoke_run / "rlvr"))
    parent = smoke_run / "dpo" / "checkpoint"
    assert said.splitlines()[0] == f"rlvr: steps 0 to {steps - 1} again, from {parent}"
    assert said.splitlines()[-steps:] == [f"step {step}: the same numbers" for step in range(steps)]
    assert "sampled" not in err
    status, said, _ = command("replay", smoke_run, "--step", "0")
    assert status == 0 and "step 1" not in said
    assert before == {path: path.stat().st_mtime_ns for path in smoke_run.rglob("*")}


def test_what_differs_is_named(command, smoke_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(smoke_run, tmp_path / "run")
    file = run / "rlvr" / "journal.jsonl"
    first, *rest = file.read_text().splitlines()
    entry = json.loads(first)
    file.write_text("\n".join([json.dumps({**entry, "grad_norm": 7.5, "seconds": 1e9}), *rest]) + "\n")
    status, said, _ = command("replay", run, "--step", "0")
    assert status == 1
    assert said.splitlines()[-1] == f"step 0: grad_norm 7.5 then, {entry['grad_norm']} now"


def test_what_only_one_journal_has_is_no_difference_and_drafts_are_no_saves(
    command, smoke_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(smoke_run, tmp_path / "run")
    (run / "rlvr" / ".step-0000001.draft").mkdir()  # of a save that was killed
    file = run / "rlvr" / "journal.jsonl"
    entries = [json.loads(line) | {"of_another_version": 1.0} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    status, said, err = command("replay", run, "--step", "0")
    assert (status, said.splitlines()[-1]) == (0, "step 0: the same numbers"), err


def test_from_a_save_the_loop_is_shown_the_steps_before_it(monkeypatch: pytest.MonkeyPatch, smoke_run: Path) -> None:
    """Alarms look back: without these steps one that had stood for long would be said anew."""
    whole, shown, said = journal.read(smoke_run / "rlvr"), [], []

    def trained(run: Run, say: object) -> None:
        shown.extend(journal.read(run.folder))
        shutil.copy(smoke_run / "rlvr" / journal.FILE, run.folder / journal.FILE)

    monkeypatch.setattr(replay, "_start", lambda folder, copy, last: 2)
    monkeypatch.setattr(replay, "train", trained)
    recipe = recipes.read(smoke_run / "recipe.toml", sections())
    assert replay.replay(smoke_run, recipe, None, said.append) == 0
    assert shown == whole[:2] and len(whole) > 2
    assert said[1:] == [f"step {entry['step']}: the same numbers" for entry in whole[2:]]


def test_refusals(command, smoke_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(smoke_run, tmp_path / "run")
    last = len(journal.read(run / "rlvr")) - 1
    place = run / "rlvr"
    wrong = f"{place}: step 99 is not there, its journal has steps 0 to {last}. Name one of them with --step.\n"
    assert command("replay", run, "--step", "99")[::2] == (4, wrong)
    gone = place / "verdicts" / "00000.parquet"
    gone.unlink()
    why = f"{gone}: the rollouts of this generation are gone. Replay works on a whole run folder.\n"
    assert command("replay", run)[::2] == (4, why)
    (place / "journal.jsonl").unlink()
    none = f"{place}: has taken no step yet. Run the recipe first: algorist run.\n"
    assert command("replay", run)[::2] == (4, none)
