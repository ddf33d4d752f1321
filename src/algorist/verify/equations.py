r"""Equations: have two equations the same solutions, and two inequalities in several variables the same border?

2x + 4y = 3 and y = -x/2 + 3/4 are one line: their differences of sides are constant multiples of each other. For
y = 1/x and xy = 1 they are not, and then it is looked at whether each vanishes where the other does.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import product

from algorist.verify.evaluate import Digits, Huge, Unknown, Value
from algorist.verify.exact import Undefined
from algorist.verify.identity import points
from algorist.verify.nodes import Node, negative, symbols
from algorist.verify.regions import INEQUALITIES


def same_equation(gold: Node, candidate: Node) -> bool | None:
    """Whether two equations have the same solutions: one is a constant multiple of the other, or their zeros agree."""
    left, right = (Node("sum", (side.parts[0], negative(side.parts[1]))) for side in (gold, candidate))
    names = sorted(symbols(left) | symbols(right))
    if symbols(left) != symbols(right):
        return False
    ratios = _ratios(left, right, names)
    if len(ratios) >= 3 and _constant(ratios):
        return True
    return _same_zeros(left, right, names) if ratios else None


def _ratios(left: Node, right: Node, names: list[str]) -> list[Value]:
    """How many times the one is the other, wherever neither vanishes."""
    machine, ratios = Digits(), []
    for point in points(names, (left, right)):
        try:
            a, b = machine.value(left, point), machine.value(right, point)
        except (Undefined, Huge, Unknown):
            continue
        if abs(a) > 1e-9 and abs(b) > 1e-9:
            ratios.append(a / b)
    return ratios


def _constant(ratios: list[Value]) -> bool:
    return all(abs(ratio - ratios[0]) <= 1e-9 * abs(ratios[0]) for ratio in ratios)


def _same_zeros(left: Node, right: Node, names: list[str]) -> bool:
    """Where one vanishes the other does too, both ways, found along each variable; y = 1/x and xy = 1."""
    machine = Digits()
    tried = 0
    for one, other in ((left, right), (right, left)):
        for name, point in product(names, points(names, (left, right))):
            zero = _zero(machine, one, name, point)
            if zero is None:
                continue
            tried += 1
            near = {**point, name: Fraction(zero)}
            aside = {**point, name: Fraction(zero) + Fraction(1, 1000)}
            try:
                here, there = abs(machine.value(other, near)), abs(machine.value(other, aside))
            except (Undefined, Huge, Unknown):
                return False
            if here > 1e-6 * max(there, 1e-6):
                return False
    return tried >= 4


def _zero(machine: Digits, node: Node, name: str, point: dict[str, Fraction]) -> float | None:
    """A real zero along one variable, by the secant method from the point."""
    try:
        x, y = float(point[name]), float(point[name]) + 0.1
        a, b = (machine.value(node, {**point, name: Fraction(place)}) for place in (x, y))
        for _ in range(40):
            if isinstance(a, complex) or isinstance(b, complex) or a == b:
                return None
            x, y, a = y, y - b * (y - x) / (b - a), b
            if abs(y - x) < 1e-13 * max(1.0, abs(y)):
                return float(y)
            b = machine.value(node, {**point, name: Fraction(y)})
    except (Undefined, Huge, Unknown, OverflowError):
        return None
    return None


def same_inequality(gold: Node, candidate: Node) -> bool | None:
    """x + y < 3 and 3 > y + x: the same side of the same border."""
    if len(gold.value) != 1 or len(candidate.value) != 1 or not {gold.value[0], candidate.value[0]} <= INEQUALITIES:
        return False
    sides = []
    for node in (gold, candidate):
        operator, (left, right) = node.value[0], node.parts
        if operator in (">", r"\ge"):
            left, right, operator = right, left, {">": "<", r"\ge": r"\le"}[operator]
        sides.append((operator, Node("sum", (left, negative(right)))))
    (strict, a), (also, b) = sides
    if strict != also or symbols(a) != symbols(b):
        return False
    ratios = _ratios(a, b, sorted(symbols(a)))
    if len(ratios) < 3 or any(isinstance(ratio, complex) for ratio in ratios):
        return None
    return _constant(ratios) and (ratios[0] > 0 or strict == r"\ne")
