"""Formulas: where the delimited formulas of a text stand. Linear in the text; nothing is read."""

from __future__ import annotations

import re
from dataclasses import dataclass

_TOKENS = re.compile(r"\$\$|\$|\\[()\[\]]|\\.", re.DOTALL)
_CLOSERS = {"$$": "$$", "$": "$", "\\(": "\\)", "\\[": "\\]"}
_CURRENCY = re.compile(r"^\d[\d,.]*\s+[a-z]{2}|(?<![\\{a-z])[a-z]{2,} [a-z]{2,} ")


@dataclass(frozen=True)
class Formula:
    """Where a delimited formula stands in a text, delimiters included, and what is between them."""

    start: int
    end: int
    inner: str


def formulas(text: str) -> list[Formula]:
    r"""The formulas of a text, in order: `$x$`, `$$x$$`, `\(x\)`, `\[x\]`. A dollar before prose is currency."""
    found: list[Formula] = []
    opened, start = "", 0
    for token in _TOKENS.finditer(text):
        mark = token.group()
        if opened and mark == _CLOSERS[opened]:
            inner = text[start + len(opened) : token.start()]
            if not inner.strip() or (opened == "$" and ("\n\n" in inner or _CURRENCY.search(inner))):
                start = token.start()  # what seemed to close may open the next one
                continue
            found.append(Formula(start, token.end(), inner.strip()))
            opened = ""
        elif mark in _CLOSERS and opened in ("", "$"):
            opened, start = mark, token.start()
    return found


def prose_of(said: str) -> str:
    """The text with every formula overwritten by blanks of the same length."""
    for span in formulas(said):
        said = said[: span.start] + " " * (span.end - span.start) + said[span.end :]
    return said


def inside(at: int, spans: list[Formula]) -> bool:
    """Whether a place is in one of the formulas."""
    return any(span.start <= at < span.end for span in spans)
