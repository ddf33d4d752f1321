"""Problems of the toy world: a diary in which one person's things change a few times and other things happen beside it.

A story is a list of events, one a day; every event is one sentence, and `parse` reads them back, so that the scripted
teacher knows a problem by its text alone, as a real one would. Numbers stay within 1..99 all along, and the level
follows from the number of steps.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from algorist.numerics.address import rng
from algorist.records import Problem

NAMES = ("Tom", "Ann", "Bob", "Eva")
THINGS = ("apples", "pens", "coins", "books")
LARGEST = 99
MOST_AT_ONCE = 9  # found or lost in one event: a small model learns this table within minutes
LEVEL_OF_STEPS = {
    1: "elementary",
    2: "elementary",
    3: "middle",
    4: "high school",
    5: "high school",
    6: "college",
    7: "graduate",
    8: "graduate",
}

# One sentence per kind of event, with the operation it means for its owner.
SENTENCES = {
    "has": ("{who} has {n} {thing}.", ""),
    "finds": ("{who} finds {n} more {thing}.", "+"),
    "loses": ("{who} loses {n} {thing}.", "-"),
    "times": ("Then {who} has {n} times as many {thing}.", "*"),
    "splits": ("{who} splits the {thing} into {n} equal parts and keeps one.", "/"),
}
QUESTION = "How many {thing} does {who} have?"
_PATTERNS = {
    kind: re.compile(
        re.escape(text).replace(r"\{who\}", r"(?P<who>\w+)").replace(r"\{n\}", r"(?P<n>\d+)").replace(r"\{thing\}", r"(?P<thing>\w+)")
    )
    for kind, (text, _) in SENTENCES.items()
}
_ASKED = re.compile(r"How many (?P<thing>\w+) does (?P<who>\w+) have\?")


@dataclass(frozen=True)
class Settings:
    """[toy]: how much of this world there is"""

    problems: int = 1_600  # to learn from
    held_out: int = 500  # to be scored on
    fewest_steps: int = 2
    most_steps: int = 8
    distractors: int = 2  # at most, in one problem

    def __post_init__(self) -> None:
        if not 1 <= self.fewest_steps <= self.most_steps <= 8:
            raise ValueError("fewest_steps and most_steps lie in 1..8, the first not above the second.")


@dataclass(frozen=True)
class Event:
    """One sentence of a story."""

    kind: str  # a key of SENTENCES
    who: str
    thing: str
    n: int

    @property
    def text(self) -> str:
        """The sentence."""
        return SENTENCES[self.kind][0].format(who=self.who, n=self.n, thing=self.thing)

    @property
    def operation(self) -> str:
        """What the event does to the number of its owner's things: one of + - * /, or empty for a start."""
        return SENTENCES[self.kind][1]


@dataclass(frozen=True)
class Story:
    """Events in the order they are told, and whose things are asked for."""

    events: tuple[Event, ...]
    who: str
    thing: str

    @property
    def text(self) -> str:
        """The problem's statement."""
        told = " ".join(f"Day {day}: {event.text}" for day, event in enumerate(self.events, 1))
        return f"{told} {QUESTION.format(who=self.who, thing=self.thing)}"

    def matters(self, event: Event) -> bool:
        """Whether the event changes what is asked for."""
        return event.who == self.who and event.thing == self.thing

    def answer(self) -> int:
        """The number asked for."""
        value = 0
        for event in filter(self.matters, self.events):
            value = apply(value, event)
        return value


def apply(value: int, event: Event) -> int:
    """The number of things after an event."""
    results = {"": event.n, "+": value + event.n, "-": value - event.n, "*": value * event.n, "/": value // event.n}
    return results[event.operation]


def parse(statement: str) -> Story | None:
    """The story that a statement tells, or None where it is not one of this world's."""
    asked = _ASKED.search(statement)
    if asked is None:
        return None
    found = [
        (match.start(), Event(kind, match["who"], match["thing"], int(match["n"])))
        for kind, pattern in _PATTERNS.items()
        for match in pattern.finditer(statement)
    ]
    # "Then Tom has 3 times as many apples." does not match "has": three words stand between number and thing.
    return Story(tuple(event for _, event in sorted(found, key=lambda f: f[0])), asked["who"], asked["thing"])


def story(generator: np.random.Generator, steps: int, distractors: int) -> Story:
    """A story in which the asked-for number changes `steps` times and `distractors` other events happen."""
    who, thing = str(generator.choice(NAMES)), str(generator.choice(THINGS))
    value = int(generator.integers(2, LARGEST + 1))
    events = [Event("has", who, thing, value)]
    for _ in range(steps):
        event = change(generator, who, thing, value)
        value = apply(value, event)
        events.append(event)
    for _ in range(distractors):
        others = [(w, t) for w in NAMES for t in THINGS if (w, t) != (who, thing)]
        other_who, other_thing = others[int(generator.integers(len(others)))]
        kind = str(generator.choice(("has", "finds", "loses")))
        place = int(generator.integers(0, len(events) + 1))
        most = LARGEST if kind == "has" else MOST_AT_ONCE
        events.insert(place, Event(kind, other_who, other_thing, int(generator.integers(1, most + 1))))
    return Story(tuple(events), who, thing)


def problems(seed: int, purpose: str, count: int, steps: Iterable[int], distractors: int = 2) -> list[Problem]:
    """`count` different problems, the numbers of steps in turn, each with 0..`distractors` distractors.

    Args:
        seed, purpose  address of the draw: "train" and "held out" give unrelated problems
    """
    kinds = list(steps)
    found: dict[str, Problem] = {}
    index = 0
    while len(found) < count:
        generator = rng(seed, "toy problems", purpose, index)
        wanted = kinds[len(found) % len(kinds)]
        told = story(generator, wanted, int(generator.integers(0, distractors + 1)))
        labels = {"kind": "number", "domain": "arithmetic", "level": LEVEL_OF_STEPS[wanted], "source": f"toy/{wanted} steps"}
        problem = Problem.of(told.text, str(told.answer()), **labels)
        found.setdefault(problem.id, problem)
        index += 1
    return list(found.values())


def change(generator: np.random.Generator, who: str, thing: str, value: int) -> Event:
    """An event that keeps the number within 1..LARGEST; splitting and multiplying come up when they can."""
    factors = [n for n in range(2, 10) if value * n <= LARGEST]
    parts = [n for n in range(2, 10) if value % n == 0]
    options = ["finds"] * (value < LARGEST) * 2 + ["loses"] * (value > 1) * 2
    options += ["times"] * bool(factors) + ["splits"] * bool(parts)
    kind = str(generator.choice(options))
    if kind == "finds":
        return Event(kind, who, thing, int(generator.integers(1, min(MOST_AT_ONCE, LARGEST - value) + 1)))
    if kind == "loses":
        return Event(kind, who, thing, int(generator.integers(1, min(MOST_AT_ONCE, value - 1) + 1)))
    return Event(kind, who, thing, int(generator.choice(factors if kind == "times" else parts)))
