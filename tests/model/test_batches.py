"""Weights instead of masks: how an optimizer step is cut, ordered and packed changes neither loss nor gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from algorist import recipe as recipes
from algorist import tokens
from algorist.model.batches import Batch, Document, GroupBatch, cut, cut_lengths, lay_out, token_mean
from algorist.model.chat import Chat
from algorist.model.policy import Policy
from algorist.numerics.losses import Loss
from algorist.records import Sample
from algorist.stage import AnyBatch, Run
from algorist.stages import dpo, midtrain, rlvr, sft
from algorist.stages.learning import Objective
from algorist.toy import words
from model import tiny

Cut = Sequence[Sequence[int]]  # which documents, pairs or responses each micro-batch holds
COUNT = 6
CUTS: list[Cut] = [
    [[0, 1, 2, 3, 4, 5]],
    [[0, 1, 2], [3, 4, 5]],
    [[0], [1, 2, 3, 4], [5]],
    [[i] for i in range(COUNT)],
    [[5, 3, 1, 0, 2, 4]],
    [[4, 0], [2, 5, 3, 1]],
]

EVERY_TERM = Objective(average="token", kl=0.1, kl_estimator="k3", entropy=0.01, correction="truncate")


def optimizer_step(
    policy: Policy, loss: Callable[[Policy, Any, Any], Loss], batches: Sequence[AnyBatch], settings: Any
) -> tuple[dict[str, float], Tensor]:
    """Summed metrics and gradient, as the loop would have them."""
    metrics: dict[str, float] = {}
    for batch in batches:
        found = loss(policy, batch, settings)
        found.value.backward()
        for name, metric in found.metrics.items():
            metrics[name] = metrics.get(name, 0.0) + float(metric)
    return metrics, tiny.gradient(policy)


def cross_entropy_step(cut_: Cut) -> list[Batch]:
    documents = tiny.documents(0, [5, 17, 9, 30, 3, 12])
    total = float(sum(sum(document.weights) for document in documents))
    return [lay_out([documents[i] for i in part], total=total) for part in cut_]


def dpo_step(cut_: Cut) -> list[Any]:
    rng = np.random.default_rng(1)
    documents, references = [], np.empty((COUNT, 2), np.float32)
    for index in range(COUNT):
        prompt = rng.integers(2, tiny.VOCABULARY, size=3)
        for _ in range(2):
            response = rng.integers(2, 50, size=int(rng.integers(2, 9)))
            documents.append(Document.of(np.concatenate([prompt, response]), 3))
        references[index] = -rng.random(2) * 40
    return [
        dpo.lay_out_pairs([documents[2 * i + side] for i in part for side in (0, 1)], references[part], total=COUNT)
        for part in (list(part) for part in cut_)
    ]


def grpo_step(cut_: Cut) -> list[GroupBatch]:
    rng = np.random.default_rng(2)
    lengths = [8, 20, 5, 13, 6, 11]
    documents = [
        Document.of(document.tokens, 2, 1.0 / (len(document.tokens) - 2)) for document in tiny.documents(3, lengths)
    ]
    old = [torch.from_numpy(-rng.random(length) * 6).float() for length in lengths]
    advantages = [1.0, -1.0, 1.0, -1.0, 3.0, -1 / 3]
    values = [torch.from_numpy(rng.normal(size=length)).float() for length in lengths]
    batches = []
    for part in cut_:
        rows = lay_out([documents[i] for i in part], total=COUNT)
        per_token = torch.cat([torch.full((lengths[i],), advantages[i]) for i in part])
        estimates = torch.cat([values[i] for i in part])
        before = torch.cat([old[i] for i in part])
        fresh = torch.cat([torch.full((lengths[i],), i % 2 == 0) for i in part])
        temperature = torch.cat([torch.full((lengths[i],), 0.8 + 0.1 * (i % 3), dtype=torch.float64) for i in part])
        batches.append(
            GroupBatch(rows, before, before - 0.1, fresh, per_token, per_token, estimates, before - 0.2, temperature)
        )
    return batches


@pytest.mark.parametrize("cut_", CUTS[1:], ids=["2", "3", "single", "reordered", "reordered 2"])
@pytest.mark.parametrize("case", ["cross-entropy", "dpo", "grpo", "every term", "ppo"])
def test_micro_batches_and_row_order_change_nothing(case: str, cut_: Cut) -> None:
    make, loss, settings = {
        "cross-entropy": (cross_entropy_step, midtrain.loss, None),
        "dpo": (dpo_step, dpo.loss, dpo.Settings(beta=0.3)),
        "grpo": (grpo_step, rlvr.loss, rlvr.Settings()),
        "every term": (grpo_step, rlvr.loss, rlvr.Settings(objective=EVERY_TERM)),
        "ppo": (grpo_step, rlvr.loss, rlvr.Settings(algorithm="ppo")),
    }[case]
    policy = tiny.policy("Phi3", critic="own" if case == "ppo" else "none")
    if policy.critic is not None:
        torch.nn.init.constant_(policy.critic.head.weight, 0.1)
    expected, slope = optimizer_step(policy, loss, make(CUTS[0]), settings)
    found, other = optimizer_step(policy, loss, make(cut_), settings)
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
    tiny.assert_close(other, slope, 1e-5)


def test_weights_of_a_step_sum_to_one() -> None:
    for make in (cross_entropy_step, grpo_step):
        for cut_ in CUTS:
            rows = [batch.rows if isinstance(batch, GroupBatch) else batch for batch in make(cut_)]
            assert sum(float(row.weights.sum()) for row in rows) == pytest.approx(1.0, abs=1e-6)
    assert sum(float(batch.weights.sum()) for batch in dpo_step(CUTS[2])) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("tokens_per_batch", [1, 40, 10_000])
def test_a_token_mean_is_the_mean_over_trained_tokens(tokens_per_batch: int) -> None:
    policy = tiny.policy()
    documents = tiny.documents(5, [9, 30, 4, 22])
    batches = token_mean(documents, tokens_per_batch)
    assert [len(batch.bounds) - 1 for batch in batches] == {1: [1, 1, 1, 1], 40: [2, 2], 10_000: [4]}[tokens_per_batch]
    reference = tiny.as_transformers_runs_it(policy)
    with torch.no_grad():
        found = sum(float(midtrain.loss(policy, batch, None).value) for batch in batches)
        trained = torch.cat([tiny.alone(reference, list(document.tokens))[2:] for document in documents])
    assert found == pytest.approx(-float(trained.mean()), rel=1e-5)


def run_of(folder: Path, stage: Any, overrides: Sequence[str]) -> Run:
    """A run whose stage has its data, so that `steps` can be called."""
    (folder / "recipe.toml").write_text('name = "test"\nseed = 3\n')
    sections = {stage.name: (stage.settings, stage.training)}
    recipe = recipes.read(folder / "recipe.toml", sections, [f"{stage.name}.{line}" for line in overrides])
    prompt = Chat.of(words.tokenizer(), "{problem}")
    return Run(recipe, folder, stage, "", prompt, "float32")


@pytest.mark.parametrize("tokens_per_batch", [64, 4096])
@pytest.mark.parametrize("stage", [midtrain.STAGE, sft.STAGE], ids=["midtrain", "sft"])
def test_packing_changes_neither_loss_nor_gradient(tmp_path: Path, stage: Any, tokens_per_batch: int) -> None:
    """One optimizer step over all samples by the stage's own `steps`, packed into rows and one sample per row."""
    policy = tiny.policy("Phi3")
    documents = tiny.documents(6, [5, 40, 21, 33, 8, 9])
    samples = [Sample(str(i), "", "", len(document.tokens), 2) for i, document in enumerate(documents)]
    sequences = [np.array(document.tokens, np.int32) for document in documents]
    found, orders = [], []
    for packing in ("true", "false"):
        keys = ["sequence_length=64", "epochs=1", f"packing={packing}", f"tokens_per_batch={tokens_per_batch}"]
        run = run_of(tmp_path, stage, keys)
        tokens.write(run.data, Sample, samples, sequences)
        (step,) = stage.steps(run, policy)
        assert stage.plan(run).num_steps == 1
        assert sum(float(batch.weights.sum()) for batch in step.batches) == pytest.approx(1.0, abs=1e-6)
        orders.append(torch.cat([batch.tokens for batch in step.batches]).tolist())
        found.append(optimizer_step(policy, stage.loss, step.batches, run.settings))
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    tiny.assert_close(found[0][1], found[1][1], 1e-5)


