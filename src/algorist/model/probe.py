"""Which path of attention is right here, and which of those is fastest: tried once, before training.

A kernel that mixes documents, drops a scale or returns a wrong gradient trains on without a word, and which kernel is
fastest depends on the GPU, on torch and on the shapes. So each path that may run (model/kernels.py) is run forward
and backward on the user's heads, on rows of documents of all lengths. It must agree with plain attention in float32,
document by document, and pass the canary: another content of one document moves no other document's output, and no
gradient crosses a border, to the last bit. What fails is refused and told; of the rest the fastest is taken.
"""

from __future__ import annotations

import functools
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from algorist.errors import RecipeError, RunError
from algorist.model.kernels import PATHS, Attend, Path, missing
from algorist.numerics.address import rng

# Of the largest number of a tensor. Right kernels are about four times nearer; a lost scale or a leak is far beyond.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}
_CHECKED = {"cpu": (256, 64), "cuda": (8192, 512)}  # tokens of the row compared with plain attention, and its median
_TIMED = 16_384  # tokens of the rows on which they are timed, at most
_ROUNDS = 3
_SCALE = 1.25  # of the usual 1/sqrt(D): a path that drops the scale it is given would not show at 1


@dataclass(frozen=True)
class Shape:
    """What attention is asked to do."""

    heads: int  # of queries
    kv_heads: int  # of keys and values
    head_dim: int
    layers: int
    tokens: int  # in a row

    @classmethod
    def of(cls, config: Any, tokens: int) -> Shape:
        """That of a model of transformers, by its config, on rows of `tokens`."""
        text = config.get_text_config()
        heads = text.num_attention_heads
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
        return cls(heads, getattr(text, "num_key_value_heads", None) or heads, head_dim, text.num_hidden_layers, tokens)


@dataclass(frozen=True)
class Choice:
    """The path taken, and why."""

    name: str  # one of model/kernels.py
    seconds: Mapping[str, float]  # by path that is right, fastest first: forward and backward of one layer on one row
    refused: Mapping[str, str]  # path → reason, of those tried and not right
    tokens: int  # of a row that was timed

    def lines(self) -> Iterable[str]:
        """What to tell: every refusal, and the choice where there was one."""
        for name, reason in self.refused.items():
            yield f"attention: {name} refused, {reason}; using {self.name}"
        if len(self.seconds) > 1:
            own, *others = (f"{name} {seconds * 1e3:.1f}" for name, seconds in self.seconds.items())
            yield f"attention: {own} ms per layer and row of {self.tokens:,} tokens ({', '.join(others)})"


def choose(
    shape: Shape,
    device: torch.device,
    dtype: torch.dtype,
    *,
    path: str = "auto",
    candidates: Mapping[str, Path] | None = None,
    say: Callable[[str], object] = lambda line: print(line, file=sys.stderr, flush=True),
) -> Choice:
    """The path to attend with. Tried once per process for the same shape, device and precision.

    Args:
        dtype       of query, key and value: float32, bfloat16 or float16
        path        "auto", or the name of the only path allowed
        candidates  what to choose among; by default the paths of model/kernels.py that may run here
        say         is given a line for each path refused, and one for the choice where there was one. On a CPU there
                    is one path, and nothing is told

    Raises:
        RecipeError where the path that was asked for cannot run here, or is wrong.
        RunError where none is right.
    """
    known = PATHS if candidates is None else candidates
    names = tuple(known) if path == "auto" else (path,)
    absent = {} if candidates is not None else {name: missing(name, device, dtype) for name in names}
    if absent.get(path):
        raise _unavailable(path, str(absent[path]))
    tried = tuple((name, known[name]) for name in names if not absent.get(name))
    choice = _choose(shape, device, dtype, tried)
    if not choice.seconds:
        if path != "auto":
            raise _unavailable(path, choice.refused[path])
        reasons = "; ".join(f"{name}: {reason}" for name, reason in choice.refused.items())
        raise RunError(
            f"attention: no path is right on {device} with torch {torch.__version__} ({reasons}). "
            "Install another version of torch."
        )
    for line in choice.lines():
        say(line)
    return choice


def _unavailable(path: str, reason: str) -> RecipeError:
    return RecipeError(f'[model] attention = "{path}": {reason}. Take "auto", which tries what there is.')


@functools.cache
def _choose(shape: Shape, device: torch.device, dtype: torch.dtype, candidates: tuple[tuple[str, Path], ...]) -> Choice:
    row = _Row.of(shape, device, dtype, *_CHECKED[device.type])
    plain = row.run(functools.partial(_plain, bounds=row.bounds), [x.float() for x in row.rows])
    reasons = {name: _wrong(path, row, plain) for name, path in candidates}
    refused = {name: reason for name, reason in reasons.items() if reason}
    right = [(name, path) for name, path in candidates if name not in refused]
    tokens = min(max(shape.tokens, 256), _TIMED)
    seconds = _race(right, shape, device, dtype, tokens) if len(right) > 1 else {name: 0.0 for name, _ in right}
    ordered = dict(sorted(seconds.items(), key=lambda item: item[1]))
    return Choice(next(iter(ordered), ""), ordered, refused, tokens)


