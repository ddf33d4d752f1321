"""What is wrong with how a response is written: it loops, it says the same over and over, it changes its language.

    loop       the text runs into one block, said over and over until it was cut, perhaps with a number that counts on
    repeats    much of its prose stands in long passages that were said twice before: restatements that lead nowhere
    languages  words of a script that neither its problem nor English has, in the middle of the text

What is flagged is thrown away, so each rule asks for more than mathematics does by itself: long sums, tables and
enumerated cases repeat signs and formulas, and a solution is often written down a second time. How often a flag is
right on real rollouts stands in docs/repetition.md.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

import numpy as np

from algorist.numerics.repeats import Words, covered, stretches, times_before, words

VERSION = 1  # goes up when the same text may get another flag
_ANCHOR = 8  # words: where so many were said before, a loop may end
_COPIES = 2.2  # of a block of any length that no solution writes in a row
_CUT = 2  # words that may stand behind a loop that counts on: a cut leaves half of one, a conclusion is longer

# Letters of scripts that are not written in formulas: from Cyrillic on, without punctuation, symbols and Greek
# (U+1F00), Latin (U+1E00), full-width and mathematical letters.
_LETTERS = "\u0400-\u1cbf\u2d00-\u2ddf\u2e80-\u2fdf\u3005-\u3007\u3040-\u318f\u31a0-\u31bf\u31f0-\u31ff"
_LETTERS += "\u3400-\u4dbf\u4e00-\ua6ff\ua800-\uabff\uac00-\ud7ff\uf900-\ufaff\ufb1d-\ufdff\ufe70-\ufefc\uff66-\uffdc"
_LETTERS += "\U00010800-\U00010fff\U00020000-\U0003ffff"
_FOREIGN = re.compile(f"[{_LETTERS}]+(?:[ ·.-][{_LETTERS}]+)*")
_OPENING, _CLOSING = "([\"'“‘«「『（【《", ")]\"'”’»」』）】》"
_LONGEST_NAME = 20  # letters in brackets or quotes that are a name or a term, not a change of language


@dataclass(frozen=True)
class Settings:
    """[repetition]"""

    copies: float = 3.0  # of one block in a row, from which on the end of a text is a loop
    stretch: int = 200  # bytes that these copies fill at least
    long: int = 2_000  # bytes from which on 2.2 copies are a loop: a solution is often written twice, never more
    counting: int = 20  # copies that differ in numbers only and fill `long` bytes, from which on they are a loop
    behind: int = 64  # words that may stand behind a loop of `long` bytes: an answer forced out of it
    ngram: int = 20  # words and signs of the passages that are looked for again
    times: int = 3  # a passage counts from this occurrence on; 3: one restatement is free
    share: float = 0.25  # of the words of prose, in such passages, from which on a text repeats itself
    prose: int = 200  # words of prose in such passages, at least: fewer are enumerated cases
    foreign: int = 2  # letters of foreign scripts, in words of two or more, from which on languages are mixed

    def __post_init__(self) -> None:
        if self.copies < _COPIES or self.counting < _COPIES:
            raise ValueError(f"copies and counting must be at least {_COPIES}: solutions are written twice.")
        if self.ngram < 2 or self.times < 2 or not 0 < self.share <= 1:
            raise ValueError("ngram and times must be at least 2, share must lie above 0 and not above 1.")
        if min(self.stretch, self.long, self.prose, self.foreign) < 1 or self.behind < 0:
            raise ValueError("stretch, long, prose and foreign must be at least 1, behind at least 0.")


@dataclass(frozen=True)
class Evidence:
    """What was found in a text, before it is held against the settings' thresholds."""

    loop: str  # the block that the end repeats, "" where there is no loop
    copies: float  # of that block, the last perhaps cut
    prose: int  # words of prose in passages that were said before
    share: float  # of all words of prose
    foreign: tuple[str, ...]  # words of scripts that the problem does not have

    def flag(self, settings: Settings) -> str:
        """What is wrong, the first of loop, repeats and languages that holds; "" where nothing is."""
        if self.loop:
            return "loop"
        if self.prose >= settings.prose and self.share >= settings.share:
            return "repeats"
        return "languages" if sum(map(len, self.foreign)) >= settings.foreign else ""


