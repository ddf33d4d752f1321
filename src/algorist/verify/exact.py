"""Exact: the rational value of an expression, where it has one that can be seen: 2^{10}/3, 20!, a sum over k to 100.

Whole numbers stay whole: 10^{100} and 10^{100} + 1 differ. Numbers beyond BITS, and sums of more than TERMS terms, are
left to evaluate.py, which has digits instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction

from algorist.verify.nodes import Node

BITS = 60_000  # of an exact number
STEPS = 20_000  # of one evaluation
TERMS = 2_000  # of a sum that is written with a sign

Point = Mapping[str, Fraction]


class Undefined(Exception):
    """There is no value here: a division by zero, a logarithm of zero."""


def exact(node: Node, point: Point | None = None) -> Fraction | None:
    """The exact rational value; None where it is not rational, is beyond BITS, or cannot be seen to be rational.

    Raises:
        Undefined for a division by zero.
    """
    return _exact(node, point or {}, [STEPS])


def _exact(node: Node, point: Point, budget: list[int]) -> Fraction | None:
    budget[0] -= 1
    kind = node.kind
    if kind in ("number", "decimal"):
        return node.value  # type: ignore[no-any-return]
    if kind == "symbol":
        return point.get(node.value)
    if kind not in _EXACT or budget[0] < 0:
        return None
    parts: list[Fraction] = []
    for part in node.parts if kind != "series" else ():
        value = _exact(part, point, budget)
        if value is None:
            return None
        parts.append(value)
    found = _EXACT[kind](node, parts) if kind != "series" else _exact_series(node, point, budget)
    if found is not None and found.numerator.bit_length() + found.denominator.bit_length() > BITS:
        return None
    return found


def _exact_sum(_: Node, parts: list[Fraction]) -> Fraction | None:
    return sum(parts, Fraction(0))


def _exact_product(_: Node, parts: list[Fraction]) -> Fraction | None:
    found = Fraction(1)
    for part in parts:
        found *= part
        if found.numerator.bit_length() + found.denominator.bit_length() > BITS:
            return None
    return found


def _exact_quotient(_: Node, parts: list[Fraction]) -> Fraction | None:
    if parts[1] == 0:
        raise Undefined
    return parts[0] / parts[1]


def _exact_power(_: Node, parts: list[Fraction]) -> Fraction | None:
    base, exponent = parts
    if exponent.denominator != 1:
        return None
    if base == 0 and exponent <= 0:
        raise Undefined
    if (base.numerator.bit_length() + base.denominator.bit_length()) * abs(exponent.numerator) > 2 * BITS:
        return base if base in (0, 1) else None
    return base**exponent.numerator


def _exact_function(node: Node, parts: list[Fraction]) -> Fraction | None:
    name = node.value
    if name in ("abs", "floor", "ceil"):
        return abs(parts[0]) if name == "abs" else Fraction({"floor": math.floor, "ceil": math.ceil}[name](parts[0]))
    if name in ("max", "min"):
        return max(parts) if name == "max" else min(parts)
    if name == "root":
        return _exact_root(*parts)
    if any(part.denominator != 1 for part in parts):
        return None
    whole = [part.numerator for part in parts]
    if name == "factorial" and 0 <= whole[0] <= 6_000:
        return Fraction(math.factorial(whole[0]))
    if name == "binom" and 0 <= whole[0] <= 10_000 and whole[1] >= 0:
        return Fraction(math.comb(*whole))
    if name in ("gcd", "lcm"):
        return Fraction((math.gcd if name == "gcd" else math.lcm)(*whole))
    if name == "mod" and whole[1] > 0:
        return Fraction(whole[0] % whole[1])
    return None


def _exact_root(value: Fraction, degree: Fraction) -> Fraction | None:
    """Square roots that come out even; other roots are left to the digits."""
    if degree != 2 or value < 0 or value.numerator.bit_length() > 4_000:
        return None
    above, below = math.isqrt(value.numerator), math.isqrt(value.denominator)
    return Fraction(above, below) if above**2 == value.numerator and below**2 == value.denominator else None


def _exact_series(node: Node, point: Point, budget: list[int]) -> Fraction | None:
    body, *bounds = node.parts
    ends = [_exact(bound, point, budget) for bound in bounds]
    if None in ends or any(end.denominator != 1 or abs(end) > 10**9 for end in ends if end is not None):
        return None
    start, stop = (end.numerator for end in ends if end is not None)
    if stop - start > TERMS:
        return None
    found = Fraction(0 if node.value[0] == "sum" else 1)
    for index in range(start, stop + 1):
        term = _exact(body, {**point, node.value[1]: Fraction(index)}, budget)
        if term is None or found.numerator.bit_length() > BITS:
            return None
        found = found + term if node.value[0] == "sum" else found * term
    return found


_EXACT: dict[str, Callable[[Node, list[Fraction]], Fraction | None]] = {
    "sum": _exact_sum,
    "product": _exact_product,
    "quotient": _exact_quotient,
    "power": _exact_power,
    "negative": lambda _, parts: -parts[0],
    "percent": lambda _, parts: parts[0] / 100,
    "unit": lambda _, parts: parts[0],
    "function": _exact_function,
    "series": _exact_sum,
}
