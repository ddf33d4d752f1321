"""Stage 3: Rollout DPO, on right and wrong responses of the teacher to the same problem.

The wrong ones are what rejection sampling threw away. The stage-2 model is both the start and the frozen reference;
its log-probabilities of every response are computed once, before the first step, stored with the pair, and travel in
the batch, so that no second model sits in the loop. The paper prints neither beta nor how pairs are matched: beta is
0.1 (everybody's default), and how pairs are made stands in [curate.dpo].
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from algorist import store, tokens
from algorist.data.candidates import Drops, Shards
from algorist.data.pairs import token_pairs
from algorist.journal import progress
from algorist.model.batches import Document, PairBatch, cut_lengths, lay_out
from algorist.model.policy import Policy, document_sums
from algorist.numerics import losses
from algorist.numerics.losses import Loss
from algorist.records import Pair, content_id
from algorist.stage import Plan, Run, Stage, Step, Training
from algorist.stages import order, reference
from algorist.tokens import Corpus, Ids


@dataclass(frozen=True)
class Settings:
    """[dpo], beside the loop's keys"""

    sequence_length: int = 16_384  # tokens of prompt and response; pairs with a longer one are left out, with a count
    loss: Literal["sigmoid", "apo_zero"] = "sigmoid"  # DPO's; apo_zero pushes chosen up and rejected down, each alone
    beta: float = 0.1  # how strongly the policy is held to the reference; where length_normalised, begin at 5
    label_smoothing: float = 0.0  # share of pairs whose order is taken to be wrong (conservative DPO); sigmoid only
    length_normalised: bool = False  # log-probabilities per token instead of per response: long ones count no more
    nll_weight: float = 0.0  # of the chosen response's mean cross-entropy beside the preference; 0 is the paper's loss
    max_chosen_fall: float = 0.05  # warn when a token of chosen responses costs this share more nats; 0: never
    epochs: int = 1  # times that the data is read

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.sequence_length < 2 or self.beta <= 0:
            raise ValueError("epochs must be at least 1, sequence_length at least 2 and beta above 0.")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing = {self.label_smoothing}: a share from 0 to below 0.5 was expected.")
        if self.label_smoothing and self.loss != "sigmoid":
            raise ValueError('label_smoothing goes with loss = "sigmoid" only. Leave it out, or take another loss.')
        if self.nll_weight < 0 or self.max_chosen_fall < 0:
            raise ValueError("nll_weight and max_chosen_fall must be at least 0.")


def curate(run: Run) -> store.Manifest:
    """The preferences of the stage's set as token ids, with the reference's log-probabilities, a shard at a time.

    A finished shard stays: a run that was killed on the way computes only what is missing.
    """
    chosen, key, policy = store.manifest(run.set), reference.key(run), None
    with progress("dpo: reference", 2 * chosen.rows) as advance:
        for index, shard in enumerate(chosen.shards):
            inputs = (run.set / shard, run.root / "measures" / shard, run.root / "rollouts" / shard)
            limits = (run.settings.sequence_length, run.training.tokens_per_batch)
            made_from = content_id(key, limits, [store.facts(path).content for path in inputs])
            if tokens.finished(run.data / shard, made_from):
                advance(2 * store.facts(run.set / shard).rows)
                continue
            policy = policy or run.opened()
            pairs, sequences, too_long = _scored(run, shard, policy, advance)
            tokens.write_shard(run.data, index, Pair, pairs, sequences, dropped=too_long, made_from=made_from)
    store.write_json(run.data / reference.FILE, key)
    return store.finish(run.data, Pair, parents=[chosen.id, key["model"]], shards=chosen.shards)


def plan(run: Run) -> Plan:
    """A step for each batch of pairs; a last, smaller batch makes a step too. Refuses a reference that is stale."""
    reference.require(run)
    lengths = _pair_lengths(Corpus.open(run.data, Pair))
    steps = order.num_steps(run, len(lengths))
    return Plan(steps, len(lengths), int(lengths.sum()), longest=int(lengths.max(initial=0)))


def drawn(run: Run, pairs: int) -> Iterator[NDArray[np.int64]]:
    """Which pairs make up each optimizer step, from `run.start` on, in the order in which they are laid out."""
    return order.steps(run, "pairs", pairs)


def steps(run: Run, policy: Policy) -> Iterator[Step]:
    """Pairs in an order of their own for each epoch; the loss is a mean over the pairs of a step."""
    reference.require(run)
    corpus, references = Corpus.open(run.data, Pair), reference.read(run.data)
    lengths = _pair_lengths(corpus)
    for chosen in drawn(run, len(lengths)):
        parts = [chosen[part] for part in cut_lengths(lengths[chosen].tolist(), run.training.tokens_per_batch)]
        batches = [lay_out_pairs(_documents(corpus, part), references[part], total=len(chosen)) for part in parts]
        yield Step(tuple(batches), {"tokens": int(lengths[chosen].sum())})


