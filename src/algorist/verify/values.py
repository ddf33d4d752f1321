r"""Values: are two single values the same: numbers and their roundings, percentages, units, ratios, times, bases?

The gold answer comes first. What each convention is called and does stands in conventions.py.
"""

from __future__ import annotations

from fractions import Fraction

from algorist.verify.conventions import Conventions
from algorist.verify.evaluate import Digits, Huge, Unknown
from algorist.verify.exact import Undefined, exact
from algorist.verify.identity import common_logarithms, same_constant, same_value
from algorist.verify.nodes import Node, number, substitute, symbols, walk
from algorist.verify.words import measure, unit

_TURNED = frozenset(("pi", *(f"arc{name}" for name in ("sin", "cos", "tan", "cot", "sec", "csc"))))
_CONSTANTS = frozenset("cCkK")  # of an integration
_LIKELY_UNITS = frozenset("mgshL")  # of the letters that stand for units, those that 5 m is read by


def same_single(gold: Node, candidate: Node, conventions: Conventions) -> bool | None:
    """Whether two values that are no collections are the same; None where that cannot be seen."""
    kinds = gold.kind, candidate.kind
    if "text" in kinds:
        return gold == candidate
    if "date" in kinds:
        years = {node.value[0] for node in (gold, candidate) if node.kind == "date"} - {0}
        return gold.kind == candidate.kind and len(years) < 2 and gold.value[1:] == candidate.value[1:]
    if "time" in kinds:
        return _times(gold, candidate)
    if "residue" in kinds:
        return _residues(gold, candidate, conventions)
    if "based" in kinds:
        return _bases(gold, candidate, conventions)
    if "ratio" in kinds:
        return _ratios(gold, candidate, conventions)
    if "percent" in kinds:
        return _percentages(gold, candidate, conventions)
    if "degrees" in kinds:
        return _angles(gold, candidate, conventions)
    if "unit" in kinds:
        gold, candidate = (_as_unit(node) for node in (gold, candidate))
        return _units(gold, candidate, conventions)
    if any(
        part.kind in ("numbers", "builder", "relation", "text") for node in (gold, candidate) for part in walk(node)
    ):
        return False
    return _numbers(gold, candidate, conventions)


def _numbers(gold: Node, candidate: Node, conventions: Conventions) -> bool | None:
    ours, theirs = symbols(gold) - symbols(candidate), symbols(candidate) - symbols(gold)
    if len(ours) == len(theirs) == 1 and ours | theirs <= _CONSTANTS and _adds(gold, ours) and _adds(candidate, theirs):
        candidate = substitute(candidate, next(iter(theirs)), Node("symbol", (), next(iter(ours))))
    verdict = same_value(gold, candidate)
    constant = not symbols(gold) and not symbols(candidate)
    if verdict is None and constant and _computable(gold) and not _computable(candidate) and not _unread(candidate):
        verdict = False  # the gold answer has a value and the candidate's is none
    if verdict is False and not symbols(gold) and not symbols(candidate):
        verdict = _rounded(gold, candidate, conventions)
    if verdict is False and any(_plain_logarithm(node) for node in (gold, candidate)):
        verdict = same_value(common_logarithms(gold), common_logarithms(candidate))
    if verdict is False and conventions.units and not symbols(gold) and _unit_letter(candidate):
        return _numbers(gold, _without_last(candidate), conventions)
    return verdict


def _adds(node: Node, names: frozenset[str]) -> bool:
    """Whether a name is a term of its own, as the constant of an integration is."""
    return node.kind == "sum" and any(part.kind == "symbol" and part.value in names for part in node.parts)


def _unread(node: Node) -> bool:
    return any(part.kind == "unread" for part in walk(node))


def _computable(node: Node) -> bool:
    try:
        return exact(node) is not None or Digits().value(node, {}) is not None
    except (Undefined, Huge, Unknown):
        return False


def _plain_logarithm(node: Node) -> bool:
    return any(part.kind == "function" and part.value == "log" and len(part.parts) == 1 for part in walk(node))


def _unit_letter(node: Node) -> bool:
    """Whether it ends in a letter that may be a unit: 5 m."""
    last = node.parts[-1] if node.kind == "product" else node
    several = node.kind == "product" and len(node.parts) > 1
    return several and last.kind == "symbol" and last.value in _LIKELY_UNITS and len(symbols(node)) == 1


def _without_last(product: Node) -> Node:
    rest = product.parts[:-1]
    return Node("product", rest) if len(rest) > 1 else rest[0]


