r"""Compare: do two answers that have been read say the same? Lists, sets, tuples, equations, units, and at last values.

The gold answer comes first everywhere, and the two are not symmetric: a candidate may give more digits than a rounded
gold, but not fewer than were asked; a gold that cannot be computed leaves the question open, a candidate does not.
"""

from __future__ import annotations

from collections.abc import Iterable

from algorist.verify.conventions import Conventions
from algorist.verify.equations import same_equation, same_inequality
from algorist.verify.matrices import computed
from algorist.verify.names import COLLECTIONS, is_name, named, without_conditions
from algorist.verify.nodes import Node, negative, opaque, symbols, walk
from algorist.verify.recast import recast, renamed, with_parameter
from algorist.verify.regions import INEQUALITIES, is_region, region, same_region
from algorist.verify.values import same_single

_MOST_MEMBERS = 200
_MOST_SIGNS = 4


def same(gold: Node, candidate: Node, conventions: Conventions) -> bool | None:
    """Whether a candidate says what the gold answer says; None where that cannot be seen."""
    if gold == candidate:
        return True
    gold, candidate = recast(gold, candidate), recast(candidate, gold)
    regions = _regions(gold, candidate, conventions)
    if regions is not None:
        return regions
    if "relation" in (gold.kind, candidate.kind):
        return _relations(gold, candidate, conventions)
    gold, candidate = _members(gold), _members(candidate)
    for one in (gold, candidate):
        if one.kind in COLLECTIONS and len(one.parts) > _MOST_MEMBERS:
            return None
    if gold.kind in COLLECTIONS or candidate.kind in COLLECTIONS:
        return _collections(gold, candidate, conventions)
    gold, candidate = computed(gold), computed(candidate)
    if "matrix" in (gold.kind, candidate.kind) or "tuple" in (gold.kind, candidate.kind):
        return _in_order(_entries(gold), _entries(candidate), conventions) if _same_shape(gold, candidate) else False
    return same_single(gold, candidate, conventions)


def _regions(gold: Node, candidate: Node, conventions: Conventions) -> bool | None:
    """Sets of numbers as intervals; None where these are none."""
    if not (is_region(gold) or is_region(candidate)):
        return None
    if not conventions.inequality_as_set and _is_inequality(gold) != _is_inequality(candidate):
        return False
    if gold.kind == candidate.kind == "relation" and symbols(opaque(gold)) != symbols(opaque(candidate)):
        return None if len(symbols(gold)) > 1 or len(symbols(candidate)) > 1 else False
    a, b = (region(opaque(_without_name(node))) for node in (gold, candidate))
    if a is None or b is None:
        return None
    return same_region(a, b)


def _without_name(node: Node) -> Node:
    """The right side of D = (0, 1); everything else as it is."""
    if node.kind == "relation" and node.value == ("=",) and is_name(node.parts[0]):
        return node.parts[1]
    return node


def _is_inequality(node: Node) -> bool:
    return node.kind == "relation" and any(operator in INEQUALITIES for operator in node.value)


def _relations(gold: Node, candidate: Node, conventions: Conventions) -> bool | None:
    """At least one side is an equation, or an inequality in several variables."""
    name, value = named(gold)
    other, answer = named(candidate)
    if gold.kind == candidate.kind == "relation":
        if _is_inequality(gold) or _is_inequality(candidate):
            return same_inequality(gold, candidate)
        if name is not None and other is not None:
            theirs = renamed(name, other, answer)
            if theirs is None and name.kind == other.kind == "applied" and name.value == other.value:
                return False  # f(2) = 5 says nothing of f(3)
            verdict = None if theirs is None else same(value, theirs, conventions)
            alone = name == other and not symbols(name) & (symbols(value) | symbols(answer))
            if verdict or (verdict is not None and (alone or value.kind in ("tuple", "matrix", *COLLECTIONS))):
                return verdict
        if gold.value == candidate.value == ("=",):
            return same_equation(gold, candidate)
        if name is None and value.kind == "relation":
            return False
    if value.kind == "relation" or answer.kind == "relation":
        return False
    if not conventions.names and (name is None) != (other is None):
        return False
    return same(value, answer, conventions)


def _members(node: Node) -> Node:
    """Both values of what holds a plus-minus sign, as a list; the only member of a list or set of one."""
    if node.kind in COLLECTIONS and len(node.parts) == 1:
        return node.parts[0]
    if node.kind in (*COLLECTIONS, "tuple", "relation", "matrix"):
        if node.kind in COLLECTIONS and any(_signs(part) for part in node.parts):
            found = [_members(named(part)[1]) if _signs(part) else part for part in node.parts]
            return node._replace(parts=tuple(m for one in found for m in (one.parts if one.kind == "list" else (one,))))
        return node
    signs = _signs(node)
    if not signs or signs > _MOST_SIGNS:
        return node
    return Node("list", (_signed(node, 1), _signed(node, -1)))


