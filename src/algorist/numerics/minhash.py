"""MinHash signatures of n-gram sets, the bands that bring alike sets together, and Jaccard's similarity itself.

The signature is a fast similarity sketch (Dahlgaard, Knudsen and Thorup 2017, "Fast similarity sketching",
arXiv 1704.04370): in one pass each n-gram falls into one bin and the smallest in a bin stays, as in one-permutation
hashing; while bins are empty, further passes with other hashes fill them. Each bin agrees between two sets with a
chance of exactly their Jaccard similarity, for ten n-grams as for ten thousand, and long rows are read only once.

Candidates are sets that agree in all bins of one band (Broder 1997; Leskovec, Rajaraman and Ullman 2014, chapter 3).
They are compared in full: a signature decides nothing but who is compared.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from algorist.numerics.shingles import BASE, Rows, mix

BINS = 128
RECALL = 0.998  # the chance that a pair just alike enough is compared; see `layout`
_NEVER = 2**64 - 1


def signatures(of: Rows, length: int, bins: int = BINS) -> NDArray[np.uint32]:
    """The signature of each row's set of runs of `length` numbers.

    Args:
        of      (R rows) token ids or hashes of words; a row shorter than `length` is one run, an empty one none
        length  of the runs
        bins    a power of two

    Returns:
        (R, bins) uint32; all ones for an empty row.

    >>> from algorist.numerics.shingles import rows
    >>> one, other, third = signatures(rows([[1, 2, 3, 4], [1, 2, 3, 4, 2, 3, 4], [5, 6, 7, 8]]), 2)
    >>> estimate(one, other) > 0.5, estimate(one, third)       # {12, 23, 34} and {12, 23, 34, 42}: 3/4
    (True, 0.0)
    """
    assert length > 0 and bins & (bins - 1) == 0, "runs hold at least one number; bins are a power of two"
    out = np.empty((len(of), bins), np.uint32)
    _signatures(of.values, of.starts, length, bins.bit_length() - 1, out)
    return out


def estimate(one: NDArray[np.uint32], other: NDArray[np.uint32]) -> float:
    """The Jaccard similarity that two signatures tell of; its standard error is at most 0.5 / sqrt(bins)."""
    return float(np.mean(one == other))


def layout(near: float, bins: int = BINS) -> tuple[int, int]:
    """(bands, bins a band): the widest bands that bring a pair of similarity `near` together with a chance of RECALL.

    A pair of similarity s meets in one band of r bins with a chance of s^r, in any of b bands with 1 - (1 - s^r)^b.

    >>> layout(0.8), layout(0.5)
    ((21, 6), (64, 2))
    """
    for wide in range(bins, 0, -1):
        if 1 - (1 - near**wide) ** (bins // wide) >= RECALL:
            return bins // wide, wide
    return bins, 1


def bands(signed: NDArray[np.uint32], shape: tuple[int, int]) -> NDArray[np.uint64]:
    """(bands, R) uint64: what each signature's bands hash to, one row of numbers a band; `shape` is a `layout`."""
    out = np.empty((shape[0], len(signed)), np.uint64)
    _bands(signed, shape[1], out)
    return out


def buckets(keys: NDArray[np.uint64]) -> Rows:
    """The places that have their key in common with another place: one row of rising places a key.

    >>> [row.tolist() for row in (lambda found: [found[k] for k in range(len(found))])(
    ...     buckets(np.array([5, 3, 5, 1, 3, 5], np.uint64)))]
    [[1, 4], [0, 2, 5]]
    """
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    begins = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(keys) else np.zeros(0, np.int64)
    sizes = np.diff(np.r_[begins, len(keys)])
    several = np.repeat(sizes > 1, sizes)
    sizes = sizes[sizes > 1]
    return Rows(order[several], np.r_[0, np.cumsum(sizes)].astype(np.int64))


