r"""Extract: the final answer of a whole model output, where the output itself says which one it is.

Only what is marked as the answer counts: a tag, a box, words such as "the answer is", or a concluding sentence. A
number that merely stands last is not an answer; taking it would reward responses cut in mid-thought. Neither is what
stands only inside a thought: the reader of a response does not see it.
Model output is hostile text: each function here takes time linear in its length and evaluates nothing. It is also
long: the last box is looked for from the end, so that a chain of thought costs a few searches and no parsing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from algorist.verify import phrases

LONGEST_TEXT = 1_000_000  # characters from the end that are looked at
CLOSING = 2_000  # characters from the end in which words may declare the answer
DIFFERENT_BOXES = 8  # real responses, right or wrong, box up to 4 different things; lists of guesses box dozens
COUNTED_BOXES = 64  # boxes from the end that are looked at for that
MOST_BOX_WORDS = 10_000  # words from the end that may be boxes
TRIED_BOXES = 1_000  # boxes from the end that may be empty or never close
LONGEST_GAP = 120  # characters between two boxes of one answer
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
_BRACKET = re.compile(r"(?<![\w\\\])}$])\[([^\[\]]{1,120})\](?![\w(\[\]])")
_LABEL = re.compile(r"\s*[^\W\d_]{2}[^\W\d_ ]*(?: [^\W\d_]+){0,5} ?[:：]\s*")


@dataclass(frozen=True)
class Extraction:
    """The answer as it stands in the text, and what marked it as the answer, or why there is none."""

    answer: str  # without the box, tag or phrase around it; empty when missing
    found: str  # boxed, tagged, phrase, conclusion, bare; no answer, unfinished thought, thought only, too many boxes

    @property
    def missing(self) -> bool:
        """Whether the text gives no answer."""
        return not self.answer


@dataclass(frozen=True)
class Box:
    """Where a box stands in a text, and what is in it: nothing when it is empty or never closes."""

    start: int
    end: int
    content: str


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
    if " " not in text and "oxed" not in text and "<" not in text and "box" not in text:
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
    return Extraction(_joined(text, boxes), "boxed")


def _joined(text: str, boxes: list[Box]) -> str:
    r"""The contents of boxes that form one answer, as a list; `\boxed{1/3} \approx \boxed{0.333}` stays one value."""
    contents = list(dict.fromkeys(box.content for box in boxes))
    if len(contents) == 2 == len(boxes) and _APPROXIMATELY.fullmatch(text[boxes[0].end : boxes[1].start]):
        return rf"{contents[0]} \approx {contents[1]}"
    # Some boxes twice and others once is no list, but a model that repeats itself until it changes its mind.
    return ", ".join(contents) if len(contents) in (1, len(boxes)) else contents[-1]


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
    spans = phrases.formulas(text)
    if label and len(spans) == 1 and spans[0].start == label.end() and not text[spans[0].end :].strip(" ."):
        return spans[0].inner
    return ""
