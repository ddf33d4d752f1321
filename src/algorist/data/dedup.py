"""The same problem twice: found by the normalised statement, kept once, and refused where the answers disagree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from algorist.records import Problem
from algorist.verify.equal import equal

TWICE = "same statement twice"
CONFLICT = "same statement, different answers"


def unique(problems: Iterable[Problem]) -> tuple[list[Problem], dict[str, int]]:
    """Each statement once, in order of first appearance, and how many problems were left out for which reason.

    The first problem of a statement is kept with its labels. Where two answers to one statement differ, all of its
    problems go: one of the answers is wrong, and nothing here can tell which.
    """
    by_id: dict[str, list[Problem]] = {}
    for problem in problems:
        by_id.setdefault(problem.id, []).append(problem)
    kept, drops = [], Counter[str]()
    for group in by_id.values():
        if any(not same_answer(group[0].answer, other.answer) for other in group[1:]):
            drops[CONFLICT] += len(group)
        else:
            kept.append(group[0])
            drops[TWICE] += len(group) - 1
    return kept, dict(+drops)


def same_answer(one: str, other: str) -> bool:
    """Whether two gold answers are seen to be the same.

    >>> same_answer("025", "25.0"), same_answer("$x + 1$", "x+1"), same_answer("1/2", "2")
    (True, True, False)
    """
    return equal(one, other)[0] is True
