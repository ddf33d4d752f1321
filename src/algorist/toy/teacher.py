"""A fallible teacher for the toy world, behind the protocol of an OpenAI-compatible server.

`Transport` plugs into httpx where a network would be: the client in generate/fleet.py sends it the same requests
that it would send to a real server, and gets the same kind of answer. The teacher knows a problem by its text,
writes chains that tell every event, terse and rambling ones, and fails like one: it slips in arithmetic, misreads
a number, takes a distractor for a step, skips one (the last three more often where it is terse), notices some of its
slips and corrects them, and now and then loops until it is cut off.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import httpx
import numpy as np

from algorist.numerics.address import rng
from algorist.toy.world import Story, apply, parse

URL = "toy://teacher"
MODEL = "toy-teacher"
PHRASES = {
    "skip": "that does not count.",
    "wait": "Wait, that is wrong.",
    "ramble": "Let me think again.",
    "check": "That is right.",
    "final": "The answer is \\boxed{{{n}}}.",
    "lost": "I do not know.",
}


@dataclass(frozen=True)
class Habits:
    """How often the teacher does what. Rates are per step unless said otherwise."""

    slip: float = 0.03  # a wrong result
    misread: float = 0.05  # the number of another event
    notice: float = 0.4  # share of slips it notices and corrects at once
    misled: float = 0.05  # takes a distractor for a step
    skip: float = 0.02  # overlooks a step
    ramble: float = 0.25  # share of chains that ramble
    loop: float = 0.03  # share of chains that repeat one sentence until cut
    terse: float = 0.4  # share of chains that do the sums in the head and write results only
    careless: float = 2.0  # how many times as often a terse chain misreads, takes a distractor or skips a step


class Transport(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """An OpenAI-compatible chat server that runs inside the client, be it a blocking or an asynchronous one.

    Choice i of a request with seed s is choice 0 of a request with seed s + i: a sample does not depend on how many
    were asked for with it.
    """

    def __init__(self, habits: Habits | None = None) -> None:
        self.habits = habits or Habits()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Answer POST /chat/completions; anything else is 404, as a server would."""
        if request.method != "POST" or not request.url.path.endswith("/chat/completions"):
            return httpx.Response(404, json={"error": {"message": f"no route {request.method} {request.url.path}"}})
        body = json.loads(request.content)
        statement = body["messages"][-1]["content"]
        choices: list[dict[str, object]] = []
        spoken = 0
        for index in range(body.get("n", 1)):
            generator = rng("toy teacher", body.get("seed", 0) + index, statement, body.get("temperature", 1.0))
            text, finish = respond(statement, generator, self.habits, body.get("max_tokens", 1024))
            spoken += len(text.split())
            message = {"role": "assistant", "content": text}
            choices.append({"index": index, "message": message, "finish_reason": finish})
        usage = {"prompt_tokens": len(statement.split()), "completion_tokens": spoken}
        return httpx.Response(200, json={"model": MODEL, "choices": choices, "usage": usage})

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """What `handle_request` answers."""
        return self.handle_request(request)


def respond(statement: str, generator: np.random.Generator, habits: Habits, max_words: int) -> tuple[str, str]:
    """(text, finish) of one response; longer ones are cut at `max_words` words and finish with "length"."""
    story = parse(statement)
    if story is None:
        return PHRASES["lost"], "stop"
    lines, result = _chain(story, generator, habits)
    if generator.random() < habits.loop:
        stuck = int(generator.integers(len(lines)))
        lines = lines[:stuck] + [lines[stuck]] * max_words
    words = " ".join(["<think>", *lines, "</think>", PHRASES["final"].format(n=result)]).split(" ")
    return " ".join(words[:max_words]), "length" if len(words) > max_words else "stop"


def _chain(story: Story, generator: np.random.Generator, habits: Habits) -> tuple[list[str], int]:
    """The sentences of a chain of thought and the number it arrives at."""
    terse = generator.random() < habits.terse
    care = habits.careless if terse else 1.0
    rambles = generator.random() < habits.ramble
    lines: list[str] = []
    value: int | None = None
    for month, event in story.dated():
        if not story.matters(event) and (value is None or generator.random() >= care * habits.misled):
            if not terse:
                lines.append(f"{month}: {event.text}, {PHRASES['skip']}")
            continue
        lead = f"{month}:" if terse else f"{month}: {event.text}, so"
        if value is None or not event.operation:
            # A distractor that only states a number becomes a new start for a misled teacher.
            value = event.n
            lines.append(f"{lead} {value}.")
            continue
        if generator.random() < care * habits.skip:
            continue
        if generator.random() < care * habits.misread:
            event = replace(event, n=story.events[int(generator.integers(len(story.events)))].n)
        right = apply(value, event)
        result = _slip(right, generator) if generator.random() < habits.slip else right
        lines.append(f"{lead} {result}." if terse else f"{lead} {value} {event.operation} {event.n} = {result}.")
        if result != right and generator.random() < habits.notice:
            lines += [PHRASES["wait"], f"{value} {event.operation} {event.n} = {right}."]
            result = right
        elif rambles and generator.random() < 0.5:
            lines += [PHRASES["ramble"], f"{value} {event.operation} {event.n} = {result}.", PHRASES["check"]]
        value = result
    return lines, value or 0


def _slip(right: int, generator: np.random.Generator) -> int:
    """A result that is off by one, two or ten; positive where the right one is."""
    wrong = right + int(generator.choice((-10, -2, -1, 1, 2, 10)))
    return wrong if wrong > 0 else right + 1