def flag(text: str, statement: str, settings: Settings) -> str:
    """What is wrong with a response, the first of loop, repeats and languages that holds; "" where nothing is.

    Takes time and memory linear in the text, whatever it holds.

    Args:
        text       the response, thoughts included
        statement  of its problem: a script that it uses is not foreign
    """
    return evidence(text, statement, settings).flag(settings)


def evidence(text: str, statement: str, settings: Settings) -> Evidence:
    """What a response repeats and which foreign words it holds; `flag` in the open."""
    found = words(text)
    block, copies = _loop(text, found, settings)
    times = times_before(found.hashes, settings.ngram)
    again = int((covered(times, settings.ngram, settings.times - 1) & found.prose).sum())
    share = again / max(1, int(found.prose.sum()))
    return Evidence(block, copies, again, share, foreign_words(text, statement))


def foreign_words(text: str, statement: str) -> tuple[str, ...]:
    """Words of two or more letters from scripts that the statement does not have, in order.

    Latin, Greek and mathematical letters are never foreign; single letters are symbols (Ш, א); a short name or term in
    brackets or quotes is a quotation.

    >>> foreign_words("This seems like a 相遇 problem of Euler (Эйлер), by Ш.", "When do they meet?")
    ('相遇',)
    """
    if text.isascii():
        return ()
    known = {_script(letter) for word in _FOREIGN.findall(statement) for letter in word}
    found = []
    for match in _FOREIGN.finditer(text):
        before, behind = text[max(0, match.start() - 1) : match.start()], text[match.end() : match.end() + 1]
        quoted = before and behind and before in _OPENING and behind in _CLOSING
        if quoted and match.end() - match.start() <= _LONGEST_NAME:
            continue
        for word in re.split("[ ·.-]", match[0]):
            if len(word) > 1 and not {_script(letter) for letter in word} <= known:
                found.append(word)
    return tuple(found)


def _script(letter: str) -> str:
    """The script of a letter, which is the first word of its Unicode name; Chinese and Japanese share one."""
    name = unicodedata.name(letter, "").split(" ")[0].split("-")[0]
    return "CJK" if name in ("HIRAGANA", "KATAKANA", "IDEOGRAPHIC") else name


def _loop(text: str, found: Words, settings: Settings) -> tuple[str, float]:
    """(block, copies) of the longest stretch at the end that is a loop; ("", 0) where there is none."""
    loop = _longest(found, settings, masked=False) or _longest(found, settings, masked=True)
    if loop is None:
        return "", 0.0
    first, last, period = loop
    data = text.encode("utf-8", "replace")
    block = data[found.starts[first] : found.ends[first + period - 1]].decode("utf-8", "replace")
    return block, (last - first) / period


def _longest(found: Words, settings: Settings, *, masked: bool) -> tuple[int, int, int] | None:
    """(first word, word behind, period in words) of the loop that reaches furthest back; None where there is none.

    A loop ends where words were said before for the last time: behind it may stand half a word, or a forced answer.
    `masked`: all numbers are the same.
    """
    hashes = np.where(found.numbers, np.uint64(0), found.hashes) if masked else found.hashes
    said = np.flatnonzero(times_before(hashes, _ANCHOR))
    if not len(said) or len(hashes) - 1 - said[-1] > (_CUT if masked else settings.behind):
        return None
    end = int(said[-1]) + 1
    lengths = stretches(hashes, end)
    periods = (
        np.flatnonzero(lengths[1:] >= _COPIES * np.arange(1, end + 1)) + 1
    )  # few: the rest is looked at only there
    lengths = lengths[periods]
    size = found.ends[end - 1] - found.starts[end - lengths]  # bytes
    loops = (lengths >= settings.counting * periods if masked else True) & (size >= settings.long)
    if not masked and len(hashes) - end <= _CUT:
        loops |= (lengths >= settings.copies * periods) & (size >= settings.stretch)
    if not loops.any():
        return None
    best = int(np.argmax(np.where(loops, lengths, 0)))  # of several that reach as far, the one of the shortest period
    return end - int(lengths[best]), end, int(periods[best])
