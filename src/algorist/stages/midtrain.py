"""Stage 1: distillation as mid-training, on every rollout that was verified right, packed.

The paper trains on as much verified chain of thought as it has, several short examples sharing a sequence. It does
not say whether attention crosses the borders of examples, nor whether prompts are trained on; here documents never
see each other, and the loss covers responses only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from algorist import store
from algorist.data import curate as curation
from algorist.model.batches import Batch, Document, token_mean
from algorist.model.policy import Policy
from algorist.numerics import losses
from algorist.numerics.address import rng
from algorist.numerics.losses import Loss
from algorist.numerics.packing import pack
from algorist.records import Sample
from algorist.stage import Plan, Run, Stage, Step, Training


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
        samples, too_long = curation.samples(
            run.set / shard, measures, run.chat, sequence_length=run.settings.sequence_length
        )
        store.write_shard(run.data, index, Sample, samples, dropped=too_long)
    return store.finish(run.data, Sample, parents=[chosen.id], shards=chosen.shards)


def plan(run: Run) -> Plan:
    """Rows of one epoch, a step for each full batch of them; a last, smaller batch makes a step too."""
    lengths = _lengths(store.read(run.data, Sample))
    rows = _rows(lengths, run.settings)
    per_epoch = -(-len(rows) // run.training.batch_size)
    return Plan(per_epoch * run.settings.epochs, len(lengths), sum(lengths))


def steps(run: Run, policy: Policy) -> Iterator[Step]:
    """Rows in an order of their own for each epoch; an optimizer step is a batch of rows, its loss a token mean."""
    samples = store.read(run.data, Sample)
    rows = _rows(_lengths(samples), run.settings)
    size = run.training.batch_size
    per_epoch = -(-len(rows) // size)
    for index in range(run.start, per_epoch * run.settings.epochs):
        epoch, place = divmod(index, per_epoch)
        order = rng(run.seed, run.stage.name, "rows", epoch).permutation(len(rows))
        chosen = order[place * size : (place + 1) * size]
        documents = [Document.of(samples[i].tokens, samples[i].prompt_len) for row in chosen for i in rows[row]]
        batches = token_mean(documents, run.training.tokens_per_batch)
        yield Step(tuple(batches), {"tokens": sum(len(d.tokens) for d in documents)})


def loss(policy: Policy, batch: Batch, settings: Any) -> Loss:
    """Next-token cross-entropy over responses."""
    return losses.cross_entropy(policy.logprobs(batch), batch.weights)


def _lengths(samples: Sequence[Sample]) -> list[int]:
    return [len(sample.tokens) for sample in samples]


def _rows(lengths: Sequence[int], settings: Any) -> list[list[int]]:
    """Which samples stand in which row."""
    return pack(lengths, settings.sequence_length) if settings.packing else [[i] for i in range(len(lengths))]


STAGE = Stage("midtrain", Settings, Training(batch_size=128), (), curate, plan, steps, loss)
