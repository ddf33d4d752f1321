"""MinHash as its definition says, one permutation a bin, and near pairs by comparing all with all."""

import hashlib
import itertools

from oracles.shingles import grams, jaccard


def signature(row: list, length: int, bins: int) -> list[bytes]:
    """The smallest hash of the row's n-grams in each of `bins` orders of them (Broder 1997)."""
    found = set(grams(row, length))
    return [min(hashlib.blake2b(repr((place, gram)).encode()).digest() for gram in found) for place in range(bins)]


def near_pairs(rows: list[list], length: int, near: float) -> set[tuple[int, int]]:
    """All pairs of rows whose n-gram sets have a Jaccard similarity of at least `near`."""
    pairs = itertools.combinations(range(len(rows)), 2)
    return {(one, other) for one, other in pairs if jaccard(rows[one], rows[other], length) >= near}


def meeting(similarity: float, bands: int, wide: int) -> float:
    """The chance that two signatures of independent bins agree in a whole band."""
    missed = 1.0
    for _ in range(bands):
        missed *= 1 - similarity**wide
    return 1 - missed
