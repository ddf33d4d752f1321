"""Recast: the candidate in the gold answer's notation. Vectors of i, j and k, residues with a parameter, letters."""

from __future__ import annotations

from fractions import Fraction

from algorist.verify.exact import exact
from algorist.verify.names import named, without_conditions
from algorist.verify.nodes import Node, number, substitute, symbol, symbols, walk

_PARAMETERS = frozenset("klmnt")  # letters for any whole number


def recast(node: Node, other: Node) -> Node:
    """A vector of i, j and k as a tuple, and 7k + 3 with a whole k as a residue, where the other side is one."""
    if other.kind in ("tuple", "matrix") and node.kind in ("sum", "product", "negative"):
        size = len(other.parts) if other.kind == "tuple" or len(other.parts) > 1 else len(other.parts[0].parts)
        if size in (2, 3) and symbols(node) and symbols(node) <= frozenset("jk"[: size - 1]) and _is_combination(node):
            return Node("tuple", tuple(_component(node, place) for place in range(size)), "()")
    if named(other)[1].kind == "residue" and node.kind in ("list", "relation") and len(without_conditions(node)) == 1:
        value = named(without_conditions(node)[0])[1]
        (name,) = symbols(value) if len(symbols(value)) == 1 else ("",)
        ends = [exact(value, {name: Fraction(place)}) for place in (0, 1, 2)] if name in _PARAMETERS else [None]
        if None not in ends and ends[2] - ends[1] == ends[1] - ends[0] != 0:  # type: ignore[operator]
            return Node("residue", (number(ends[0]), number(abs(ends[1] - ends[0]))))  # type: ignore[arg-type, operator]
    return node


def _is_combination(node: Node) -> bool:
    """Whether it is a sum of terms with one unit vector each: 2i - 3j."""
    for term in node.parts if node.kind == "sum" else (node,):
        while term.kind == "negative":
            term = term.parts[0]
        factors = term.parts if term.kind == "product" else (term,)
        vectors = [factor for factor in factors if factor.kind == "symbol" or factor == Node("constant", (), "i")]
        rest = [part for factor in factors if factor not in vectors for part in walk(factor)]
        if len(vectors) != 1 or any(part.kind == "symbol" or part == Node("constant", (), "i") for part in rest):
            return False
    return True


def _component(node: Node, place: int) -> Node:
    """What stands before i, j or k."""
    if node == Node("constant", (), "i"):
        return number(int(place == 0))
    if node.kind == "symbol":
        return number(int("ijk"[place] == node.value))
    return node._replace(parts=tuple(_component(part, place) for part in node.parts))


def renamed(name: Node, other: Node, answer: Node) -> Node | None:
    """The candidate's value in the gold's variables, where both define the same: f(t) = t + 1 for f(x) = x + 1."""
    if name == other:
        return answer
    if (
        name.kind == other.kind
        and name.kind in ("applied", "indexed")
        and name.value == other.value
        and len(name.parts) == len(other.parts)
    ):
        if any(part.kind != "symbol" for part in (*name.parts, *other.parts)):
            return None
        for place, theirs in enumerate(other.parts):  # by way of letters that nobody uses, since f(y, x) may swap them
            answer = substitute(answer, theirs.value, symbol(f"#{place}"))
        for place, ours in enumerate(name.parts):
            answer = substitute(answer, f"#{place}", ours)
        return answer
    functions = name.kind in ("applied", "product") and other.kind in ("applied", "product")
    if functions and name.parts[0] == other.parts[0] and len(name.parts) == len(other.parts) == 2:
        ours, theirs = name.parts[1], other.parts[1]
        if ours.kind == theirs.kind == "symbol":
            return substitute(answer, theirs.value, ours)
    return answer if {name.kind, other.kind} == {"applied", "symbol"} else None


def with_parameter(gold: Node, candidate: Node) -> Node:
    """The candidate with its whole-number parameter called as the gold's is: pi/4 + n pi for pi/4 + k pi."""
    ours, theirs = symbols(gold) - symbols(candidate), symbols(candidate) - symbols(gold)
    if len(ours) == len(theirs) == 1 and ours | theirs <= _PARAMETERS:
        return substitute(candidate, next(iter(theirs)), Node("symbol", (), next(iter(ours))))
    return candidate
