"""Which documents share a row of the packed stage: best-fit decreasing, deterministic, in index arrays alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from algorist.numerics.shingles import Rows


def pack(lengths: Sequence[int] | NDArray[np.integer[Any]], capacity: int) -> Rows:
    """Put documents into as few rows of `capacity` tokens as best-fit decreasing finds, none of them cut.

    Args:
        lengths   (D,)  tokens of each document, each between 1 and `capacity`
        capacity  tokens of a row

    Returns:
        Rows of document indices, int64, each row from its longest document to its shortest. The plan depends on the
        lengths alone; equal lengths keep their order. Memory is some 30 bytes a document and 8 a token of
        `capacity`, beside the lengths.

    Raises:
        ValueError where a document does not fit: the caller counts and leaves out such documents before.

    Source: Johnson et al. 1974; at most 11/9 of the optimal number of rows, plus 4.

    >>> [row.tolist() for row in pack([3, 5, 2], capacity=5)]
    [[1], [0, 2]]
    """
    of = np.asarray(lengths, np.int64)
    if len(of) and not 1 <= of.min() <= of.max() <= capacity:
        raise ValueError(f"document lengths lie in {of.min()}..{of.max()}, rows hold 1..{capacity} tokens")
    counts = np.bincount(of, minlength=capacity + 1)
    row_of, rows = _best_fit(counts, capacity)
    return Rows(*_laid_out(of, counts, row_of, rows))


@numba.njit(cache=True)
def _best_fit(counts: Any, capacity: int) -> Any:
    """(D,) the row of each document, the longest first, from how many documents have each length; and the rows."""
    row_of = np.empty(counts.sum(), np.int64)
    below = np.empty(len(row_of), np.int64)  # (rows,) the row beneath it on its room's stack, -1: none
    tops = np.full(capacity + 1, -1, np.int64)  # by free tokens: the top of the stack of rows with just that room
    filled = _no_bits(capacity + 1)  # the rooms whose stack is not empty
    rows, done = 0, 0
    for length in range(len(counts) - 1, 0, -1):
        end, room = done + counts[length], length
        while done < end:
            room = _next_bit(filled, room)
            if room < 0:
                room = capacity
                row = rows
                rows += 1
            else:
                row = tops[room]
                tops[room] = below[row]
                if tops[room] < 0:
                    _set_bit(filled, room, False)
            # No stack between `length` and `room` has a row. So while it fits this row is the fullest that does.
            left = room
            while left >= length and done < end:
                row_of[done] = row
                done += 1
                left -= length
            if left:
                below[row] = tops[left]
                tops[left] = row
                _set_bit(filled, left, True)
    return row_of, rows


@numba.njit(cache=True)
def _laid_out(lengths: Any, counts: Any, row_of: Any, rows: int) -> Any:
    """The documents row by row and where rows begin: two counting sorts, by falling length and then by row."""
    ordered = np.empty(len(lengths), np.int64)
    places = np.empty(len(counts), np.int64)
    begun = 0
    for length in range(len(counts) - 1, -1, -1):
        places[length] = begun
        begun += counts[length]
    for document in range(len(lengths)):
        length = lengths[document]
        ordered[places[length]] = document
        places[length] += 1
    # For the length of the second sort starts[r + 1] is where row r's next document goes; in the end, where r ends.
    starts = np.zeros(rows + 2, np.int64)
    for row in row_of:
        starts[row + 2] += 1
    for row in range(rows):
        starts[row + 2] += starts[row + 1]
    values = np.empty(len(lengths), np.int64)
    for place in range(len(row_of)):
        row = row_of[place]
        values[starts[row + 1]] = ordered[place]
        starts[row + 1] += 1
    return values, starts[: rows + 1].copy()


@numba.njit(cache=True)
def _no_bits(size: int) -> Any:
    """An empty set of numbers below `size`: a bit for each, and above them, level by level, a bit for each word."""
    words, levels = (size + 63) // 64, 1
    while words > 1:
        words = (words + 63) // 64
        levels += 1
    return np.zeros((levels, (size + 63) // 64), np.uint64)


@numba.njit(cache=True)
def _set_bit(bits: Any, at: int, value: bool) -> None:
    """Puts a number into the set or takes it out."""
    for level in range(len(bits)):
        bit = np.uint64(1) << np.uint64(at & 63)
        at >>= 6
        if value:
            bits[level, at] |= bit
        else:
            bits[level, at] &= ~bit
            if bits[level, at]:
                return


@numba.njit(cache=True)
def _next_bit(bits: Any, at: int) -> Any:
    """The smallest number of the set that is at least `at`, -1 where there is none."""
    for level in range(len(bits)):
        word = at >> 6
        if word < bits.shape[1]:
            above = bits[level, word] >> np.uint64(at & 63)
            if above:
                at += _lowest(above)
                for down in range(level - 1, -1, -1):
                    at = (at << 6) + _lowest(bits[down, at])
                return at
        at = word + 1
    return -1


@numba.njit(cache=True)
def _lowest(word: Any) -> Any:
    """Which bit is the lowest that is set. A power of two is exact as a float, and frexp names its exponent."""
    return math.frexp(float(word & (~word + np.uint64(1))))[1] - 1
