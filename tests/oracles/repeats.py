"""Twins of numerics/repeats.py: whole words and whole n-grams compared, no hashes, no rolling, nothing clever."""

from __future__ import annotations

import re
from collections.abc import Sequence

_PIECES = re.compile(
    rb"[0-9A-Za-z\x80-\xe1](?:[0-9A-Za-z\x80-\xe1])*"  # letters, alphabets of two bytes and more, digits
    rb"|[\xe2-\xff][\x80-\xbf]*"
    rb"|[ \t\n\x0b\x0c\r]+"
    rb"|."
)


def words(text: str) -> list[tuple[bytes, int, int, bool, bool]]:
    """(word in lower case, start, end, prose, number) of each."""
    data = text.encode("utf-8", "replace")
    found = []
    for match in _PIECES.finditer(data):
        piece, start = match[0], match.start()
        if piece.isspace():
            for at in range(0, len(piece) - 15, 16):
                found.append((b" " * 16, start + at, start + at + 16, False, False))
        elif piece[0] >= 0xE2:
            found.append((piece, start, start + len(piece), piece[0] >= 0xE3, False))
        elif piece[:1].isalnum() or piece[0] >= 0x80:
            for at in range(0, len(piece), 16):
                part = piece[at : at + 16]
                command = start + at > 0 and data[start + at - 1 : start + at] == b"\\"
                prose = len(part) > 1 and not any(48 <= byte <= 57 for byte in part) and not command
                found.append((part.lower(), start + at, start + at + len(part), prose, part.isdigit()))
        else:
            found.append((piece, start, start + 1, False, False))
    return found


def times_before(hashes: Sequence[int], ngram: int) -> list[int]:
    grams = [tuple(hashes[end - ngram + 1 : end + 1]) if end >= ngram - 1 else None for end in range(len(hashes))]
    return [0 if gram is None else grams[:end].count(gram) for end, gram in enumerate(grams)]


def covered(times: Sequence[int], ngram: int, least: int) -> list[bool]:
    found = [False] * len(times)
    for end, count in enumerate(times):
        if count >= least:
            for word in range(end - ngram + 1, end + 1):
                found[word] = True
    return found


def stretches(hashes: Sequence[int], end: int) -> list[int]:
    found = [0]
    for period in range(1, end + 1):
        length = period
        while length < end and hashes[end - length - 1] == hashes[end - length - 1 + period]:
            length += 1
        found.append(length)
    return found
