"""THE loop. Every stage is trained by it, and it knows none of them.

For each step: loss, backward, clip; refuse a loss that is not finite before any weight has moved; step; journal, and
ask the stage whether something goes wrong; save where a save can be resumed from exactly. Nothing here divides:
weights carry the normalisation.
"""

from __future__ import annotations

import re
import shutil
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from algorist import journal, store
from algorist.journal import Journal
from algorist.model import checkpoints, lora, memory, recompute
from algorist.model.optimizers import Optimizer, require_movement
from algorist.model.policy import Policy
from algorist.numerics.schedules import learning_rate
from algorist.records import CARD, Checkpoint
from algorist.stage import Plan, Run


def train(run: Run, say: Callable[[str], object] = lambda _: None) -> Checkpoint:
    """Train one stage to its end, or resume it, and return its checkpoint, `<run>/<stage>/checkpoint`.

    Raises:
        RunError where a loss is not finite, or the learning rate too small to move a weight; the last save stays.
    """
    stage, training = run.stage, run.training
    if (run.folder / "checkpoint").exists():  # killed after the last step: the folder appears whole or not at all
        return _cleared(run.folder, checkpoints.card(run.folder / "checkpoint"))
    plan = stage.plan(run)
    policy, optimizer, run = _open(run)
    if run.start:
        say(f"{stage.name}: goes on at step {run.start} of {plan.num_steps}")
    _fit(run, plan, policy, optimizer, say)
    policy.train()
    save_due = False
    with Journal(run.folder, total=plan.num_steps, title=stage.name, start=run.start) as log:
        latest = deque(journal.read(run.folder), maxlen=stage.looked_at(run.settings))
        wrong = stage.alarm(run.settings, tuple(latest))
        for index, step in enumerate(stage.steps(run, policy), run.start):
            with log.step(index) as entry:
                entry.set(**step.facts)
                began = time.monotonic()
                for batch in step.batches:
                    loss = stage.loss(policy, batch.to(policy.device), run.settings)
                    loss.value.backward()  # type: ignore[no-untyped-call]
                    entry.add(loss.metrics)
                norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), training.max_grad_norm)
                rate = learning_rate(
                    index,
                    plan.num_steps,
                    peak=training.learning_rate,
                    warmup=training.warmup,
                    end=training.end_learning_rate,
                )
                entry.set(grad_norm=norm, lr=rate)
                entry.refuse_unless_finite()
                optimizer.step(rate)
                entry.set(train_seconds=time.monotonic() - began)
                latest.append(entry.values)
                before, wrong = wrong, stage.alarm(run.settings, tuple(latest))
                if wrong and _words(wrong) != _words(before):
                    entry.set(alarm=wrong)
                    say(f"{stage.name}: {wrong}")
            save_due = save_due or (index + 1) % training.save_every == 0
            if save_due and step.may_stop and index + 1 < plan.num_steps:
                _save(run, policy, optimizer, index + 1)
                save_due = False
    card = _finish(run, policy, plan.num_steps)
    for save in _kept_healthy(run.folder):
        say(f"{stage.name}: {save} is from before the alarm that the stage ended with")
    return card


def _open(run: Run) -> tuple[Policy, Optimizer, Run]:
    """The policy and optimizer of the last save, or of the parent, and the run with the step to begin at."""
    saves, training = _saves(run.folder), run.training
    adapted = training.lora.rank > 0
    source = saves[-1] if saves and not adapted else run.parent
    policy = run.opened(source, critic=run.stage.critic(run.settings))
    if adapted:
        lora.attach(
            policy.model,
            rank=training.lora.rank,
            alpha=training.lora.alpha,
            targets=training.lora.targets,
            address=(run.seed, run.stage.name),
        )
    require_movement(policy, run.stage.name, training.learning_rate)
    optimizer = Optimizer(
        policy, kind=training.optimizer, weight_decay=training.weight_decay, others_rate=training.others_rate
    )
    start = checkpoints.resume(saves[-1], policy, optimizer) if saves else run.start
    return policy, optimizer, replace(run, start=start)


def _fit(run: Run, plan: Plan, policy: Policy, optimizer: Optimizer, say: Callable[[str], object]) -> None:
    """Choose what the backward pass computes again so that a micro-batch fits into memory, say so, and compile."""
    training = run.training
    longest = max(training.tokens_per_batch, plan.longest)
    need = memory.Need.of(policy, optimizer, longest, run.stage.copies(run.settings))
    room = memory.available(policy.device)
    kind = memory.choose(need, room, training.recompute)
    for line in memory.describe(need, room, kind, training.recompute).splitlines():
        say(f"{run.stage.name}: {line}")
    recompute.apply(policy.model, kind)
    if policy.critic is not None and policy.critic.trunk is not None:
        recompute.apply(policy.critic.trunk, kind)
    if training.compile:
        policy.fuse()


def _words(alarm: str) -> str:
    """An alarm without its numbers: while only these change, it is the same one."""
    return re.sub(r"\d", "", alarm)


def _saves(folder: Path) -> list[Path]:
    """Saves of an unfinished stage, oldest first. A folder with its final name is whole."""
    return sorted(folder.glob("step-*"))


def _save(run: Run, policy: Policy, optimizer: Optimizer, step: int) -> None:
    card = Checkpoint("", run.stage.name, step)
    old = _saves(run.folder)
    checkpoints.save(run.folder / f"step-{step:07d}", policy, run.chat.tokenizer, card, optimizer)
    _clear(run, old, step)


def _clear(run: Run, saves: Sequence[Path], step: int) -> None:
    """Delete saves that the one at `step` has made needless. The last from before an alarm stays until it is over."""
    entries, shown = journal.read(run.folder), run.stage.looked_at(run.settings)

    def healthy(step: int) -> bool:
        return not run.stage.alarm(run.settings, tuple(entries[max(step - shown, 0) : step]))

    old = [*_kept_healthy(run.folder), *saves]
    sound = [] if healthy(step) else [save for save in old if healthy(int(save.name[-7:]))]
    for save in old:
        if sound and save == sound[-1]:
            save.rename(save.with_name(save.name.replace("step", "healthy")))
        else:
            shutil.rmtree(save)


def _kept_healthy(folder: Path) -> list[Path]:
    return sorted(folder.glob("healthy-*"))


def _finish(run: Run, policy: Policy, num_steps: int) -> Checkpoint:
    """The stage's checkpoint, with its parents; only then are the saves on the way deleted."""
    tokens, seconds = journal.totals(run.folder)
    parents = [store.manifest(run.data).id]
    if (Path(run.parent) / CARD).exists():
        parents.insert(0, checkpoints.card(Path(run.parent)).id)
    card = Checkpoint("", run.stage.name, num_steps, tuple(parents), tokens, seconds)
    card = checkpoints.save(run.folder / "checkpoint", policy, run.chat.tokenizer, card)
    _clear(run, _saves(run.folder), num_steps)
    return _cleared(run.folder, card)


def _cleared(folder: Path, card: Checkpoint) -> Checkpoint:
    """The card, once the saves on the way are gone, those that a kill cut short too."""
    for save in (*_saves(folder), *folder.glob(".step-*.draft")):
        shutil.rmtree(save)
    return card
