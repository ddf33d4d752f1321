"""Rows of numbers of any length, token ids or hashes of words, and the n-grams in them as 64-bit numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[Any]

BASE = np.uint64(0x9E3779B97F4A7C15)  # of the polynomials that hash runs of numbers


@dataclass(frozen=True)
class Rows:
    """Rows of numbers of any length, one behind the other."""

    values: Numbers  # (V,)
    starts: NDArray[np.int64]  # (R + 1,) row r is values[starts[r] : starts[r + 1]]

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> Numbers:
        """(n,) one row."""
        found: Numbers = self.values[self.starts[row] : self.starts[row + 1]]
        return found


def rows(sequences: Iterable[Sequence[int] | Numbers], kind: type = np.int32) -> Rows:
    """Sequences of numbers, such as the token ids of rollouts, laid one behind the other."""
    parts: list[Numbers] = [np.asarray(sequence, kind) for sequence in sequences]
    starts = np.zeros(len(parts) + 1, np.int64)
    np.cumsum([len(part) for part in parts], out=starts[1:])
    return Rows(np.concatenate(parts) if parts else np.empty(0, kind), starts)


def grams(of: Rows, length: int) -> Rows:
    """The hash of every run of `length` numbers of each row, uint64; of a shorter one that is not empty, of it all.

    Two different runs have the same hash with a chance of about length / 2^64.
    """
    assert length > 0, "an n-gram holds at least one word"
    sizes = np.diff(of.starts)
    starts = np.zeros_like(of.starts)
    np.cumsum(np.where(sizes > 0, np.maximum(sizes - length + 1, 1), 0), out=starts[1:])
    values = np.empty(starts[-1], np.uint64)
    _grams(of.values, of.starts, length, values, starts)
    return Rows(values, starts)


def sets(of: Rows, length: int) -> Rows:
    """The different n-grams of each row in rising order: what Jaccard's similarity is taken over.

    >>> found = sets(rows([[1, 2, 1, 2, 3], [7]]), 2)       # 12, 21 and 23; 7 alone
    >>> [len(found[0]), len(found[1])]
    [3, 1]
    """
    found = grams(of, length)
    sizes = _sets(found.values, found.starts)
    starts = np.zeros_like(found.starts)
    np.cumsum(sizes, out=starts[1:])
    return Rows(found.values[: starts[-1]].copy(), starts)


@numba.njit(cache=True)
def mix(value: Any) -> Any:
    """splitmix64's finalizer."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@numba.njit(cache=True)
def _grams(values: Any, starts: Any, length: int, out: Any, bounds: Any) -> None:
    out_of = np.uint64(1)  # BASE ** length
    for _ in range(length):
        out_of *= BASE
    for row in range(len(starts) - 1):
        low, high, place = starts[row], starts[row + 1], bounds[row]
        rolling = np.uint64(0)
        for at in range(low, high):
            rolling = rolling * BASE + np.uint64(values[at]) + np.uint64(1)
            if at >= low + length:
                rolling -= out_of * (np.uint64(values[at - length]) + np.uint64(1))
            if at >= low + length - 1 or at == high - 1:
                out[place] = mix(rolling)
                place += 1


@numba.njit(cache=True)
def _sets(values: Any, starts: Any) -> Any:
    """Sorts each row, drops what is there twice and closes the gaps; returns the sizes."""
    sizes, to = np.zeros(len(starts) - 1, np.int64), 0
    for row in range(len(starts) - 1):
        ordered = np.sort(values[starts[row] : starts[row + 1]])
        begun = to
        for place in range(len(ordered)):
            if place == 0 or ordered[place] != ordered[place - 1]:
                values[to] = ordered[place]
                to += 1
        sizes[row] = to - begun
    return sizes
