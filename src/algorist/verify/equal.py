r"""Equal: are two answers the same mathematics? Exact and cheap first, then read and computed.

Most verdicts compare plain numbers or identical strings; `at_sight` decides those in microseconds. `equal` reads both
answers (read.py) and compares what they say (compare.py): structures part by part, values exactly or to sixty digits.
Both take bounded time and evaluate no text; whoever must be certain of that puts them into a process that can be
killed (pool.py). A gold answer that cannot be read gives None, never "wrong".
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from fractions import Fraction

from algorist.verify.compare import same
from algorist.verify.conventions import DEFAULT, Conventions
from algorist.verify.evaluate import Huge, Unknown
from algorist.verify.exact import Undefined
from algorist.verify.extract import answer_in
from algorist.verify.names import Contradiction, is_name
from algorist.verify.nodes import Node, Unreadable, is_number, symbols, walk
from algorist.verify.read import read
from algorist.verify.words import words_of

VERIFIER = "algorist-2"  # changes with every change of verdicts; stored with each of them
LONGEST_ANSWER = 2_000  # characters; no honest answer is longer
PROSE = 4  # words; a gold answer of more that is not met word by word is left to a reader of texts

Outcome = tuple[bool | None, str]

EQUAL: Outcome = (True, "equal")
DIFFERENT: Outcome = (False, "different")

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.[0-9]+)?|\.[0-9]+)"
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)(?:\\[dtc]?frac\{{(?P<up>-?{_DECIMAL})\}}\{{(?P<down>-?{_DECIMAL})\}}"
    rf"|\\[dtc]?frac(?P<a>[0-9])(?P<b>[0-9])|(?P<x>{_DECIMAL})(?:/(?P<y>{_DECIMAL}))?)"
)
_GROUPED = re.compile(r"\d,\d{3}(?!\d)")
_DECIMAL_COMMA = re.compile(r"(?:[a-zA-Z]\s*=\s*)?([-+]?\d+),(\d+)")
_OPTION = re.compile(
    r"(?:(?:the )?(?:correct )?(?:option|choice|answer)(?: is)?[\\_:\s]*)?"
    r"\(?([A-Ja-j])(?:\)[.:]?|[.:](?=\s|$)|$)\s*(.*)",
    re.DOTALL | re.IGNORECASE,
)
_OPTIONS = re.compile(r"\(?[A-J]\)?(?:\s*(?:,|;|and|or|&)*\s*\(?[A-J]\)?)*")
_SAYS = re.compile(  # the function is even
    r"(?:(?:so|thus|therefore|hence) )?(?:it|this|that|f|g|(?:the )?(?:final |correct |given )?(?:answer|function|"
    r"number|sequence|series|graph|triangle|shape|curve|set|system|statement|day|result))"
    r"(?: [fg])? (?:is|are) ([^.,;:]+)"
)
_WORDS, _A_WORD = re.compile(r"[^\W_][\w ',:-]*"), re.compile(r"[^\W\d_]{4}")
_STYLES = re.compile(r"\\(?:text(?:bf|it|rm|sf|tt)?|mathrm|mathbf|mathsf|mbox|boxed)\s*\{([^{}]*)\}|\*\*|\$|\\[()\[\]]")


def verifier() -> str:
    """Name and version of what decides, as each verdict carries it."""
    return VERIFIER


def equal(gold: str, candidate: str, conventions: Conventions = DEFAULT) -> Outcome:
    """Whether a candidate is the gold answer, and why.

    (True, "equal"), (False, "different"), (False, "answer unreadable"), (False, "not evaluated": right, but a formula
    where a number was asked), (False, "too long"), (None, "gold unreadable"), (None, "undecided": what would have to be
    computed is beyond us). Never raises; time is bounded by the limits of the rooms it asks.
    """
    outcome = at_sight(gold, candidate, conventions)
    return by_reading(gold, candidate, conventions) if outcome is None else outcome


def at_sight(gold: str, candidate: str, conventions: Conventions = DEFAULT) -> Outcome | None:
    """What can be decided without reading, in time linear in both; None where it cannot.

    Identical answers are equal. Two plain numbers, whole, decimal or a simple fraction, are compared as exact
    fractions, which decides unless one of them may be the other, rounded.
    """
    if len(candidate) > LONGEST_ANSWER:
        return False, "too long"
    if len(gold) > LONGEST_ANSWER:
        return None, "gold unreadable"
    if gold.isdecimal() and candidate.isdecimal() and gold.isascii() and candidate.isascii():
        return EQUAL if gold.lstrip("0") == candidate.lstrip("0") else DIFFERENT  # most of all verdicts
    gold, candidate = gold.strip(" $").rstrip("."), candidate.strip(" $").rstrip(".")
    if not gold:
        return None, "gold unreadable"
    if not candidate:
        return False, "answer unreadable"
    a, b = number(gold), number(candidate)
    if a is None or b is None:
        return EQUAL if gold == candidate and gold.isascii() and not _GROUPED.search(gold) else None
    if a == b:
        return EQUAL
    near = conventions.gold_digits or conventions.rounding
    return None if near and abs(a - b) * 100 < abs(a) and "." in gold + candidate else DIFFERENT


def number(answer: str) -> Fraction | None:
    r"""The exact value of a plain number: 012, -1,234.50, .5, 3/4, \frac{3}{4}, \frac34; else None."""
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


def by_reading(gold: str, candidate: str, conventions: Conventions = DEFAULT) -> Outcome:
    """What `at_sight` leaves open, decided by reading both answers."""
    try:
        words = words_of(gold)
        said = words_of(candidate)
        if words == said and (gold == candidate or _is_prose(words)):
            return EQUAL
        if _is_prose(words) and (sentence := _SAYS.fullmatch(said)) and words_of(sentence[1]) == words:
            return EQUAL  # the function is even
        return _options(gold, candidate, conventions) or _mathematics(gold, candidate, conventions)
    except RecursionError:
        return None, "undecided"


def _is_prose(words: str) -> bool:
    """Whether they are words, in which case is no matter, and not X or AB."""
    return words in ("yes", "no") or (_WORDS.fullmatch(words) is not None and _A_WORD.search(words) is not None)


def _options(gold: str, candidate: str, conventions: Conventions) -> Outcome | None:
    """Multiple choice: by letter where both name one, else the text of the option against the other answer."""
    ours, theirs = (_STYLES.sub(r"\1", answer).strip().rstrip(".") for answer in (gold, candidate))
    if _OPTIONS.fullmatch(ours) and _OPTIONS.fullmatch(theirs):
        letters = [sorted(re.findall("[A-J]", answer)) for answer in (ours, theirs)]
        return EQUAL if letters[0] == letters[1] else DIFFERENT
    own, other = _OPTION.fullmatch(ours), _OPTION.fullmatch(theirs)
    if own and other and own[1].isupper():
        if other[1].islower() and (conventions.letter_case or other[2]):
            return None
        texts = number(own[2]), number(other[2])
        conflict = None not in texts and texts[0] != texts[1]  # B) 600 and B) 6000
        if own[2] and other[2] and readings(own[2]) and readings(other[2]):
            conflict = conflict or _mathematics(own[2], other[2], conventions) == DIFFERENT
        return EQUAL if own[1] == other[1].upper() and not conflict else DIFFERENT
    if own and own[1].isupper() and own[2]:
        return _beyond_options(own[2], theirs, conventions)
    if other and other[1].isupper() and other[2] and not own:
        inner = _beyond_options(ours, other[2], conventions)
        return inner if inner[0] else None
    return None


def _beyond_options(gold: str, candidate: str, conventions: Conventions) -> Outcome:
    """As `equal`, but no letter in front is taken off again."""
    return at_sight(gold, candidate, conventions) or _mathematics(gold, candidate, conventions)


def _mathematics(gold: str, candidate: str, conventions: Conventions) -> Outcome:
    wrapped = "\\boxed" in gold or "\\fbox" in gold or "<answer>" in gold
    golds = () if wrapped else readings(gold)
    if not golds:
        inner = answer_in(gold).answer
        if inner and inner != gold:
            return equal(inner, candidate, conventions)
    prose = len(re.findall(r"[^\W\d_]{2,}", gold)) > PROSE
    if not golds or (prose and golds[0].kind in ("text", "unit")):
        return None, "gold unreadable"
    candidates = readings(candidate)
    broken = is_number(golds[0]) and not gold.strip(" $").isdecimal()
    if conventions.decimal_comma and (broken or "." in candidate):
        golds, candidates = (*golds, *_with_decimal_comma(gold)), (*candidates, *_with_decimal_comma(candidate))
    if not candidates:
        return False, "answer unreadable"
    if (
        not conventions.unevaluated
        and is_number(golds[0])
        and any(part.kind == "unread" for part in _value_parts(candidates[0]))
    ):
        return False, "not evaluated"
    verdicts = []
    for own in golds:
        for other in candidates:
            verdict = _same(own, other, conventions)
            whole = own.kind == "number" and own.value.denominator == 1
            if verdict and not conventions.unevaluated and is_number(own) and steps_left(other, whole=whole) > 1:
                return False, "not evaluated"
            sets = own.kind in ("relation", "tuple", "union", "list", "set") and solved(own)
            if verdict and not conventions.unevaluated and sets and not solved(other):
                return False, "not evaluated"  # x^2 < 4 for (-2, 2)
            if verdict:
                return EQUAL
            verdicts.append(verdict)
    return (None, "undecided") if verdicts[0] is None else DIFFERENT


def _value_parts(node: Node) -> Iterator[Node]:
    """The parts of an answer that is no relation: in \\int ... = 1/3 the integral has been done."""
    return iter(()) if node.kind == "relation" else walk(node)


def _with_decimal_comma(answer: str) -> tuple[Node, ...]:
    """What 2,74 may mean besides a pair."""
    comma = _DECIMAL_COMMA.fullmatch(answer.replace("{,}", ",").strip(" $."))
    return readings(f"{comma[1]}.{comma[2]}") if comma else ()


def _same(gold: Node, candidate: Node, conventions: Conventions) -> bool | None:
    try:
        return same(gold, candidate, conventions)
    except Contradiction:
        return False
    except (Undefined, Huge, Unknown):
        return None


@functools.lru_cache(maxsize=10_000)
def readings(answer: str) -> tuple[Node, ...]:
    """What an answer may say, the likelier first: 1,234 is a number before it is two. Empty where it is unreadable."""
    found: list[Node] = []
    for thousands in (True, False) if _GROUPED.search(answer) else (True,):
        try:
            reading = read(answer, thousands=thousands)
        except (Unreadable, RecursionError):
            continue
        if reading not in found:
            found.append(reading)
    return tuple(found)


def solved(node: Node) -> bool:
    """Whether an answer is no relation that is still to be solved: x = 2 and -2 < x < 2 are, x^2 = 4 and 2x > 4 not."""
    if node.kind == "list":
        return all(solved(part) for part in node.parts)
    return node.kind != "relation" or all(is_name(side) or not symbols(side) for side in node.parts)


def steps_left(node: Node, *, whole: bool = True) -> int:
    r"""Operations an answer leaves to do: none in 3/4 and 1.5 \times 10^3, one in 3 + 2, two in 17 \cdot 23 + 5."""
    if is_number(node) or node.kind in ("relation", "list", "set", "tuple", "matrix"):
        return 0
    if node.kind == "product" and len(node.parts) == 2 and is_number(node.parts[0]) and _power_of_ten(node.parts[1]):
        return 0
    own = {
        "sum": len(node.parts) - 1,
        "product": len(node.parts) - 1,
        "quotient": int(whole),
        "power": 1,
        "series": 2,
        "unread": 2,
    }
    heavy = node.kind == "function" and node.value not in ("root", "abs")
    here = 2 if heavy else int(node.kind == "function") or own.get(node.kind, 0)
    return here + sum(steps_left(part) for part in node.parts)  # a division is only free at the top, where 3/7^2 has it


def _power_of_ten(node: Node) -> bool:
    return node.kind == "power" and node.parts[0] == Node("number", (), Fraction(10))