def _rounded(gold: Node, candidate: Node, conventions: Conventions) -> bool:
    """Whether one is a decimal that is the other, rounded.

    A candidate may round what is exact, if it is right to its last digit and off by no more than `rounding`. A
    gold decimal with conventions.gold_digits digits was rounded by whoever wrote it: what rounds to it is right.
    """
    try:
        a, b = (_real(node) for node in (gold, candidate))
    except (Undefined, Huge, Unknown):
        return False
    gap = abs(a - b)
    if candidate.kind == "decimal" and conventions.rounding:
        step = Fraction(1, 10**candidate.places)
        right = gap <= step * Fraction(501, 1000) or (abs(b) < abs(a) and gap < step)  # rounded, or cut off
        # What is written out in fewer digits, such as 42, is not rounded by 42.0001.
        if right and (a / step).denominator != 1 and gap <= Fraction(conventions.rounding) * abs(a):
            return True
    if gold.kind != "decimal" or not conventions.gold_digits:
        return False
    digits = len(str(abs(gold.value.numerator * 10**gold.places // gold.value.denominator)).lstrip("0"))
    finer = candidate.places > gold.places or candidate.kind not in ("decimal", "number")
    needed = conventions.gold_digits + (candidate.kind == "decimal")
    return finer and digits >= needed and gap <= Fraction(501, 1000) / 10**gold.places


def _real(node: Node) -> Fraction:
    value = exact(node)
    if value is not None:
        return value
    found = Digits().value(node, {})
    if isinstance(found, complex):
        raise Unknown
    return Fraction(found)


def _percentages(gold: Node, candidate: Node, conventions: Conventions) -> bool | None:
    """10% is 10% and 0.1; where one sign is missing it is also 10, unless that would turn a share into a percentage."""
    if gold.kind == candidate.kind:
        return same_single(gold.parts[0], candidate.parts[0], conventions)
    if gold.kind == "percent":
        inner = gold.parts[0]
        if conventions.percent and same_single(inner, candidate, conventions):
            return True
        return same_single(Node("quotient", (inner, number(100))), candidate, conventions)
    inner = candidate.parts[0]
    if same_single(gold, Node("quotient", (inner, number(100))), conventions):
        return True
    try:
        whole = conventions.percent and abs(_real(gold)) > 1
    except (Undefined, Huge, Unknown, KeyError):
        whole = False
    return same_single(gold, inner, conventions) if whole else False


def _angles(gold: Node, candidate: Node, conventions: Conventions) -> bool | None:
    """90 degrees is 90 and also pi/2."""
    inner = [node.parts[0] if node.kind in ("degrees", "unit") else node for node in (gold, candidate)]
    if gold.kind == candidate.kind:
        return same_single(inner[0], inner[1], conventions)
    for node in (gold, candidate):
        if node.kind == "unit" and not node.value.startswith("deg"):
            if node.value not in ("rad", "radian", "radians", "rads"):
                return False
            return same_value(*(one.parts[0] if one is node else one for one in (gold, candidate)))
    if conventions.units and same_single(inner[0], inner[1], conventions):
        return True
    other = candidate if gold.kind == "degrees" else gold
    turned = any(part.value in _TURNED for part in walk(other) if part.kind in ("constant", "function"))
    return same_value(gold, candidate) if turned else False


def _units(gold: Node, candidate: Node, conventions: Conventions) -> bool | None:
    """15 cm is 0.15 m, and 15 where the unit is left out; units of different things are never the same."""
    inner = [node.parts[0] if node.kind == "unit" else node for node in (gold, candidate)]
    if gold.kind != candidate.kind:
        return same_single(inner[0], inner[1], conventions) if conventions.units else False
    ours, theirs = unit(gold.value), unit(candidate.value)
    if ours is None or theirs is None:
        apart = measure(gold.value) and measure(candidate.value) and measure(gold.value) != measure(candidate.value)
        return False if apart else same_single(inner[0], inner[1], conventions)
    if ours[0] != theirs[0]:
        return False
    if ours[1] == theirs[1]:
        return same_single(inner[0], inner[1], conventions)
    scaled = [Node("product", (node, number(size))) for node, (_, size) in zip(inner, (ours, theirs), strict=True)]
    return same_value(scaled[0], scaled[1])


def _as_unit(node: Node) -> Node:
    """5 m and 20 m/s as a unit, though m and s could be variables; other nodes as they are."""
    if node.kind == "quotient":
        above, below = _as_unit(node.parts[0]), node.parts[1]
        if above.kind == "unit" and below.kind == "symbol" and unit(f"{above.value}/{below.value}"):
            return Node("unit", above.parts, f"{above.value}/{below.value}")
    if node.kind == "product" and len(node.parts) > 1 and not any(symbols(part) for part in node.parts[:-1]):
        last = node.parts[-1]
        power = last.parts[1].value if last.kind == "power" and last.parts[1].kind == "number" else 1
        name = last.parts[0] if last.kind == "power" else last
        if name.kind == "symbol" and power in (1, 2, 3) and unit(name.value):
            return Node("unit", (_without_last(node),), name.value if power == 1 else f"{name.value}^{power}")
    return node


def _residues(gold: Node, candidate: Node, conventions: Conventions) -> bool | None:
    """3 mod 7 is 10 mod 7; the modulus may be missing."""
    if gold.kind == candidate.kind:
        (a, modulus), (b, other) = gold.parts, candidate.parts
        if same_value(modulus, other) is not True:
            return False
        values = exact(a), exact(b), exact(modulus)
        if None in values or not values[2]:
            return same_value(a, b)
        return (values[0] - values[1]) % values[2] == 0  # type: ignore[operator]
    a, b = (node.parts[0] if node.kind == "residue" else node for node in (gold, candidate))
    if candidate.kind == "residue":  # 5 mod 2 is not how anybody says 5
        rest, of = (exact(part) for part in candidate.parts)
        if rest is None or of is None or not 0 <= rest < of:
            return False
    return same_single(a, b, conventions)


def _bases(gold: Node, candidate: Node, conventions: Conventions) -> bool | None:
    """204_5 is 204_5; a candidate may say 204 for it; with both bases, and for a gold without one, values count."""
    if gold.kind == candidate.kind:
        values = [_based(*node.value) for node in (gold, candidate)]
        return None if None in values else values[0] == values[1]
    based, plain = (gold, candidate) if gold.kind == "based" else (candidate, gold)
    value = exact(plain) if plain.kind in ("number", "decimal") else None
    if value is None or value.denominator != 1:
        return False
    digits, base = based.value
    if plain is gold:
        return _based(digits, base) == value
    return conventions.base and digits.lstrip("0") == str(value)


def _based(digits: str, base: int) -> int | None:
    try:
        return int(digits, base)
    except ValueError:
        return None


def _ratios(gold: Node, candidate: Node, conventions: Conventions) -> bool | None:
    """2:3 is 4:6 and 2/3; but 12:30 and 6:15 are times."""
    if gold.kind != candidate.kind:
        ratio, other = (gold, candidate) if gold.kind == "ratio" else (candidate, gold)
        if len(ratio.parts) != 2 or _is_time(ratio):
            return False
        value = Node("quotient", ratio.parts)
        return same_single(value, other, conventions) if ratio is gold else same_single(other, value, conventions)
    if len(gold.parts) != len(candidate.parts):
        return False
    if _is_time(gold):
        return [exact(part) for part in gold.parts] == [exact(part) for part in candidate.parts]
    zeros = [[same_constant(part, number(0)) is True for part in node.parts] for node in (gold, candidate)]
    if zeros[0] != zeros[1] or all(zeros[0]):
        return False
    first = zeros[0].index(False)
    for a, b in zip(gold.parts, candidate.parts, strict=True):
        crossed = same_value(Node("product", (a, candidate.parts[first])), Node("product", (b, gold.parts[first])))
        if crossed is not True:
            return crossed
    return True


def _times(gold: Node, candidate: Node) -> bool:
    """10:15 p.m. is 22:15, and 10:15 where the half of the day is left out."""
    if gold.kind == candidate.kind:
        return gold.value == candidate.value  # type: ignore[no-any-return]
    time, other = (gold, candidate) if gold.kind == "time" else (candidate, gold)
    if other.kind != "ratio" or not _is_time(other):
        return False
    hours, minutes = (int(part) for part in other.value[:2])
    return minutes == time.value[1] and (hours == time.value[0] or (hours < 13 and hours % 12 == time.value[0] % 12))


def _is_time(node: Node) -> bool:
    """Whether a ratio is written as a time of day: 9:05, 12:30."""
    hours, *rest = node.value
    if not hours.isdigit() or int(hours) > 24 or not rest or len(rest) > 2:
        return False
    return all(part.isdigit() and len(part) == 2 and int(part) < 60 for part in rest)
