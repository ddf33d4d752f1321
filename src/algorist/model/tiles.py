"""One tile of logits, some tokens by some words: computed, read, and turned into its gradient.

The output head (model/head.py) never has more of the logits than a tile. A tile is float32 (float64 for float64); the
matrix products that make it and use it are of the type of the states.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Output(NamedTuple):
    """The output embedding: logits = states @ weight.T + bias."""

    weight: Tensor  # (V, H)
    bias: Tensor | None = None  # (V,)

    def words(self, columns: slice) -> Output:
        """That of some words."""
        return Output(self.weight[columns], None if self.bias is None else self.bias[columns])


class Rows(NamedTuple):
    """What the gradient of a tile needs of each of its tokens."""

    targets: Tensor  # (n,) int64, counted from the tile's first word
    normalisers: Tensor  # (n,) log sum exp over the whole vocabulary
    slopes: Tensor  # (n,) of the loss by log-probability, divided by the temperature
    entropy: Tensor | None = None  # (n,) nats
    entropy_slopes: Tensor | None = None  # (n,) of the loss by entropy, divided by the temperature; None: all 0

    def cut(self, rows: slice, first: int) -> Rows:
        """Those of some tokens, for a tile that begins at the word `first`."""
        targets, *others = (None if part is None else part[rows] for part in self)
        return Rows(targets - first, *others)  # type: ignore[operator, arg-type]


class Sums:
    """The gradients of states, weight and bias while tiles are added to them; None where none is wanted."""

    def __init__(self, like: tuple[Tensor, Tensor, Tensor | None], wanted: tuple[bool, ...], wide: torch.dtype) -> None:
        """Zeros of the type `wide` in the shapes of `like`, (N, H), (V, H) and (V,), where `wanted`."""
        self.like = like
        self.hidden, self.weight, self.bias = (
            torch.zeros_like(one, dtype=wide) if one is not None and asked else None
            for one, asked in zip(like, wanted, strict=True)
        )

    def add(self, rows: slice, columns: slice, gradient: Tensor, states: Tensor, weight: Tensor) -> None:
        """Add what a tile's gradient gives; `states` and `weight` are those of its rows and columns."""
        if self.hidden is not None:
            _add_product(self.hidden[rows], gradient, weight)
        if self.weight is not None:
            _add_product(self.weight[columns], gradient.T, states)
        if self.bias is not None:
            self.bias[columns] += gradient.sum(0, dtype=self.bias.dtype)

    def found(self) -> list[Tensor | None]:
        """The gradients, each in the type of what it belongs to."""
        parts = zip((self.hidden, self.weight, self.bias), self.like, strict=True)
        return [None if found is None or like is None else found.to(like.dtype) for found, like in parts]


def project(out: Tensor, states: Tensor, output: Output, scale: float) -> Tensor:
    """out = scale * (states @ weight.T + bias): tempered logits."""
    _add_product(out, states, output.weight.T, scale=scale, fresh=True)
    return out if output.bias is None else out.add_(output.bias, alpha=scale)


def read(logits: Tensor, targets: Tensor, with_spread: bool, spare: Tensor | None) -> tuple[Tensor, ...]:
    """What a tile says of the distributions that its rows are parts of.

        top = max_v logits_v                total = sum_v exp(logits_v - top)
        target = logits_target              spread = sum_v exp(logits_v - top) (logits_v - top)

    Args:
        logits       (n, v)
        targets      (n,) int64, counted from the tile's first word; -inf is the logit of a target outside
        with_spread  whether that, which the entropy needs, is computed
        spare        (n, v) memory to work in, which may be `logits` itself; compiled code needs none

    Returns:
        target, top, total and, where asked, spread, each (n,).
    """
    width = logits.shape[1]
    top = logits.amax(1, keepdim=True)
    inside = (targets >= 0) & (targets < width)
    target = logits.gather(1, targets.clamp(0, width - 1)[:, None])[:, 0].where(inside, -torch.inf)
    shifted = logits - top if spare is None else torch.sub(logits, top, out=spare)
    e = shifted.exp() if with_spread else shifted.exp_()
    # Not log_softmax, which on a CPU is off by 1e-4 over 200,064 words: its sum runs on, this one adds pairwise.
    found = target, top[:, 0], e.sum(1, keepdim=True)[:, 0]
    return (*found, e.mul_(shifted).sum(1)) if with_spread else found


