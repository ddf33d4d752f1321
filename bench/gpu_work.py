"""What the rows of bench/gpu.py work on: sizes, seeded documents, and how many floating-point operations they ask for.

Operations are counted once, whatever a contender computes twice: 6 for each parameter of a matrix product and token,
the output head included and the embedding's look-up not, and those of causal attention within documents.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pack as packing
from numpy.typing import NDArray

from algorist.numerics.packing import pack

Ids = NDArray[np.int64]
Say = Callable[[dict[str, Any]], None]  # is told each measurement as it is done

PEAK = 989e12  # operations a second: dense bfloat16 of H100 and H200, by their data sheet
REJECTED = 1.4  # tokens of a rejected response for one of the chosen
FORWARD = 1 / 3  # of the operations of forward and backward
WARM, TIMED = 1, 2  # steps of each set of documents


@dataclass(frozen=True)
class Size:
    """The shape of the model and of the work."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocabulary: int
    row: int  # tokens of a packed row, and of the longest document or response
    longest: int  # tokens of the longest document of sft20k
    prompt: int  # tokens of a pair's prompt
    square: int  # rows and columns of the matrices that the ceiling is measured with
    copied: int  # bytes of the copy
    rounds: int  # of kernels in turns

    @property
    def hidden(self) -> int:
        """Width of the model."""
        return self.heads * self.head_dim

    @property
    def parameters(self) -> int:
        """Of all matrix products, the output head included."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.mlp) + self.hidden * self.vocabulary

    def operations(self, lengths: Sequence[int] | Ids) -> float:
        """Forward and backward over documents of these lengths: the backward's attention counts twice the forward's."""
        squares = float(np.square(np.asarray(lengths, np.float64)).sum())
        return 6.0 * self.parameters * float(np.sum(lengths)) + 6.0 * self.layers * self.hidden * squares


FULL = Size(  # Phi-4-mini, by its config.json
    layers=32,
    heads=24,
    kv_heads=8,
    head_dim=128,
    mlp=8_192,
    vocabulary=200_064,
    row=16_384,
    longest=20_480,
    prompt=200,
    square=8_192,
    copied=8 * 10**9,
    rounds=10,
)
TINY = Size(
    layers=2,
    heads=6,
    kv_heads=2,
    head_dim=16,
    mlp=128,
    vocabulary=512,
    row=256,
    longest=320,
    prompt=8,
    square=256,
    copied=10**7,
    rounds=3,
)
SIZES = {"full": FULL, "tiny": TINY}


@dataclass(frozen=True)
class Pair:
    """A prompt and two responses to it; each response ends in the id 1."""

    prompt: Ids
    chosen: Ids
    rejected: Ids

    @property
    def documents(self) -> tuple[Ids, Ids]:
        """Prompt and response, twice."""
        return np.concatenate([self.prompt, self.chosen]), np.concatenate([self.prompt, self.rejected])


@dataclass(frozen=True)
class Step:
    """What one optimizer step learns from."""

    set: str
    rows: tuple[tuple[Ids, ...], ...]  # documents by row of a peer's packing; a pair's two documents are a row
    pairs: tuple[Pair, ...] = ()

    @property
    def documents(self) -> list[Ids]:
        """Of all rows."""
        return [document for row in self.rows for document in row]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each document."""
        return [len(document) for document in self.documents]


def lengths(name: str, count: int, size: Size) -> Ids:
    """(count,) of the set `short` or `long` of bench/pack.py, shrunk for a smaller row."""
    return np.ceil(packing.drawn(name, count) * (size.row / packing.CAPACITY)).astype(np.int64)


def packed_rows(name: str, count: int, size: Size) -> list[list[int]]:
    """Lengths of the documents of `count` rows, drawn from the plan of a larger set."""
    many = lengths(name, 500 + 20 * count, size)
    rows = pack(many, size.row)
    chosen = np.random.default_rng(2).choice(len(rows), count, replace=False)
    return [many[rows[place]].tolist() for place in chosen]


def typical(documents: int, tokens: float, count: int, size: Size) -> list[list[int]]:
    """Lengths of `count` groups of the set `long`, of a hundred those nearest to so many tokens at full size."""
    groups = lengths("long", 100 * documents, size).reshape(100, documents)
    far = np.abs(groups.sum(1) - tokens * size.row / FULL.row)
    return groups[np.argsort(far, kind="stable")[:count]].tolist()


def steps(kind: str, size: Size) -> list[Step]:
    """The optimizer steps of midtrain16k, sft20k or dpo16k; of each set, the first `WARM` are not timed."""
    draw, many = np.random.default_rng(3), WARM + TIMED

    def ids(length: int) -> Ids:
        return draw.integers(2, size.vocabulary, length)

    if kind == "midtrain16k":
        short = packed_rows("short", 4 * many, size)
        by_set = {
            "short": [short[4 * at : 4 * at + 4] for at in range(many)],
            "one document": [[[size.row]] * 4] * many,
        }
        return [
            Step(name, tuple(tuple(ids(length) for length in row) for row in rows))
            for name, step in by_set.items()
            for rows in step
        ]
    if kind == "sft20k":
        stretch = size.longest / size.row
        groups = typical(8, 70_000 / stretch, many, size)
        return [Step("long", tuple((ids(int(np.ceil(stretch * n))),) for n in part)) for part in groups]
    found = []
    for part in typical(6, 90_000 / (1 + REJECTED), many, size):
        pairs = []
        for length in (max(length, size.prompt + 2) for length in part):
            both = length, min(size.row, int(REJECTED * length))
            prompt, *sides = ids(size.prompt), *(np.append(ids(n - size.prompt - 1), 1) for n in both)
            pairs.append(Pair(prompt, *sides))
        found.append(Step("policy step", tuple(pair.documents for pair in pairs), tuple(pairs)))
    return found


def line(step: Step, turn: int, seconds: float, size: Size, share: float = 1.0) -> dict[str, Any]:
    """What a step took, as it is told; `share` is that of forward and backward which was computed."""
    tokens, asked = sum(step.lengths), share * size.operations(step.lengths)
    rate = {"value": tokens / seconds, "unit": "tokens/s", "tokens": tokens, "seconds": seconds, "operations": asked}
    return {"set": step.set, "turn": turn, "timed": turn % (WARM + TIMED) >= WARM, **rate}


def left(until: float) -> float:
    """Seconds until the moment `until`, as time.time() tells it."""
    return until - time.time()
