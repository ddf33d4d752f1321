"""The loop, on a stage made by hand: what it refuses, clips, journals, saves and signs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor

from algorist import journal, store
from algorist.errors import RunError
from algorist.model import checkpoints, lora, recompute
from algorist.model.batches import Batch, Document, lay_out
from algorist.model.chat import Chat
from algorist.model.policy import Policy
from algorist.numerics import losses
from algorist.numerics.losses import Loss
from algorist.numerics.schedules import learning_rate
from algorist.recipe import Recipe
from algorist.records import Checkpoint, Problem
from algorist.stage import Lora, Plan, Run, Stage, Step, Training
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
    more: Mapping[str, Any] = MappingProxyType({}),
    **training: Any,
) -> tuple[Run, Watch]:
    """A run of the stage made by hand; `more` are further fields of the stage."""
    watch = Watch([], [])

    def steps(run: Run, policy: Policy) -> Iterator[Step]:
        watch.policy = policy
        for index in range(run.start, STEPS):
            watch.weights.append(copied(policy))
            watch.saves.append(sorted(path.name for path in run.folder.glob("step-*")))
            yield step(index)

    keys = Training(**{"learning_rate": 0.01, "warmup": 0.5, **training})
    stage = Stage(
        "made",
        Settings,
        keys,
        (),
        lambda run: store.manifest(run.data),
        lambda run: Plan(STEPS, 2, 9),
        steps,
        loss,
        **more,
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
    assert said[0] == "made: goes on at step 2 of 4" and len(watch.weights) == 2
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
    told = {"step", "seconds", "tokens", "loss", "grad_norm", "lr", "train_seconds", "idle_seconds"}
    assert all(told == set(entry) for entry in entries)
    assert all(0 < entry["train_seconds"] < entry["seconds"] for entry in entries)
    assert all(entry["train_seconds"] + entry["idle_seconds"] == pytest.approx(entry["seconds"]) for entry in entries)
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


def killed(root: Path, parent: tuple[Path, Chat], at: int, **how: Any) -> tuple[Run, Watch]:
    """A run that ended before step `at` and is about to go on from the save in front of it."""
    run, _ = made(root, parent, step=broken_at(at), save_every=1, **how)
    with pytest.raises(RunError):
        train(run)
    return made(root, parent, **how)


def lines(run: Run) -> list[dict[str, Any]]:
    """The journal without what the clock says."""
    entries = journal.read(run.folder)
    return [{key: value for key, value in entry.items() if not key.endswith("seconds")} for entry in entries]


@pytest.mark.parametrize(
    "how",
    [
        {"optimizer": "adamw"},
        {"optimizer": "muon", "weight_decay": 0.1},
        {"optimizer": "adamw8bit"},
        {"lora": Lora(rank=2)},
        {"lora": Lora(rank=2, targets=("o_proj",)), "optimizer": "muon"},
        {"lora": Lora(rank=2), "more": {"critic": lambda settings: "own"}},
        {"recompute": "selective"},
    ],
)
def test_a_resumed_run_equals_an_undisturbed_one(tmp_path: Path, parent: tuple[Path, Chat], how: Any) -> None:
    if "lora" in how:
        pytest.importorskip("peft")
    if how.get("optimizer") == "adamw8bit":
        pytest.importorskip("torchao")
    with torch.compiler.set_stance("force_eager"):  # torchao would compile for half a minute
        straight, _ = made(tmp_path / "straight", parent, **how)
        card = train(straight)
        run, _ = killed(tmp_path / "killed", parent, 2, **how)
        assert train(run).id == card.id
    assert same(final(run), final(straight)) and lines(run) == lines(straight)


@pytest.mark.parametrize("adapted", [False, True])
def test_recompute_changes_nothing(tmp_path: Path, parent: tuple[Path, Chat], adapted: bool) -> None:
    if adapted:
        pytest.importorskip("peft")
    runs = []
    for kind in ("none", "selective", "full"):
        run, watch = made(tmp_path / kind, parent, recompute=kind, lora=Lora(rank=2 * adapted))
        said: list[str] = []
        train(run, said.append)
        assert watch.policy is not None
        wrapped = ["forward" in vars(layer) for layer in recompute.layers(watch.policy.model).values()]
        assert wrapped == [kind != "none"]
        assert said[0].startswith("made: memory: weights ") and said[0].endswith(f"; recompute: {kind}")
        runs.append(run)
    for run in runs[1:]:
        assert same(final(run), final(runs[0])) and lines(run) == lines(runs[0])


def test_adapters_are_trained_and_merged(tmp_path: Path, parent: tuple[Path, Chat]) -> None:
    pytest.importorskip("peft")
    run, watch = made(tmp_path, parent, lora=Lora(rank=2))
    train(run)
    assert watch.policy is not None
    before, now = watch.weights[0], copied(watch.policy)
    assert {name.split(".")[-3] for name in now if not torch.equal(now[name], before[name])} == {"lora_A", "lora_B"}
    merged = {f"model.{name}": tensor for name, tensor in lora.merged(watch.policy.model).items()}
    assert all(torch.equal(tensor, merged[name]) for name, tensor in final(run).items())
    old = copied(checkpoints.open_policy(parent[0], precision="float32"))
    assert {name.split(".")[-2] for name, tensor in final(run).items() if not torch.equal(tensor, old[name])} == {
        "qkv_proj",
        "o_proj",
        "gate_up_proj",
        "down_proj",
    }


@pytest.mark.parametrize("adapted", [False, True])
def test_the_norm_is_that_of_all_trained_gradients_before_it_is_cut(
    tmp_path: Path, parent: tuple[Path, Chat], adapted: bool
) -> None:
    """Against a plain sum over every trained number, the critic's included and frozen ones left out."""
    if adapted:
        pytest.importorskip("peft")
    seen: list[Weights] = []

    def loss(policy: Policy, rows: Batch, settings: Any) -> Loss:
        hidden = policy.hidden(rows)
        found = losses.cross_entropy(policy.logprobs(rows, hidden=hidden), rows.weights)
        value = found.value + (policy.values(rows, hidden) - 1.0).square().mean()
        if not seen:
            leaves = {name: p for name, p in policy.named_parameters() if p.requires_grad}
            slopes = torch.autograd.grad(value, list(leaves.values()), retain_graph=True)
            seen.append(dict(zip(leaves, slopes, strict=True)))
        return Loss(value, {"loss": value.detach()})

    more = {"critic": lambda settings: "shared"}
    how = {"max_grad_norm": 0.01, "lora": Lora(rank=2 * adapted), "step": lambda index: Step((batch(index),))}
    run, _ = made(tmp_path, parent, loss=loss, more=more, **how)
    train(run)
    squares = [float(x) ** 2 for slope in seen[0].values() for x in slope.flatten().double()]
    assert journal.read(run.folder)[0]["grad_norm"] == pytest.approx(math.sqrt(math.fsum(squares)), rel=1e-5)
    assert any("critic" in name for name in seen[0]) and all("lora" in n or "critic" in n for n in seen[0]) is adapted


