"""The scripted teacher: right unless its habits say otherwise, and as often wrong as they say."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace

import httpx
import pytest

from algorist.numerics.address import rng
from algorist.toy import teacher, world
from algorist.toy.teacher import Habits

PERFECT = Habits(slip=0, misread=0, notice=0, misled=0, skip=0, ramble=0, loop=0, terse=0)
PROBLEMS = world.problems(1, "train", 400, range(1, 7))
LONG = max(PROBLEMS, key=lambda problem: len(problem.statement))
EQUATION = re.compile(r"(-?\d+) ([-+*/]) (\d+) = (-?\d+)")


def ask(habits: Habits, n: int = 2000, max_words: int = 10_000) -> list[tuple[world.Story, str, str]]:
    """(story, text, finish) of n responses."""
    found = []
    for index in range(n):
        statement = PROBLEMS[index % len(PROBLEMS)].statement
        story = world.parse(statement)
        assert story is not None
        found.append((story, *teacher.respond(statement, rng("test", index), habits, max_words)))
    return found


def answered(text: str) -> int:
    """The number in the box."""
    (box,) = re.findall(r"\\boxed\{(-?\d+)\}", text)
    return int(box)


def steps(story: world.Story) -> int:
    return sum(map(story.matters, story.events)) - 1


def holds(equation: tuple[str, str, str, str]) -> bool:
    a, sign, b, c = equation
    return {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b), "/": int(a) // int(b)}[sign] == int(c)


def test_without_bad_habits_it_is_always_right() -> None:
    for story, text, finish in ask(PERFECT, 800):
        assert answered(text) == story.answer() and finish == "stop"
        found = EQUATION.findall(text)
        assert len(found) == steps(story) and all(map(holds, found))
        assert text.startswith("<think> ") and text.count("</think>") == 1


def test_it_slips_at_its_rate() -> None:
    equations = [e for _, text, _ in ask(replace(PERFECT, slip=0.1)) for e in EQUATION.findall(text)]
    wrong = [e for e in equations if not holds(e)]
    assert len(wrong) / len(equations) == pytest.approx(0.1, abs=0.015)


def test_it_notices_and_corrects_a_share_of_its_slips() -> None:
    found = ask(replace(PERFECT, slip=0.1, notice=0.4))
    slips = sum(not holds(e) for _, text, _ in found for e in EQUATION.findall(text))
    noticed = sum(text.count(teacher.PHRASES["wait"]) for _, text, _ in found)
    assert noticed / slips == pytest.approx(0.4, abs=0.07)
    all_noticed = ask(replace(PERFECT, slip=0.3, notice=1.0), 400)
    assert all(answered(text) == story.answer() for story, text, _ in all_noticed)


def test_it_skips_steps_at_its_rate() -> None:
    found = ask(replace(PERFECT, skip=0.1))
    told = sum(len(EQUATION.findall(text)) for _, text, _ in found)
    assert 1 - told / sum(steps(story) for story, _, _ in found) == pytest.approx(0.1, abs=0.015)


def test_it_misreads_numbers_at_its_rate() -> None:
    found = ask(replace(PERFECT, misread=0.2))
    wrong = total = 0
    for story, text, _ in found:
        own = [event.n for event in story.events if story.matters(event) and event.operation]
        used = [int(e[2]) for e in EQUATION.findall(text)]
        wrong += sum(a != b for a, b in zip(own, used, strict=True))
        total += len(own)
    assert 0.1 < wrong / total < 0.2  # now and then the other number is the same, or the event's own


def test_it_takes_distractors_for_steps_at_its_rate() -> None:
    found = ask(replace(PERFECT, misled=0.3))
    skipped = distractors = 0
    for story, text, _ in found:
        first = next(i for i, event in enumerate(story.events) if story.matters(event))
        early = sum(not story.matters(event) for event in story.events[:first])
        skipped += text.count(teacher.PHRASES["skip"]) - early  # those before the start never mislead
        distractors += sum(not story.matters(event) for event in story.events) - early
    assert 1 - skipped / distractors == pytest.approx(0.3, abs=0.04)


def test_it_rambles_and_writes_tersely_in_its_shares_of_chains() -> None:
    rambled = [
        teacher.PHRASES["ramble"] in text for story, text, _ in ask(replace(PERFECT, ramble=1.0)) if steps(story)
    ]
    assert 0.5 < sum(rambled) / len(rambled) < 1.0
    assert not any(teacher.PHRASES["ramble"] in text for _, text, _ in ask(PERFECT, 300))
    terse = [", so" not in text for _, text, _ in ask(replace(PERFECT, terse=0.4))]
    assert sum(terse) / len(terse) == pytest.approx(0.4, abs=0.05)
    for story, text, _ in ask(replace(PERFECT, terse=1.0), 300):
        assert answered(text) == story.answer() and not EQUATION.search(text)
        assert not any(verb in text for verb in ("wins", "loses", "multiplies", "divides", teacher.PHRASES["skip"]))


def test_a_terse_chain_is_so_many_times_as_careless() -> None:
    def skipped(terse: float) -> float:
        """Share of the steps that no line tells; the first line states the start."""
        found = ask(replace(PERFECT, skip=0.1, terse=terse, careless=3.0))
        told = sum(text.count(":") - text.count(teacher.PHRASES["skip"]) - 1 for _, text, _ in found)
        return 1 - told / sum(steps(story) for story, _, _ in found)

    assert skipped(1.0) == pytest.approx(0.3, abs=0.02)
    assert skipped(0.0) == pytest.approx(0.1, abs=0.015)


def test_a_loop_is_cut_and_says_so() -> None:
    found = ask(replace(PERFECT, loop=0.2), max_words=220)
    cut = [text for _, text, finish in found if finish == "length"]
    assert len(cut) / len(found) == pytest.approx(0.2, abs=0.03)
    assert all(len(text.split(" ")) == 220 and "boxed" not in text for text in cut)


def test_a_chain_that_just_fits_is_not_cut() -> None:
    statement = PROBLEMS[0].statement
    whole, finish = teacher.respond(statement, rng(1), PERFECT, 10_000)
    size = len(whole.split(" "))
    assert teacher.respond(statement, rng(1), PERFECT, size) == (whole, "stop") and finish == "stop"
    assert teacher.respond(statement, rng(1), PERFECT, size - 1) == (whole.rsplit(" ", 1)[0], "length")


def test_with_its_usual_habits_it_is_mostly_right() -> None:
    found = ask(Habits(), max_words=220)
    right = [finish == "stop" and answered(text) == story.answer() for story, text, finish in found]
    assert 0.55 < sum(right) / len(right) < 0.9


def test_another_text_gets_no_boxed_answer() -> None:
    assert teacher.respond("What is 2 + 2?", rng(1), Habits(), 100) == (teacher.PHRASES["lost"], "stop")


def client() -> httpx.Client:
    return httpx.Client(base_url="http://in.process", transport=teacher.Transport())


def body(**more: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": LONG.statement}], **more}


def test_the_protocol() -> None:
    with client() as server:
        reply = server.post("/v1/chat/completions", json=body(n=3, seed=5, temperature=0.6, max_tokens=220))
        again = server.post("/v1/chat/completions", json=body(n=3, seed=5, temperature=0.6, max_tokens=220))
        other = server.post("/v1/chat/completions", json=body(n=3, seed=6, temperature=0.6, max_tokens=220))
        single = server.post("/v1/chat/completions", json=body())
    assert reply.status_code == 200 and reply.json() == again.json() != other.json()
    choices = reply.json()["choices"]
    assert len({choice["message"]["content"] for choice in choices}) == 3, "three that can be told apart"
    # Sample i of seed s is sample 0 of seed s + i: how many are asked for at once changes none.
    assert [choice["message"] for choice in choices[1:]] == [one["message"] for one in other.json()["choices"][:2]]
    assert [choice["index"] for choice in choices] == [0, 1, 2] and len(single.json()["choices"]) == 1
    assert all(choice["message"]["role"] == "assistant" for choice in choices)
    assert all(choice["finish_reason"] in ("stop", "length") for choice in choices)
    words = sum(len(choice["message"]["content"].split()) for choice in choices)
    assert reply.json()["usage"]["completion_tokens"] == words and reply.json()["model"] == teacher.MODEL


def test_an_asynchronous_client_hears_the_same() -> None:
    async def ask() -> object:
        async with httpx.AsyncClient(base_url="http://in.process", transport=teacher.Transport()) as server:
            return (await server.post("/v1/chat/completions", json=body(n=2, seed=5))).json()

    with client() as server:
        assert asyncio.run(ask()) == server.post("/v1/chat/completions", json=body(n=2, seed=5)).json()


def test_other_routes_are_not_found() -> None:
    with client() as server:
        assert server.get("/v1/chat/completions").status_code == 404
        assert server.post("/v1/completions", json=body()).status_code == 404
        missing = server.get("/v1/models")
    assert (missing.status_code, missing.json()) == (404, {"error": {"message": "no route GET /v1/models"}})
