r"""Names: what a relation gives a value to, and which. x = 3, f(x) = 2x, (p, q) = (3, 2), e^{i\pi} = -1, 3 + 4 = 7."""

from __future__ import annotations

from itertools import pairwise

from algorist.verify.evaluate import Digits, Huge, Unknown
from algorist.verify.exact import Undefined
from algorist.verify.identity import same_value
from algorist.verify.nodes import Node, symbols, walk

COLLECTIONS = ("list", "set")


class Contradiction(Exception):
    """An answer that denies itself: 41 = 42."""


def is_name(node: Node) -> bool:
    r"""Whether a side only names what the other side gives: x, a_3, f(x), AB, |AB|, P(A), \tan A."""
    if node.kind in ("symbol", "indexed", "applied"):
        return True
    if node.kind == "function" and node.value == "abs":  # |AB| is a length, |x| = 3 an equation
        inner = node.parts[0]
        return inner.kind == "product" and all(part.kind == "symbol" and part.value.isupper() for part in inner.parts)
    if node.kind == "function":
        return node.value not in ("root", "det") and all(is_name(part) for part in node.parts)
    if node.kind in ("product", "ratio", "quotient", "tuple", "list"):
        return all(is_name(part) for part in node.parts)
    return False


def named(node: Node) -> tuple[Node | None, Node]:
    r"""(name, value) of `x = 3`, `e^{i\pi} = -1`, `\frac{\sqrt3}{3} \approx 0.577`; (None, node) of other nodes.

    Raises:
        Contradiction where the sides are numbers that differ.
    """
    if node.kind != "relation" or not all(operator in ("=", r"\approx", r"\equiv") for operator in node.value):
        return None, node
    sides = [node.parts[0]]
    for operator, side in zip(node.value, node.parts[1:], strict=True):
        if operator == r"\approx" and (len(sides) > 1 or not is_name(sides[0])):
            _check_near(sides[-1], side)
            break
        sides.append(side)
    name: Node | None = None
    if len(sides) > 1 and is_name(sides[0]) and not (is_name(sides[-1]) and sides[0].kind == "ratio"):
        name, sides = sides[0], sides[1:]
    elif len(sides) > 1 and is_name(sides[-1]):
        name, sides = sides[-1], sides[:-1]
    if len(sides) == 1:
        return name, sides[0]
    return _chain(name, sides, node)


def _check_near(exact: Node, rounded: Node) -> None:
    """Refuse 6 \\approx 7."""
    if symbols(exact) or symbols(rounded):
        return
    try:
        a, b = Digits().value(exact, {}), Digits().value(rounded, {})
    except (Huge, Undefined, Unknown):
        return
    if abs(a - b) > 0.06 * max(abs(a), abs(b)):
        raise Contradiction


def _chain(name: Node | None, sides: list[Node], node: Node) -> tuple[Node | None, Node]:
    """What several sides that are no names come to, if they are one value: 3 + 4 = 7, a + b = 3 + 4 = 7."""
    if len(sides) > 2 and symbols(sides[0]) and not any(symbols(side) for side in sides[1:]):
        sides = sides[1:]
    for left, right in pairwise(sides):
        agree = None if any(part.kind == "unread" for part in walk(left)) else same_value(left, right)
        if agree is False:
            if symbols(left) or symbols(right):
                return None, node  # an equation that says something: 2x + z = 1
            raise Contradiction
    return name, sides[-1]


def without_conditions(node: Node) -> list[Node]:
    r"""The members of a collection without `k \in \mathbb{Z}`, which only says what k is."""
    if node.kind not in COLLECTIONS:
        return [node]
    rest = [part for part in node.parts if not (part.kind == "relation" and part.parts[-1].kind == "numbers")]
    return rest or list(node.parts)
