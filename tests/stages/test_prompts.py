"""The order in which prompts are asked, and where a resumed run takes it up."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from algorist import store
from algorist.records import Problem
from algorist.stage import Run
from algorist.stages.prompts import Candidate, Deck, Prompts

PROBLEMS = [Problem.of(f"What is {i} + 1?", str(i + 1)) for i in range(10)]
IDS = [problem.id for problem in PROBLEMS]


def run(folder: Path = Path(), steps: int = 10, **keys: Any) -> Run:
    settings = SimpleNamespace(prompts=Prompts(**keys), steps=steps)
    return cast(Run, SimpleNamespace(seed=1, settings=settings, folder=folder))


def drawn(deck: Deck, count: int, generation: int = 0, busy: Any = ()) -> list[str]:
    return [problem.id for problem in deck.draw(count, generation, busy)]


def test_every_prompt_comes_once_in_an_epoch_and_each_epoch_has_its_order() -> None:
    deck = Deck(run(), PROBLEMS)
    first = drawn(deck, 4) + drawn(deck, 6)
    second = drawn(deck, 10)
    assert sorted(first) == sorted(second) == sorted(IDS) and first != second != IDS
    assert Counter(drawn(deck, 7) + drawn(deck, 7) + drawn(deck, 6)) == dict.fromkeys(IDS, 2)


def test_a_draw_goes_over_the_end_of_an_epoch_and_never_holds_a_prompt_twice() -> None:
    deck = Deck(run(), PROBLEMS)
    first, second = drawn(deck, 7), drawn(deck, 7)
    assert len(set(second)) == 7 and set(second) >= set(IDS) - set(first)
    assert len(drawn(deck, 30)) == 10  # there are no more
    assert drawn(Deck(run(), PROBLEMS), 3, busy=IDS[:8]) and len(drawn(Deck(run(), PROBLEMS), 3, busy=IDS[:8])) == 2


def test_busy_prompts_wait_for_their_turn() -> None:
    deck = Deck(run(), PROBLEMS)
    order = drawn(Deck(run(), PROBLEMS), 10)
    assert drawn(deck, 3, busy=order[:2]) == order[2:5]
    assert drawn(deck, 3) == [*order[:2], order[5]]


@pytest.mark.parametrize("portions", [[3], [2, 1], [9, 4], [5, 5, 5]])
def test_what_was_drawn_in_portions_can_be_taken_at_once(portions: list[int]) -> None:
    deck, again = Deck(run(), PROBLEMS), Deck(run(), PROBLEMS)
    for generation in range(4):
        busy = set(IDS[generation : generation + 2])
        found: list[str] = []
        for portion in portions:
            found += drawn(deck, portion, generation, busy | set(found))
        again.take(set(found), generation, busy)
    assert drawn(deck, 10) == drawn(again, 10)
    with pytest.raises(AssertionError, match="of other prompts"):
        again.take({"x"}, 4, ())


def test_history_leaves_out_what_was_all_right() -> None:
    deck, plain = Deck(run(history=True), PROBLEMS), Deck(run(), PROBLEMS)
    for one in (deck, plain):
        drawn(one, 10)
        for problem in IDS[:4]:
            one.note(problem, True)
        one.note(IDS[3], False)
    assert set(drawn(deck, 7)) == set(IDS[3:])
    assert set(drawn(plain, 10)) == set(IDS)
    for problem in IDS:
        deck.note(problem, True)
    assert set(drawn(deck, 10)) == set(IDS)  # rather all than none


def test_levels_go_from_easy_to_hard(tmp_path: Path) -> None:
    shares = [0.5, 0.1, None, 0.9, 0.8, 0.0, 0.7, 0.3, 0.2, 0.6]
    known = [Candidate(own, share, 9.0, 0.1, 0.1, True, "") for own, share in zip(IDS, shares, strict=True)]
    store.write(tmp_path / "prompts" / "candidates", Candidate, known)
    deck = Deck(run(tmp_path, steps=6, levels=3), PROBLEMS)
    easy, middle, hard = ({IDS[i] for i in part} for part in ([3, 4, 6], [9, 0, 7, 8], [1, 5, 2]))
    assert set(drawn(deck, 5, 0)) == set(drawn(deck, 3, 1)) == easy
    assert set(drawn(deck, 9, 2)) == middle and set(drawn(deck, 2, 3)) < middle
    assert set(drawn(deck, 9, 4)) == set(drawn(deck, 9, 5)) == hard


def test_more_levels_than_prompts(tmp_path: Path) -> None:
    known = [Candidate(own, 0.5, 9.0, 0.1, 0.1, True, "") for own in IDS]
    store.write(tmp_path / "prompts" / "candidates", Candidate, known)
    deck = Deck(run(tmp_path, steps=2, levels=5), PROBLEMS[:2])
    assert len(drawn(deck, 1, 0)) == len(drawn(deck, 1, 1)) == 1


def test_refused() -> None:
    with pytest.raises(ValueError, match=r"^candidates, rounds, samples and levels must be at least 1\.$"):
        replace(Prompts(), levels=0)
