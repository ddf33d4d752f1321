"""Twins of numerics/shingles.py: n-grams are tuples, and equal where their numbers are."""


def rows(sequences: list) -> list[list]:
    return [list(sequence) for sequence in sequences]


def grams(row: list, length: int) -> list[tuple]:
    """All runs of `length` members in order; of a shorter row the row, of an empty one none."""
    if not row:
        return []
    return [tuple(row[at : at + length]) for at in range(max(1, len(row) - length + 1))]


def jaccard(one: list, other: list, length: int) -> float:
    left, right = set(grams(one, length)), set(grams(other, length))
    return len(left & right) / len(left | right) if left | right else 1.0


def sets(of: list[list], length: int) -> list[set]:
    return [set(grams(row, length)) for row in of]


def mix(value: int) -> int:
    """splitmix64's finalizer (Steele, Lea and Flood 2014, figure 17)."""
    whole = 2**64 - 1
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & whole
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & whole
    return value ^ (value >> 31)
