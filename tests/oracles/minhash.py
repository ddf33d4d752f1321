"""Twins of numerics/minhash.py: MinHash as its definition says, and near pairs by comparing all with all."""

import hashlib
import itertools

from oracles.shingles import grams
from oracles.shingles import jaccard as similarity


def signatures(rows: list[list], length: int, bins: int = 128) -> list[list[bytes]]:
    """The smallest hash of each row's n-grams in each of `bins` orders of them (Broder 1997)."""
    return [
        [
            min(hashlib.blake2b(repr((place, gram)).encode()).digest() for gram in set(grams(row, length)))
            for place in range(bins)
        ]
        for row in rows
    ]


def estimate(one: list, other: list) -> float:
    return sum(a == b for a, b in zip(one, other, strict=True)) / len(one)


def meeting(alike: float, bands: int, wide: int) -> float:
    """The chance that two signatures of independent bins agree in a whole band."""
    missed = 1.0
    for _ in range(bands):
        missed *= 1 - alike**wide
    return 1 - missed


def layout(near: float, bins: int, recall: float) -> tuple[int, int]:
    """Of all ways to cut bins into bands that keep the recall, the one of the widest bands."""
    kept = [wide for wide in range(1, bins + 1) if meeting(near, bins // wide, wide) >= recall]
    return bins // max(kept), max(kept)


def bands(signed: list[list], shape: tuple[int, int]) -> list[list[tuple]]:
    number, wide = shape
    return [[tuple(row[band * wide : (band + 1) * wide]) for row in signed] for band in range(number)]


def buckets(keys: list) -> list[list[int]]:
    groups = [[at for at, key in enumerate(keys) if key == one] for one in sorted(set(keys))]
    return [group for group in groups if len(group) > 1]


def jaccard(one: set, other: set) -> float:
    return len(one & other) / len(one | other) if one | other else 1.0


def near_pairs(rows: list[list], length: int, near: float) -> set[tuple[int, int]]:
    """All pairs of rows whose n-gram sets have a Jaccard similarity of at least `near`."""
    pairs = itertools.combinations(range(len(rows)), 2)
    return {(one, other) for one, other in pairs if similarity(rows[one], rows[other], length) >= near}


def link(rows: list[list], near: float) -> list[int]:
    """The first row of each row's cluster, where all rows of one bucket have the same answer."""
    firsts = list(range(len(rows)))
    for one, other in near_pairs(rows, 1, near):
        join(firsts, one, other)
    return [root(firsts, at) for at in range(len(rows))]


def neighbours(rows: list[list], near: float) -> list[bool]:
    """Whether each row is near the one before it."""
    return [at > 0 and similarity(rows[at - 1], rows[at], 1) >= near for at in range(len(rows))]


def join(firsts: list[int], one: int, other: int) -> None:
    """Relabel all of one cluster."""
    one, other = firsts[one], firsts[other]
    firsts[:] = [min(one, other) if first in (one, other) else first for first in firsts]


def root(firsts: list[int], place: int) -> int:
    return firsts[place]
