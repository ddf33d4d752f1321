"""Twins of numerics/runs.py: all places against all places."""


def sought(rows: list[list], length: int) -> tuple[list[list], int]:
    return rows, length


def shared(index: tuple[list[list], int], rows: list[list]) -> list[list[int]]:
    """Every longest run of at least `length` that a row shares with a sought row, found by trying all places."""
    sought, length = index
    found = []
    for r, row in enumerate(rows):
        for at in range(len(row)):
            for s, other in enumerate(sought):
                for there in range(len(other)):
                    if at and there and row[at - 1] == other[there - 1]:
                        continue
                    n = 0
                    while at + n < len(row) and there + n < len(other) and row[at + n] == other[there + n]:
                        n += 1
                    if n >= length:
                        found.append([r, at, s, there, n])
    return found
