"""The toy world: stories that can be read back, with answers anyone can check."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from algorist.numerics.address import rng
from algorist.records import LEVELS
from algorist.toy import world

STORIES = [world.story(rng("test", i), 1 + i % 8, i % 3) for i in range(1500)]
NUMBER = re.compile(r"\d+")


def by_hand(statement: str) -> int:
    """The answer, by reading the sentences with nothing of ours."""
    *sentences, question = re.split(r"(?<=\.) ", statement)
    who = re.fullmatch(r"How many points does (\w+) have\?", question)
    assert who is not None
    value = 0
    for sentence in sentences:
        number = int(NUMBER.findall(sentence)[0])
        if not sentence.startswith(f"{who[1]} "):
            continue
        for verb, result in (
            ("starts with", number),
            ("wins", value + number),
            ("loses", value - number),
            ("multiplies by", value * number),
            ("divides by", value / number),
        ):
            if verb in sentence:
                value = result
                break
        assert value == int(value)
    return int(value)


def test_every_story_reads_back_as_itself_with_its_answer() -> None:
    for story in STORIES:
        assert world.parse(story.text) == story
        assert by_hand(story.text) == story.answer()


def test_points_stay_within_the_tables_a_small_model_can_learn() -> None:
    for story in STORIES:
        value = 0
        for event in filter(story.matters, story.events):
            if event.operation == "/":
                assert value % event.n == 0
            value = world.apply(value, event)
            assert 1 <= value <= world.LARGEST
            assert event.kind == "starts" or 1 <= event.n <= world.MOST_AT_ONCE


def test_all_kinds_of_events_happen_and_steps_are_as_many_as_asked_for() -> None:
    kinds = Counter(event.kind for story in STORIES for event in story.events)
    assert set(kinds) == set(world.CLAUSES) and min(kinds.values()) > 300
    for index, story in enumerate(STORIES):
        own = sum(map(story.matters, story.events))
        assert (own - 1, len(story.events) - own) == (1 + index % 8, index % 3)
        assert len(story.events) <= len(world.MONTHS)


def test_other_texts_are_no_stories() -> None:
    assert world.parse("What is 2 + 2?") is None
    assert world.parse("") is None


def test_problems_are_different_and_reproducible() -> None:
    found = world.problems(1, "train", 700, range(1, 8))
    assert len({problem.id for problem in found}) == 700
    assert found == world.problems(1, "train", 700, range(1, 8))
    assert found[:50] == world.problems(1, "train", 50, range(1, 8))
    for other in (world.problems(2, "train", 700, range(1, 8)), world.problems(1, "held out", 700, range(1, 8))):
        shared = {problem.id for problem in found} & {problem.id for problem in other}
        assert len(shared) < 20


def test_problems_say_what_they_are() -> None:
    for index, problem in enumerate(world.problems(1, "train", 80, range(1, 9))):
        story = world.parse(problem.statement)
        assert story is not None and problem.answer == str(story.answer()) and problem.answer.isdigit()
        steps = sum(map(story.matters, story.events)) - 1
        assert steps == 1 + index % 8 and problem.source == f"toy/{steps} steps"
        assert problem.level == world.LEVEL_OF_STEPS[steps] and problem.level in LEVELS
        assert (problem.kind, problem.domain) == ("number", "arithmetic")


def test_without_distractors_every_event_matters() -> None:
    for problem in world.problems(1, "train", 40, [3], distractors=0):
        story = world.parse(problem.statement)
        assert story is not None and all(map(story.matters, story.events))


@pytest.mark.parametrize(("fewest", "most"), [(0, 3), (4, 3), (1, 9)])
def test_settings_that_cannot_be(fewest: int, most: int) -> None:
    with pytest.raises(ValueError) as refused:
        world.Settings(fewest_steps=fewest, most_steps=most)
    assert str(refused.value) == "fewest_steps and most_steps lie in 1..8, the first not above the second."
