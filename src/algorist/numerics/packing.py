"""Which documents share a row of the packed stage: best-fit decreasing, deterministic."""

import bisect
from collections.abc import Sequence


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Put documents into as few rows of `capacity` tokens as best-fit decreasing finds, none of them cut.

    Args:
        lengths   (D,)  tokens of each document, each between 1 and `capacity`
        capacity  tokens of a row

    Returns:
        Rows, each a list of document indices. The result depends on the lengths alone; equal lengths keep their
        order.

    Raises:
        ValueError where a document does not fit: the caller counts and leaves out such documents before.

    Source: Johnson et al. 1974; at most 11/9 of the optimal number of rows, plus 4.

    >>> pack([3, 5, 2], capacity=5)
    [[1], [0, 2]]
    """
    if lengths and not 1 <= min(lengths) <= max(lengths) <= capacity:
        raise ValueError(f"document lengths lie in {min(lengths)}..{max(lengths)}, rows hold 1..{capacity} tokens")
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
