"""Extract: the final answer of a whole model output, where the output itself says which one it is.

Only what is marked as the answer counts: a box, a closing line such as `A: 18` or `#### 18`, or the words "the
answer is". A number that merely stands last is not an answer; taking it would reward responses cut in mid-thought.
Model output is hostile text: each function here takes time linear in its length and evaluates nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

LONGEST_TEXT = 1_000_000  # characters from the end that are looked at
CLOSING = 2_000  # characters from the end in which words may declare the answer

_CLOSED_THOUGHTS = ("</think>", "<|end_of_thought|>")
_OPENED_THOUGHTS = ("<think>", "<|begin_of_thought|>")
# A second backslash is what a response looks like that was escaped once too often on its way here.
_BRACES = re.compile(r"(\\{1,2}(?:boxed|fbox)\s*\{)|\\.|([{}])", re.DOTALL)
_SAYS = re.compile(r"\banswer\s+is\b[\s:*]*", re.IGNORECASE)
_LAST_LINE = re.compile(r"^[\s*]*(?:A:|####)[\s*]*|\banswer[\s*]*:[\s*]*", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$|[*<])|\n|<\|")
_END_TOKENS = re.compile(r"(?:<\|\w{1,40}\|>|</s>|\s)+\Z")


@dataclass(frozen=True)
class Extraction:
    """The answer as it stands in the text, and what marked it as the answer."""

    answer: str  # without the box or the phrase around it; empty when found is "none"
    found: str  # boxed, phrase, none


NOTHING = Extraction("", "none")


def extract(text: str) -> Extraction:
    r"""The final answer of a model output.

    The last box outside a thought wins, then words outside a thought that declare an answer, then the last box
    anywhere: `<think>\boxed{3}?</think> \boxed{4}` gives 4. A box that never closes, or holds nothing, is none.
    """
    if len(text) > LONGEST_TEXT:
        text = text[-LONGEST_TEXT:]
    spoken = outside_thought(text)
    answer = last_box(spoken)
    if answer:
        return Extraction(answer, "boxed")
    answer = declared(spoken)
    if answer:
        return Extraction(answer, "phrase")
    if len(spoken) < len(text):
        answer = last_box(text)
        if answer:
            return Extraction(answer, "boxed")
    return NOTHING


def outside_thought(text: str) -> str:
    """What follows the last closed thought, up to a thought that is opened after it and never closed."""
    start = max(text.rfind(tag) + len(tag) if tag in text else 0 for tag in _CLOSED_THOUGHTS)
    opened = [at for at in (text.find(tag, start) for tag in _OPENED_THOUGHTS) if at >= 0]
    return text[start : min(opened)] if opened else text[start:]


def last_box(text: str) -> str:
    r"""The content of the `\boxed{...}` or `\fbox{...}` that opens last among those that close; "" when there is none.

    One pass with a stack of open braces: scanning forward from each box in turn would be quadratic in a text that
    opens a hundred thousand boxes and closes none.
    """
    first = min((at for at in (text.find("\\boxed"), text.find("\\fbox")) if at >= 0), default=-1)
    if first < 0:
        return ""
    open_braces: list[int] = []  # where a box's content starts; -1 for a brace that opens no box
    best = (-1, -1)
    for token in _BRACES.finditer(text, first):
        box, brace = token.groups()
        if box:
            open_braces.append(token.end())
        elif brace == "{":
            open_braces.append(-1)
        elif brace == "}" and open_braces:
            start = open_braces.pop()
            if start > best[0] and not text[start : token.start()].isspace() and start < token.start():
                best = (start, token.start())
    return text[best[0] : best[1]].strip() if best[0] >= 0 else ""


def declared(text: str) -> str:
    """What the closing words declare: `A: 18`, `#### 18` or `Answer: 18` on the last line, or "the answer is 18".

    The rest of that sentence is the answer; "" when nothing is declared.
    """
    closing = _END_TOKENS.sub("", text[-CLOSING:])
    last_line = closing.rfind("\n") + 1
    ends = [match.end() for match in _SAYS.finditer(closing)]
    ends += [last_line + match.end() for match in _LAST_LINE.finditer(closing[last_line:])]
    if not ends:
        return ""
    rest = closing[max(ends) :]
    stop = _SENTENCE_END.search(rest)
    return (rest[: stop.start()] if stop else rest).strip(" \t*")
