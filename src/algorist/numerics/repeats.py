"""How often a text says the same again: its words as numbers, and which of them were said before.

A few passes over the text, each linear in its length whatever it holds, with nothing to backtrack. Words are found in
the bytes of the text, so that ten thousand tokens take a fraction of a millisecond.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

LONGEST_WORD = 16  # bytes; a longer one is cut into several, so that digits without end have a period too

_OFFSET = np.uint64(0xCBF29CE484222325)  # of FNV-1a
_PRIME = np.uint64(0x100000001B3)
_BASE = np.uint64(0x9E3779B97F4A7C15)  # of the polynomial that names an n-gram; odd
_Columns = tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]
_SIGN, _SPACE, _DIGIT, _LETTER, _ALONE = 0, 1, 2, 3, 4  # kinds of bytes


@dataclass(frozen=True)
class Words:
    """The words of a text in order."""

    hashes: NDArray[np.uint64]  # (W,) equal where two words are
    starts: NDArray[np.int64]  # (W,) first byte of each word, in UTF-8
    ends: NDArray[np.int64]  # (W,) byte behind it
    prose: NDArray[np.bool_]  # (W,) two or more letters without a digit or a backslash: no part of a formula
    numbers: NDArray[np.bool_]  # (W,) digits only


def words(text: str) -> Words:
    r"""The words of a text: runs of letters and digits in lower case, at most LONGEST_WORD bytes each, and signs.

    Every other character is a word by itself, letters of scripts without spaces (Chinese, Japanese, Korean) too; those
    are prose. White space is no word, but LONGEST_WORD bytes of it are. What UTF-8 cannot write counts as "?".

    >>> [len(words(text).hashes) for text in ("So x+1 = 2.", "因此", " " * 40)]
    [7, 2, 2]
    >>> words(r"Then \frac x1 holds").prose.tolist()
    [True, False, False, False, True]
    """
    data = np.frombuffer(text.encode("utf-8", "replace"), np.uint8)
    return Words(*_words(data))


def times_before(hashes: NDArray[np.uint64], ngram: int) -> NDArray[np.int32]:
    """How often the n-gram that ends at each word ended at an earlier one.

    Args:
        hashes  (W,)  of the words
        ngram         words in one n-gram, at least 1

    Returns:
        (W,); 0 for the first `ngram` - 1 words. Two n-grams are the same where their 64-bit hashes are.

    >>> times_before(np.array([7, 8, 7, 8, 7], np.uint64), 2).tolist()
    [0, 0, 0, 1, 1]
    """
    found: NDArray[np.int32] = _times_before(hashes, ngram)
    return found


def covered(times: NDArray[np.int32], ngram: int, least: int) -> NDArray[np.bool_]:
    """Whether each word lies in an n-gram that was said `least` times before.

    Args:
        times  (W,)  from `times_before` with the same `ngram`
        least        earlier occurrences, at least 1

    >>> covered(np.array([0, 0, 0, 1, 0]), 2, 1).tolist()
    [False, False, True, True, False]
    """
    change = np.zeros(len(times) + 1, np.int64)
    ends = np.flatnonzero(times >= least)
    change[ends - ngram + 1] += 1  # every n-gram ends at a word of its own, so no index comes twice
    change[ends + 1] -= 1
    return np.cumsum(change)[:-1] > 0


def stretches(hashes: NDArray[np.uint64], end: int) -> NDArray[np.int64]:
    """How many words before `end` say one block of p words over and over, for each p.

    Args:
        hashes  (W,)  of the words
        end           word behind the stretch, at most W

    Returns:
        (end + 1,); [p] is the length of the longest stretch that ends at `end` and has period p, so at least p.
        [0] is 0.

    Source: the Z-function of the reversed text; Gusfield 1997, "Algorithms on Strings, Trees, and Sequences", 1.3-1.4.

    >>> stretches(np.array([9, 7, 8, 7, 8, 7], np.uint64), 6).tolist()       # 7 8 7 8 7 has period 2
    [0, 1, 5, 3, 5, 5, 6]
    """
    found: NDArray[np.int64] = _z(hashes[:end][::-1])
    found += np.arange(end + 1)
    return found


def _kind(byte: int) -> int:
    if byte >= 0x80:  # lead bytes up to E1: alphabets; E2: punctuation and symbols; from E3: scripts without spaces
        return _LETTER if byte < 0xE2 else _ALONE
    if 97 <= byte <= 122 or 65 <= byte <= 90:
        return _LETTER
    if 48 <= byte <= 57:
        return _DIGIT
    return _SPACE if byte == 32 or 9 <= byte <= 13 else _SIGN


_KINDS = np.array([_kind(byte) for byte in range(256)], np.uint8)
_LOWER = np.array([32 if _kind(byte) == _SPACE else byte + 32 * (65 <= byte <= 90) for byte in range(256)], np.uint64)


@numba.njit(cache=True)
def _words(data: NDArray[np.uint8]) -> _Columns:
    size = len(data)
    hashes = np.empty(size, np.uint64)
    starts, ends = np.empty(size, np.int64), np.empty(size, np.int64)
    prose, numbers = np.empty(size, np.bool_), np.empty(size, np.bool_)
    count = at = 0
    while at < size:
        start, first = at, _KINDS[data[at]]
        value = (_OFFSET ^ np.uint64(data[at])) * _PRIME
        letters, digits = first == _LETTER, first == _DIGIT
        if first == _SIGN:
            at += 1
        elif first == _ALONE:
            at += 1
            while at < size and data[at] & 0xC0 == 0x80:
                value = (value ^ np.uint64(data[at])) * _PRIME
                at += 1
        else:
            value = _OFFSET
            while at < size and at - start < LONGEST_WORD:
                kind = _KINDS[data[at]]
                if kind != first and (first == _SPACE or kind not in (_LETTER, _DIGIT)):
                    break
                letters, digits = letters and kind == _LETTER, digits and kind == _DIGIT
                value = (value ^ _LOWER[data[at]]) * _PRIME
                at += 1
            if first == _SPACE and at - start < LONGEST_WORD:
                continue
        command = start > 0 and data[start - 1] == 92
        hashes[count], starts[count], ends[count] = value, start, at
        prose[count] = (letters and at - start > 1 and not command) or (first == _ALONE and data[start] > 0xE2)
        numbers[count] = digits
        count += 1
    return hashes[:count], starts[:count], ends[:count], prose[:count], numbers[:count]


@numba.njit(cache=True)
def _times_before(hashes: NDArray[np.uint64], ngram: int) -> NDArray[np.int32]:
    found = np.zeros(len(hashes), np.int32)
    size = 16
    while size < 2 * len(hashes):
        size *= 2
    mask = np.int64(size - 1)
    names = np.zeros(size, np.uint64)
    counts = np.zeros(size, np.int32)
    leaving = np.uint64(1)  # what the word that leaves the window was multiplied by
    for _ in range(ngram):
        leaving *= _BASE
    name = np.uint64(0)
    for word in range(len(hashes)):
        name = name * _BASE + hashes[word]
        if word >= ngram:
            name -= hashes[word - ngram] * leaving
        if word < ngram - 1:
            continue
        mixed = (name ^ (name >> np.uint64(32))) * _BASE
        slot = np.int64(mixed >> np.uint64(32)) & mask
        while counts[slot] and names[slot] != name:
            slot = (slot + 1) & mask
        found[word] = counts[slot]
        names[slot] = name
        counts[slot] += 1
    return found


@numba.njit(cache=True)
def _z(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    """[p] is how many values from p on equal those from 0 on; one more place for p = the length; [0] is 0."""
    size = len(values)
    found = np.zeros(size + 1, np.int64)
    left = right = 0
    for place in range(1, size):
        same = min(right - place, found[place - left]) if place < right else 0
        while place + same < size and values[same] == values[place + same]:
            same += 1
        found[place] = same
        if place + same > right:
            left, right = place, place + same
    return found