@dataclass(frozen=True)
class _Row:
    """Random queries, keys and values of documents of all lengths, and a random slope of the output."""

    bounds: tuple[int, ...]
    rows: tuple[Tensor, Tensor, Tensor]  # query (T, H, D), key and value (T, K, D)
    slope: Tensor  # (T, H, D)
    scale: float

    @classmethod
    def of(
        cls, shape: Shape, device: torch.device, dtype: torch.dtype, tokens: int, median: int, turn: int = 0
    ) -> _Row:
        """`tokens` in documents that are log-normal around `median` and up to four times as long; one is a single
        token."""
        draw = rng("attention", tokens, turn)
        lengths = [2, 1]
        while sum(lengths) < tokens:
            length = int(np.clip(draw.lognormal(np.log(median), 1.0), 1, 4 * median))
            lengths.append(min(length, tokens - sum(lengths)))
        generator = torch.Generator().manual_seed(turn)
        heads = (shape.heads, shape.kv_heads, shape.kv_heads, shape.heads)
        size = (tokens, max(heads), shape.head_dim)
        drawn = [torch.randn(size, generator=generator)[:, :count].to(device, dtype) for count in heads]
        bounds = (0, *np.cumsum(lengths).tolist())
        return cls(bounds, (drawn[0], drawn[1], drawn[2]), drawn[3], _SCALE * shape.head_dim**-0.5)

    def run(self, attend: Attend, rows: Iterable[Tensor], slope: Tensor | None = None) -> list[Tensor]:
        """Output and gradients of query, key and value, for other rows or another slope where given."""
        leaves = [x.detach().requires_grad_() for x in rows]
        out = attend(leaves[0], leaves[1], leaves[2], self.scale)
        slopes = torch.autograd.grad(out, leaves, (self.slope if slope is None else slope).to(out.dtype))
        return [out.detach(), *slopes]


def _wrong(path: Path, row: _Row, plain: list[Tensor]) -> str | None:
    """Why a path is not to be used; None where it is right."""
    try:
        attend = path(row.bounds, row.slope.device)
        found = row.run(attend, row.rows)
        return _differs(found, plain, row.slope.dtype) or _leaks(attend, row, found[0])
    except Exception as error:  # each kernel fails in its own way, and what fails is not used
        return f"it fails ({(str(error).strip() or type(error).__name__).splitlines()[0]})"


def _differs(found: list[Tensor], plain: list[Tensor], dtype: torch.dtype) -> str | None:
    names = ("output", "gradient of the queries", "gradient of the keys", "gradient of the values")
    for name, ours, theirs in zip(names, found, plain, strict=True):
        gap = float((ours.float() - theirs).abs().max() / theirs.abs().max())
        if not gap <= _TOLERANCE[dtype]:  # NaN is no agreement
            return f"its {name} differs from plain attention by {gap:.2g} of the largest number"
    return None


def _leaks(attend: Attend, row: _Row, before: Tensor) -> str | None:
    """The canary, on a short document, one in the middle and the last but one."""
    count = len(row.bounds) - 1
    for document in (1, count // 2, count - 2):
        inside = slice(row.bounds[document], row.bounds[document + 1])
        others = torch.ones(row.bounds[-1], dtype=torch.bool, device=before.device)
        others[inside] = False
        changed = [x.clone() for x in row.rows]
        for x in changed:
            x[inside] = x[inside].flip(-1) + 1
        slope = row.slope.clone()
        slope[others] = 0
        after, *slopes = row.run(attend, changed, slope)
        if not torch.equal(after[others], before[others]):
            return "what one document says moves the output of another"
        if any(bool(x[others].any()) for x in slopes):
            return "the gradient of one document reaches another"
    return None


def _plain(query: Tensor, key: Tensor, value: Tensor, scale: float | None, *, bounds: tuple[int, ...]) -> Tensor:
    """softmax(q k^T * scale) v for each document by itself, with nothing clever."""
    assert scale is not None
    shared = query.shape[1] // key.shape[1]
    outputs = []
    for begin, end in zip(bounds, bounds[1:], strict=False):
        q, k, v = (x[begin:end].transpose(0, 1) for x in (query, key, value))  # (heads, L, D)
        k, v = k.repeat_interleave(shared, 0), v.repeat_interleave(shared, 0)
        later = torch.ones(end - begin, end - begin, dtype=torch.bool, device=q.device).triu(1)
        scores = (q @ k.transpose(1, 2) * scale).masked_fill(later, -torch.inf)
        outputs.append((scores.softmax(2) @ v).transpose(0, 1))
    return torch.cat(outputs)


def _race(
    right: list[tuple[str, Path]], shape: Shape, device: torch.device, dtype: torch.dtype, tokens: int
) -> dict[str, float]:
    """Seconds per layer of forward and backward, medians over rows of fresh lengths, in turns.

    Lengths are new in every row of a training run, and a kernel that is planned or compiled anew for each pays for
    that in the row's first layer, as it does for the layout.
    """
    taken: dict[str, list[float]] = {name: [] for name, _ in right}
    for turn in range(1, _ROUNDS + 1):
        row = _Row.of(shape, device, dtype, tokens, tokens // 8, turn)
        for name, path in right:
            begin = _now(device)
            attend = path(row.bounds, device)
            row.run(attend, row.rows)
            first = _now(device)
            row.run(attend, row.rows)
            again = _now(device)
            taken[name].append(((first - begin) + (shape.layers - 1) * (again - first)) / shape.layers)
    return {name: statistics.median(times) for name, times in taken.items()}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
