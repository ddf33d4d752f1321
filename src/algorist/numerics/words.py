r"""Words of a text as 64-bit numbers, straight from its UTF-8 bytes.

What two writings of one statement should not differ in is folded away, as far as that is cheap:

- case, white space, `$` and every mark of punctuation; accents and full-width, bold or script forms of letters;
- LaTeX that only sets type: `\left`, `\displaystyle`, `\text`, `\quad`, `\,`, `\begin{array}` and their like;
- `\dfrac12`, `\frac 12` and `\frac{1}{2}` are the words "1" and "2"; `x²` and `x_1` are read as `x^2` and `x_1`;
- `\pi` is the letter π; `\times`, `\cdot` and `×` are the operator `*`, `\le` is `≤`, and so on.

Letters and digits in a row are one word, whatever the alphabet; a LaTeX command is a word of its own. Operators
(`+ - * / ^ = < > ! %` and ≤ ≥ ≠) separate words, or, where they matter, count as words themselves.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from algorist.numerics.shingles import Numbers, Rows, mix

_START, _PRIME = 0xCBF29CE484222325, 0x100000001B3  # FNV-1a's
_WHOLE = 2**64 - 1

# What a character or command stands for: > 0 a letter or digit, 0 a separator, < 0 an operator (minus its code).
_NOTHING = 1  # a mark that leaves the word whole: an accent, a soft hyphen
_RAISED, _LOWERED = 1 << 22, 1 << 23  # superscript and subscript digits begin a word
_CHARS = (1 << 21) - 1
_FOLDED = 0x34000  # code points below it are looked up; no letter has one above it
_MARKS = (0xE0000, 0xE0200)  # and these are: tags and variation selectors
_KEEP, _FRACTION, _ENVIRONMENT = -(1 << 20), 2, 3  # of commands; no letter has these codes
_BACKSLASH = 92
_OPERATORS = "+-*/^=<>!%"
_ALSO = {"×": "*", "·": "*", "⋅": "*", "∗": "*", "÷": "/", "−": "-", "≤": "≤", "⩽": "≤", "≥": "≥", "⩾": "≥", "≠": "≠"}
_SAYS_NOTHING = """
    left right big bigl bigr bigg biggl biggr middle displaystyle textstyle scriptstyle limits nolimits text textbf
    textit textrm texttt textsf textnormal mathrm mathbf mathit mathsf mathbb mathcal mathscr mathfrak boldsymbol mbox
    hbox operatorname quad qquad hspace vspace hfill phantom ldots dots cdots dotsc dotsb rm bf it em emph noindent
    label tag nonumber hline
