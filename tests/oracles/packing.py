"""Twins of numerics/packing.py: the fewest rows that any packing needs, and best fit by looking at every row."""

from __future__ import annotations

from collections.abc import Sequence


def pack(lengths: Sequence[int], capacity: int) -> int:
    """The fewest rows that hold all documents, by trying every placement; for a handful of documents."""
    best = len(lengths)

    def place(index: int, rows: list[int]) -> None:
        nonlocal best
        if len(rows) >= best:
            return
        if index == len(lengths):
            best = len(rows)
            return
        for row in range(len(rows)):
            if rows[row] + lengths[index] <= capacity:
                rows[row] += lengths[index]
                place(index + 1, rows)
                rows[row] -= lengths[index]
        place(index + 1, [*rows, lengths[index]])

    place(0, [])
    return best


def best_fit_rooms(lengths: Sequence[int], capacity: int) -> list[int]:
    """Free tokens of every row of best-fit decreasing, ascending. Which of two equally full rows is taken does not
    change them."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms.remove(min(fitting))
            rooms.append(min(fitting) - length)
        else:
            rooms.append(capacity - length)
    return sorted(rooms)
