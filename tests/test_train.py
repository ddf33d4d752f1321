"""The loop, on a stage made by hand: what it refuses, clips, journals, saves and signs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from algorist import journal, store
from algorist.errors import RunError
from algorist.model import checkpoints
from algorist.model.batches import Batch, Document, lay_out
from algorist.model.chat import Chat
from algorist.model.policy import Policy
from algorist.numerics import losses
from algorist.numerics.losses import Loss
from algorist.numerics.schedules import learning_rate
from algorist.recipe import Recipe
from algorist.records import Checkpoint, Problem
from algorist.stage import Plan, Run, Stage, Step, Training
from algorist.toy import base, words
from algorist.train import train

STEPS = 4
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Settings:
    """The stage has no keys of its own."""


@dataclass
class Watch:
    """What could be seen when the loop asked for each step: it has finished the one before by then."""

    weights: list[Weights]
    saves: list[list[str]]
    policy: Policy | None = None


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Chat]:
    tokenizer = words.tokenizer()
    shape = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "mlp_size": 16, "context": 64}
    folder = tmp_path_factory.mktemp("parent") / "checkpoint"
    checkpoints.save(folder, Policy(base.model(len(tokenizer), 1, **shape)), tokenizer, Checkpoint("", "before", 3))
    return folder, Chat.of(tokenizer, "{problem}")


def batch(index: int, scale: float = 1.0) -> Batch:
    """Two documents; weights sum to `scale`."""
    documents = [Document.of([5 + index, 9, 30 + index, 31], 2), Document.of([6, 10, 40 + index, 41, 42], 2)]
    return lay_out(documents, total=5.0 / scale)


def usual(index: int) -> Step:
    return Step((batch(index, 0.25), batch(index + 9, 0.75)), {"tokens": 18})


def cross_entropy(policy: Policy, rows: Batch, _: Any) -> Loss:
    return losses.cross_entropy(policy.logprobs(rows), rows.weights)


def made(
    root: Path,
    parent: tuple[Path, Chat],
    *,
    step: Callable[[int], Step] = usual,
    loss: Callable[..., Loss] = cross_entropy,
    **training: Any,
) -> tuple[Run, Watch]:
    watch = Watch([], [])

    def steps(run: Run, policy: Policy) -> Iterator[Step]:
        watch.policy = policy
        for index in range(run.start, STEPS):
            watch.weights.append(copied(policy))
            watch.saves.append(sorted(path.name for path in run.folder.glob("step-*")))
            yield step(index)

    keys = Training(**{"learning_rate": 0.01, "warmup": 0.5, **training})
    stage = Stage(
        "made", Settings, keys, (), lambda run: store.manifest(run.data), lambda run: Plan(STEPS, 2, 9), steps, loss
    )
    recipe = Recipe(root / "recipe.toml", "test", 1, {"made": (Settings(), keys)})
    run = Run(recipe, root, stage, str(parent[0]), parent[1], "float32")
    if not run.data.exists():
        store.write(run.data, Problem, [Problem.of("What is 1 + 1?", "2")])
    return run, watch


def copied(policy: Policy) -> Weights:
    return {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}


def final(run: Run) -> Weights:
    return copied(checkpoints.open_policy(run.folder / "checkpoint", precision="float32"))


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def distance(one: Weights, other: Weights) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def broken_at(bad: int) -> Callable[[int], Step]:
    """The usual steps, but the second micro-batch of one of them gives NaN."""
    nan = replace(batch(0), weights=batch(0).weights * float("nan"))
    return lambda index: Step((batch(index), nan), {"tokens": 18}) if index == bad else usual(index)


def test_a_loss_that_is_not_finite_moves_no_weight(tmp_path: Path, parent: tuple[Path, Chat]) -> None:
    run, watch = made(tmp_path, parent, step=broken_at(1), save_every=1)
    with pytest.raises(RunError) as refused:
        train(run)
    assert str(refused.value) == (
        f"{run.folder}: loss was not finite at step 1, before any weight changed. "
        "The last save is kept: lower learning_rate, or look for a broken record in this step's batch."
    )
    assert watch.policy is not None and same(copied(watch.policy), watch.weights[1])
    assert not same(watch.weights[0], watch.weights[1])  # step 0 did move them
    saved = checkpoints.open_policy(run.folder / "step-0000001", precision="float32")
    assert same(copied(saved), watch.weights[1])
    assert [entry["step"] for entry in journal.read(run.folder)] == [0]
    assert not (run.folder / "checkpoint").exists()


def test_a_mended_run_goes_on_from_the_last_save(tmp_path: Path, parent: tuple[Path, Chat]) -> None:
    straight, _ = made(tmp_path / "straight", parent)
    card = train(straight)
    run, _ = made(tmp_path / "broken", parent, step=broken_at(2), save_every=1)
    with pytest.raises(RunError):
        train(run)
    mended, watch = made(tmp_path / "broken", parent)
    said: list[str] = []
    again = train(mended, said.append)
    assert said == ["made: goes on at step 2 of 4"] and len(watch.weights) == 2
    assert again.id == card.id and same(final(mended), final(straight))
    assert [entry["step"] for entry in journal.read(run.folder)] == [0, 1, 2, 3]
    assert list(run.folder.glob("step-*")) == []


def test_a_gradient_that_is_not_finite_is_refused_too(tmp_path: Path, parent: tuple[Path, Chat]) -> None:
    def loss(policy: Policy, rows: Batch, settings: Any) -> Loss:
        found = cross_entropy(policy, rows, settings)
        nothing = (0 * next(policy.parameters())).sum()
        return Loss(found.value + nothing.sqrt(), found.metrics)  # 0, with an infinite slope

    run, watch = made(tmp_path, parent, loss=loss)
    with pytest.raises(RunError, match="grad_norm was not finite at step 0, before any weight changed"):
        train(run)
    assert watch.policy is not None and same(copied(watch.policy), watch.weights[0])


def test_the_gradient_is_clipped(tmp_path: Path, parent: tuple[Path, Chat]) -> None:
    """Once every gradient is cut to the same length, it does not matter how large one of them was before."""

    def weights_after(name: str, scale: float, limit: float) -> tuple[Weights, list[float]]:
        def step(index: int) -> Step:
            return Step((batch(index, scale if index == 1 else 1.0),), {"tokens": 9})

        run, _ = made(tmp_path / name, parent, step=step, max_grad_norm=limit)
        train(run)
        return final(run), [entry["grad_norm"] for entry in journal.read(run.folder)]

    plain, plain_norms = weights_after("plain", 1.0, 0.05)
    large, large_norms = weights_after("large", 50.0, 0.05)
    free, _ = weights_after("free", 50.0, 1e9)
    assert min(plain_norms) > 0.05  # what is written is the length before it was cut
    assert large_norms[1] == pytest.approx(50 * plain_norms[1], rel=1e-3)
    assert distance(large, plain) < 1e-4 < 1e-3 < distance(large, free)


def test_micro_batches_change_nothing_but_rounding(tmp_path: Path, parent: tuple[Path, Chat]) -> None:
    def joined(index: int) -> Step:
        parts = [
            Document([5 + index, 9, 30 + index, 31], [0, 0, 0.05, 0.05]),
            Document([6, 10, 40 + index, 41, 42], [0, 0, 0.05, 0.05, 0.05]),
            Document([14 + index, 9, 39 + index, 31], [0, 0, 0.15, 0.15]),
            Document([6, 10, 49 + index, 41, 42], [0, 0, 0.15, 0.15, 0.15]),
        ]
        return Step((lay_out(parts),), {"tokens": 18})

    cut, _ = made(tmp_path / "cut", parent)
    whole, _ = made(tmp_path / "whole", parent, step=joined)
    train(cut)
    train(whole)
    for one, other in zip(journal.read(cut.folder), journal.read(whole.folder), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)


def test_the_journal(tmp_path: Path, parent: tuple[Path, Chat]) -> None:
    run, _ = made(tmp_path, parent)
    train(run)
    entries = journal.read(run.folder)
    assert [entry["step"] for entry in entries] == list(range(STEPS))
    assert all({"step", "seconds", "tokens", "loss", "grad_norm", "lr"} == set(entry) for entry in entries)
    rates = [learning_rate(i, STEPS, peak=0.01, warmup=0.5, end=0.0) for i in range(STEPS)]
    assert [entry["lr"] for entry in entries] == rates and rates[:2] == [0.005, 0.01]
    policy = checkpoints.open_policy(parent[0], precision="float32")
    expected = sum(float(cross_entropy(policy, rows, None).metrics["loss"]) for rows in usual(0).batches)
    assert entries[0]["loss"] == pytest.approx(expected, rel=1e-5)


def test_the_checkpoint_is_signed_with_what_it_was_made_from(tmp_path: Path, parent: tuple[Path, Chat]) -> None:
    run, _ = made(tmp_path, parent)
    card = train(run)
    data = store.manifest(run.data).id
    assert card.parents == (checkpoints.card(parent[0]).id, data)
    assert (card.stage, card.step, card.tokens) == ("made", STEPS, STEPS * 18)
    assert card.seconds == pytest.approx(sum(entry["seconds"] for entry in journal.read(run.folder)))
    assert card.id == checkpoints.weights_id(run.folder / "checkpoint") != card.parents[0]
    assert card == checkpoints.card(run.folder / "checkpoint")


def test_a_parent_without_a_card_leaves_the_data_alone_as_parent(tmp_path: Path, parent: tuple[Path, Chat]) -> None:
    bare = tmp_path / "downloaded"
    checkpoints.open_policy(parent[0], precision="float32").model.save_pretrained(bare)
    run, _ = made(tmp_path, (bare, parent[1]))
    assert train(run).parents == (store.manifest(run.data).id,)


def test_saves_wait_until_the_stage_may_stop(tmp_path: Path, parent: tuple[Path, Chat]) -> None:
    run, watch = made(tmp_path, parent, step=lambda i: replace(usual(i), may_stop=i != 0), save_every=1)
    train(run)
    assert watch.saves == [[], [], ["step-0000002"], ["step-0000003"]]
    assert list(run.folder.glob("step-*")) == []


def test_a_finished_stage_is_not_trained_again(tmp_path: Path, parent: tuple[Path, Chat]) -> None:
    run, _ = made(tmp_path, parent)
    card = train(run)
    (run.folder / "step-0000002").mkdir()  # a kill between the checkpoint and the tidying leaves one
    again, watch = made(tmp_path, parent)
    assert train(again) == card and watch.weights == []
    assert list(run.folder.glob("step-*")) == []