"""
_COMMANDS = {
    **dict.fromkeys(_SAYS_NOTHING.split(), 0),
    **dict.fromkeys(("frac", "dfrac", "tfrac", "cfrac"), _FRACTION),
    **dict.fromkeys(("begin", "end"), _ENVIRONMENT),
    **dict.fromkeys(("times", "cdot", "ast"), -ord("*")),
    "div": -ord("/"),
    **dict.fromkeys(("le", "leq", "leqslant"), -ord("≤")),
    **dict.fromkeys(("ge", "geq", "geqslant"), -ord("≥")),
    **dict.fromkeys(("ne", "neq"), -ord("≠")),
    "lt": -ord("<"),
    "gt": -ord(">"),
    **{
        unicodedata.name(chr(code)).split()[-1].lower().replace("lamda", "lambda"): code
        for code in range(ord("α"), ord("ω") + 1)
        if chr(code) != "ς"
    },
    "varepsilon": ord("ε"),
    "varphi": ord("φ"),
}


def words(texts: Sequence[str]) -> Rows:
    """The words of each text as hashes, (words,) uint64 a row; two words have the same hash with a chance of 2^-64.

    >>> one, other = words([r"Find $\\dfrac12 X$!", "find  1/2 x"])[0], words(["find 1/2 x"])[0]
    >>> one.tolist() == other.tolist(), len(one)
    (True, 4)
    """
    return _read(texts, False)[0]


def symbols(texts: Sequence[str]) -> tuple[Rows, NDArray[np.uint64]]:
    """The words and operators of each text as hashes, and one hash a text of the numbers in it, whatever their order.

    >>> rows, numbers = symbols(["3+4", "4 * 3"])
    >>> len(rows[0]), rows[0][1] == rows[1][1], numbers[0] == numbers[1]
    (3, np.False_, np.True_)
    """
    return _read(texts, True)


def spell(text: str, operators: bool = False) -> list[str]:
    r"""What `words` hashes, or `symbols`, in letters.

    >>> spell(r"Solve $\dfrac12x \le \pi^2$."), spell(r"3\cdot 4 = x²", operators=True)
    (['solve', '1', '2', 'x', 'π', '2'], ['3', '*', '4', '=', 'x', '^', '2'])
    """
    data = np.frombuffer(text.encode("utf-8", "replace"), np.uint8)
    codes = np.zeros(2 * len(data) + 16, np.int32)
    count = _fold(data, 0, len(data), codes, *_tables())
    pieces: list[str] = [""]
    for code in codes[:count].tolist():
        if code > 0:
            pieces[-1] += chr(code)
        else:
            pieces += [chr(-code), ""] if code and operators else [""]
    return [piece for piece in pieces if piece]


def _read(texts: Sequence[str], operators: bool) -> tuple[Rows, NDArray[np.uint64]]:
    parts = [text.encode("utf-8", "replace") for text in texts]
    data = np.frombuffer(b"".join(parts), np.uint8)
    bounds = np.zeros(len(parts) + 1, np.int64)
    np.cumsum([len(part) for part in parts], out=bounds[1:])
    hashes = np.empty(len(data) + len(data) // 2 + 16, np.uint64)
    starts, numbers = np.zeros_like(bounds), np.zeros(len(parts), np.uint64)
    _hash_all(data, bounds, operators, hashes, starts, numbers, _tables())
    return Rows(hashes[: starts[-1]].copy(), starts), numbers


@functools.lru_cache(1)
def _tables() -> tuple[Numbers, Numbers, Numbers]:
    """(code point → what it stands for, hashes of commands in an open table, what each command stands for)."""
    folds = np.array([_folded(chr(code)) for code in (*range(_FOLDED), *range(*_MARKS))], np.int32)
    for sign in _OPERATORS:
        folds[ord(sign)] = -ord(sign)
    for sign, meant in _ALSO.items():
        folds[ord(sign)] = -ord(meant)
    names, meanings = np.zeros(512, np.uint64), np.zeros(512, np.int32)
    for command, meaning in _COMMANDS.items():
        name = _START
        for letter in command.encode():
            name = ((name ^ letter) * _PRIME) & _WHOLE
        place = (name >> 32) % 512
        while names[place]:
            place = (place + 1) % 512
        names[place], meanings[place] = name, meaning
    return folds, names, meanings


def _folded(letter: str) -> int:
    kind = unicodedata.category(letter)
    if kind in ("Mn", "Me", "Cf"):
        return _NOTHING
    if not letter.isalnum():
        return 0
    plain = unicodedata.normalize("NFKD", letter).lower()
    if len(plain) > 1 and all(unicodedata.combining(mark) for mark in plain[1:]):
        plain = plain[0]
    code = ord(plain) if len(plain) == 1 and plain.isalnum() else ord(letter)
    if kind == "No" and plain.isdigit():
        form = unicodedata.decomposition(letter)
        return code | (_RAISED if form.startswith("<super>") else _LOWERED if form.startswith("<sub>") else 0)
    return code


@numba.njit(cache=True)
def _letter(byte: Any) -> Any:
    return 97 <= (byte | 32) <= 122


@numba.njit(cache=True)
def _rune(data: Any, at: int, high: int) -> Any:
    """(code point, place behind it) of a character of several bytes."""
    lead = np.int64(data[at])
    size = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
    code = lead & (0xFF >> (size + 1))
    for place in range(at + 1, min(at + size, high)):
        code = (code << 6) | (np.int64(data[place]) & 0x3F)
    return code, at + size


@numba.njit(cache=True)
def _command(data: Any, at: int, high: int, codes: Any, count: int, names: Any, meanings: Any) -> Any:
    """Reads what begins with a backslash; (place behind it, codes written so far)."""
    end, name = at + 1, np.uint64(_START)
    while end < high and _letter(data[end]):
        name = (name ^ np.uint64(data[end] | 32)) * np.uint64(_PRIME)
        end += 1
    codes[count] = 0
    count += 1
    if end == at + 1:  # \\ ends a line; \, \! \; \: and \> are white space; of \$ and \{ the sign itself is read
        if end < high and (data[end] == 92 or data[end] == 33 or data[end] == 62):
            end += 1
        return end, count
    place = np.int64(name >> np.uint64(32)) & 511
    while names[place] != 0 and names[place] != name:
        place = (place + 1) & 511
    meaning = meanings[place] if names[place] == name else _KEEP
    if meaning == _KEEP:
        for letter in range(at + 1, end):
            codes[count] = data[letter] | 32
            count += 1
    elif meaning == _ENVIRONMENT:
        while end < high and (_letter(data[end]) or data[end] == 123 or data[end] == 42):
            end += 1
    elif meaning == _FRACTION:
        codes[count] = -47
        return _arguments(data, end, high, codes, count + 1)
    elif meaning != 0:
        codes[count] = meaning
        count += 1
    codes[count] = 0
    return end, count + 1


@numba.njit(cache=True)
def _arguments(data: Any, at: int, high: int, codes: Any, count: int) -> tuple[int, int]:
    r"""The two arguments of \frac where they stand without braces, each a word of one character."""
    for _ in range(2):
        while at < high and data[at] <= 32:
            at += 1
        if at == high or not (_letter(data[at]) or 48 <= data[at] <= 57):
            break
        codes[count] = data[at] | 32
        codes[count + 1] = 0
        count += 2
        at += 1
    return at, count


@numba.njit(cache=True)
def _wide(data: Any, at: int, high: int, codes: Any, count: int, folds: Any) -> tuple[int, int]:
    """Reads a character of several bytes, of raised or lowered digits all in a row; as `_command`."""
    begun, shifted = at, 0
    while at < high and data[at] > 127:
        point, behind = _rune(data, at, high)
        code: Any = np.int64(0)
        if point < _FOLDED:
            code = np.int64(folds[point])
        elif _MARKS[0] <= point < _MARKS[1]:
            code = np.int64(folds[_FOLDED + point - _MARKS[0]])
        shift = code >> 22 if code > 0 else 0
        if at > begun and (shift == 0 or shift != shifted):
            break
        if at == begun and shift != 0:
            codes[count] = -94 if shift == 1 else 0
            count += 1
        if code != _NOTHING:
            codes[count] = code & _CHARS if code > 0 else code
            count += 1
        at, shifted = behind, shift
    if shifted != 0:
        codes[count] = 0
        count += 1
    return at, count


@numba.njit(cache=True)
def _fold(data: Any, low: int, high: int, codes: Any, folds: Any, names: Any, meanings: Any) -> int:
    """Writes what the characters data[low:high] stand for to `codes`; returns how many there are."""
    at, count = low, 0
    while at < high:
        byte = data[at]
        if byte == _BACKSLASH:
            at, count = _command(data, at, high, codes, count, names, meanings)
        elif byte > 127:
            at, count = _wide(data, at, high, codes, count, folds)
        else:
            codes[count] = folds[byte]
            count += 1
            at += 1
    return count


@numba.njit(cache=True)
def _hash_all(data: Any, bounds: Any, operators: Any, hashes: Any, starts: Any, numbers: Any, tables: Any) -> None:
    longest = 0
    for text in range(len(bounds) - 1):
        longest = max(longest, bounds[text + 1] - bounds[text])
    codes, found = np.empty(2 * longest + 16, np.int32), 0
    for text in range(len(bounds) - 1):
        count = _fold(data, bounds[text], bounds[text + 1], codes, *tables)
        codes[count] = 0
        word, inside, digits, total = np.uint64(_START), False, np.uint64(0), np.uint64(0)
        for place in range(count + 1):
            code = codes[place]
            if code > 0:
                word = (word ^ np.uint64(code)) * np.uint64(_PRIME)
                inside = True
            elif inside:
                hashes[found] = mix(word)
                found += 1
                word, inside = np.uint64(_START), False
            if operators:
                if code < 0:
                    hashes[found] = mix(np.uint64(-code))
                    found += 1
                if 48 <= code <= 57:
                    digits = digits * np.uint64(11) + np.uint64(code - 47)
                elif digits != 0:
                    total += mix(digits)
                    digits = np.uint64(0)
        starts[text + 1], numbers[text] = found, total