def test_a_rate_that_cannot_move_the_weights_is_refused(tmp_path: Path, parent: tuple[Path, Chat]) -> None:
    run, watch = made(tmp_path, parent, learning_rate=1e-9)
    run = replace(run, precision="bfloat16", weights="bfloat16")
    with pytest.raises(RunError, match=r"^\[made\] learning_rate = 1e-09 would move 0.2% of the trained weights"):
        train(run)
    assert watch.weights == [] and not (run.folder / "checkpoint").exists()
    pytest.importorskip("peft")
    run, watch = made(tmp_path, parent, learning_rate=1e-4, lora=Lora(rank=1))
    train(replace(run, precision="bfloat16", weights="bfloat16"))
    assert watch.policy is not None
    assert watch.policy.model.model.embed_tokens.weight.dtype == torch.bfloat16


def rising(settings: Any, entries: Sequence[Mapping[str, Any]]) -> str:
    """Words for what it is shown: which steps, of how many."""
    assert type(settings) is Settings and len(entries) <= 3
    big = [round(entry["tokens"]) for entry in entries if entry["tokens"] > 20]
    return f"{len(big)} of the last steps are long" if big and entries[-1]["tokens"] > 20 else ""


def test_an_alarm_is_said_when_it_changes(tmp_path: Path, parent: tuple[Path, Chat]) -> None:
    tokens = [18, 30, 18, 40]

    def step(index: int) -> Step:
        return replace(usual(index), facts={"tokens": tokens[index]})

    said: list[str] = []
    run, _ = made(tmp_path / "straight", parent, step=step, more={"alarm": rising, "looked_at": lambda settings: 3})
    train(run, said.append)
    assert said[1:] == ["made: 1 of the last steps are long", "made: 2 of the last steps are long"]
    alarms = [entry.get("alarm") for entry in journal.read(run.folder)]
    assert alarms == [None, "1 of the last steps are long", None, "2 of the last steps are long"]


def test_the_last_save_from_before_an_alarm_stays_until_the_alarm_is_over(
    tmp_path: Path, parent: tuple[Path, Chat]
) -> None:
    """An alarm at some of the four steps; saved after each."""

    def kept(name: str, alarmed: set[int]) -> tuple[list[str], list[str]]:
        def alarm(settings: Any, entries: Sequence[Mapping[str, Any]]) -> str:
            return f"{len(entries)} in a row" if len(entries) in alarmed else ""

        said: list[str] = []
        run, _ = made(tmp_path / name, parent, more={"alarm": alarm}, save_every=1)
        train(run, said.append)
        assert list(run.folder.glob("step-*")) == []
        for save in run.folder.glob("healthy-*"):
            assert checkpoints.card(save).step == int(save.name[-7:])
        return sorted(path.name for path in run.folder.glob("healthy-*")), said[1:]

    names, said = kept("from the third on", {3, 4})
    place = tmp_path / "from the third on" / "made" / "healthy-0000002"
    assert names == [place.name]
    assert said == ["made: 3 in a row", f"made: {place} is from before the alarm that the stage ended with"]
    assert kept("at the last", {4})[0] == ["healthy-0000003"]
    assert kept("for a while", {2, 3}) == ([], ["made: 2 in a row"])
    assert kept("never", set()) == ([], [])
    assert kept("always", {1, 2, 3, 4})[0] == []


def test_an_alarm_that_lasts_is_said_once_also_over_a_kill(tmp_path: Path, parent: tuple[Path, Chat]) -> None:
    def slow(settings: Any, entries: Sequence[Mapping[str, Any]]) -> str:
        return "too slow" if len(entries) > 1 else ""

    said: list[str] = []
    straight, _ = made(tmp_path / "straight", parent, more={"alarm": slow})
    train(straight, said.append)
    assert said[1:] == ["made: too slow"]
    run, _ = killed(tmp_path / "killed", parent, 3, more={"alarm": slow})
    said.clear()
    train(run, said.append)
    assert [line.partition(":")[2].split()[0] for line in said] == [
        "goes",
        "memory:",
        str(run.folder / "healthy-0000001"),
    ]
    assert lines(run) == lines(straight)
    assert [entry.get("alarm") for entry in lines(run)] == [None, "too slow", None, None]
