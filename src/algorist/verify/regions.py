r"""Regions: sets of real numbers, however they are written, as intervals.

`x > 5`, `(5, \infty)`, `\{x : x > 5\}` and `x \in (5, \infty)` are one region; so are `x \ne 3` and the two rays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

from algorist.verify.evaluate import Digits, Huge, Unknown
from algorist.verify.exact import Undefined
from algorist.verify.identity import infinite, same_constant
from algorist.verify.nodes import Node, negative, symbols, walk

_INFINITY = Node("constant", (), "infinity")
_MOST_ZEROS = 12
_MOST_CONDITIONS = 8
_FOUND = -1  # places of an end that was found by bisection, not written
_FLIPPED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}
INEQUALITIES = frozenset(("<", ">", r"\le", r"\ge", r"\ne"))


class Interval(NamedTuple):
    """From one number to another, either end in or out; a point is an interval of no length."""

    low: Node
    high: Node
    has_low: bool
    has_high: bool
    start: float
    stop: float


Region = list[Interval]
EVERYTHING: Region = [Interval(negative(_INFINITY), _INFINITY, False, False, float("-inf"), float("inf"))]


def is_region(node: Node) -> bool:
    """Whether it can only be meant as a set of numbers."""
    if node.kind in ("union", "intersection", "difference", "builder", "numbers"):
        return True
    if node.kind == "relation":
        return all(operator in INEQUALITIES for operator in node.value) or node.value in ((r"\in",), (r"\notin",))
    if node.kind == "tuple" and len(node.parts) == 2:
        return node.value in ("[)", "(]") or any(infinite(part) for part in node.parts)
    return node.kind == "list" and any(is_region(part) for part in node.parts)


def region(node: Node) -> Region | None:
    """The intervals of a set of real numbers, in order and apart; None where it is not one that we can write so."""
    try:
        found = _region(node)
    except (Huge, Undefined, Unknown):
        return None
    return None if found is None else _joined(found)


def same_region(left: Region, right: Region) -> bool:
    """Whether two regions have the same intervals."""
    return len(left) == len(right) and all(
        a.has_low == b.has_low
        and a.has_high == b.has_high
        and _same_end(a.low, b.low, a.start, b.start)
        and _same_end(a.high, b.high, a.stop, b.stop)
        for a, b in zip(left, right, strict=True)
    )


def _same_end(left: Node, right: Node, a: float, b: float) -> bool:
    """Ends are compared as numbers, those that a grid found to nine digits."""
    if _FOUND in (left.places, right.places):
        return abs(a - b) <= 1e-9 * max(1.0, abs(a))
    return same_constant(left, right) is True


def _region(node: Node) -> Region | None:
    kind = node.kind
    if kind == "tuple" and len(node.parts) == 2:
        return _interval(*node.parts, node.value[0] == "[", node.value[1] == "]")
    if kind == "set":
        found = [_interval(part, part, True, True) for part in node.parts]
        return None if None in found else [piece for pieces in found for piece in pieces or ()]
    if kind == "numbers":
        return EVERYTHING if node.value == "R" else None
    if kind == "builder":
        return _region(_condition(node.parts[1]))
    if kind == "relation":
        return _solved(node)
    if kind == "list":
        return _listed(node)
    if kind in ("union", "intersection", "difference"):
        left, right = (_region(part) for part in node.parts)
        if left is None or right is None:
            return None
        if kind == "union":
            return [*left, *right]
        return _common(left, right if kind == "intersection" else _outside(right))
    return None


def _condition(node: Node) -> Node:
    """The condition of {x : ...} without `x in R`, which says nothing here."""
    if node.kind == "list":
        rest = [part for part in node.parts if not (part.kind == "relation" and part.parts[-1].kind == "numbers")]
        return rest[0] if len(rest) == 1 else node._replace(parts=tuple(rest), value="and")
    return node


def _number(node: Node) -> float:
    found = Digits().value(node, {})
    if isinstance(found, complex):
        raise Unknown
    return float(found)


def _interval(low: Node, high: Node, has_low: bool, has_high: bool) -> Region | None:
    if symbols(low) or symbols(high):
        return None
    start = infinite(low) * float("inf") if infinite(low) else _number(low)
    stop = infinite(high) * float("inf") if infinite(high) else _number(high)
    if start > stop:
        return []
    return [Interval(low, high, has_low and not infinite(low), has_high and not infinite(high), start, stop)]


def _listed(node: Node) -> Region | None:
    """Several conditions: all of them where that says "and" or can be, else any of them; or several numbers."""
    if not any(part.kind == "relation" for part in node.parts):
        return _region(node._replace(kind="set"))
    found = [_region(part) for part in node.parts[: _MOST_CONDITIONS + 1]]
    if not found or None in found or len(found) > _MOST_CONDITIONS:
        return None
    regions = [part for part in found if part is not None]
    if node.value != "or":
        common = regions[0]
        for other in regions[1:]:
            common = _joined(_common(common, other))
        if common or node.value == "and":
            return common
    return [piece for pieces in regions for piece in pieces]


def _solved(node: Node) -> Region | None:
    """An inequality in one variable, solved where the variable stands alone, is linear, or changes sign on a grid."""
    if node.value == (r"\in",):
        return _region(node.parts[1])
    if node.value == (r"\notin",):
        inner = _region(node.parts[1])
        return None if inner is None else _outside(inner)
    if not all(operator in INEQUALITIES for operator in node.value) or len(node.value) > _MOST_CONDITIONS:
        return None
    found = EVERYTHING
    for left, operator, right in zip(node.parts, node.value, node.parts[1:], strict=False):
        one = _one_sided(left, operator, right)
        if one is None:
            return None
        found = _joined(_common(found, one))
    return found


def _one_sided(left: Node, operator: str, right: Node) -> Region | None:
    names = symbols(left) | symbols(right)
    if len(names) != 1:
        return None
    if right.kind == "symbol" and left.kind != "symbol":
        left, right, operator = right, left, _FLIPPED.get(operator, operator)
    if left.kind == "symbol" and not symbols(right):
        return _ray(right, operator)
    return _from_signs(Node("sum", (left, negative(right))), operator, next(iter(names)))


def _ray(end: Node, operator: str) -> Region | None:
    minus = negative(_INFINITY)
    if operator == r"\ne":
        point = _interval(end, end, True, True)
        return None if point is None else _outside(point)
    if operator in ("<", r"\le"):
        return _interval(minus, end, False, operator == r"\le")
    return _interval(end, _INFINITY, operator == r"\ge", False)


def _from_signs(difference: Node, operator: str, name: str) -> Region | None:
    """Where an expression in one variable is below or above zero: its zeros, found on a grid, cut the line up."""
    machine = Digits()

    def at(place: float) -> float:
        found = machine.value(difference, {name: Fraction(place)})
        if isinstance(found, complex):
            raise Unknown
        return float(found)

    if any(part.kind in ("series", "unread") for part in walk(difference)):
        return None
    grid = [place / 4 + 0.0137 for place in range(-200, 201)]
    zeros = _zeros(at, grid)
    if zeros is None:
        return None
    whole = [_written(zero) for zero in zeros]
    edges = [float("-inf"), *zeros, float("inf")]
    pieces: Region = []
    inside = {"<": -1, r"\le": -1, ">": 1, r"\ge": 1}.get(operator)
    for low, high in zip(edges, edges[1:], strict=False):
        middle = (max(low, -1e4) + min(high, 1e4)) / 2
        sign = at(middle)
        if inside is None or sign * inside > 0:
            ends = [_INFINITY if abs(end) == float("inf") else whole[zeros.index(end)] for end in (low, high)]
            first = negative(ends[0]) if low == float("-inf") else ends[0]
            closed = operator in (r"\le", r"\ge")
            pieces += _interval(first, ends[1], closed, closed) or []
    return pieces


def _zeros(at: Callable[[float], float], grid: Sequence[float]) -> list[float] | None:
    """Places where a function changes sign between neighbours of a grid, by bisection.

    None where that does not tell: at a pole the sign changes without a zero, and a function may touch zero between two
    places of the grid.
    """
    found = []
    values = [at(place) for place in grid]
    size = max(map(abs, values))
    for place, following, before, after in zip(grid, grid[1:], values, values[1:], strict=False):
        if before * after < 0:
            low, high = place, following
            for _ in range(60):
                middle = (low + high) / 2
                low, high = (middle, high) if at(middle) * before > 0 else (low, middle)
            found.append((low + high) / 2)
            if abs(at(found[-1])) > 1e-6 * (1 + size) or len(found) > _MOST_ZEROS:
                return None
    for a, b, c in zip(values, values[1:], values[2:], strict=False):
        bend = abs(a) - 2 * abs(b) + abs(c)  # where a parabola through three values comes down to zero, it may touch
        if (
            a * b > 0
            and b * c > 0
            and bend > 0
            and abs(b) - (abs(a) - abs(c)) ** 2 / (8 * bend) <= 1e-6 * (abs(a) + abs(c))
        ):
            least = min(abs(a), abs(c))
            if abs(b) <= least:
                return None
    return found


def _written(zero: float) -> Node:
    """A zero as the simple fraction it very nearly is; else as it stands."""
    simple = Fraction(zero).limit_denominator(1_000)
    if abs(simple - Fraction(zero)) < Fraction(1, 10**10):
        return Node("number", (), simple)
    return Node("decimal", (), Fraction(zero), _FOUND)


def _joined(pieces: Region) -> Region:
    """The same region with overlapping and touching intervals made one."""
    found: Region = []
    for piece in sorted(pieces, key=lambda piece: (piece.start, not piece.has_low)):
        if piece.start == piece.stop and not (piece.has_low and piece.has_high):
            continue
        if found:
            last = found[-1]
            touches = piece.start < last.stop or (piece.start == last.stop and (piece.has_low or last.has_high))
            if touches:
                further = (piece.stop, piece.has_high) > (last.stop, last.has_high)
                end = piece if further else last
                found[-1] = last._replace(high=end.high, stop=end.stop, has_high=end.has_high)
                continue
        found.append(piece)
    return found


def _common(left: Region, right: Region) -> Region:
    found = []
    for a in left:
        for b in right:
            low = max((a, b), key=lambda piece: (piece.start, not piece.has_low))
            high = min((a, b), key=lambda piece: (piece.stop, piece.has_high))
            if low.start < high.stop or (low.start == high.stop and low.has_low and high.has_high):
                found.append(Interval(low.low, high.high, low.has_low, high.has_high, low.start, high.stop))
    return found


def _outside(pieces: Region) -> Region:
    """Everything that is not in the region."""
    found = EVERYTHING
    for piece in _joined(pieces):
        whole = EVERYTHING[0]
        left = Interval(whole.low, piece.low, False, not piece.has_low, whole.start, piece.start)
        right = Interval(piece.high, whole.high, not piece.has_high, False, piece.stop, whole.stop)
        ends = [end for end in (left, right) if end.start < end.stop and abs(end.start) + abs(end.stop) > 0]
        found = _common(found, ends)
    return found
