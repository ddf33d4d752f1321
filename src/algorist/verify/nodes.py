"""Nodes: what an answer is once it has been read. One small immutable tree serves numbers, sets, lists and words.

Kinds, with what `parts` and `value` hold:

    number      value: Fraction             decimal   value: Fraction, places: digits after the point
    symbol      value: name                 constant  value: pi, e, i, infinity
    indexed     parts: (index,)  value: x   applied   parts: arguments  value: name of an unknown function
    sum         parts: terms                product   parts: factors
    quotient    parts: (above, below)       power     parts: (base, exponent)
    negative    parts: (inner,)             either    parts: (inner,), value: + for plus-minus, - for minus-plus
    function    parts: arguments, value: sin, log, root, factorial, ...
    series      parts: (body, from, to), value: (sum or product, bound variable)
    unread      value: its tokens; integral, limit, derivative: known by name, computed by nobody
    degrees, percent                        parts: (inner,)
    unit        parts: (inner,), value: the unit's words
    based       value: (digits, base)
    ratio       parts: what stands between the colons, value: how each was written
    relation    parts: sides, value: the operators between them
    tuple       parts: members, value: its two brackets
    set, list, union, intersection, difference, matrix (of row tuples), builder (variable, condition)
    time        value: (hours of 24, minutes)
    residue     parts: (value, modulus)     numbers   value: R, Z, N, Q or C
    date        value: (year or 0, month, day)
    text        value: normalised words
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple


class Unreadable(Exception):
    """A text that is no answer we can read. Never leaves the room: it becomes a verdict."""


class Node(NamedTuple):
    """One piece of an answer; the table above says which kinds there are."""

    kind: str
    parts: tuple[Node, ...] = ()
    value: Any = None
    places: int = 0


def number(value: int | Fraction) -> Node:
    """An exact number."""
    return Node("number", (), Fraction(value))


def symbol(name: str) -> Node:
    """A variable."""
    return Node("symbol", (), name)


def negative(inner: Node) -> Node:
    """The opposite; of a number at once, so that -5 is a number and not an operation."""
    if inner.kind in ("number", "decimal"):
        return inner._replace(value=-inner.value)
    return Node("negative", (inner,))


def walk(node: Node) -> Iterator[Node]:
    """The node and everything below it."""
    waiting = [node]
    while waiting:
        here = waiting.pop()
        yield here
        waiting.extend(here.parts)


def symbols(node: Node) -> frozenset[str]:
    """Names of the variables in it, bound ones of sums left out."""
    if node.kind == "symbol":
        return frozenset((node.value,))
    found: frozenset[str] = frozenset()
    for part in node.parts:
        found |= symbols(part)
    return found - {node.value[1]} if node.kind == "series" else found


def is_number(node: Node) -> bool:
    """Whether it is written as a plain number: 3, -2.50, 3/4."""
    if node.kind == "negative":
        return is_number(node.parts[0])
    if node.kind == "quotient":
        return all(part.kind in ("number", "decimal") for part in node.parts)
    return node.kind in ("number", "decimal")


def opaque(node: Node) -> Node:
    """The node with f(x) as one variable, of which nothing is known but its name."""
    if node.kind == "applied":
        return symbol(f"{node.value}{node.parts}")
    return node._replace(parts=tuple(opaque(part) for part in node.parts)) if node.parts else node


def substitute(node: Node, name: str, by: Node) -> Node:
    """The node with a variable replaced everywhere."""
    if node.kind == "symbol":
        return by if node.value == name else node
    if not node.parts:
        return node
    return node._replace(parts=tuple(substitute(part, name, by) for part in node.parts))


def times(left: Node, right: Node) -> Node:
    """The product, with factors side by side rather than nested."""
    parts = left.parts if left.kind == "product" else (left,)
    return Node("product", (*parts, right))


def mixed(left: Node, right: Node) -> Node:
    r"""2\frac{1}{2} is two and a half where both are plain; anything else is a product."""
    plain = left.kind == "number" and left.value.denominator == 1 and is_number(right) and right.kind == "quotient"
    if plain:
        above, below = (part.value for part in right.parts)
        if 0 < above < below and above.denominator == below.denominator == 1:
            return number(left.value + above / below)
    return times(left, right)


def bound_in(node: Node, name: str) -> Node:
    """The body of a sum over i, in which i is no imaginary unit."""
    if node == Node("constant", (), name):
        return symbol(name)
    return node._replace(parts=tuple(bound_in(part, name) for part in node.parts)) if node.parts else node


def powered(base: Node, exponent: Node) -> Node:
    """A power; C_{10}^3 is a binomial coefficient, as half of the world's books write it."""
    chosen = base.value[2:] if base.kind == "symbol" and base.value.startswith("C_") else ""
    if chosen.isdigit() and exponent.kind == "number" and 0 <= exponent.value <= int(chosen) > 1:
        return Node("function", (number(int(chosen)), exponent), "binom")
    return Node("power", (base, exponent))