@pytest.mark.parametrize("kind", [list, tuple, np.array, lambda ids: np.array(ids, np.int32)])
def test_lay_out_by_hand(kind: Callable[[list[int]], Any]) -> None:
    batch = lay_out([Document.of(kind([7, 8, 9]), 1), Document.of(kind([4, 5]), 1, weight=0.5)], total=2.0)
    assert [batch.tokens.dtype, batch.positions.dtype, batch.weights.dtype] == [torch.int64, torch.int64, torch.float32]
    assert batch.tokens.tolist() == [7, 8, 9, 4, 5]
    assert batch.positions.tolist() == [0, 1, 2, 0, 1]
    assert batch.bounds == (0, 3, 5)
    assert batch.weights.tolist() == [0.0, 0.5, 0.5, 0.0, 0.25]
    assert batch.document().tolist() == [0, 0, 0, 1, 1]


def test_a_first_token_is_never_trained_on() -> None:
    with pytest.raises(AssertionError, match="a first token cannot be predicted"):
        lay_out([Document.of([1, 2], 0)])


def test_cut_keeps_order_and_leaves_long_documents_alone() -> None:
    assert cut_lengths([3, 3, 3, 9, 1, 1], 6) == [[0, 1], [2], [3], [4, 5]]
    assert cut_lengths([], 6) == []
    assert cut(tiny.documents(0, [3, 3, 5]), 6) == [[0, 1], [2]]


def test_pairs_stand_chosen_before_rejected_and_weigh_their_responses() -> None:
    pair = [Document.of(np.array([5, 6, 7, 8]), 2), Document.of(np.array([5, 6, 9]), 2)]
    batch = dpo.lay_out_pairs(pair * 2, np.array([[-1.5, 0.0], [-1.5, -2.5]], np.float32), total=4)
    assert batch.rows.tokens.tolist() == [5, 6, 7, 8, 5, 6, 9] * 2
    assert batch.rows.weights.tolist() == [0, 0, 1, 1, 0, 0, 1] * 2
    assert batch.ref_chosen.tolist() == [-1.5, -1.5] and batch.ref_rejected.tolist() == [0.0, -2.5]
    assert batch.weights.tolist() == [0.25, 0.25]


def test_batches_move_whole() -> None:
    device = torch.device("meta")
    for batch in (cross_entropy_step(CUTS[0])[0], dpo_step(CUTS[0])[0], grpo_step(CUTS[0])[0]):
        pending, seen = [batch.to(device)], 0
        while pending:
            for value in vars(pending.pop()).values():
                if isinstance(value, Tensor):
                    assert value.device == device
                    seen += 1
                elif isinstance(value, Batch):
                    pending.append(value)
        assert seen >= 3
