"""Twins of numerics/overlap.py: plain sets, each compared with each."""


def postings(known: list[list]) -> list[set]:
    return [set(row) for row in known]


def overlaps(known: list[set], rows: list[list], near: float, least: int) -> list[list[int]]:
    """[row, known set, members in common] of the pairs that are alike or of which the known one lies in the other."""
    found = []
    for r, row in enumerate(rows):
        for k, other in enumerate(known):
            both = len(set(row) & other)
            alike = both >= near * len(set(row) | other)
            inside = len(other) >= least and both >= near * len(other)
            if both and (alike or inside):
                found.append([r, k, both])
    return found
