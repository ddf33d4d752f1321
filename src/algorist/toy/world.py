"""Problems of the toy world: a year of a game in which one player's points change a few times, and others' too.

A story is a list of events, one a month; every event is one sentence, and `parse` reads them back, so that the scripted
teacher knows a problem by its text alone, as a real one would. Numbers stay within 1..30 all along, and the level
follows from the number of steps.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from algorist.errors import RecipeError
from algorist.numerics.address import rng
from algorist.records import LEVELS, Problem

NAMES = ("Tom", "Ann", "Bob", "Eva")
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
LARGEST = 30
MOST_AT_ONCE = 9  # won or lost in one event: a small model learns these tables within minutes
LEVEL_OF_STEPS = dict(zip(range(1, 9), (LEVELS[i] for i in (0, 0, 1, 2, 3, 4, 4, 4)), strict=True))

# One clause per kind of event, with the operation it means for its owner.
CLAUSES = {
    "starts": ("{who} starts with {n}", ""),
    "wins": ("{who} wins {n}", "+"),
    "loses": ("{who} loses {n}", "-"),
    "multiplies": ("{who} multiplies by {n}", "*"),
    "divides": ("{who} divides by {n}", "/"),
}
QUESTION = "How many points does {who} have?"
_EVENT = re.compile(r"(?P<who>\w+) (?P<kind>starts|wins|loses|multiplies|divides)(?: with| by)? (?P<n>\d+) in \w+\.")
_ASKED = re.compile(r"How many points does (?P<who>\w+) have\?")


@dataclass(frozen=True)
class Settings:
    """[toy]: how much of this world there is"""

    problems: int = 1_600  # to learn from
    held_out: int = 500  # to be scored on
    fewest_steps: int = 2  # changes of the points that are asked for
    most_steps: int = 8  # at most 8: a year has twelve months
    distractors: int = 2  # at most, in one problem

    def __post_init__(self) -> None:
        if not 1 <= self.fewest_steps <= self.most_steps <= 8:
            raise ValueError("fewest_steps and most_steps lie in 1..8, the first not above the second.")
        if self.distractors < 0 or 1 + self.most_steps + self.distractors > len(MONTHS):
            most = len(MONTHS) - 1 - self.most_steps
            raise ValueError(f"distractors = {self.distractors}, 0 to {most} was expected: a year has twelve months.")
        if min(self.problems, self.held_out) < 1:
            raise ValueError("problems and held_out must be at least 1.")


@dataclass(frozen=True)
class Event:
    """One event of a story."""

    kind: str  # a key of CLAUSES
    who: str
    n: int

    @property
    def text(self) -> str:
        """What happens, without the month."""
        return CLAUSES[self.kind][0].format(who=self.who, n=self.n)

    @property
    def operation(self) -> str:
        """What the event does to its player's points: one of + - * /, or empty for a start."""
        return CLAUSES[self.kind][1]


@dataclass(frozen=True)
class Story:
    """Events in the order they are told, and whose points are asked for."""

    events: tuple[Event, ...]
    who: str

    @property
    def text(self) -> str:
        """The problem's statement."""
        told = " ".join(f"{event.text} in {month}." for month, event in self.dated())
        return f"{told} {QUESTION.format(who=self.who)}"

    def dated(self) -> list[tuple[str, Event]]:
        """Each event with the month it happens in."""
        return list(zip(MONTHS, self.events, strict=False))

    def matters(self, event: Event) -> bool:
        """Whether the event changes what is asked for."""
        return event.who == self.who

    def answer(self) -> int:
        """The number asked for."""
        value = 0
        for event in filter(self.matters, self.events):
            value = apply(value, event)
        return value


def apply(value: int, event: Event) -> int:
    """The points after an event."""
    results = {"": event.n, "+": value + event.n, "-": value - event.n, "*": value * event.n, "/": value // event.n}
    return results[event.operation]


def parse(statement: str) -> Story | None:
    """The story that a statement tells, or None where it is not one of this world's."""
    asked = _ASKED.search(statement)
    if asked is None:
        return None
    found = _EVENT.finditer(statement)
    return Story(tuple(Event(match["kind"], match["who"], int(match["n"])) for match in found), asked["who"])


def story(generator: np.random.Generator, steps: int, distractors: int) -> Story:
    """A story in which the asked-for points change `steps` times and `distractors` events happen to others."""
    who = str(generator.choice(NAMES))
    value = int(generator.integers(2, LARGEST + 1))
    events = [Event("starts", who, value)]
    for _ in range(steps):
        event = change(generator, who, value)
        value = apply(value, event)
        events.append(event)
    others = [name for name in NAMES if name != who]
    for _ in range(distractors):
        kind = str(generator.choice(("starts", "wins", "loses")))
        most = LARGEST if kind == "starts" else MOST_AT_ONCE
        event = Event(kind, str(generator.choice(others)), int(generator.integers(1, most + 1)))
        events.insert(int(generator.integers(0, len(events) + 1)), event)
    return Story(tuple(events), who)


def problems(seed: int, purpose: str, count: int, steps: Iterable[int], distractors: int = 2) -> list[Problem]:
    """`count` different problems, the numbers of steps in turn, each with 0..`distractors` distractors.

    Args:
        seed, purpose  address of the draw: "train" and "held out" give unrelated problems

    Raises:
        RecipeError where a thousand draws in a row bring nothing new: so many do not exist.
    """
    kinds = list(steps)
    found: dict[str, Problem] = {}
    index = since = 0
    while len(found) < count:
        if since == 1000:
            raise RecipeError(
                f"[toy]: {count:,} different problems were wanted, {len(found):,} were found. "
                "Ask for fewer, for more steps, or for more distractors."
            )
        generator = rng(seed, "toy problems", purpose, index)
        wanted = kinds[len(found) % len(kinds)]
        told = story(generator, wanted, int(generator.integers(0, distractors + 1)))
        labels = {"kind": "number", "domain": "arithmetic", "level": LEVEL_OF_STEPS[wanted]}
        problem = Problem.of(told.text, str(told.answer()), **labels, source=f"toy/{wanted} steps")
        since = since + 1 if problem.id in found else 0
        found.setdefault(problem.id, problem)
        index += 1
    return list(found.values())


def change(generator: np.random.Generator, who: str, value: int) -> Event:
    """An event that keeps the points within 1..LARGEST; multiplying and dividing come up when they can."""
    factors = [n for n in range(2, 10) if value * n <= LARGEST]
    parts = [n for n in range(2, 10) if value % n == 0]
    options = ["wins"] * (value < LARGEST) * 2 + ["loses"] * (value > 1) * 2
    options += ["multiplies"] * bool(factors) + ["divides"] * bool(parts)
    kind = str(generator.choice(options))
    if kind == "wins":
        return Event(kind, who, int(generator.integers(1, min(MOST_AT_ONCE, LARGEST - value) + 1)))
    if kind == "loses":
        return Event(kind, who, int(generator.integers(1, min(MOST_AT_ONCE, value - 1) + 1)))
    return Event(kind, who, int(generator.choice(factors if kind == "multiplies" else parts)))
