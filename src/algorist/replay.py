"""A stored generation learned from again, by the trainer alone: nothing is sampled, and the numbers must be the same.

Stage 4 learns from what stands on disk. So a step that looks wrong can be taken again as often as one likes, under a
debugger or on another machine, from the rollouts, verdicts and log-probabilities that it was taken with. On a CPU the
journal comes out bit for bit; where it does not, what differs is named.
"""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from algorist import journal, store
from algorist.errors import RunError
from algorist.model import chat as chats
from algorist.model import devices
from algorist.model.chat import Chat, load_tokenizer
from algorist.recipe import Recipe
from algorist.stage import Run, Step, Training
from algorist.stages import chosen, rlvr
from algorist.train import train

_READ = ("data", "prompts")  # folders of the stage that learning reads whole,
_SHARDS = ("rollouts", "verdicts", "carried")  # and those that it reads generation by generation


def replay(root: Path, recipe: Recipe, step: int | None, say: Callable[[str], object]) -> int:
    """Take the optimizer steps of stage 4 up to `step`, all unless given, once more and compare journals.

    It begins at the latest save before `step`, or at the model that stage 4 started from. The run is not changed.

    Returns:
        the number of steps whose numbers differ

    Raises:
        RunError where the run has no such step, or its rollouts are gone.
    """
    devices.settle()
    folder = root / rlvr.STAGE.name
    before = {entry["step"]: entry for entry in journal.read(folder)}
    last = max(before, default=-1) if step is None else step
    if last not in before:
        if not before:
            raise RunError(f"{folder}: has taken no step yet. Run the recipe first: algorist run.")
        raise RunError(
            f"{folder}: step {last} is not there, its journal has steps 0 to {max(before)}. Name one of them with "
            "--step."
        )
    run = _run(root, recipe)
    with tempfile.TemporaryDirectory(prefix="algorist-replay-") as scratch:
        copy = Path(scratch) / rlvr.STAGE.name
        copy.mkdir()
        _link(folder, copy, last // run.settings.updates)
        start = _start(folder, copy, last)
        earlier = [entry for at, entry in sorted(before.items()) if at < start]  # alarms look back
        store.write_text(copy / journal.FILE, "".join(json.dumps(entry) + "\n" for entry in earlier))
        ended = replace(run, root=Path(scratch), stage=replace(rlvr.STAGE, steps=_until(last)))
        say(f"rlvr: steps {start} to {last} again, from {f'the save at step {start}' if start else run.parent}")
        train(ended, say)
        return _compared(before, journal.read(copy)[start:], say)


def _link(folder: Path, copy: Path, generation: int) -> None:
    """Let a copy of the stage's folder have what learning reads up to a generation; nothing is written through it."""
    for name in _READ:
        (copy / name).symlink_to((folder / name).resolve())
    for name in _SHARDS:
        (copy / name).mkdir()
        for shard in (f"{one:05d}.parquet" for one in range(generation + 1)):
            if not (folder / name / shard).exists():
                raise RunError(
                    f"{folder / name / shard}: the rollouts of this generation are gone. Replay works on a whole run "
                    "folder."
                )
            (copy / name / shard).symlink_to((folder / name / shard).resolve())


def _until(last: int) -> Callable[[Run, Any], Iterator[Step]]:
    def steps(run: Run, policy: Any) -> Iterator[Step]:
        return itertools.islice(rlvr.STAGE.steps(run, policy), last + 1 - run.start)

    return steps


def _start(folder: Path, copy: Path, last: int) -> int:
    """The step that the latest usable save goes on with, once it is copied; 0 without one."""
    found = [*folder.glob("step-*"), *folder.glob("healthy-*")]
    saves = {int(save.name.rpartition("-")[2]): save for save in found}
    usable = [step for step in saves if step <= last]
    if not usable:
        return 0
    shutil.copytree(saves[max(usable)], copy / f"step-{max(usable):07d}")
    return max(usable)


def _run(root: Path, recipe: Recipe) -> Run:
    names = ["base", *(stage.name for stage in chosen(recipe))]
    if rlvr.STAGE.name not in names:
        raise RunError(f"{root}: stage 4 is none of this run's stages: {', '.join(names[1:]) or 'it has none'}.")
    parent = root / names[names.index(rlvr.STAGE.name) - 1] / "checkpoint"
    if not parent.exists():
        raise RunError(f"{parent}: the model that stage 4 started from is gone. Replay works on a whole run folder.")
    model = recipe.of("model", chats.Settings)
    chat = Chat.of(load_tokenizer(str(parent)), model.prompt, system=model.system)
    settings, training = recipe.of(rlvr.STAGE.name, rlvr.Settings), recipe.of(rlvr.STAGE.name, Training)
    in_turns = replace(settings, engine=rlvr.Engine())  # nothing is sampled, so nobody samples ahead
    recipe = replace(recipe, values={**recipe.values, rlvr.STAGE.name: (in_turns, training)})
    return Run(recipe, root, rlvr.STAGE, str(parent), chat, model.precision, model.weights, model.attention)


def _compared(before: dict[int, dict[str, Any]], again: list[dict[str, Any]], say: Callable[[str], object]) -> int:
    wrong = 0
    for entry in again:
        old = before[entry["step"]]
        known = {"alarm"} | (old.keys() & entry.keys())  # a journal of another version has other numbers too
        keys = [key for key in known if not key.endswith("seconds") and old.get(key) != entry.get(key)]
        said = ", ".join(f"{key} {old.get(key)} then, {entry.get(key)} now" for key in sorted(keys))
        say(f"step {entry['step']}: {said or 'the same numbers'}")
        wrong += bool(keys)
    return wrong