def jaccard(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> float:
    """Shared members over all members of two sets in rising order; 1 for two empty ones.

    >>> jaccard(np.array([1, 2, 3], np.uint64), np.array([2, 3, 4], np.uint64))
    0.5
    """
    return float(_jaccard(one, other))


def link(
    candidates: Rows, of: Rows, near: float, answers: NDArray[np.uint64], parents: NDArray[np.int64], window: int
) -> tuple[NDArray[np.int64], int]:
    """Compare the sets of each bucket and join those that are near and have the same answer.

    Args:
        candidates  (buckets) of places, as `buckets` gives them
        of          (R rows) sets in rising order, one a place
        near        the least Jaccard similarity that counts
        answers     (R,) equal numbers mean equal answers
        parents     (R,) a forest, changed in place: `root` of a place is the first of those joined with it
        window      how many places before it in a bucket each is compared with, at most

    Returns:
        (P, 2) near pairs (earlier, later) whose answers are written differently, for a slower look, and how many
        comparisons were left out because of `window`.
    """
    pairs, left_out = _link(
        candidates.values, candidates.starts, of.values, of.starts, near, (answers, parents), window
    )
    return pairs, int(left_out)


def neighbours(candidates: Rows, of: Rows, near: float, beside: NDArray[np.bool_]) -> None:
    """Mark each place whose set is near that of the place before it in a bucket; places marked are not compared again.

    Args as those of `link`; `beside` (R,) is changed in place.
    """
    _neighbours(candidates.values, candidates.starts, of.values, of.starts, near, beside)


def join(parents: NDArray[np.int64], one: int, other: int) -> None:
    """Make one cluster of two; the first of them is its root."""
    _join(parents, one, other)


def root(parents: NDArray[np.int64], place: int) -> int:
    """The first place of the cluster that a place belongs to."""
    return int(_root(parents, place))


@numba.njit(cache=True)
def _signatures(values: Any, starts: Any, length: int, log_bins: int, out: Any) -> None:
    bins = 1 << log_bins
    shift = np.uint64(64 - log_bins)
    best = np.empty(bins, np.uint64)
    for row in range(len(starts) - 1):
        best[:] = np.uint64(_NEVER)
        low, high = starts[row], starts[row + 1]
        turn = 0
        while turn < 2 * bins and high > low:
            if turn == 0:
                _first(values, low, high, length, best, shift)
            else:
                _fill(values, low, high, length, best, (turn, shift))
            turn += 1
            if not np.any(best == np.uint64(_NEVER)):
                break
        for place in range(bins):
            out[row, place] = np.uint32(best[place] & np.uint64(0xFFFFFFFF))


@numba.njit(cache=True)
def _power(length: int) -> Any:
    value = np.uint64(1)
    for _ in range(length):
        value *= BASE
    return value


@numba.njit(cache=True)
def _first(values: Any, low: int, high: int, length: int, best: Any, shift: Any) -> None:
    """The pass that long rows need only: the rolling hash of every run, dropped into its bin."""
    rolling, out_of = np.uint64(0), _power(length)
    for at in range(low, min(low + length, high)):
        rolling = rolling * BASE + np.uint64(values[at]) + np.uint64(1)
    hashed = mix(rolling)
    place = hashed >> shift
    best[place] = min(best[place], hashed << np.uint64(1) >> np.uint64(1))
    for at in range(low + length, high):
        rolling = rolling * BASE + np.uint64(values[at]) + np.uint64(1)
        rolling -= out_of * (np.uint64(values[at - length]) + np.uint64(1))
        hashed = mix(rolling)
        place = hashed >> shift
        best[place] = min(best[place], hashed << np.uint64(1) >> np.uint64(1))


@numba.njit(cache=True)
def _fill(values: Any, low: int, high: int, length: int, best: Any, turn_and_shift: Any) -> None:
    """A further pass: other hashes, for the bins that are still empty; from pass `bins` on one bin each."""
    turn, shift = turn_and_shift
    empty = best == np.uint64(_NEVER)
    rolling, out_of, salt = np.uint64(0), _power(length), mix(np.uint64(turn))
    for at in range(low, high):
        rolling = rolling * BASE + np.uint64(values[at]) + np.uint64(1)
        if at >= low + length:
            rolling -= out_of * (np.uint64(values[at - length]) + np.uint64(1))
        if at >= low + length - 1 or at == high - 1:
            hashed = mix(mix(rolling) + salt)
            place = hashed >> shift if turn < len(best) else np.uint64(turn - len(best))
            if empty[place]:
                best[place] = min(best[place], hashed << np.uint64(1) >> np.uint64(1))


@numba.njit(cache=True)
def _bands(signed: Any, wide: int, out: Any) -> None:
    for row in range(len(signed)):
        for band in range(len(out)):
            value = np.uint64(band + 1)
            for place in range(band * wide, (band + 1) * wide):
                value = (value ^ np.uint64(signed[row, place])) * BASE
                value ^= value >> np.uint64(32)
            out[band, row] = mix(value)


@numba.njit(cache=True)
def _jaccard(one: Any, other: Any) -> float:
    left, right, both = 0, 0, 0
    while left < len(one) and right < len(other):
        if one[left] == other[right]:
            both += 1
            left += 1
            right += 1
        elif one[left] < other[right]:
            left += 1
        else:
            right += 1
    union = len(one) + len(other) - both
    return both / union if union else 1.0


@numba.njit(cache=True)
def _root(parents: Any, place: int) -> int:
    while parents[place] != place:
        parents[place] = parents[parents[place]]
        place = parents[place]
    return place


@numba.njit(cache=True)
def _join(parents: Any, one: int, other: int) -> None:
    one, other = _root(parents, one), _root(parents, other)
    parents[max(one, other)] = min(one, other)


@numba.njit(cache=True)
def _link(members: Any, bounds: Any, sets: Any, starts: Any, near: float, forest: Any, window: int) -> tuple[Any, int]:
    answers, parents = forest
    pairs, count, left_out = np.empty((64, 2), np.int64), 0, 0
    for bucket in range(len(bounds) - 1):
        low, high = bounds[bucket], bounds[bucket + 1]
        for place in range(low + 1, high):
            later = members[place]
            left_out += max(0, place - low - window)
            for before in range(max(low, place - window), place):
                earlier = members[before]
                if _root(parents, earlier) == _root(parents, later):
                    continue
                one, other = sets[starts[earlier] : starts[earlier + 1]], sets[starts[later] : starts[later + 1]]
                if min(len(one), len(other)) < near * max(len(one), len(other)) or _jaccard(one, other) < near:
                    continue
                if answers[earlier] == answers[later]:
                    _join(parents, earlier, later)
                    continue
                if count == len(pairs):
                    pairs = np.concatenate((pairs, np.empty_like(pairs)))
                pairs[count, 0], pairs[count, 1] = earlier, later
                count += 1
    return pairs[:count], left_out


@numba.njit(cache=True)
def _neighbours(members: Any, bounds: Any, sets: Any, starts: Any, near: float, beside: Any) -> None:
    for bucket in range(len(bounds) - 1):
        for place in range(bounds[bucket] + 1, bounds[bucket + 1]):
            earlier, later = members[place - 1], members[place]
            if not beside[later]:
                one, other = sets[starts[earlier] : starts[earlier + 1]], sets[starts[later] : starts[later + 1]]
                beside[later] = _jaccard(one, other) >= near
