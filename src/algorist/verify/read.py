r"""Read: the text of an answer → the tree of what it says. Lists, sets, intervals, equations, matrices, units, words.

`x = 3 or x = 4`, `(-1, 2]`, `\{1, 2\}`, `15\text{ cm}^2`, `2:3`, `x \equiv 3 \pmod 7` are read here, and what stands
between their commas and signs is left to parse.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from algorist.verify.nodes import Node, Unreadable, number
from algorist.verify.parse import Expression
from algorist.verify.tokens import Token, pairs, plain, separate, tokens
from algorist.verify.whole import as_a_whole, without_repeating
from algorist.verify.words import CONDITIONS, CONNECTORS, NOISE, SCALES, spelled_number, unit, words_of

_SEPARATORS = frozenset((",", "&", r"\quad", r"\qquad", r"\\", r"\wedge", r"\vee"))
_RELATIONS = frozenset(("=", r"\ne", "<", ">", r"\le", r"\ge", r"\approx", r"\in", r"\notin", r"\equiv", r"\sim"))
_CONSEQUENCES = frozenset((r"\Rightarrow", r"\implies", r"\iff", r"\Leftrightarrow", r"\therefore"))
_SETS = {r"\cup": "union", r"\cap": "intersection", r"\backslash": "difference"}
_UNIT_MARKS = frozenset(("^", "/", "*", ".", "-", "{", "}", "(", ")"))
_MATRICES = frozenset(f"{kind}matrix" for kind in ("", "p", "b", "B", "v", "V", "small")) | {
    "array",
    "aligned",
    "align",
}
_EVERYTHING = frozenset(("all", "any", "every", "each", "real", "integer", "integers", "constant", "arbitrary", r"\in"))
_ALL_TEXT = re.compile(r"\\(?:text|mathrm|textbf)\{([^{}]*)\}\.?")
_ORS, _ANDS = frozenset(("or", "oder", "ou", r"\vee")), frozenset(("and", "und", "et", r"\wedge"))


def read(text: str, *, thousands: bool = True) -> Node:
    """What an answer says.

    `thousands`: whether 1,234 is one number or two.

    Raises:
        Unreadable where it cannot be read as mathematics, units or a spelled number; time is linear in the text.
    """
    whole = _ALL_TEXT.fullmatch(text.strip("$ "))
    text = " ".join(plain(whole[1] if whole else text).split()).strip(" \n\t*_").rstrip(".,;:\\ ")
    if known := as_a_whole(text):
        return known
    text = without_repeating(text)
    found = separate(tokens(text, thousands=thousands))
    if not found:
        raise Unreadable("is empty")
    try:
        match = pairs(found)
    except Unreadable:
        found = _turned(found)  # ]0, 1[ is how the open interval is written in France
        match = pairs(found)
    return _Answer(found, match).answer(0, len(found))


def _turned(found: list[Token]) -> list[Token]:
    """The tokens with every second square bracket closing and the others opening, whichever way they look."""
    opens = True
    turned = []
    for token in found:
        if token.kind == "mark" and token.text in ("[", "]"):
            inward = token.text == "[" if opens else token.text == "]"
            token = token._replace(text=token.text if inward else "(" if opens else ")")
            opens = not opens
        turned.append(token)
    return turned


class _Answer:
    """Reads the parts of an answer, each a range of its tokens."""

    def __init__(self, found: list[Token], match: dict[int, int]) -> None:
        self._tokens = found
        self._match = match

    def answer(self, start: int, end: int) -> Node:
        """Everything between two places: one item, or a list of them."""
        groups = list(self._split(start, end, frozenset((";",))))
        if len(groups) > 1:
            return Node("list", tuple(self._grouped(self._items(*group)) for group in groups))
        items = self._items(start, end)
        return items[0] if len(items) == 1 else Node("list", tuple(items), self._joined_by(start, end))

    def _joined_by(self, start: int, end: int) -> str | None:
        """The word between the members of a list: or, and, or none but commas."""
        said = {self._tokens[at].text.lower() for at in self._top(start, end)}
        return "or" if said & _ORS else "and" if said & _ANDS else None

    def _grouped(self, items: list[Node]) -> Node:
        """What stands between two semicolons; several values there belong together."""
        return items[0] if len(items) == 1 else Node("tuple", tuple(items), "()")

    def _items(self, start: int, end: int) -> list[Node]:
        items: list[Node] = []
        for begun, ended in self._split(start, end, _SEPARATORS, words=True):
            before = self._tokens[begun - 1].text.lower() if begun > start else ""
            if items and before in CONDITIONS and self._says_nothing(begun, ended):
                continue
            items.append(self._item(begun, ended))
        if not items:
            raise Unreadable("a part is empty")
        return items

    def _says_nothing(self, start: int, end: int) -> bool:
        """Whether a condition holds for everything: `for all real x`, `where C is a constant`."""
        said = {self._tokens[at].text.lower() for at in range(start, end)}
        return bool(said & _EVERYTHING)

    def _split(self, start: int, end: int, marks: frozenset[str], *, words: bool = False) -> Iterator[tuple[int, int]]:
        """The non-empty ranges between separators that stand in no bracket."""
        at = begun = start
        while at < end:
            token = self._tokens[at]
            parts = token.text in marks if token.kind == "mark" else words and token.text.lower() in _BETWEEN
            if parts:
                if at > begun:
                    yield begun, at
                begun = at + 1
            at = self._match.get(at, at) + 1
        if end > begun:
            yield begun, end

    def _item(self, start: int, end: int) -> Node:
        """One member of a list: a value, perhaps with noise before and a unit behind, or a relation."""
        while start < end and self._tokens[start].kind == "word" and self._tokens[start].text.lower() in NOISE:
            start += 1
        start = self._value_begins(start, end)
        said = [at for at in self._top(start, end) if self._tokens[at].kind == "word"]
        if len(said) == end - start or (said and said[0] == start):
            return self._words(start, end)
        money = self._tokens[start].text == r"\$"
        if money or (self._tokens[start].text == "-" and end - start > 1 and self._tokens[start + 1].text == r"\$"):
            sign, start = (1, start + 1) if money else (-1, start + 2)
            value = self._item(start, end)
            value = value.parts[0] if value.kind == "unit" else value
            return Node("unit", (value if sign > 0 else Node("negative", (value,)),), "dollars")
        if not said:
            return self._relation(start, end)
        return self._measured(start, end)

    def _value_begins(self, start: int, end: int) -> int:
        """Behind `The meeting point is`, where a value follows."""
        at = start
        while at < end and self._tokens[at].kind == "word":
            at += 1
        introduced = start < at < end and self._tokens[at - 1].text.lower() in ("is", "are", "equals")
        return at if introduced else start

    def _words(self, start: int, end: int) -> Node:
        text = " ".join(token.text for token in self._tokens[start:end])
        words = text.replace(" - ", "-").split()
        for count in range(len(words), 0, -1):  # three boxes contain nothing
            value = spelled_number(" ".join(words[:count]))
            if value is not None:
                rest = " ".join(words[count:])
                return _with_unit(number(value), rest) if rest else number(value)
        return Node("text", (), words_of(text))

    def _measured(self, start: int, end: int) -> Node:
        """A value and its unit; or several that add up, as in 2 hours 30 minutes."""
        found: list[tuple[Node, str]] = []
        at = start
        while at < end:
            begun = at
            while at < end and self._tokens[at].kind != "word":
                at = self._match.get(at, at) + 1
            if at == begun:
                raise Unreadable("words stand between values")
            value = self._relation(begun, at)
            said = []
            while at < end and (self._tokens[at].kind == "word" or self._in_unit(at)):
                said.append(self._tokens[at].text)
                at += 1
            found.append((value, " ".join(said)))
        if len(found) == 1:
            return _with_unit(*found[0])
        known = [unit(_compact(words)) for _, words in found]
        kinds = {kind[0] for kind in known if kind}
        if None in known or len(kinds) != 1:
            raise Unreadable("words stand between values")
        terms = [
            Node("product", (value, number(kind[1]))) for (value, _), kind in zip(found, known, strict=True) if kind
        ]
        base = {"time^1": "s", "length^1": "m", "money^1": "dollars", "mass^1": "kg"}.get(kinds.pop(), "")
        return _with_unit(Node("sum", tuple(terms)), base)

    def _in_unit(self, at: int) -> bool:
        r"""Whether a token that is no word belongs to a unit's words: the ^2 of cm^2, the / of km/h."""
        token, before = self._tokens[at], self._tokens[at - 1]
        if token.kind == "mark":
            return token.text in _UNIT_MARKS
        return (
            token.kind == "number"
            and before.text in ("^", "{", "-")
            or token.kind == "name"
            and before.text in ("/", "*")
        )

    def _relation(self, start: int, end: int) -> Node:
        for at in reversed(list(self._top(start, end))):
            if self._tokens[at].kind == "mark" and self._tokens[at].text in _CONSEQUENCES:
                start = at + 1
                break
        sides = list(self._split(start, end, _RELATIONS))
        operators = tuple(self._tokens[at].text for at in self._top(start, end) if self._tokens[at].text in _RELATIONS)
        if len(operators) and len(operators) == len(sides):  # "= 5": the left side is the question's
            if self._tokens[start].text in ("=", r"\approx"):
                return self._relation(sides[0][0], end)
            raise Unreadable("a relation has no right side")
        if len(sides) == 1 and not operators:
            return self._side(start, end)
        if len(operators) != len(sides) - 1:
            raise Unreadable("relations stand side by side")
        return Node("relation", tuple(self._side(*side) for side in sides), operators)

    def _top(self, start: int, end: int) -> Iterator[int]:
        """The places in no bracket."""
        at = start
        while at < end:
            yield at
            at = self._match.get(at, at) + 1

    def _side(self, start: int, end: int) -> Node:
        """One side of a relation: a residue, a ratio, a combination of sets, an expression."""
        top = list(self._top(start, end))
        for at in top:
            if self._tokens[at].text in (r"\pmod", r"\mod") or (self._tokens[at].text == "mod" and at == end - 2):
                return Node("residue", (self._side(start, at), self._expression(at + 1, end)))
        colons = sum(self._tokens[at].text == ":" for at in top)
        if colons:
            parts = list(self._split(start, end, frozenset((":",))))
            if len(parts) != colons + 1:
                raise Unreadable("a colon stands alone")
            written = tuple(" ".join(token.text for token in self._tokens[slice(*part)]) for part in parts)
            return Node("ratio", tuple(self._expression(*part) for part in parts), written)
        for at in reversed(top):  # left to right: what is said last is done last
            if self._tokens[at].text in _SETS:
                return Node(_SETS[self._tokens[at].text], (self._side(start, at), self._side(at + 1, end)))
        return self._expression(start, end)

    def _expression(self, start: int, end: int) -> Node:
        return Expression(self._tokens, self._match, self._bracket).read(start, end)

    def _bracket(self, start: int, end: int) -> Node:
        """What a pair of brackets at two places holds."""
        opening, closing = self._tokens[start].text, self._tokens[end].text
        if opening == r"\begin":
            return self._environment(start + 1, end)
        name, mark = self._tokens[start + 1], self._tokens[min(start + 2, end)].text
        if opening == r"\{" or (opening == "{" and name.kind == "name" and mark in (":", "|")):
            return self._set(start + 1, end)
        if end == start + 1:
            raise Unreadable("a bracket is empty")
        if opening == "{":
            items = [self.answer(start + 1, end)]
        else:  # (1; 2) is how a point is written where the comma is the decimal point
            groups = list(self._split(start + 1, end, frozenset((";",))))
            items = self._items(start + 1, end) if len(groups) == 1 else [self.answer(*group) for group in groups]
        if len(items) == 1:
            return items[0]
        rows = {len(item.parts) if item.kind == "tuple" and item.value == "[]" else 0 for item in items}
        if opening == "[" and len(rows) == 1 and 0 not in rows:  # [[1, 2], [3, 4]]
            return Node("matrix", tuple(item._replace(value="()") for item in items))
        return Node("tuple", tuple(items), "()" if opening == r"\langle" else opening + closing)

    def _set(self, start: int, end: int) -> Node:
        if start == end:
            return Node("set")
        for at in self._top(start, end):
            if self._tokens[at].text in ("|", ":") and at > start:
                name = self._tokens[start]
                if name.kind != "name" or len(name.text) > 1 or at + 1 >= end:
                    break
                return Node("builder", (Node("symbol", (), name.text), self.answer(at + 1, end)))
        inner = self.answer(start, end)
        return Node("set", inner.parts if inner.kind == "list" else (inner,))

    def _environment(self, start: int, end: int) -> Node:
        if start not in self._match:
            raise Unreadable("an environment has no name")
        close = self._match[start]
        name = "".join(token.text for token in self._tokens[start + 1 : close]).rstrip("*")
        start = close + 1
        if name == "array" and start in self._match and self._tokens[start].text == "{":
            start = self._match[start] + 1
        rows = [list(self._split(*row, frozenset(("&",)))) for row in self._split(start, end, frozenset((r"\\",)))]
        if name == "cases":
            cells = [tuple(self.answer(*cell) for cell in row) for row in rows]
            return Node("list", tuple(cell[0] if len(cell) == 1 else Node("tuple", cell, "()") for cell in cells))
        if name not in _MATRICES or not rows:
            raise Unreadable(f"the environment {name} is not known")
        found = tuple(Node("tuple", tuple(self.answer(*cell) for cell in row), "()") for row in rows)
        if len({len(row.parts) for row in found}) > 1:
            raise Unreadable("the rows of a matrix differ in length")
        matrix = Node("matrix", found)
        return Node("function", (matrix,), "det") if name == "vmatrix" else matrix


_BETWEEN = CONNECTORS | CONDITIONS


def _with_unit(value: Node, words: str) -> Node:
    words = _compact(words)
    if value.kind == "relation":
        return value._replace(parts=(*value.parts[:-1], _with_unit(value.parts[-1], words)))
    if words in ("percent", "percentage", "pct", "per cent"):
        return Node("percent", (value,))
    if words in ("degrees", "degree", "deg"):
        return Node("degrees", (value,))
    for scale, size in SCALES.items():
        if words == scale or words.startswith(f"{scale} "):
            scaled = Node("product", (value, number(size)))
            rest = words.removeprefix(scale).strip()
            return _with_unit(scaled, rest) if rest else scaled
    return Node("unit", (value,), words)


def _compact(words: str) -> str:
    """The words of a unit in one spelling: cm^2, km/h, square meters."""
    words = re.sub(r"[{}()]", "", words)
    return re.sub(r"\s*([\^/*])\s*", r"\1", words).replace(" .", "").strip(" .-")
