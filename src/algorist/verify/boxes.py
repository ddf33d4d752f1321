r"""Boxes: where a text boxes its answer. `\boxed{...}`, looked for from the end, and which boxes are one answer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

DIFFERENT_BOXES = 8  # real responses, right or wrong, box up to 4 different things; lists of guesses box dozens
COUNTED_BOXES = 64  # boxes from the end that are looked at for that
MOST_BOX_WORDS = 10_000  # words from the end that may be boxes
TRIED_BOXES = 1_000  # boxes from the end that may be empty or never close
LONGEST_GAP = 120  # characters between two boxes of one answer

# A second backslash is what a response looks like that was escaped once too often on its way here, a backspace
# what it looks like that was not escaped at all.
_BOX_WORDS = ("oxed", "\\fbox", "\\framebox")
_BOX_START = re.compile(r"(?:\\{0,2}b|\x08)\Z")
_BOX_OPEN = re.compile(r"(?:\s{0,20}\[[^\]]{0,40}\]){0,2}\s{0,20}\{")
_UNBRACED = re.compile(r"\s{1,4}([^\s$\\{}]{1,60}|\\[^\n$]{1,80}?(?=\$|\\\)|\\\]|\n|\Z))")
_BRACES = re.compile(r"\\.|([{}])", re.DOTALL)
_LIST_LABEL = re.compile(r"^[\s*$]{0,8}(?:[-*•]|\(?\w{1,3}[).:])\s+", re.MULTILINE)
_STOPS = re.compile(r"[.!?](?:[\s$\\*)]|\Z)|[。！？]")
_SPACING = re.compile(r"\\(?:text\w*|mathrm|mbox|qquad|quad|[,;!: ()\[\]\\])|\+{2,}|-{3,}")
_LEFT_SIDE = re.compile(r"[^\s,;$=]{1,20}\s{0,4}(?:=|\\in\b)[\s$]*\Z")
_APPROXIMATELY = re.compile(r"[\s$]*(?:\\approx|≈|\\simeq)[\s$]*")
_RELATION = re.compile(r"[=<>≈→⇒+*/^\\\d-]")
_LETTERS = re.compile(r"[^\W\d_]+")
_JOINS = frozenset(["and", "or", "y", "et", "und", "e", "o", "oder", "ou", "и", "или", "和", "或", "及", "与", "と"])
_TAKES_BACK = re.compile(
    r"\b(?:final(?:ly)?|wait|actually|no|not|instead|correct(?:ed|ion)?|should|rather|hence|therefore|so|thus|i\.?e|that|"
    r"which|equals?|check(?:ing)?|verify|answers?|then|giv(?:es|ing)|yields|means|because|since|approximately|about|"
    r"simplif\w+|round\w+|but|again|try|attempt|guess|now|last|later|reflection|numerically)\b"
)


@dataclass(frozen=True)
class Box:
    """Where a box stands in a text, and what is in it: nothing when it is empty or never closes."""

    start: int
    end: int
    content: str


def around(text: str, box: Box) -> str:
    r"""What the box around a box holds, where that is more: `\boxed{x = \boxed{5}}` says x = 5; else ""."""
    after = text[box.end : box.end + LONGEST_GAP]
    close = after.find("}")
    opened = text.rfind("oxed{", max(0, box.start - LONGEST_GAP), box.start)
    if opened < 0 or close < 0 or "{" in after[:close]:
        return ""
    before = text[opened + len("oxed{") : box.start]
    return f"{before}{box.content}{after[:close]}".strip() if "}" not in before and "{" not in before else ""


def last_boxes(text: str) -> tuple[list[Box], int]:
    r"""(the last boxes that form one answer, in order; how many different contents the boxes of the text have).

    `\boxed{1} and \boxed{2}` is one answer, `first \boxed{1}, final \boxed{2}` two.
    """
    answer: list[Box] = []
    contents: set[str] = set()
    joined = True
    for number, box in enumerate(_boxes_from_end(text)):
        if number >= (COUNTED_BOXES if answer else TRIED_BOXES) or len(contents) > DIFFERENT_BOXES:
            break
        if not box.content:
            joined = joined and not answer
            continue
        contents.add(box.content)
        if joined and (not answer or _form_one_answer(text[box.end : answer[0].start])):
            answer.insert(0, box)
        else:
            joined = False
    return answer, len(contents)


def _boxes_from_end(text: str) -> Iterator[Box]:
    """The boxes of a text from the last to the first, the innermost where they are nested.

    No character is looked at twice: what follows the start of a box need not be searched for the end of an earlier
    one, because that would have to enclose a box that is answer enough, or one that never closes.
    """
    limit = len(text)
    at = {word: text.rfind(word) for word in _BOX_WORDS}
    for _ in range(MOST_BOX_WORDS):
        word = max(at, key=lambda one: at[one])
        start = at[word]
        if start < 0:
            return
        at[word] = text.rfind(word, 0, start)
        box = _box_at(text, start, word, limit)
        if box:
            yield box
            limit = box.start


def _box_at(text: str, start: int, word: str, limit: int) -> Box | None:
    """The box whose word stands at `start`; None when that is just a word."""
    end = start + len(word)
    if word == "oxed":
        before = _BOX_START.search(text, max(0, start - 3), start)
        if not before:
            return None
        start = before.start()
    opening = _BOX_OPEN.match(text, end, limit)
    plain = text[start] == "b"
    if plain and (not opening or text[start - 1 : start].isalnum()):
        return None
    if not opening:
        unbraced = _UNBRACED.match(text, end, limit)
        return Box(start, unbraced.end(), unbraced.group(1).rstrip(".,;:")) if unbraced else Box(start, end, "")
    depth = 1
    for brace in _BRACES.finditer(text, opening.end(), limit):
        kind = brace.group(1)
        if kind:
            depth += 1 if kind == "{" else -1
            if not depth:
                return Box(start, brace.end(), text[opening.end() : brace.start()].strip())
    return Box(start, opening.end(), "")


def _form_one_answer(gap: str) -> bool:
    """Whether what stands between two boxes only connects them, and does not take the first one back."""
    if len(gap) > LONGEST_GAP:
        return False
    between = _LIST_LABEL.sub(" ", gap)
    if _STOPS.search(between):
        return False
    if _APPROXIMATELY.fullmatch(between):
        return True
    between = _LEFT_SIDE.sub(" ", _SPACING.sub(" ", between))
    if _RELATION.search(between):
        return False
    plain = [word for word in _LETTERS.findall(between.lower()) if word not in _JOINS]
    if _TAKES_BACK.search(between.lower()) or len(plain) > 3:
        return False
    return not plain or "\n\n" not in gap


def joined(text: str, boxes: list[Box]) -> str:
    r"""The contents of boxes that form one answer, as a list; `\boxed{1/3} \approx \boxed{0.333}` stays one value."""
    contents = list(dict.fromkeys(box.content for box in boxes))
    if len(contents) == 2 == len(boxes) and _APPROXIMATELY.fullmatch(text[boxes[0].end : boxes[1].start]):
        return rf"{contents[0]} \approx {contents[1]}"
    # Some boxes twice and others once is no list, but a model that repeats itself until it changes its mind.
    return ", ".join(contents) if len(contents) in (1, len(boxes)) else contents[-1]
