"""What a task is: one folder of a run, made from sections of the recipe and from the tasks before it.

The data engine's tasks stand in data/tasks.py, those that need a model in tasks.py; pipeline.py does them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from algorist import store
from algorist.recipe import Recipe

SUPERSEDED = "superseded"  # in a run: folders of tasks that an older recipe or other data made


@dataclass(frozen=True)
class Context:
    """What every task is given."""

    recipe: Recipe
    root: Path  # of the run
    say: Callable[[str], object]

    def of(self, section: str, kind: type[Any]) -> Any:
        """Settings of a section."""
        return self.recipe.of(section, kind)

    def older(self, name: str) -> list[Path]:
        """What the same task made from older recipes or other data: shards of it may serve again."""
        return sorted((self.root / SUPERSEDED).glob(f"{aside(name)}-*"))


@dataclass(frozen=True)
class Task:
    """One folder of the run: what it depends on, and how it is made."""

    name: str  # also the folder's, below the run's
    needs: tuple[str, ...]  # tasks before it
    reads: tuple[str, ...]  # sections of the recipe, or single keys as "section.key"
    make: Callable[[Context], None] = field(compare=False)
    files: tuple[Path, ...] = ()  # that it reads from outside of the run


def aside(name: str) -> str:
    """How a task's folder is called where superseded ones wait, before what tells them apart."""
    return name.replace("/", "-")


def dropped(made: store.Manifest) -> str:
    """` (left out: 3 of one reason, 2 of another)`, empty where nothing was."""
    reasons = [f"{count:,} {reason}" for reason, count in made.dropped.items() if count]
    return f" (left out: {', '.join(reasons)})" if reasons else ""
