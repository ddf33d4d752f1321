"""What a loss sees: ragged rows of whole documents, and weights that carry all normalisation.

A micro-batch is one flat row of tokens in which documents stand one after another; nothing is padded, and attention
never crosses a document's border (model/attention.py). What the recipe calls packing decides only which documents
make up one optimizer step.

Weights instead of masks: `weights` is 0 where a token is not trained on and carries the whole normalisation of an
optimizer step, fixed when the step is laid out. Losses and metrics are weighted sums, so cutting a step into
micro-batches cannot change them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Documents one after another in one row of T tokens."""

    tokens: Tensor  # (T,) int64
    positions: Tensor  # (T,) int64, from 0 in each document
    bounds: tuple[int, ...]  # where documents begin, and T at the end: D + 1 offsets
    weights: Tensor  # (T,) float32, 0 where a token is not trained on

    def document(self) -> Tensor:
        """(T,) int64: which document each token belongs to."""
        lengths = torch.tensor(self.bounds).diff()
        return torch.repeat_interleave(torch.arange(len(lengths)), lengths).to(self.tokens.device)

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return replace(self, **{k: getattr(self, k).to(device) for k in ("tokens", "positions", "weights")})


@dataclass(frozen=True)
class PairBatch:
    """Right and wrong responses to P prompts: documents 2p (chosen) and 2p + 1 (rejected)."""

    rows: Batch  # weights are 1 on response tokens: a response's log-probability is a plain sum
    ref_chosen: Tensor  # (P,) float32, summed log-probabilities under the reference
    ref_rejected: Tensor  # (P,) float32
    weights: Tensor  # (P,) float32, 1 / pairs of the optimizer step

    def to(self, device: torch.device) -> PairBatch:
        """The same batch on another device."""
        moved = {k: getattr(self, k).to(device) for k in ("rows", "ref_chosen", "ref_rejected", "weights")}
        return PairBatch(**moved)


@dataclass(frozen=True)
class GroupBatch:
    """Sampled responses, with what the policies that sampled them thought of each token."""

    rows: Batch  # weights carry the average over responses or tokens of the step; 0 outside responses
    old_logprobs: Tensor  # (T,) float32, before the step, at `temperature`; 0 outside responses
    sampled_logprobs: Tensor  # (T,) float32, as the sampler gave them
    fresh: Tensor  # (T,) bool: the old log-probability is that of the loss itself, and `old_logprobs` is not looked at
    advantages: Tensor  # (T,) float32
    returns: Tensor  # (T,) float32, the critic's target; 0 without a critic
    old_values: Tensor  # (T,) float32; 0 without a critic
    ref_logprobs: Tensor  # (T,) float32, under the reference of the KL term; 0 without one
    temperature: Tensor  # (T,) float64, at which each token was sampled and log-probabilities are taken; 1 elsewhere
    critic_alone: bool = False  # the policy does not learn from it: PPO's critic is warmed up

    def to(self, device: torch.device) -> GroupBatch:
        """The same batch on another device."""
        return replace(self, **{name: x.to(device) for name, x in vars(self).items() if not isinstance(x, bool)})


@dataclass(frozen=True)
class Document:
    """Token ids and, aligned with them, the weight of each."""

    tokens: Sequence[int] | NDArray[np.integer[Any]]
    weights: Sequence[float] | NDArray[np.float64]

    @classmethod
    def of(cls, tokens: Sequence[int] | NDArray[np.integer[Any]], prompt_len: int, weight: float = 1.0) -> Document:
        """A prompt that is only read and a response in which every token, the end included, has `weight`."""
        weights = np.full(len(tokens), weight)
        weights[:prompt_len] = 0.0
        return cls(tokens, weights)


def lay_out(documents: Sequence[Document], *, total: float = 1.0) -> Batch:
    """One flat row of the documents, in order, their weights divided by `total`, the sum over the optimizer step.

    A document's first token has nothing before it that could predict it; its weight must be 0.
    """
    lengths = [len(document.tokens) for document in documents]
    assert all(document.weights[0] == 0.0 for document in documents), "a first token cannot be predicted"
    bounds = np.cumsum([0, *lengths])
    tokens = np.concatenate([document.tokens for document in documents]).astype(np.int64, copy=False)
    weights = np.concatenate([document.weights for document in documents]) / total
    return Batch(
        tokens=torch.from_numpy(tokens),
        positions=torch.from_numpy(np.arange(bounds[-1]) - np.repeat(bounds[:-1], lengths)),
        bounds=tuple(bounds.tolist()),
        weights=torch.from_numpy(weights.astype(np.float32)),
    )


def token_mean(documents: Sequence[Document], tokens_per_batch: int) -> list[Batch]:
    """The micro-batches of one optimizer step whose loss is the mean over its trained tokens."""
    total = float(sum(np.sum(document.weights) for document in documents))
    return [lay_out([documents[i] for i in part], total=total) for part in cut(documents, tokens_per_batch)]


def cut(documents: Sequence[Document], tokens_per_batch: int) -> list[list[int]]:
    """Indices of consecutive documents whose tokens fit `tokens_per_batch`; a longer document stands alone."""
    return cut_lengths([len(document.tokens) for document in documents], tokens_per_batch)


def cut_lengths(lengths: Sequence[int], tokens_per_batch: int) -> list[list[int]]:
    """`cut`, from lengths alone."""
    parts: list[list[int]] = []
    room = -1
    for index, length in enumerate(lengths):
        if length > room:
            parts.append([])
            room = tokens_per_batch
        parts[-1].append(index)
        room -= length
    return parts
