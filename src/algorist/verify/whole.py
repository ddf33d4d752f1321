r"""Whole: answers that are known by their whole form. Times, dates, other bases, `2 to 3`; and 0.1\overline{6}."""

from __future__ import annotations

import re
from fractions import Fraction

from algorist.verify.nodes import Node, number

_REPEATING = re.compile(r"(\d*)\.(\d*)(?:\\(?:overline|bar|dot|overbar)\s*\{?(\d+)\}?|\((\d+)\)(?!\s*[\d(]))")
_TIME = re.compile(
    r"(?:(\d{1,2})(?:\s*:\s*(\d\d))?[\s~]*)?(?:\\(?:text|mathrm)\{)?\s*(?:(noon)|(?<=[\d\s{])([aApP])\.?\s?[mM]\.?)\s*\}?"
)
_BASE_IN_WORDS = re.compile(r"(\d+)[\s(]*(?:\\(?:text|mathrm)\{)?\s*(?:in\s+)?[bB]ase\s*[-\s}]\s*(\d+)\s*\}?\s*\)?")
_TO = re.compile(r"(\d+)\s+to\s+(\d+)")
_MONTHS = "jan feb mar apr may jun jul aug sep oct nov dec"
_DAY_OF_MONTH = re.compile(
    r"(?:(\d{1,2})(?:st|nd|rd|th)?\s+(?:of\s+)?)?([A-Z][a-z]{2,8})\.?(?:\s+(\d{1,2})(?:st|nd|rd|th)?)?(?:,?\s+(\d{4}))?"
)
_ISO_DATE = re.compile(r"(\d{4})-(\d\d)-(\d\d)")
_LETTERED_BASE = re.compile(r"[({]?(?:\\(?:text|mathrm)\{)?([0-9A-Z]*[A-Z][0-9A-Z]*)\}?\)?_\{?(?:\\text\{)?(\d+)\}*")


def as_a_whole(text: str) -> Node | None:
    """What a text in the form that `plain` gives it says, where its whole form tells; else None."""
    if time := _TIME.fullmatch(text):
        half = 12 if (time[3] or time[4]).lower() in ("p", "noon") else 0
        return Node("time", (), (int(time[1] or 0) % 12 + half, int(time[2] or 0)))
    if based := _BASE_IN_WORDS.fullmatch(text):
        return Node("based", (), (based[1], int(based[2])))
    if ratio := _TO.fullmatch(text):
        return Node("ratio", (number(int(ratio[1])), number(int(ratio[2]))), (ratio[1], ratio[2]))
    if date := _date(text):
        return Node("date", (), date)
    lettered = _LETTERED_BASE.fullmatch(text.strip("$ "))
    if lettered and int(lettered[2]) > 10:
        return Node("based", (), (lettered[1], int(lettered[2])))
    return None


def _date(text: str) -> tuple[int, int, int] | None:
    """(year or 0, month, day) of March 5, 2020, of 5 March and of 2020-03-05."""
    if iso := _ISO_DATE.fullmatch(text):
        return int(iso[1]), int(iso[2]), int(iso[3])
    match = _DAY_OF_MONTH.fullmatch(text)
    if match is None or (match[1] is None) == (match[3] is None) or match[2][:3].lower() not in _MONTHS.split():
        return None
    return int(match[4] or 0), _MONTHS.split().index(match[2][:3].lower()) + 1, int(match[1] or match[3])


def without_repeating(text: str) -> str:
    r"""The text with 0.1\overline{6} and 0.1(6) as the fractions that they are."""
    return _REPEATING.sub(_repeating, text) if "." in text else text


def _repeating(match: re.Match[str]) -> str:
    r"""0.1\overline{6} as the fraction that it is."""
    fixed, again = match[2], match[3] or match[4]
    below = (10 ** len(again) - 1) * 10 ** len(fixed)
    above = int((match[1] or "0") + fixed + again) - int((match[1] or "0") + fixed)
    value = Fraction(above, below)
    return f"\\frac{{{value.numerator}}}{{{value.denominator}}}" if len(match[0]) < 40 else match[0]