def join(one: Sequence[Tensor], other: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What two tiles say together, of the same tokens and different words."""
    top = torch.maximum(one[1], other[1])
    down, also_down = one[1] - top, other[1] - top
    scale, also = down.exp(), also_down.exp()
    found = torch.maximum(one[0], other[0]), top, scale * one[2] + also * other[2]
    if len(one) == len(found):
        return found
    return *found, scale * (one[3] + down * one[2]) + also * (other[3] + also_down * other[2])


def settle(found: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Log-probabilities, normalisers log sum exp and, where the spread is there, entropies in nats, each (n,)."""
    target, top, total, *spread = found
    normaliser = total.log()
    entropy = normaliser - spread[0] / total if spread else None
    return target - top - normaliser, top + normaliser, entropy


def gradient(logits: Tensor, rows: Rows, precision: torch.dtype, spare: Tensor | None) -> Tensor:
    """The gradient of the loss by a tile's logits before they are divided by the temperature.

        slopes (onehot(target) - p) - entropy_slopes p (log p + entropy)

    Args:
        logits  (n, v); tokens whose target is none of the tile's words have no onehot in it
        spare   (n, v) memory to work in, which may be `logits` itself; compiled code needs none

    Returns:
        (n, v) in `precision`.
    """
    shift = rows.normalisers[:, None]
    logp = logits - shift if spare is None else torch.sub(logits, shift, out=spare)
    if rows.entropy is None or rows.entropy_slopes is None:
        found = logp.exp_().mul_(-rows.slopes[:, None])
    else:
        p = logp.exp()
        found = logp.add_(rows.entropy[:, None]).mul_(rows.entropy_slopes[:, None]).add_(rows.slopes[:, None])
        found = found.mul_(p).neg_()
    return _at_targets(found, rows).to(precision)


def gradient_of_read(e: Tensor, total: Tensor, rows: Rows, precision: torch.dtype) -> Tensor:
    """`gradient` of a tile that spans the vocabulary, without entropy, from what `read` left in its spare memory.

    Args:
        e      (n, V) exp(logits - top), overwritten
        total  (n,) its sums

    Returns:
        (n, V) in `precision`.
    """
    return _at_targets(e.mul_(-(rows.slopes / total)[:, None]), rows).to(precision)


def _at_targets(found: Tensor, rows: Rows) -> Tensor:
    """Add slopes onehot(target)."""
    width = found.shape[1]
    if torch.compiler.is_compiling():  # a comparison is free there, a scatter would be one more kernel
        words = torch.arange(width, device=found.device)
        return torch.where(words == rows.targets[:, None], found + rows.slopes[:, None], found)
    inside = (rows.targets >= 0) & (rows.targets < width)
    return found.scatter_add_(1, rows.targets.clamp(0, width - 1)[:, None], (rows.slopes * inside)[:, None])


def suited(device: torch.device, function: Callable[..., Any]) -> Callable[..., Any]:
    """`read` or `gradient` as it is fastest on a device: compiled into one kernel where there is Triton."""
    fused = device.type == "cuda" and importlib.util.find_spec("triton") is not None
    return _compiled(function) if fused else function


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True)  # tiles of another size do not compile anew


def _add_product(out: Tensor, a: Tensor, b: Tensor, *, scale: float = 1.0, fresh: bool = False) -> None:
    """out += scale * (a @ b), or out = scale * (a @ b) where it is `fresh`; `out` may be wider than a and b."""
    beta = 0 if fresh else 1
    if a.dtype == out.dtype:
        out.addmm_(a, b, beta=beta, alpha=scale)
    elif a.device.type == "cuda":  # added up in float32 to the end
        torch.addmm(out, a, b, beta=beta, alpha=scale, out_dtype=out.dtype, out=out)
    elif fresh:
        out.copy_(a @ b).mul_(scale)
    else:
        out.add_(a @ b, alpha=scale)
