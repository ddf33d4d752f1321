"""A stored generation is learned from again: the same numbers, and where they are not, which."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from algorist import journal


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
    (place / ".step-0000001.draft").mkdir()  # of a save that was killed: not a save
    assert command("replay", run)[::2] == (4, why)
    (place / "journal.jsonl").unlink()
    none = f"{place}: has taken no step yet. Run the recipe first: algorist run.\n"
    assert command("replay", run)[::2] == (4, none)
