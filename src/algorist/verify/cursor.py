"""Cursor: a place in a run of tokens, and what can be seen from there. What parse.py walks with."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from algorist.verify.nodes import Node, Unreadable, number
from algorist.verify.tokens import OPENERS, Token
from algorist.verify.words import FUNCTIONS

_STOPS = frozenset(
    (
        r"\to",
        r"\pm",
        r"\mp",
        r"\degree",
        ")",
        "]",
        "}",
        r"\}",
        r"\rangle",
        r"\end",
        r"\rfloor",
        r"\rceil",
        "&",
        r"\\",
        ",",
        ";",
    )
)


class Cursor:
    """Between a place and an end. `match` says where brackets close, `inner` reads what one holds."""

    def __init__(self, tokens: list[Token], match: dict[int, int], inner: Callable[[int, int], Node]) -> None:
        self._tokens = tokens
        self._match = match
        self._inner = inner
        self._at = self._end = 0

    def _peek(self, ahead: int = 0) -> Token | None:
        return self._tokens[self._at + ahead] if self._at + ahead < self._end else None

    def _sees(self, *marks: str) -> bool:
        return self._at < self._end and self._tokens[self._at].text in marks and self._tokens[self._at].kind == "mark"

    def _word(self, word: str) -> bool:
        token = self._peek()
        return token is not None and token.kind in ("name", "word") and token.text == word

    def _begins(self) -> bool:
        """Whether the next token begins another factor."""
        token = self._peek()
        if token is None:
            return False
        if token.kind == "mark":
            if token.text == "|":
                return self._bar() is not None
            return token.text.startswith("\\") and token.text not in _STOPS or token.text in OPENERS
        return token.kind in ("number", "name", "word")

    def _bar(self) -> int | None:
        """Where the bar that stands here is closed again."""
        at = self._at + 1
        while at < self._end:
            if self._tokens[at].text == "|" and at > self._at + 1:
                return at
            at = self._match.get(at, at) + 1
        return None

    def _function_follows(self) -> bool:
        token = self._peek()
        return token is not None and token.text.removeprefix("\\") in FUNCTIONS

    def _number(self, token: Token) -> Node:
        """The number that stands here, a mixed one such as 1 1/2 whole."""
        self._at += 1
        text = token.text
        if re.search(r"[eE]\+?\d{4}", text):
            raise Unreadable("an exponent is too large")
        if text.isdigit():
            following, slash, below = self._peek(), self._peek(1), self._peek(2)
            if following and following.kind == "number" and slash and slash.text == "/" and below:
                whole = following.text.isdigit() and below.text.isdigit()
                if not whole or not 0 < int(following.text) < int(below.text):
                    raise Unreadable("two numbers stand side by side")
                self._at += 3
                return number(int(text) + Fraction(int(following.text), int(below.text)))
            return number(int(text))
        mantissa = re.split("[eE]", text)[0]
        value = Fraction(text)
        places = len(mantissa.partition(".")[2])
        return number(value) if len(mantissa) < len(text) else Node("decimal", (), value, places)
