"""Problems that a program makes up with their answers: reasoning-gym's, named by gym://TASK?size=500&seed=1.

    gym://leg_counting?size=500&seed=1
    gym://basic_arithmetic?size=1000&seed=7&min_terms=4&max_terms=6

What follows the question mark are settings of the task's own; `size` and `seed` every task has. The same address and
version of the library give the same problems. Its own scorers are not asked: a gold answer has to satisfy our verifier,
like any other.
"""

from __future__ import annotations

import difflib
import importlib
import json
import urllib.parse
from collections.abc import Iterator
from typing import Any

from algorist.errors import RecipeError

GYM = "gym://"
LICENCE = "Apache-2.0"  # reasoning-gym's
SIZE = 500  # problems, where the address does not say


def rows(where: str) -> Iterator[dict[str, Any]]:
    """{statement, answer, domain, licence, metadata} of each problem.

    Raises RecipeError where the task or one of its settings is not known, or the library is not installed.
    """
    gym = _library(where)
    task, settings = parsed(where)
    try:
        made = gym.create_dataset(task, **{"size": SIZE, "seed": 1, **settings})
    except (ValueError, TypeError, AssertionError) as error:
        raise RecipeError(f"{where}: {_reason(gym, task, error)}") from None
    domain = _domain(type(made).__module__)
    for index in range(len(made)):
        item = made[index]
        yield {
            "statement": str(item["question"]),
            "answer": "" if item["answer"] is None else str(item["answer"]),
            "domain": domain,
            "licence": LICENCE,
            "metadata": item["metadata"],
        }


def parsed(where: str) -> tuple[str, dict[str, Any]]:
    """(task, its settings): numbers, true and false as such, everything else as text.

    >>> parsed("gym://leg_counting?size=500&seed=1")
    ('leg_counting', {'size': 500, 'seed': 1})
    """
    task, _, query = where.removeprefix(GYM).partition("?")
    return task, {key: _value(text) for key, text in urllib.parse.parse_qsl(query, keep_blank_values=True)}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _library(where: str) -> Any:
    try:
        return importlib.import_module("reasoning_gym")
    except ImportError:
        raise RecipeError(f"{where}: reasoning-gym is not here. Install the extra with pip install '.[gym]'.") from None


def _domain(module: str) -> str:
    """reasoning_gym.arithmetic.leg_counting → arithmetic."""
    parts = module.split(".")
    return parts[1] if len(parts) > 2 else ""


def _reason(gym: Any, task: str, error: Exception) -> str:
    known = sorted(getattr(gym.factory, "DATASETS", {}))
    if known and task not in known:
        near = difflib.get_close_matches(task, known, n=1)
        return f"{task} is no task of reasoning-gym. " + (
            f"Did you mean {near[0]}?" if near else f"It has {', '.join(known)}."
        )
    return f"its settings do not fit ({error}). Write size, seed and what the task {task} takes."
