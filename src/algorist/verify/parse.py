r"""Parse: tokens of one mathematical expression → a tree, in one pass from left to right.

What mathematicians write is ambiguous; the conventions are those of printed mathematics. 2x is a product, \sin 2x takes
2x, 1/2x is half of x, 2\frac{1}{2} is a mixed number, \frac12 is a half. What stands in brackets is read by whoever
reads whole answers (read.py), because it may be a point, an interval or a set.
"""

from __future__ import annotations

from algorist.verify.cursor import Cursor
from algorist.verify.nodes import Node, Unreadable, bound_in, mixed, negative, number, powered, symbol, times
from algorist.verify.tokens import Token
from algorist.verify.words import FUNCTIONS, GREEK, NAMED

_UNREAD = frozenset((r"\int", r"\iint", r"\iiint", r"\oint", r"\lim", r"\limsup", r"\liminf", r"\partial", r"\nabla"))
_SIGNS = ("+", "-", r"\pm", r"\mp")
_UNKNOWN_FUNCTIONS = frozenset("fghFG")


class Expression(Cursor):
    """Reads one expression out of a run of tokens."""

    def read(self, start: int, end: int) -> Node:
        """The expression that fills tokens[start:end] to its last token.

        Raises:
            Unreadable where it does not.
        """
        outer = self._at, self._end
        self._at, self._end = start, end
        if start >= end:
            raise Unreadable("a part is empty")
        found = self._sum()
        if self._at < end:
            raise Unreadable(f"cannot go on at {self._tokens[self._at].text}")
        self._at, self._end = outer
        return found

    def _sum(self) -> Node:
        terms: list[Node] = []
        while not terms or self._sees(*_SIGNS):
            sign = "+"
            if self._sees(*_SIGNS):
                sign = self._tokens[self._at].text
                self._at += 1
            term = self._product()
            if sign == "-":
                term = negative(term)
            elif sign != "+":
                term = Node("either", (term,), "+" if sign == r"\pm" else "-")
            terms.append(term)
        return terms[0] if len(terms) == 1 else Node("sum", tuple(terms))

    def _product(self) -> Node:
        found = self._factor()
        while True:
            if self._sees("%"):  # of everything before it: 33\frac{1}{3}\%
                self._at += 1
                found = Node("percent", (found,))
            elif self._sees("*"):
                self._at += 1
                found = times(found, self._factor())
            elif self._sees("/"):
                self._at += 1
                found = Node("quotient", (found, self._factor()))
            elif self._word("mod") or self._sees(r"\bmod", r"\mod"):
                self._at += 1
                found = Node("function", (found, self._factor()), "mod")
            elif self._begins():
                after = self._tokens[self._at - 1]
                here = self._tokens[self._at]
                if here.kind == "number" and after.kind == "number":
                    raise Unreadable("two numbers stand side by side")
                factor = self._power()
                found = mixed(found, factor) if here.text == r"\frac" else times(found, factor)
            else:
                return found

    def _factor(self) -> Node:
        if self._sees("-"):
            self._at += 1
            return negative(self._factor())
        if self._sees("+"):
            self._at += 1
            return self._factor()
        if self._sees(r"\pm", r"\mp"):
            sign = "+" if self._sees(r"\pm") else "-"
            self._at += 1
            return Node("either", (self._factor(),), sign)
        return self._power()

    def _power(self) -> Node:
        base = self._postfix(self._atom())
        if not self._sees("^"):
            return base
        self._at += 1
        return self._postfix(powered(base, self._exponent()))

    def _exponent(self) -> Node:
        if self._sees("-", "+"):
            sign = self._tokens[self._at].text
            self._at += 1
            inner = self._exponent()
            return negative(inner) if sign == "-" else inner
        inner = self._postfix(self._atom())
        if self._sees("^"):
            self._at += 1
            return Node("power", (inner, self._exponent()))
        return inner

    def _postfix(self, found: Node) -> Node:
        while (token := self._peek()) is not None and token.kind == "mark":
            said = token.text
            if said == "!":
                found = Node("function", (found,), "factorial")
            elif said == r"\degree":
                found = Node("degrees", (found,))
            elif said == "'" and found.kind in ("symbol", "applied"):
                found = symbol(f"{found.value}'")
            elif said == "_":
                self._at += 1
                found = self._indexed(found)
                continue
            elif said != "..." or found.kind != "decimal":  # 0.333... says itself that it is rounded
                return found
            self._at += 1
        return found

    def _indexed(self, found: Node) -> Node:
        before = self._tokens[self._at - 2].text
        start = self._at
        try:
            index = self._atom()
        except Unreadable:  # m_{\max}: part of the name
            if self._tokens[start].text != "{":
                raise
            self._at = self._match[start] + 1
            index = symbol(" ".join(token.text for token in self._tokens[start + 1 : self._at - 1]))
        if found.kind == "number" and index.kind == "number" and before.isdigit():
            return Node("based", (), (before, int(index.value)))
        if found.kind == "symbol" and index.kind == "number":
            return symbol(f"{found.value}_{index.value}")
        if found.kind != "symbol":
            raise Unreadable("an index stands behind no name")
        if self._sees("(") and found.value in _UNKNOWN_FUNCTIONS:
            return self._applied(f"{found.value}_{index}")
        return Node("indexed", (index,), found.value)

    def _atom(self) -> Node:
        if (token := self._peek()) is None:
            raise Unreadable("ends where a value was expected")
        if token.kind == "number":
            return self._number(token)
        if token.kind in ("name", "word"):
            return self._name(token)
        if token.text in ("(", "[", "{", r"\{", r"\langle", r"\begin"):
            close = self._match[self._at]
            found = self._inner(self._at, close)
            self._at = close + 1
            while token.text == r"\begin" and self._sees("{"):  # the name after \end
                self._at = self._match[self._at] + 1
            return found
        if token.text in (r"\lfloor", r"\lceil"):
            close = self._match[self._at]
            found = Expression(self._tokens, self._match, self._inner).read(self._at + 1, close)
            self._at = close + 1
            return Node("function", (found,), "floor" if token.text == r"\lfloor" else "ceil")
        if token.text == "|":
            return self._absolute()
        if token.text.startswith("\\"):
            return self._command(token.text[1:])
        raise Unreadable(f"cannot begin with {token.text}")

    def _absolute(self) -> Node:
        close = self._bar()
        if close is None:
            raise Unreadable("a bar never closes")
        found = Expression(self._tokens, self._match, self._inner).read(self._at + 1, close)
        self._at = close + 1
        return Node("function", (found,), "abs")

    def _name(self, token: Token) -> Node:
        text = token.text
        if text in NAMED:
            self._at += 1
            return Node("constant", (), NAMED[text])
        if text in FUNCTIONS and len(text) > 1:
            self._at += 1
            return self._function(FUNCTIONS[text])
        if text in GREEK and len(text) > 2:
            self._at += 1
            return symbol(text)
        if token.kind == "word":
            raise Unreadable(f"{text} is no mathematics")
        self._at += 1
        if text in "ei":
            return Node("constant", (), text)
        if text in _UNKNOWN_FUNCTIONS and self._sees("("):
            return self._applied(text)
        return self._chosen() if text == "C" and self._sees("(") else symbol(text)

    def _chosen(self) -> Node:
        """C(n, k) as the binomial coefficient; C(x + 1) as a product."""
        inner = self._atom()
        if inner.kind != "tuple":
            return times(symbol("C"), inner)
        return Node("function", _as_many(inner.parts, "binom"), "binom")

    def _applied(self, name: str) -> Node:
        inner = self._atom()
        return Node("applied", inner.parts if inner.kind == "tuple" else (inner,), name)

    def _argument(self) -> Node:
        r"""What \frac, \sqrt and their like take: a group, or the next atom."""
        if self._sees("-"):
            raise Unreadable("a sign stands where a value was expected")
        return self._atom()

    def _command(self, name: str) -> Node:
        self._at += 1
        if name == "frac":
            return Node("quotient", (self._argument(), self._argument()))
        if name == "sqrt":
            return self._root()
        if name in ("binom", "dbinom", "tbinom"):
            return Node("function", (self._argument(), self._argument()), "binom")
        if name in FUNCTIONS:
            return self._function(FUNCTIONS[name])
        if name in NAMED:
            return Node("constant", (), NAMED[name])
        if name in GREEK:
            return symbol(name)
        if name in ("sum", "prod"):
            return self._series("sum" if name == "sum" else "product")
        if f"\\{name}" in _UNREAD:
            rest = tuple(token.text for token in self._tokens[self._at - 1 : self._end])
            self._at = self._end
            return Node("unread", (), rest)
        if name in (
            "overline",
            "overrightarrow",
            "vec",
            "hat",
            "bar",
            "angle",
            "triangle",
            "widehat",
            "tilde",
            "mathcal",
        ):
            return self._decorated(name)
        if name == "emptyset":
            return Node("set")
        if name == "mathbb" or name == "mathbf":
            inner = self._atom()
            return Node("numbers", (), inner.value) if inner.kind == "symbol" else inner
        raise Unreadable(f"\\{name} is not known")

    def _decorated(self, name: str) -> Node:
        """A name with something above or before it: one name."""
        start = self._at
        inner = self._atom()
        letters = "".join(token.text for token in self._tokens[start : self._at] if token.text not in "{}")
        if not letters.isalpha():
            raise Unreadable(f"\\{name} of something that is no name")
        while name in ("angle", "triangle") and (token := self._peek()) and token.kind == "name" and not token.spaced:
            letters += token.text
            self._at += 1
        return symbol(f"{name} {letters}") if inner.kind != "number" else inner

    def _root(self) -> Node:
        degree = number(2)
        if self._sees("["):
            close = self._match[self._at]
            degree = Expression(self._tokens, self._match, self._inner).read(self._at + 1, close)
            self._at = close + 1
        return Node("function", (self._argument(), degree), "root")

    def _function(self, name: str) -> Node:
        """A function that is known by name, with what it is applied to: \\sin 2x, \\log_2 8, \\sin^2 x."""
        base, exponent = None, None
        for _ in range(2):
            if self._sees("_"):
                self._at += 1
                base = self._atom()
            elif self._sees("^"):
                self._at += 1
                exponent = self._exponent()
        if name == "sqrt" or name == "cbrt":
            return Node("function", (self._argument(), number(2 if name == "sqrt" else 3)), "root")
        arguments = self._arguments()
        if exponent == number(-1) and name in ("sin", "cos", "tan", "cot", "sec", "csc"):
            name, exponent = f"arc{name}", None
        if name in ("lg", "lb"):
            name, base = "log", number(10 if name == "lg" else 2)
        if base is not None:
            if name != "log":
                raise Unreadable(f"{name} has no base")
            arguments = (*arguments, base)
        found = Node("function", _as_many(arguments, name), name)
        return found if exponent is None else Node("power", (found, exponent))

    def _arguments(self) -> tuple[Node, ...]:
        if self._sees("("):
            inner = self._atom()
            return inner.parts if inner.kind == "tuple" else (inner,)
        if self._sees("-"):
            self._at += 1
            return (negative(self._arguments()[0]),)
        found = self._power()
        while self._begins() and not self._sees("(", "[", "|") and not self._function_follows():
            factor = self._power()
            found = times(found, factor)
        return (found,)

    def _series(self, what: str) -> Node:
        """A sum or product over a variable between two bounds that are written out."""
        start = end = None
        bound = ""
        for _ in range(2):
            if self._sees("_") and (opening := self._at + 1) < self._end and self._tokens[opening].text == "{":
                close = self._match[opening]
                texts = [token.text for token in self._tokens[opening + 1 : close]]
                if len(texts) < 3 or texts[1] != "=":
                    raise Unreadable("a sum says no bounds")
                bound = texts[0]
                start = Expression(self._tokens, self._match, self._inner).read(opening + 3, close)
                self._at = close + 1
            elif self._sees("^"):
                self._at += 1
                end = self._atom()
        if start is None or end is None:
            raise Unreadable("a sum says no bounds")
        return Node("series", (bound_in(self._product(), bound), start, end), (what, bound))


def _as_many(arguments: tuple[Node, ...], name: str) -> tuple[Node, ...]:
    """The arguments of a function, if there are as many as it takes."""
    wanted = {"log": (1, 2), "binom": (2,), "mod": (2,), "root": (2,)}.get(name, (1,))
    if len(arguments) not in wanted and name not in ("gcd", "lcm", "max", "min"):
        raise Unreadable(f"{name} of {len(arguments)} arguments")
    return arguments
