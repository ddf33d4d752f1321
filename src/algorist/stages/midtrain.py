"""Stage 1: distillation as mid-training, on every rollout that was verified right, packed.

The paper trains on as much verified chain of thought as it has, several short examples sharing a sequence. It does
not say whether attention crosses the borders of examples, nor whether prompts are trained on; here documents never
see each other, and the loss covers responses only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from algorist import store, tokens
from algorist.data import curate as curation
from algorist.model.batches import Batch, Document, token_mean
from algorist.model.policy import Policy
from algorist.numerics.losses import Loss
from algorist.numerics.packing import pack
from algorist.numerics.shingles import Rows
from algorist.records import Sample
from algorist.stage import Plan, Run, Stage, Step, Training
from algorist.stages import order
from algorist.tokens import Corpus, Ids


@dataclass(frozen=True)
class Settings:
    """[midtrain], beside the loop's keys"""

    sequence_length: int = 16_384  # tokens of a row; longer samples are left out, with a count
    packing: bool = True  # False: one sample per row
    epochs: int = 5  # times that the data is read

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.sequence_length < 2:
            raise ValueError("epochs must be at least 1 and sequence_length at least 2.")


def curate(run: Run) -> store.Manifest:
    """The examples of the stage's set as token ids, a shard at a time; what is longer than a row is left out."""
    chosen = store.manifest(run.set)
    for index, shard in enumerate(chosen.shards):
        measures = run.root / "measures" / shard
        samples, sequences, too_long = curation.samples(
            run.set / shard, measures, run.chat, sequence_length=run.settings.sequence_length
        )
        tokens.write_shard(run.data, index, Sample, samples, sequences, dropped=too_long)
    return store.finish(run.data, Sample, parents=[chosen.id], shards=chosen.shards)


def plan(run: Run) -> Plan:
    """Rows of one epoch, a step for each full batch of them; a last, smaller batch makes a step too."""
    lengths = Corpus.open(run.data, Sample).lengths
    steps = order.num_steps(run, len(_rows(lengths, run.settings)))
    return Plan(steps, len(lengths), int(lengths.sum(dtype=np.int64)), longest=int(lengths.max(initial=0)))


def drawn(run: Run, lengths: Ids) -> Iterator[NDArray[np.int64]]:
    """Which documents make up each optimizer step, from `run.start` on, in the order in which they are laid out."""
    rows = _rows(lengths, run.settings)
    for chosen in order.steps(run, "rows", len(rows)):
        yield np.concatenate([rows[row] for row in chosen])


def steps(run: Run, policy: Policy) -> Iterator[Step]:
    """Rows in an order of their own for each epoch; an optimizer step is a batch of rows, its loss a token mean."""
    corpus = Corpus.open(run.data, Sample)
    for chosen in drawn(run, corpus.lengths):
        documents = [Document.of(corpus[place], int(corpus.prompt_lens[place])) for place in chosen.tolist()]
        batches = token_mean(documents, run.training.tokens_per_batch)
        yield Step(tuple(batches), {"tokens": sum(len(d.tokens) for d in documents)})


def loss(policy: Policy, batch: Batch, settings: Any) -> Loss:
    """Next-token cross-entropy over responses."""
    value = -policy.weighted_logprob(batch)
    return Loss(value, {"loss": value.detach()})


def _rows(lengths: Ids, settings: Any) -> Rows:
    """Which documents stand in which row."""
    if settings.packing:
        return pack(lengths, settings.sequence_length)
    return Rows(np.arange(len(lengths)), np.arange(len(lengths) + 1))


STAGE = Stage("midtrain", Settings, Training(batch_size=128), (), curate, plan, steps, loss)
