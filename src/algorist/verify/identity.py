"""Identity: do two expressions have the same value, at one point or everywhere?

Without variables the values are compared, exactly where both are rational. With variables both are evaluated at points
that no honest expression is special at: different functions differ at nearly every such point, so one point where they
clearly differ is a proof, and agreement at several, confirmed with 60 digits, is certainty enough (Schwartz, Zippel).
Where only one of the two is real, the point says nothing: log x^2 and 2 log x are the same answer.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from algorist.verify.evaluate import DIGITS, Digits, Huge, Unknown
from algorist.verify.exact import Undefined, exact
from algorist.verify.nodes import Node, number, symbols, walk

ENOUGH = 3  # points of agreement, where a function has no pieces
CLEAR = 1e-6  # relative difference of two floats that no rounding explains

# For the first variable, the second …: spread over the line, with no pattern that an expression could share.
_RANGES = ((0.2, 0.9), (-7.0, -1.1), (1.1, 3.0), (-3.0, 3.0), (4.0, 11.0), (-0.9, -0.2))
# Every variable takes both parities and all residues of 3 and 4, and two of them every combination of parities.
_INTEGERS = (
    (5, 3, 2, 4), (3, 5, 4, 2), (4, 2, 3, 6), (2, 4, 6, 3), (6, 3, 5, 2), (7, 4, 2, 5), (3, 8, 5, 1), (8, 5, 3, 1),
    (1, 6, 2, 7), (0, 1, 4, 8), (9, 0, 1, 3), (12, 7, 5, 6), (2, 10, 7, 3),
)  # fmt: skip
_WHOLE = frozenset("ijklmnpqrst")  # letters that stand for whole numbers where something is rounded
_PIECES = frozenset(("abs", "max", "min", "sgn", "root"))
_FAR = ((-60.0, -12.0), (12.0, 60.0), (-1500.0, -700.0), (500.0, 1400.0))
_BESIDE = (Fraction(-31, 97), Fraction(29, 101))


def same_value(left: Node, right: Node) -> bool | None:
    """Whether two expressions are equal wherever both are defined and real; None where that cannot be seen."""
    if left == right:
        return True
    names = sorted(symbols(left) | symbols(right))
    return _same_function(left, right, names) if names else same_constant(left, right)


def same_constant(left: Node, right: Node) -> bool | None:
    """Whether two expressions without variables have the same value; None where one of them cannot be computed."""
    ends = infinite(left), infinite(right)
    if any(ends):
        return ends[0] == ends[1]
    try:
        values = exact(left), exact(right)
        if values[0] is not None and values[1] is not None:
            return values[0] == values[1]
        machine = Digits()
        a, b = machine.value(left, {}), machine.value(right, {})
        if abs(a - b) > CLEAR * max(abs(a), abs(b)) and not machine.cancelled:
            return False
    except Undefined:
        return None
    except (Huge, Unknown):
        pass
    return _same_to_the_digit(left, right, {})


def infinite(node: Node) -> int:
    """1 for infinity, -1 for its opposite, 0 for everything else."""
    if node.kind == "negative":
        return -infinite(node.parts[0])
    return int(node.kind == "constant" and node.value == "infinity")


def _same_to_the_digit(left: Node, right: Node, point: dict[str, Fraction]) -> bool | None:
    """Whether two values agree to the last digits; where they nearly do, whether the gap vanishes with precision."""
    gaps: list[Any] = []
    for digits in DIGITS:
        arithmetic = Digits(digits)
        found = _both(arithmetic, left, right, point)
        if found is None:
            return None
        if None in found:
            return None if found == [None, None] else False
        gaps.append(abs(found[0] - found[1]))
        if gaps[0] <= max(abs(found[0]), abs(found[1])) * 10.0 ** (10 - digits):
            return _finer(left, right, point, arithmetic.absorbed) if arithmetic.absorbed else True
    return bool(gaps[0] < gaps[1] * 1e-15)


def _both(arithmetic: Digits, left: Node, right: Node, point: dict[str, Fraction]) -> list[Any] | None:
    """Two values, None for one that is too large to be written down; None for both where one is none at all."""
    found: list[Any] = []
    for node in (left, right):
        try:
            found.append(arithmetic.value(node, point))
        except Huge:
            found.append(None)
        except (Undefined, Unknown):
            return None
    return found


def _finer(left: Node, right: Node, point: dict[str, Fraction], absorbed: float) -> bool | None:
    """Agreement in which a term vanished beside another. With twice the digits it shows, or proves to be rounding.

    sin(pi) is nothing but the error of its digits and shrinks with them; the 1 of 9^{9^9} + 1 does not, and whether it
    is on both sides cannot be seen.
    """
    arithmetic = Digits(2 * DIGITS[0])
    found = _both(arithmetic, left, right, point)
    if found is None or None in found:
        return None
    if arithmetic.absorbed and arithmetic.absorbed > absorbed - 2.5 * DIGITS[0]:
        return None
    return bool(abs(found[0] - found[1]) <= max(abs(found[0]), abs(found[1])) * 10.0 ** (10 - arithmetic.digits))


def points(names: list[str], nodes: tuple[Node, ...]) -> list[dict[str, Fraction]]:
    """Points to compare at: whole numbers where something counts (n!, sums up to n, (-1)^n), else anything.

    Where a function has pieces (|x|, floor, max), points far out and beside every number of the expression come too.
    """
    parts = [part for node in nodes for part in walk(node)]
    steps = any(part.kind == "function" and part.value in ("floor", "ceil") for part in parts)
    counts = any(
        part.kind == "series"
        or (part.kind == "function" and part.value in ("factorial", "binom", "gcd", "lcm", "mod"))
        or (part.kind == "power" and part.parts[0].kind in ("number", "negative") and _below_zero(part.parts[0]))
        for part in parts
    )
    found = []
    if counts or steps:
        found += [
            {name: Fraction(row[place % 4] + place // 4) for place, name in enumerate(names)} for row in _INTEGERS
        ]
    if counts or (steps and _WHOLE.issuperset(names)):
        return found
    pieces = steps or any(part.kind == "function" and part.value in _PIECES for part in parts)
    ranges = [*_RANGES, *_FAR] if pieces else _RANGES
    for turn, (low, high) in enumerate(ranges):
        values = [low + (high - low) * _spread(turn, place) for place in range(len(names))]
        found.append({name: Fraction(int(value * 997), 997) for name, value in zip(names, values, strict=True)})
    if pieces:
        edges = {abs(part.value) for part in parts if part.kind in ("number", "decimal")}
        beside = [sign * edge + aside for edge in sorted(edges)[:6] for sign in (1, -1) for aside in _BESIDE]
        found += [dict.fromkeys(names, place) for place in beside]
    return found


def _below_zero(node: Node) -> bool:
    return node.kind == "negative" or node.value < 0


def _spread(turn: int, place: int) -> float:
    """Numbers in (0, 1) far from each other for neighbouring arguments."""
    return ((turn + 1) * 0.7548776662466927 + (place + 1) * 0.5698402909980532) % 1.0


def _same_function(left: Node, right: Node, names: list[str]) -> bool | None:
    """Agreement at ENOUGH points, after which one point is looked at with more digits."""
    agreed: list[dict[str, Fraction]] = []
    apart = 0  # points where only one side is real, and they differ
    machine = Digits()
    imaginary = any(part == Node("constant", (), "i") for node in (left, right) for part in walk(node))
    places = points(names, (left, right))
    enough = ENOUGH if len(places) == len(_RANGES) else len(places)
    for point in places:
        try:
            machine.cancelled = machine.left_reals = False
            a, b = machine.value(left, point), machine.value(right, point)
        except Undefined:
            continue
        except Unknown:
            return None
        except Huge:
            same = _same_to_the_digit(left, right, point)
            if same is False:
                return False
            agreed += [point] if same else []
            continue
        strayed = machine.left_reals and not imaginary
        if strayed or ((a.imag or b.imag) and not (a.imag and b.imag)):
            apart += abs(a - b) > CLEAR * max(abs(a), abs(b))
            continue
        clear = abs(a - b) > CLEAR * max(abs(a), abs(b), 1e-300)
        if clear and not (machine.cancelled and _same_to_the_digit(left, right, point)):
            return False
        agreed.append(point)
        if len(agreed) == enough:
            break
    if not agreed:
        return False if apart >= ENOUGH else None
    for point in agreed[:ENOUGH]:
        verdict = _confirmed(left, right, point)
        if verdict is not None:
            return verdict
    return None


def _confirmed(left: Node, right: Node, point: dict[str, Fraction]) -> bool | None:
    """Exactly where both are rational at the point, else to sixty digits."""
    try:
        values = exact(left, point), exact(right, point)
    except Undefined:
        return None
    if values[0] is not None and values[1] is not None:
        return values[0] == values[1]
    return _same_to_the_digit(left, right, point)


def common_logarithms(node: Node) -> Node:
    r"""The expression with every \log that names no base to base ten."""
    parts = tuple(common_logarithms(part) for part in node.parts)
    if node.kind == "function" and node.value == "log" and len(parts) == 1:
        return node._replace(parts=(*parts, number(10)))
    return node._replace(parts=parts)
