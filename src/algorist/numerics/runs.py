"""Runs of numbers that two collections share: every run of at least `length`, none missed and none made up.

The small collection is indexed by short anchors. A run of n numbers holds, wherever it stands, an anchor of
w = ⌈n / 2⌉ numbers whose place in the large row is a multiple of n - w + 1, so that of the large rows only one anchor
in n - w + 1 is looked up: each of their numbers is read once. A bitmap in the processor's cache turns away nearly all;
what passes is compared number by number, so that hashes decide nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from algorist.numerics.shingles import BASE, Rows

_BITS = 32  # of the bitmap, for each anchor: about 1 in 500 of the others passes it


@dataclass(frozen=True)
class Sought:
    """The rows that are looked for, and where each anchor stands in them."""

    rows: Rows
    length: int  # of the shortest run that counts
    bitmap: NDArray[np.uint64]  # (power of two,)
    heads: NDArray[np.int64]  # (power of two,) a slot's first place in rows.values, -1 for none
    nexts: NDArray[np.int64]  # (V,) the next place of the same slot
    owners: NDArray[np.int32]  # (V,) the row that each place belongs to


def sought(rows: Rows, length: int) -> Sought:
    """The index of rows to look for; its size is that of the rows, some 30 bytes a number."""
    assert length > 0, "a run holds at least one number"
    count = len(rows.values)
    slots = 1 << max(6, int(2 * count - 1).bit_length()) if count else 64
    bitmap = np.zeros(max(1, slots * _BITS // 128), np.uint64)
    heads, nexts = np.full(slots, -1, np.int64), np.full(count, -1, np.int64)
    owners = np.repeat(np.arange(len(rows), dtype=np.int32), np.diff(rows.starts))
    _index(rows.values, rows.starts, (length + 1) // 2, bitmap, heads, nexts)
    return Sought(rows, length, bitmap, heads, nexts, owners)


def shared(index: Sought, within: Rows, first: bool = False) -> NDArray[np.int64]:
    """Every longest run that a row shares with a sought row.

    Args:
        within  (R rows) of any kind of whole number, token ids or hashes of words
        first   of each row only the first run found

    Returns:
        (H, 5) row, place in it, sought row, place in it, length; by row and place.

    >>> from algorist.numerics.shingles import rows
    >>> shared(sought(rows([[7, 1, 2, 3, 4]]), 3), rows([[1, 2, 9], [0, 1, 2, 3, 9]])).tolist()
    [[1, 1, 0, 1, 3]]
    """
    found: NDArray[np.int64] = _shared(
        within.values,
        within.starts,
        index.rows.values,
        index.rows.starts,
        index.length,
        first,
        (index.bitmap, index.heads, index.nexts, index.owners),
    )
    return found if first else found[np.lexsort((found[:, 2], found[:, 1], found[:, 0]))]


@numba.njit(cache=True)
def _shift(size: int) -> Any:
    """By how much to shift a hash to the right so that it numbers one of `size` (a power of two) places."""
    shift = 64
    while size > 1:
        size >>= 1
        shift -= 1
    return np.uint64(shift)


@numba.njit(cache=True)
def _mask(key: Any) -> Any:
    """The two bits that an anchor sets in its word of the bitmap."""
    return np.uint64(1) << (key >> np.uint64(37) & np.uint64(63)) | np.uint64(1) << (
        key >> np.uint64(31) & np.uint64(63)
    )


@numba.njit(cache=True)
def _key(values: Any, at: int, width: int) -> Any:
    """The hash of one anchor, a polynomial in its numbers; the high bits are the good ones."""
    value = np.uint64(0)
    for place in range(at, at + width):
        value = value * BASE + np.uint64(values[place])
    return value * BASE


@numba.njit(cache=True)
def _index(values: Any, starts: Any, width: int, bitmap: Any, heads: Any, nexts: Any) -> None:
    to_slot, to_word = _shift(len(heads)), _shift(len(bitmap))
    for row in range(len(starts) - 1):
        for at in range(starts[row], starts[row + 1] - width + 1):
            key = _key(values, at, width)
            bitmap[key >> to_word] |= _mask(key)
            nexts[at] = heads[key >> to_slot]
            heads[key >> to_slot] = at


@numba.njit(cache=True)
def _ahead(values: Any, at: int, high: int, width: int, stride: int, bitmap: Any, to_word: Any) -> int:
    """The next anchor, from `at` on, that the bitmap lets pass, or -1. Nearly all the time is spent here."""
    while at + width <= high:
        value = np.uint64(0)
        for place in range(at, at + width):
            value = value * BASE + np.uint64(values[place])
        value *= BASE
        mask = _mask(value)
        if bitmap[value >> to_word] & mask == mask:
            return at
        at += stride
    return -1


@numba.njit(cache=True)
def _stretch(values: Any, at: int, others: Any, place: int, limits: tuple[int, int, int, int]) -> tuple[int, int]:
    """How far (to the left, to the right) the rows agree around one place of each."""
    low, high, begin, end = limits
    left, right = 0, 0
    while at - left > low and place - left > begin and np.uint64(values[at - left - 1]) == others[place - left - 1]:
        left += 1
    while at + right < high and place + right < end and np.uint64(values[at + right]) == others[place + right]:
        right += 1
    return left, right


@numba.njit(cache=True)
def _shared(
    values: Any, starts: Any, sought_values: Any, sought_starts: Any, length: int, first: bool, tables: Any
) -> Any:
    bitmap, heads, nexts, owners = tables
    width = (length + 1) // 2
    stride = length - width + 1
    to_slot, to_word = _shift(len(heads)), _shift(len(bitmap))
    found, count = np.empty((64, 5), np.int64), 0
    for row in range(len(starts) - 1):
        low, high = starts[row], starts[row + 1]
        at = _ahead(values, low, high, width, stride, bitmap, to_word)
        while at >= 0:
            place = heads[_key(values, at, width) >> to_slot]
            while place >= 0:
                other = owners[place]
                begin, end = sought_starts[other], sought_starts[other + 1]
                left, right = _stretch(values, at, sought_values, place, (low, high, begin, end))
                # A run holds several anchors; it is told of at its first.
                if left < stride and left + right >= length:
                    if count == len(found):
                        found = np.concatenate((found, np.empty_like(found)))
                    found[count, 0], found[count, 1], found[count, 4] = row, at - left - low, left + right
                    found[count, 2], found[count, 3] = other, place - left - begin
                    count += 1
                    if first:
                        at = high
                        break
                place = nexts[place]
            at = _ahead(values, at + stride, high, width, stride, bitmap, to_word)
    return found[:count]