def _signs(node: Node) -> int:
    return sum(part.kind == "either" for part in walk(node))


def _signed(node: Node, sign: int) -> Node:
    """The node with every plus-minus sign read as the upper or the lower one."""
    parts = tuple(_signed(part, sign) for part in node.parts)
    if node.kind == "either":
        return parts[0] if (node.value == "+") == (sign > 0) else negative(parts[0])
    return node._replace(parts=parts)


def _collections(gold: Node, candidate: Node, conventions: Conventions) -> bool | None:
    """Lists and sets. What has names is matched by name, what has none by value, in order where one side is ordered."""
    ours, theirs = without_conditions(gold), without_conditions(candidate)
    if len(ours) == len(theirs) == 1:
        return same(ours[0], with_parameter(ours[0], theirs[0]), conventions)
    mine, yours = [named(part) for part in ours], [named(part) for part in theirs]
    names = [[name for name, _ in side if name is not None] for side in (mine, yours)]
    several = [len(set(side)) > 1 and len(side) == len(whole) for side, whole in zip(names, (mine, yours), strict=True)]
    if all(several) and set(names[0]) == set(names[1]) and len(names[0]) == len(set(names[0])):
        given = {name: value for name, value in yours}
        return _all_of(same(value, given[name], conventions) for name, value in mine)
    if all(several):
        return False  # x = 3, y = 4 says nothing of a and b
    values = [value for _, value in mine], [value for _, value in yours]
    ordered = "tuple" in (gold.kind, candidate.kind) or any(several) or conventions.ordered_lists
    if any(node.kind == "tuple" and node.value == "[]" and len(node.parts) == 2 for node in (gold, candidate)):
        return False  # [1, 2] is an interval
    if "set" in (gold.kind, candidate.kind) and {"tuple", "matrix"} & {gold.kind, candidate.kind}:
        if not conventions.tuple_as_set:
            return False
        ordered = False
    if "matrix" in (gold.kind, candidate.kind):
        if not any(_is_vector(node) for node in (gold, candidate)):
            return False
        values, ordered = (_entries(gold) or values[0], _entries(candidate) or values[1]), True
    elif "tuple" in (gold.kind, candidate.kind):
        values = (_entries(gold) or values[0], _entries(candidate) or values[1])
    if ordered:
        return _in_order(*values, conventions)
    if "set" in (gold.kind, candidate.kind):
        values = (_once(values[0], conventions), _once(values[1], conventions))
    return _in_any_order(*values, conventions)


def _in_order(gold: list[Node], candidate: list[Node], conventions: Conventions) -> bool | None:
    if len(gold) != len(candidate):
        return False
    return _all_of(same(a, b, conventions) for a, b in zip(gold, candidate, strict=True))


def _in_any_order(gold: list[Node], candidate: list[Node], conventions: Conventions) -> bool | None:
    """Every gold member is met by one of the candidate's, and no other is left over."""
    left = list(candidate)
    if len(gold) != len(left):
        return False
    for member in gold:
        found = next((place for place, other in enumerate(left) if same(member, other, conventions)), None)
        if found is None:
            return None if any(same(member, other, conventions) is None for other in left) else False
        left.pop(found)
    return True


def _once(members: list[Node], conventions: Conventions) -> list[Node]:
    found: list[Node] = []
    for member in members:
        if not any(member == other for other in found):
            found.append(member)
    if len(found) <= 12:  # comparing all with all is worth it for short lists only
        found = [
            one for place, one in enumerate(found) if not any(same(other, one, conventions) for other in found[:place])
        ]
    return found


def _all_of(verdicts: Iterable[bool | None]) -> bool | None:
    """False as soon as one is, None if one is open, else True."""
    open_ = False
    for verdict in verdicts:
        if verdict is False:
            return False
        open_ = open_ or verdict is None
    return None if open_ else True


def _entries(node: Node) -> list[Node]:
    """The entries of a tuple, or of a matrix row by row."""
    if node.kind == "matrix":
        return [entry for row in node.parts for entry in row.parts]
    return list(node.parts) if node.kind == "tuple" else []


def _same_shape(gold: Node, candidate: Node) -> bool:
    """Tuples of the same brackets, matrices of the same size; a vector may be written either way."""
    kinds = gold.kind, candidate.kind
    if kinds == ("tuple", "tuple"):
        return gold.value == candidate.value or len(gold.parts) > 2
    if kinds == ("matrix", "matrix"):
        sizes = [(len(node.parts), len(node.parts[0].parts)) for node in (gold, candidate)]
        return sizes[0] == sizes[1] or (1 in sizes[0] and sizes[0] == sizes[1][::-1])
    if set(kinds) == {"tuple", "matrix"}:
        return any(_is_vector(node) for node in (gold, candidate))
    return False


def _is_vector(node: Node) -> bool:
    return node.kind == "matrix" and (len(node.parts) == 1 or all(len(row.parts) == 1 for row in node.parts))
