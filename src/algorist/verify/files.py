"""Files: pairs read from a file or stdin, judged, and written as they are decided."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import TextIO

from algorist import recipe as recipes
from algorist import store
from algorist.errors import RecipeError
from algorist.verify import pool
from algorist.verify.conventions import Conventions
from algorist.verify.pairs import judge_all, rows


def verify_file(pairs: Path | None, out: Path | None, overrides: Sequence[str], workers: int | None) -> str:
    """Judge the pairs of a file, or of stdin, into another, or to stdout; a line that says what was found.

    A file takes its place when all is done; stdout gets each thousand as it is decided.

    Raises:
        RecipeError for a missing file or an override that is no setting of [verify], RecordError for a bad line.
    """
    settings = recipes.read(None, {"verify": (pool.Settings, Conventions)}, overrides)
    limits = settings.of("verify", pool.Settings)
    found: Counter[str] = Counter()
    slowest = 0.0
    with ExitStack() as stack:
        lines = stack.enter_context(_lines(pairs))
        write = stack.enter_context(_writing(out))
        name = str(pairs) if pairs else "stdin"
        judged = judge_all(
            rows(lines, name),
            workers=workers,
            seconds=limits.seconds,
            memory_mib=limits.memory_mib,
            conventions=settings.of("verify", Conventions),
        )
        for one in judged:
            write.write(one.line() + "\n")
            found[f"{ {True: 'equivalent', False: 'not', None: 'not judged'}[one.right] }: {one.reason}"] += 1
            slowest = max(slowest, one.seconds)
        write.flush()
    counts = ", ".join(f"{count:,} {reason}" for reason, count in sorted(found.items()))
    return f"verify: {sum(found.values()):,} pairs ({counts or 'none'}); the slowest took {slowest:.3f} s"


@contextmanager
def _lines(pairs: Path | None) -> Iterator[TextIO]:
    if pairs is None:
        if isinstance(sys.stdin, TextIOWrapper):
            sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
        yield sys.stdin
        return
    if not pairs.is_file():
        raise RecipeError(f"{pairs}: is no file. Name a .jsonl of pairs, or give them on stdin.")
    with pairs.open(encoding="utf-8", errors="surrogateescape") as lines:
        yield lines


@contextmanager
def _writing(out: Path | None) -> Iterator[TextIO]:
    if out is None:
        yield sys.stdout
        return
    with store.replacing(out) as draft, draft.open("w", encoding="utf-8") as written:
        yield written
        written.flush()
