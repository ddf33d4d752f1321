r"""Equal: are two answers the same mathematics? Exact and cheap first, computer algebra only where that cannot tell.

Most verdicts compare plain numbers or identical strings; `at_sight` decides those in microseconds, exactly and
without sympy. `by_algebra` asks math-verify, which can take forever on hostile input: call it where a process can
be killed (pool.py does). A gold answer that cannot be read gives None, never "wrong".
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

LONGEST_ANSWER = 2_000  # characters; no honest answer is longer, and parsers are superlinear
ROUNDING = Fraction(1, 100_000)  # relative; a decimal may stand for an exact value within this

Outcome = tuple[bool | None, str]

_REWRITES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\boxed\{([^{}]*)\}", r"\1"),
        (r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}", r"\1"),
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\(?:left|right|displaystyle)(?![A-Za-z])", ""),
        (r"\\!\s*", ""),
        (r"\\[,;: ]|~|\s+", " "),
        (r"\\[()\[\]]|\\?\$", ""),
        (r"\{,\}", ","),
        ("\N{MINUS SIGN}", "-"),
        # A space before a digit and after a digit or a comma stays: 1, 234 is two numbers, and 1 234 may be.
        (r"(?<![0-9,]) +| +(?![0-9 ])", ""),
    )
)
# What math-verify misreads, and how it must be written: in its eyes pi is p·i, and 1+1/\mathrm{e} stops at the 1.
_SPELLINGS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\mathrm\{([a-z])\}", r"\1"),
        (r"(?<![\\A-Za-z])(pi|exp|sqrt|sin|cos|tan|log|ln)(?![A-Za-z])", r"\\\1"),
        (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
    )
)
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.[0-9]+)?|\.[0-9]+)"
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)(?:\\frac\{{(?P<up>-?{_DECIMAL})\}}\{{(?P<down>-?{_DECIMAL})\}}"
    rf"|\\frac(?P<a>[0-9])(?P<b>[0-9])|(?P<x>{_DECIMAL})(?:/(?P<y>{_DECIMAL}))?)"
)
_CHOICE = re.compile(r"\(?([A-Z])\)?")


@functools.cache
def verifier() -> str:
    """Name and version of what decides, as each verdict carries it: `algorist-1/math-verify-0.9.0`."""
    import importlib.metadata  # 30 ms that `--help` need not pay

    return f"algorist-1/math-verify-{importlib.metadata.version('math-verify')}"


def equal(gold: str, candidate: str) -> Outcome:
    """Whether two answers are equal, and why: (True, "equal"), (False, "different"), (None, "gold unreadable").

    A candidate of more than LONGEST_ANSWER characters is (False, "too long"). May run for minutes on hostile
    input, as computer algebra does; a pool puts a limit on it.
    """
    outcome = at_sight(gold, candidate)
    return by_algebra(gold, candidate) if outcome is None else outcome


def at_sight(gold: str, candidate: str) -> Outcome | None:
    """What can be decided without algebra, in time linear in both; None where it cannot.

    Identical strings are equal. Two plain numbers, whole, decimal or a simple fraction, are compared as exact
    fractions, and two letters of a multiple choice as letters; these decide both ways.
    """
    if len(candidate) > LONGEST_ANSWER:
        return False, "too long"
    if len(gold) > LONGEST_ANSWER:
        return None, "gold unreadable"
    if gold.isdecimal() and candidate.isdecimal() and gold.isascii() and candidate.isascii():
        return _decided(gold.lstrip("0") == candidate.lstrip("0"))  # most of all verdicts, at a tenth of the price
    left, right = light(gold), light(candidate)
    if not left:
        return None, "gold unreadable"
    if left == right:
        return True, "equal"
    if not right:
        return False, "different"
    a, b = number(left), number(right)
    if a is not None and b is not None:
        return _decided(a == b)
    letter, other = _CHOICE.fullmatch(left), _CHOICE.fullmatch(right)
    return _decided(letter[1] == other[1]) if letter and other else None


def light(answer: str) -> str:
    r"""The answer without what never changes its meaning: `$`, spaces, `\left`, `\text{}`, the last full stop."""
    for pattern, replacement in _REWRITES:
        answer = pattern.sub(replacement, answer)
    return answer.rstrip(".,;\\")


def number(answer: str) -> Fraction | None:
    r"""The exact value of a plain number in `light` form: 012, -1,234.50, .5, 3/4, \frac{3}{4}, \frac34; else None."""
    match = _NUMBER.fullmatch(answer)
    if match is None:
        return None
    above = match["up"] or match["a"] or match["x"]
    below = match["down"] or match["b"] or match["y"] or "1"
    divisor = Fraction(below.replace(",", ""))
    if divisor == 0:
        return None
    value = Fraction(above.replace(",", "")) / divisor
    return -value if match["sign"] == "-" else value


def by_algebra(gold: str, candidate: str) -> Outcome:
    """What math-verify says, corrected where it is known to be wrong. Slow, and not safe against hostile input."""
    from math_verify import parse, verify  # type: ignore[import-untyped,unused-ignore]

    # Its own time limits are signals, which work in the main thread only; whoever calls this can kill us instead.
    left = parse(_delimited(gold), parsing_timeout=None)
    right = parse(_delimited(candidate), parsing_timeout=None)
    if verify(left, right, timeout_seconds=None):
        return _decided(not _far_apart(left, right))
    if all(isinstance(value, str) for value in left):
        return None, "gold unreadable"
    return False, "different"


def _delimited(answer: str) -> str:
    r"""The answer in the delimiters that make math-verify read LaTeX, with the spellings mended that it misreads."""
    for pattern, replacement in _SPELLINGS:
        answer = pattern.sub(replacement, answer)
    return answer if re.search(r"\$|\\\(|\\\[|\\boxed", answer) else f"${answer}$"


def _far_apart(left: Sequence[Any], right: Sequence[Any]) -> bool:
    """Whether two numbers that math-verify calls equal are not: it rounds to six decimals, so that 1/2^99 = 1/2^98."""
    values = [side[0] for side in (left, right) if side and getattr(side[0], "is_number", False)]
    if len(values) < 2 or values[0] == values[1]:
        return False
    gap = abs((values[0] - values[1]).evalf(20))
    size = abs(values[0].evalf(20))
    return bool(gap.is_comparable and size.is_comparable and gap > size * float(ROUNDING))


def _decided(same: bool) -> Outcome:
    return (True, "equal") if same else (False, "different")
