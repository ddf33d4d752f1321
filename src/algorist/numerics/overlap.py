"""How much sets have in common with a few known ones, exactly: an inverted index from members to known sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from algorist.numerics.shingles import Rows


@dataclass(frozen=True)
class Postings:
    """Which known sets hold each member."""

    members: NDArray[np.uint64]  # (M,) rising
    holders: Rows  # (M rows) numbers of known sets
    sizes: NDArray[np.int64]  # (Q,) of the known sets


def postings(known: Rows) -> Postings:
    """The inverted index of sets in rising order, as `shingles.sets` gives them."""
    sizes = np.diff(known.starts)
    owners = np.repeat(np.arange(len(known), dtype=np.int32), sizes)
    order = np.argsort(known.values, kind="stable")
    members, counts = np.unique(known.values, return_counts=True)
    return Postings(members, Rows(owners[order], np.r_[0, np.cumsum(counts)].astype(np.int64)), sizes)


def overlaps(known: Postings, of: Rows, near: float, least: int) -> NDArray[np.int64]:
    """Pairs of sets that are alike, or of which the known one lies nearly whole in the other.

    Args:
        of     (R rows) sets in rising order
        near   the least Jaccard similarity, or share of the known set that is found
        least  members a known set must have for the share to count: in a long text some of any few are found

    Returns:
        (H, 3) row, known set, members in common; in this order.

    >>> from algorist.numerics.shingles import rows
    >>> known = postings(rows([[1, 2, 3, 4], [7, 8]], np.uint64))
    >>> overlaps(known, rows([[1, 2, 3, 5], [1, 2, 3, 5, 6, 9], [7]], np.uint64), 0.5, 3).tolist()
    [[0, 0, 3], [1, 0, 3], [2, 1, 1]]
    """
    found: NDArray[np.int64] = _overlaps(
        known.members, known.holders.values, known.holders.starts, known.sizes, of.values, of.starts, (near, least)
    )
    return found[np.lexsort((found[:, 1], found[:, 0]))]


@numba.njit(cache=True)
def _overlaps(
    members: Any, holders: Any, bounds: Any, sizes: Any, values: Any, starts: Any, limits: tuple[float, int]
) -> Any:
    near, least = limits
    common, touched = np.zeros(len(sizes), np.int64), np.empty(len(sizes), np.int64)
    found, count = np.empty((64, 3), np.int64), 0
    for row in range(len(starts) - 1):
        size, met = starts[row + 1] - starts[row], 0
        for at in range(starts[row], starts[row + 1]):
            place = np.searchsorted(members, values[at])
            if place == len(members) or members[place] != values[at]:
                continue
            for holder in range(bounds[place], bounds[place + 1]):
                known = holders[holder]
                if common[known] == 0:
                    touched[met] = known
                    met += 1
                common[known] += 1
        for place in range(met):
            known = touched[place]
            both, common[known] = common[known], 0
            inside = sizes[known] >= least and both >= near * sizes[known]
            if inside or both >= near * (size + sizes[known] - both):
                if count == len(found):
                    found = np.concatenate((found, np.empty_like(found)))
                found[count, 0], found[count, 1], found[count, 2] = row, known, both
                count += 1
    return found[:count]
