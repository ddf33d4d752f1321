"""Pairs of right and wrong: who is matched with whom, who never is, and what becomes of all others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from algorist.data import pairs
from algorist.data.candidates import Shards
from algorist.data.curate import Dpo
from algorist.model.chat import Chat
from algorist.records import Message, Preference, Problem
from algorist.toy import words
from algorist.verify.judge import CONFLICT, contested
from curation import PROMPT, Told, draw, dropped, problem, told, world, write_run

EASY, HARD, BARE = problem(1, "elementary"), problem(2, "college"), problem(3, "")
RULES = Dpo(levels=(), per_problem=9, max_length_ratio=9.0, balance_lengths=False, max_auc=1.0)


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat.of(words.tokenizer(), PROMPT)


def rollouts(of: Problem, *lengths: int, wrong: tuple[int, ...] = (), **more: Any) -> list[Told]:
    """Right rollouts of these lengths in tokens, then wrong ones."""
    fates = [*((True, length) for length in lengths), *((False, length) for length in wrong)]
    return [told(of, right, f"{right} {length}", i, tokens=length, **more) for i, (right, length) in enumerate(fates)]


def matched(root: Path, found: list[Told], rules: Dpo = RULES) -> list[tuple[int, int]]:
    """(tokens of the chosen, of the rejected) of the set drawn from these."""
    write_run(root, [EASY, HARD, BARE], found)
    return sorted((one.chosen_tokens, one.rejected_tokens) for one in draw(root, "dpo", rules))


def test_pairs_match_lengths_and_use_each_rollout_once(tmp_path: Path) -> None:
    found = rollouts(EASY, 10, 20, 30, wrong=(11, 29))
    assert matched(tmp_path, found, replace(RULES, max_length_ratio=2.0)) == [(10, 11), (30, 29)]
    assert dropped(tmp_path, "dpo") == {"its problem has enough pairs": 1}
    assert matched(tmp_path, rollouts(EASY, 10, 40, wrong=(10, 11))) == [(10, 10), (40, 11)]
    assert dropped(tmp_path, "dpo") == {}


def test_pairs_of_one_problem_are_limited(tmp_path: Path) -> None:
    found = rollouts(EASY, 10, 11, 12, wrong=(10, 11, 12))
    kept = matched(tmp_path, found, replace(RULES, per_problem=2))
    assert len(kept) == 2 and {right - wrong for right, wrong in kept} == {0}
    assert dropped(tmp_path, "dpo") == {"its problem has enough pairs": 2}


def test_pairs_never_cross_problems_and_everybody_left_out_is_told_why(tmp_path: Path) -> None:
    found = [*rollouts(EASY, 10, wrong=(21,)), *rollouts(HARD, wrong=(10,)), told(HARD, None, "?", 5, tokens=20)]
    found += rollouts(BARE, 7)
    reasons = {"no right rollout of its problem": 1, "no wrong rollout of its problem": 1, "could not be judged": 1}
    across = replace(RULES, same_sampler=False, max_length_ratio=2.1)
    assert matched(tmp_path, found, across) == [(10, 21)] and dropped(tmp_path, "dpo") == reasons
    assert matched(tmp_path, found, replace(across, max_length_ratio=2.0)) == []
    unlike = {"no right rollout of similar length": 1, "no wrong rollout of similar length": 1}
    assert dropped(tmp_path, "dpo") == reasons | unlike


def test_a_preference_says_everything_of_both(tmp_path: Path) -> None:
    found = [told(HARD, True, "Four.", 0, tokens=3), told(HARD, False, "Five.", 1, tokens=4)]
    write_run(tmp_path, [EASY, HARD], found)
    (one,) = draw(tmp_path, "dpo", RULES)
    assert one.prompt == (Message("user", "Please solve this.\nWhat is 2 plus 2?"),)
    assert (one.chosen, one.rejected) == ((Message("assistant", "Four."),), (Message("assistant", "Five."),))
    assert (one.chosen_id, one.rejected_id) == tuple(each.rollout.id for each in found)
    assert (one.problem_id, one.chosen_tokens, one.rejected_tokens) == (HARD.id, 3, 4)
    assert (one.rejected_reason, one.pass_rate, one.level, one.domain) == ("different", 0.5, "college", "algebra")
    assert (one.source, one.licence) == ("made/up", "MIT") and isinstance(one, Preference)


def test_what_only_the_rules_call_wrong_is_not_rejected(tmp_path: Path) -> None:
    undecided = "judge undecided, rules: different"
    fates = [(True, "equal"), (False, CONFLICT), (False, undecided), (False, "judged different")]
    fates += [(None, "judge undecided, rules: timed out"), (True, CONFLICT)]  # type: ignore[list-item]
    found = [told(EASY, right, "x", i, tokens=10 + i, reason=reason) for i, (right, reason) in enumerate(fates)]
    assert matched(tmp_path, found) == [(15, 13)], "where the judge is trusted, what it calls equal is right"
    reasons = {CONFLICT: 1, undecided: 1, "could not be judged": 1, "its problem has enough pairs": 1}
    assert dropped(tmp_path, "dpo") == reasons


def test_contested_means_the_same_as_in_the_judges_room(tmp_path: Path) -> None:
    problems, found = world(150)
    write_run(tmp_path, problems, found)
    draw(tmp_path, "dpo", RULES)
    clean = [one for one in found if not contested(one.verdict)]
    assert len(clean) < len(found)
    kept = draw(write_run(tmp_path / "clean", problems, clean), "dpo", RULES)
    assert {one.id for one in kept} == {one.id for one in draw(tmp_path, "dpo", RULES)}


@pytest.mark.parametrize(
    ("wrong", "reason", "knob"),
    [
        ({"finish": "length"}, "wrong and cut off", {"truncated": True}),
        ({"repetition": "loop"}, "wrong and repetitive", {"repetitive": True}),
        ({"extracted": ""}, "wrong without an answer", {"answered": False}),
        ({"leak": "aime24"}, "quotes a benchmark", None),
        ({"tokens": 0}, "empty response", None),
        ({"sampler": "other"}, "no right rollout of its problem and sampler", {"same_sampler": False}),
    ],
)
def test_what_form_would_tell_apart_is_not_rejected_unless_asked_for(
    tmp_path: Path, wrong: dict[str, Any], reason: str, knob: dict[str, Any] | None
) -> None:
    found = [told(EASY, True, tokens=10), told(EASY, False, "x", 1, **{"tokens": 10, **wrong})]
    assert matched(tmp_path, found) == [] and dropped(tmp_path, "dpo")[reason] == 1
    assert sum(dropped(tmp_path, "dpo").values()) == 2
    if knob:
        assert matched(tmp_path, found, replace(RULES, **knob)) == [(10, 10)] and dropped(tmp_path, "dpo") == {}


def test_what_is_preferred_always_ended_and_never_loops(tmp_path: Path) -> None:
    for more, reason in (({"finish": "length"}, "right but cut off"), ({"repetition": "loop"}, "right but repetitive")):
        found = [told(EASY, True, tokens=10, **more), told(EASY, False, "x", 1, tokens=10)]  # type: ignore[arg-type]
        rules = replace(RULES, truncated=True, repetitive=True)
        assert matched(tmp_path, found, rules) == [] and dropped(tmp_path, "dpo")[reason] == 1


def test_levels_and_where_none_is_known_the_pass_rate(tmp_path: Path) -> None:
    found = [one for each in (EASY, HARD, BARE) for one in rollouts(each, 10, 11, 12, wrong=(10,))]
    default = replace(RULES, levels=Dpo().levels)
    assert len(matched(tmp_path, found, default)) == 2 and dropped(tmp_path, "dpo")["easier level"] == 4
    assert len(matched(tmp_path, found, replace(default, max_pass_rate=0.7))) == 1
    assert len(matched(tmp_path, found)) == 3


def test_a_pair_ends_in_end_of_turn_only_where_the_response_did(tmp_path: Path, chat: Chat) -> None:
    found = [told(HARD, True, "a", tokens=(7, 8)), told(HARD, False, "b", 1, tokens=(9, 7, 3), finish="length")]
    write_run(tmp_path, [EASY, HARD], found)
    draw(tmp_path, "dpo", replace(RULES, truncated=True))
    shard, shards = tmp_path / "sets" / "dpo" / "00000.parquet", Shards.of(tmp_path, "00000.parquet")
    (pair,), (chosen, rejected), lost = pairs.token_pairs(shard, shards, chat, sequence_length=100)
    prompt = chat.prompt_ids(HARD.statement)
    assert chosen.tolist() == [*prompt, 7, 8, chat.end] and rejected.tolist() == [*prompt, 9, 7, 3]
    assert (pair.num_chosen, pair.num_rejected) == (len(chosen), len(rejected))
    assert (pair.problem_id, pair.chosen_id, pair.rejected_id) == (HARD.id, *(one.rollout.id for one in found))
    assert pair.prompt_len == len(prompt) and pair.chosen_ref_logprob is None and not lost
    size = len(rejected)
    assert pairs.token_pairs(shard, shards, chat, sequence_length=size)[0] == [pair]
    kept, sequences, lost = pairs.token_pairs(shard, shards, chat, sequence_length=size - 1)
    assert kept == sequences == [] and lost == {"longer than sequence_length": 1}
