"""Twins of numerics/packing.py: the fewest rows of any packing, best fit by looking at every row, and the same plan."""

from __future__ import annotations

import bisect
from collections.abc import Sequence


def fewest(lengths: Sequence[int], capacity: int) -> int:
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


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing document by document. Of equally full rows the one that came to be so last is taken."""
    rows: list[list[int]] = []
    open_rows: dict[int, list[int]] = {}  # free tokens → rows with exactly that much room
    rooms: list[int] = []  # the keys of open_rows, ascending
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        place = bisect.bisect_left(rooms, length)
        if place == len(rooms):
            rows.append([])
            row, room = len(rows) - 1, capacity
        else:
            room = rooms[place]
            row = open_rows[room].pop()
            if not open_rows[room]:
                del open_rows[room], rooms[place]
        rows[row].append(index)
        left = room - length
        if left:
            if left not in open_rows:
                open_rows[left] = []
                bisect.insort(rooms, left)
            open_rows[left].append(row)
    return rows