def loss(policy: Policy, batch: PairBatch, settings: Any) -> Loss:
    """The preference against the stored reference, with the likelihood of the chosen response beside it if asked for.

        loss = preference + nll_weight * - sum_p  weights_p * chosen_p / length_p

    The second term keeps the chosen response from becoming less likely together with the rejected one; it is that of
    Pang et al. 2024, "Iterative reasoning preference optimization", eq. 1. The metric "loss" is the preference alone.
    """
    sums = document_sums(policy.logprobs(batch.rows), batch.rows)
    lengths = document_sums(batch.rows.weights, batch.rows)
    references = torch.stack([batch.ref_chosen, batch.ref_rejected], dim=1).flatten()
    ours, theirs = (sums / lengths, references / lengths) if settings.length_normalised else (sums, references)
    compared = (ours[0::2], ours[1::2], theirs[0::2], theirs[1::2], batch.weights)
    if settings.loss == "apo_zero":
        preference = losses.apo_zero_loss(*compared, beta=settings.beta)
    else:
        preference = losses.dpo_loss(*compared, beta=settings.beta, label_smoothing=settings.label_smoothing)
    metrics = preference.metrics | losses.pair_likelihoods(sums, references, lengths, batch.weights)
    if not settings.nll_weight:
        return Loss(preference.value, metrics)
    likelihood = losses.cross_entropy((sums / lengths)[0::2], batch.weights)
    return Loss(preference.value + settings.nll_weight * likelihood.value, metrics)


def lay_out_pairs(documents: Sequence[Document], references: NDArray[np.float32], *, total: int) -> PairBatch:
    """One micro-batch of an optimizer step of `total` pairs.

    Args:
        documents   chosen and rejected in turn
        references  (P, 2) what the reference thinks of them
    """
    return PairBatch(
        rows=lay_out(documents),
        ref_chosen=torch.from_numpy(references[:, 0].copy()),
        ref_rejected=torch.from_numpy(references[:, 1].copy()),
        weights=torch.full((len(references),), 1.0 / total),
    )


def _pair_lengths(corpus: Corpus) -> NDArray[np.int64]:
    """(P,) tokens of both responses of a pair, the prompt with each."""
    lengths: NDArray[np.int64] = corpus.lengths.reshape(-1, 2).sum(1, dtype=np.int64)
    return lengths


def _documents(corpus: Corpus, pairs: NDArray[np.int64]) -> list[Document]:
    """Both documents of these pairs, chosen and rejected in turn."""
    places = [2 * pair + side for pair in pairs.tolist() for side in (0, 1)]
    return [Document.of(corpus[place], int(corpus.prompt_lens[place])) for place in places]


def _scored(
    run: Run, shard: str, policy: Policy, advance: Callable[[int], None]
) -> tuple[list[Pair], list[Ids], Drops]:
    """The pairs of one shard of the set with what the reference thinks of them, and their token ids."""
    pairs, sequences, too_long = token_pairs(
        run.set / shard, Shards.of(run.root, shard), run.chat, sequence_length=run.settings.sequence_length
    )
    advance(2 * sum(too_long.values()))
    prompts = [pair.prompt_len for pair in pairs for _ in ("chosen", "rejected")]
    documents = [Document.of(ids, prompt_len) for ids, prompt_len in zip(sequences, prompts, strict=True)]
    sums = reference.logprobs(policy, documents, run.training.tokens_per_batch, advance).tolist()
    scored = [
        replace(pair, chosen_ref_logprob=chosen, rejected_ref_logprob=rejected)
        for pair, chosen, rejected in zip(pairs, sums[0::2], sums[1::2], strict=True)
    ]
    return scored, sequences, too_long


def alarm(settings: Settings, entries: Sequence[Mapping[str, Any]]) -> str:
    """That chosen responses become less likely under the policy, "" where they do not.

        rise = chosen_logprob / before - 1      before = chosen_logprob - chosen_change_per_token, the reference's

    Means over `entries`, the journal of the last steps. DPO asks for a difference, and two falls make one (likelihood
    displacement: Razin et al. 2024, arXiv 2410.08847; Pal et al. 2024, arXiv 2402.13228). It is a share, as a tenth of
    a nat is little where a token costs two and much where it costs a quarter of one. The text changes when the rise
    has doubled and not in between, so that whoever says it when it changes says it seldom.
    """
    names = ("chosen_logprob", "chosen_change_per_token")
    seen = [[entry[name] for name in names] for entry in entries if None not in map(entry.get, names)]
    if not seen or not settings.max_chosen_fall:
        return ""
    now, change = (statistics.fmean(values) for values in zip(*seen, strict=True))
    rise = change / (now - change) if now < change else 0.0
    if rise < settings.max_chosen_fall:
        return ""
    passed = settings.max_chosen_fall * 2 ** int(math.log2(rise / settings.max_chosen_fall))
    anchor = "" if settings.loss == "apo_zero" else ', take loss = "apo_zero"'
    return (
        f"chosen responses became less likely: a token costs over {passed:.0%} more nats than under the reference "
        f"(max_chosen_fall = {settings.max_chosen_fall:g}). Right answers are unlearned with the wrong ones: lower "
        f"learning_rate{anchor} or raise nll_weight."
    )


STAGE = Stage("dpo", Settings, Training(learning_rate=5e-7, batch_size=64), (), curate, plan, steps, loss, alarm=alarm)
