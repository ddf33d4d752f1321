"""Stage 3: Rollout DPO, on right and wrong responses of the teacher to the same problem.

The wrong ones are what rejection sampling threw away. The stage-2 model is both the start and the frozen reference;
its log-probabilities of every response are computed once, before the first step, stored with the pair, and travel in
the batch, so that no second model sits in the loop. The paper prints neither beta nor how pairs are matched: beta is
0.1 (everybody's default), and how pairs are made stands in [curate.dpo].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from algorist import store
from algorist.data.candidates import Shards
from algorist.data.pairs import token_pairs
from algorist.journal import progress
from algorist.model import checkpoints
from algorist.model.batches import Document, PairBatch, cut_lengths, lay_out
from algorist.model.policy import Policy, document_sums
from algorist.numerics import losses
from algorist.numerics.address import rng
from algorist.numerics.losses import Loss
from algorist.records import Pair
from algorist.stage import Plan, Run, Stage, Step, Training


@dataclass(frozen=True)
class Settings:
    """[dpo], beside the loop's keys"""

    sequence_length: int = 16_384  # tokens of prompt and response; pairs with a longer one are left out, with a count
    beta: float = 0.1  # how strongly the policy is held to the reference
    epochs: int = 1  # times that the data is read
    nll_weight: float = 0.0  # of the chosen response's mean cross-entropy beside the preference; 0 is the paper's loss

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.sequence_length < 2 or self.beta <= 0:
            raise ValueError("epochs must be at least 1, sequence_length at least 2 and beta above 0.")


def curate(run: Run) -> store.Manifest:
    """The preferences of the stage's set as token ids, with the reference's log-probabilities, a shard at a time."""
    chosen = store.manifest(run.set)
    reference = checkpoints.open_policy(run.parent, precision=run.precision)
    for index, shard in enumerate(chosen.shards):
        shards = Shards.of(run.root, shard)
        pairs, too_long = token_pairs(run.set / shard, shards, run.chat, sequence_length=run.settings.sequence_length)
        scored = _with_reference(pairs, reference, run.training.tokens_per_batch)
        store.write_shard(run.data, index, Pair, scored, dropped=too_long)
    parents = [chosen.id, checkpoints.card(Path(run.parent)).id]
    return store.finish(run.data, Pair, parents=parents, shards=chosen.shards)


def plan(run: Run) -> Plan:
    """A step for each batch of pairs; a last, smaller batch makes a step too."""
    pairs = store.read(run.data, Pair)
    per_epoch = -(-len(pairs) // run.training.batch_size)
    return Plan(per_epoch * run.settings.epochs, len(pairs), sum(_pair_lengths(pairs)))


def steps(run: Run, policy: Policy) -> Iterator[Step]:
    """Pairs in an order of their own for each epoch; the loss is a mean over the pairs of a step."""
    pairs = store.read(run.data, Pair)
    size = run.training.batch_size
    per_epoch = -(-len(pairs) // size)
    for index in range(run.start, per_epoch * run.settings.epochs):
        epoch, place = divmod(index, per_epoch)
        order = rng(run.seed, run.stage.name, "pairs", epoch).permutation(len(pairs))
        chosen = [pairs[i] for i in order[place * size : (place + 1) * size]]
        parts = cut_lengths(_pair_lengths(chosen), run.training.tokens_per_batch)
        batches = tuple(lay_out_pairs([chosen[i] for i in part], total=len(chosen)) for part in parts)
        yield Step(batches, {"tokens": sum(_pair_lengths(chosen))})


def loss(policy: Policy, batch: PairBatch, settings: Any) -> Loss:
    """DPO against the stored reference, with the likelihood of the chosen response beside it where asked for.

    The second term keeps the chosen response from becoming less likely together with the rejected one; it is that of
    Pang et al. 2024, "Iterative reasoning preference optimization", eq. 1.
    """
    sums = document_sums(policy.logprobs(batch.rows), batch.rows)
    preference = losses.dpo_loss(
        sums[0::2], sums[1::2], batch.ref_chosen, batch.ref_rejected, batch.weights, beta=settings.beta
    )
    if not settings.nll_weight:
        return preference
    lengths = document_sums(batch.rows.weights, batch.rows)
    likelihood = losses.cross_entropy(sums[0::2] / lengths[0::2], batch.weights)
    metrics = preference.metrics | {"chosen_nll": likelihood.value.detach()}
    return Loss(preference.value + settings.nll_weight * likelihood.value, metrics)


def lay_out_pairs(pairs: Sequence[Pair], *, total: int) -> PairBatch:
    """One micro-batch of an optimizer step of `total` pairs."""
    documents = [Document.of(tokens, pair.prompt_len) for pair in pairs for tokens in (pair.chosen, pair.rejected)]
    return PairBatch(
        rows=lay_out(documents),
        ref_chosen=torch.tensor([pair.chosen_ref_logprob or 0.0 for pair in pairs], dtype=torch.float32),
        ref_rejected=torch.tensor([pair.rejected_ref_logprob or 0.0 for pair in pairs], dtype=torch.float32),
        weights=torch.full((len(pairs),), 1.0 / total),
    )


@torch.no_grad()
def _with_reference(pairs: Sequence[Pair], reference: Policy, tokens_per_batch: int) -> list[Pair]:
    reference.eval()
    scored: list[Pair] = []
    with progress("dpo: reference", len(pairs)) as advance:
        for part in cut_lengths(_pair_lengths(pairs), tokens_per_batch):
            rows = lay_out_pairs([pairs[i] for i in part], total=1).rows.to(reference.device)
            sums = document_sums(reference.logprobs(rows), rows).tolist()
            for place, i in enumerate(part):
                chosen, rejected = sums[2 * place : 2 * place + 2]
                scored.append(replace(pairs[i], chosen_ref_logprob=chosen, rejected_ref_logprob=rejected))
            advance(len(part))
    return scored


def _pair_lengths(pairs: Sequence[Pair]) -> list[int]:
    return [len(pair.chosen) + len(pair.rejected) for pair in pairs]


STAGE = Stage("dpo", Settings, Training(learning_rate=5e-7, batch_size=64), (), curate, plan, steps, loss)
