r"""Extract: the final answer of a whole model output, where the output itself says which one it is.

Only what is marked as the answer counts: a tag, a box, words such as "the answer is", or a concluding sentence. A
number that merely stands last is not an answer; taking it would reward responses cut in mid-thought. Neither is what
stands only inside a thought: the reader of a response does not see it.
Model output is hostile text: each function here takes time linear in its length and evaluates nothing. It is also
long: the last box is looked for from the end, so that a chain of thought costs a few searches and no parsing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from algorist.verify import phrases
from algorist.verify.boxes import DIFFERENT_BOXES, around, joined, last_boxes
from algorist.verify.formulas import formulas

LONGEST_TEXT = 1_000_000  # characters from the end that are looked at
CLOSING = 2_000  # characters from the end in which words may declare the answer
SHORT_TEXT = 300  # in so short a text square brackets may mark the answer

# A word that is in all its tags → (opening tag, closing tag). The word is one search for what is mostly not there.
_THOUGHTS: dict[str, tuple[tuple[str, str], ...]] = {
    "think": (
        ("<think>", "</think>"),
        ("<thinking>", "</thinking>"),
        ("◁think▷", "◁/think▷"),
        ("<seed:think>", "</seed:think>"),
    ),
    "thought": (("<|begin_of_thought|>", "<|end_of_thought|>"), ("<thought>", "</thought>")),
    "reasoning>": (("<reasoning>", "</reasoning>"),),
    "THINK]": (("[THINK]", "[/THINK]"),),
    "<|channel|>": (("<|channel|>analysis", "<|channel|>final"), ("<|channel|>commentary", "<|channel|>final")),
}
# What follows the end of a turn is another turn, which a model without a stop token goes on to make up.
_RUN_ON = ("\n\nProblem:", "\n\nQuestion:", "\n\nQ:")  # the next task of a base model that was shown examples
_TURN_ENDS = ["<|im_end|>", "<|im_start|>", "<|eot_id|>", "<|endoftext|>", "<|end_of_text|>", "<|return|>", "<|end|>"]
_TURN_ENDS += ["<|end_of_solution|>", "</s>", "<end_of_turn>", "<eos>", "<｜end▁of▁sentence｜>"]
_FIRST_TOKENS = re.compile(r"(?:\s*<\|\w{1,40}\|>(?:assistant\b)?)+")
_TAG, _TAG_END = "<answer>", "</answer>"
_BRACKET = re.compile(r"(?<![\w\\\])}$])\[([^\[\]]{1,120})\](?![\w(\[\]])")
# On the last line by itself; an equation there may be the step at which a response was cut.
_VALUE = re.compile(r"[-+]?\$?[\d.,]*\d(?:/\d+)?\s?%?\.?|\(?[A-J]\)?\.?")
_LABEL = re.compile(r"\s*[^\W\d_]{2}[^\W\d_ ]*(?: [^\W\d_]+){0,5} ?[:：]\s*")


@dataclass(frozen=True)
class Extraction:
    """The answer as it stands in the text, and what marked it as the answer, or why there is none."""

    answer: str  # without the box, tag or phrase around it; empty when missing
    found: str  # boxed, tagged, phrase, conclusion, bare; no answer, unfinished thought, thought only, too many boxes


NOTHING = Extraction("", "no answer")


def extract(text: str) -> Extraction:
    r"""The final answer of a model output.

    Outside its thoughts, in this order: the first `<answer>`, the last box or boxes that form one answer, what words
    declare, what the last sentence concludes, or the whole text when it is nothing but an answer.
    `<think>\boxed{3}?</think> \boxed{4}` gives 4. A box that never closes, or holds nothing, is none.
    """
    spoken, thoughts, unfinished = split_thoughts(text)
    for part in reversed(spoken[-3:]):
        extraction = _read(part)
        # A few words before a thought are not the whole text.
        if extraction.found != "no answer" and (extraction.found != "bare" or part is spoken[-1]):
            return extraction
    if unfinished:
        return Extraction("", "unfinished thought")
    thought = _read(thoughts[-1]) if thoughts else NOTHING
    return NOTHING if thought.found in ("bare", "no answer") else Extraction("", "thought only")


def answer_in(text: str) -> Extraction:
    """What was given as an answer, a gold one too, without the words, delimiters or box that it may be wrapped in."""
    text = text.strip()
    if not text:
        return NOTHING
    if " " not in text and text.isascii() and "oxed" not in text and "<" not in text and "box" not in text:
        return Extraction(text, "bare")
    marked = _marked(text[-LONGEST_TEXT:])
    if marked is not None:
        return marked
    unclosed = re.search(r"\\boxed\s{0,20}\{(?=\s*\S)", text)
    if unclosed:
        return Extraction(text[unclosed.end() :].strip(" $"), "boxed")
    closing = phrases.without_pleasantries(text[-CLOSING:])
    answer = phrases.declared(closing)
    if answer:
        return Extraction(answer, "phrase")
    if not phrases.is_prose(closing):
        return Extraction(_labelled(text) or text, "bare")
    answer = phrases.concluded(closing) or phrases.last_value(closing)
    return Extraction(answer, "conclusion") if answer else Extraction(text, "bare")


def _read(text: str) -> Extraction:
    """The answer of a text without thoughts."""
    text = _first_turn(text[-LONGEST_TEXT:])
    next_task = min((at for at in (text.find(mark) for mark in _RUN_ON) if at >= 0), default=-1)
    if next_task >= 0:
        first = _read(text[:next_task])
        if first.answer:
            return first
    marked = _marked(text)
    if marked is not None:
        return marked
    end = text[-CLOSING:].strip()
    closing = phrases.without_pleasantries(end)
    answer = phrases.declared(closing)
    if answer:
        return Extraction(answer, "phrase")
    if len(text) <= SHORT_TEXT:
        answer = _bracketed(closing)
    answer = answer or phrases.concluded(closing, affirmed="answer" in end[len(closing) :])
    if answer:
        return Extraction(answer, "conclusion")
    if len(text) <= SHORT_TEXT and phrases.is_bare(closing):
        return Extraction(closing.strip(" *_`"), "bare")
    last_line = closing[closing.rfind("\n") + 1 :].strip(" *_`")
    if last_line != closing and _VALUE.fullmatch(last_line):
        return Extraction(last_line, "bare")
    return NOTHING


def _marked(text: str) -> Extraction | None:
    """The answer in a tag or a box; None when the text has neither."""
    tag = text.find(_TAG) if "<" in text else -1
    while tag >= 0 and (end := text.find(_TAG_END, tag)) >= 0:
        inside = answer_in(text[text.rfind(_TAG, tag, end) + len(_TAG) : end])
        if inside.answer:
            return Extraction(inside.answer, "tagged")
        tag = text.find(_TAG, end)
    boxes, different = last_boxes(text)
    if not boxes:
        return None
    if different > DIFFERENT_BOXES:
        return Extraction("", "too many boxes")
    after = text[boxes[-1].end :][-CLOSING:]
    if "inal" in after:  # a final answer that is named after the last box was boxed for something else
        answer = phrases.declared(phrases.without_pleasantries(after), strong=True)
        if answer:
            return Extraction(answer, "phrase")
    return Extraction(around(text, boxes[0]) or joined(text, boxes), "boxed")


def split_thoughts(text: str) -> tuple[list[str], list[str], bool]:
    """(what is said outside thoughts, the thoughts, whether the last thought never ends); blank parts are left out.

    A closing tag without an opening one ends a thought that the prompt's template had opened.
    """
    if "<" not in text and "THINK]" not in text and "◁" not in text:
        return [text], [], False
    kinds = [kind for word, several in _THOUGHTS.items() if word in text for kind in several]
    tags = {tag: opening for opening, closing in kinds for tag in (opening, closing) if tag in text}
    if not tags:
        return [text], [], False
    closing_of = dict(kinds)
    at = {tag: text.find(tag) for tag in tags}
    spoken: list[str] = []
    thoughts: list[str] = []
    position = 0
    while at:
        tag = min(at, key=lambda one: at[one])
        part = text[position : at[tag]]
        position = at[tag] + len(tag)
        if tag in closing_of:
            spoken.append(part)
            end = text.find(closing_of[tag], position)
            if end < 0:
                return [part for part in spoken if part.strip()], thoughts, True
            part = text[position:end]
            position = end + len(closing_of[tag])
        else:  # all that was said so far was one too: only the first thought can be opened by a template
            part = "".join([*spoken, part])
            spoken.clear()
        thoughts.append(part)
        at = {one: text.find(one, position) if place < position else place for one, place in at.items()}
        at = {one: place for one, place in at.items() if place >= 0}
    spoken.append(text[position:])
    return [part for part in spoken if part.strip()], thoughts, False


def _first_turn(text: str) -> str:
    """The text up to the end of the turn, if it goes on after that."""
    if "<" not in text:
        return text
    begin = _FIRST_TOKENS.match(text)
    start = begin.end() if begin else 0
    ends = [at for at in (text.find(end, start) for end in _TURN_ENDS) if at >= 0]
    return text[start : min(ends)] if ends else text[start:]


def _bracketed(text: str) -> str:
    """The value in the last square brackets of a short text, `The angle is [90].`; an interval is not one."""
    for match in reversed(list(_BRACKET.finditer(text))):
        inner = match.group(1).strip()
        listed = "," in re.sub(r"\d,(?=\d{3}(?!\d))", "", inner)
        if not listed and inner != "asy" and (inner[0] == "$" or re.match(r"[-+\\]?[\d\\.]", inner)):
            return phrases.undelimited(inner)
    return ""


def _labelled(text: str) -> str:
    """The formula after a label and a colon, `Special matrix: $...$`; "" when that is not all there is."""
    label = _LABEL.match(text)
    spans = formulas(text)
    if label and len(spans) == 1 and spans[0].start == label.end() and not text[spans[0].end :].strip(" ."):
        return spans[0].inner
    return ""
