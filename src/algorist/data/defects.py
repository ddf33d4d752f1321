r"""Defects: what makes a row no fit question, found in its words. Each is named in plain words that reports show.

The rules are narrow on purpose: a good problem that is refused is lost in silence, a bad one is met again by the
verifier. Drawings as code ([asy], tikz) are text that a model can read, so a problem with one is only noted; one that
speaks of a figure and brings neither drawing nor image cannot be solved and is refused.
"""

from __future__ import annotations

import re

NO_STATEMENT = "no statement"
NO_TEXT = "the statement is not text"
NO_ANSWER = "no answer"
NOT_TEXT = "the answer is not text"
SEVERAL = "several gold answers"
BOXES = "several boxed answers"

PROOF = "proof question"
IMAGE = "needs an image"
FIGURE = "speaks of a figure that is not there"
LETTER = "an option letter without options"
INVALID = "the source calls it invalid"
UNREADABLE = "gold unreadable"
UNVERIFIED = "gold does not verify against itself"
DRAWING = "a drawing in code"
PROOF_TOO = "asks for a proof as well"
PARTS = "several answers in one gold"
WORDS = "answer in words"

REFUSED = (PROOF, IMAGE, FIGURE, LETTER, INVALID, UNREADABLE, UNVERIFIED)
NOTED = (DRAWING, PROOF_TOO, PARTS, WORDS)

_SHOW = re.compile(
    r"(?:^|[.!?:;,$)\]]\s*|\n\s*|\b(?:and|then|also|please|hence)\s+)"
    r"(?:(?:prove|show|disprove|demonstrate|verify)\s+that\b|(?:prove|disprove)\s*(?::|the\b|\$|\\|if\b|it\b))",
    re.IGNORECASE,
)
_ASKS = re.compile(
    r"\?|(?:^|[.!?:;,$)\]]\s*|\n\s*|\b(?:and|then|to|also|please)\s+)(?:find|determine|compute|calculate|evaluate|"
    r"what|how (?:many|much)|express|solve|simplify|enter|give|write|list|fill|answer)\b",
    re.IGNORECASE,
)
_PROOF_ANSWER = re.compile(
    r"(?:the |see )?(?:proof|proved|proven|prove|q\.?\s?e\.?\s?d)(?: (?:above|below|omitted|provided|given))?\.?",
    re.IGNORECASE,
)
_NOTHING = re.compile(
    r"n/?a|not ?found|not (?:applicable|provided|available|given)|(?:see )?(?:the )?(?:above )?solution|null|nan|"
    r"[-?_.\s]*",
    re.IGNORECASE,
)
_WRAPPED = re.compile(r"\\(?:text\w*|mathrm|mathbf|mathsf|mbox)\s*\{([^{}]*)\}|[$*]|\\[()\[\]]")
_IMAGE = re.compile(r"!\[[^\]\n]{0,200}\]\(|\\includegraphics\b|<img\b|<image(?:_?\d+)?>|\[image\]", re.IGNORECASE)
_DRAWING = re.compile(r"\[asy\]|\\begin\s*\{(?:asy|tikzpicture|pspicture|picture)\}", re.IGNORECASE)
_NOUN = r"(?:figures?|diagrams?|pictures?|drawings?|illustrations?|images?|sketch|graphs?)"
_FIGURE = re.compile(
    r"\b(?:in|from|see|consider|using|per|refer to) (?:the|this) (?:adjacent |accompanying |attached |following |"
    r"given |above )?(?:figure|diagram)\b(?! (?:of|that|which)\b)"
    rf"|\b(?:the|this|following) {_NOUN} (?:below|above|shown|(?:at|to|on) (?:the )?(?:right|left))\b"
    r"|\b(?:the|this) (?:figure|diagram) (?:shows|depicts|illustrates|represents)\b"
    rf"|\b(?:shown|pictured|depicted|illustrated|drawn) (?:in|on) (?:the|this) (?:\w+ )?{_NOUN}\b"
    r"|\bas (?:pictured|illustrated|depicted)(?: (?:below|above|here))?[,.]",
    re.IGNORECASE,
)
_TABLE = re.compile(r"\\begin\s*\{(?:array|tabular|table|matrix)\}|\\hline|^\s*\|.*\|\s*$", re.MULTILINE)
_CHOICE = re.compile(
    r"\b(?:which (?:one )?of the (?:following|above|below)|following (?:options|choices|statements))\b", re.I
)
_LETTER = re.compile(r"\(?\s*([A-J])\s*\)?\.?")
_OPTION = re.compile(
    r"(?<![A-Za-z0-9\\{])(?:\\(?:text|textbf|mathrm|mathbf|rm|bf)\s*\{?\s*)?\(?\s*([A-J])\s*\)?\s*(?:[).:\]]|\\?\s*\})"
)
_SMALL_OPTION = re.compile(r"\(([a-j])\)")
_WORD = re.compile(r"[^\W\d_]{4,}")


def in_statement(statement: str, answer: str) -> list[str]:
    """The defects of a question with its gold answer, most serious first."""
    found = []
    if _PROOF_ANSWER.fullmatch(bare(answer)):
        found.append(PROOF)
    elif _SHOW.search(statement):
        found.append(PROOF_TOO if _ASKS.search(statement) else PROOF)
    drawn = _DRAWING.search(statement) is not None
    if _IMAGE.search(statement):
        found.append(IMAGE)
    elif not drawn and _FIGURE.search(statement) and not _TABLE.search(statement):
        found.append(FIGURE)
    return [*found, DRAWING] if drawn else found


def in_answer(answer: str, statement: str) -> list[str]:
    """The defects of a gold answer that is there, most serious first."""
    if letter(answer):
        return [LETTER] if _CHOICE.search(statement) and not has_options(statement, letter(answer)) else []
    words = re.sub(r"\\[A-Za-z]+", " ", re.sub(r"\\(?:text\w*|mathrm|mbox)\b", "", answer))
    return [WORDS] if _WORD.search(words) and not re.search(r"\d", answer) else []


def is_nothing(answer: str) -> bool:
    """Whether a cell only says that there is no answer: n/a, not found, see solution."""
    return _NOTHING.fullmatch(bare(answer)) is not None


def letter(answer: str) -> str:
    r"""The letter of an option that is all of an answer: C of C, (C), \text{(C)}; else empty."""
    found = _LETTER.fullmatch(bare(answer))
    return found[1] if found else ""


def has_options(statement: str, wanted: str = "B") -> bool:
    """Whether a statement lists options by letter, A and B and the wanted one among them."""
    small = {label.upper() for label in _SMALL_OPTION.findall(statement)}
    return {"A", "B", wanted} <= set(_OPTION.findall(statement)) or {"A", "B", wanted} <= small


def bare(answer: str) -> str:
    r"""An answer without dollar signs, asterisks and \text{}."""
    return _WRAPPED.sub(r"\1", answer).strip()
