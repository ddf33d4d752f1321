"""Which verified rollouts become what, each rule by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from algorist.data import curate
from algorist.model.chat import Chat
from algorist.records import Problem, Rollout, Verdict
from algorist.toy import base
from algorist.verify.judge import CONFLICT

EASY = Problem.of("How many points does Tom have?", "3", level="elementary")
HARD = Problem.of("How many points does Ann have?", "5", level="college")
PROBLEMS = {problem.id: problem for problem in (EASY, HARD)}


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat.of(base.tokenizer(), "{problem}")


def rollout(problem: Problem, text: str, index: int = 0, finish: str = "stop") -> Rollout:
    return Rollout.of(problem.id, text, "teacher", index=index, finish=finish)


def rollouts(problem: Problem, *lengths: int) -> list[Rollout]:
    """Rollouts with texts of these lengths, numbered."""
    return [rollout(problem, "x" * length, index) for index, length in enumerate(lengths)]


def verdict(of: Rollout, right: bool | None) -> Verdict:
    reason = {True: "equal", False: "different", None: "timed out"}[right]
    return Verdict(of.id, right, reason, "3", "test")


def verdicts(found: list[Rollout], *rights: bool | None) -> list[Verdict]:
    return [verdict(one, right) for one, right in zip(found, rights, strict=True)]


def lengths(pairs: list[tuple[Rollout, Rollout]]) -> list[tuple[int, int]]:
    return [(len(right.text), len(wrong.text)) for right, wrong in pairs]


def test_accepted_are_right_and_ended() -> None:
    found = [*rollouts(EASY, 1, 2, 3), rollout(EASY, "cut", 3, "length"), rollout(EASY, "unseen", 4)]
    judged = verdicts(found[:4], True, False, None, True)
    kept, dropped = curate.accepted(found, judged)
    assert kept == found[:1]
    assert dropped == {"different": 1, "timed out": 1, "right but cut off": 1, "not verified": 1}


def test_hard_and_clean_keeps_the_most_typical_of_hard_problems() -> None:
    found = rollouts(HARD, 90, 10, 24, 60, 20) + rollouts(EASY, 5)  # neither the rambling one nor the curt one
    kept, dropped = curate.hard_and_clean(found, PROBLEMS, levels=("college",), keep_easier=0.0, per_problem=2, seed=1)
    assert [len(one.text) for one in kept] == [24, 20] and {one.problem_id for one in kept} == {HARD.id}
    assert +dropped == {"easier level": 1, "further from its problem's median length": 3}


def test_without_levels_all_problems_are_hard() -> None:
    found = rollouts(HARD, 3) + rollouts(EASY, 5)
    kept, dropped = curate.hard_and_clean(found, PROBLEMS, levels=(), keep_easier=0.0, per_problem=1, seed=1)
    assert kept == found and not +dropped


def test_a_share_of_the_easier_problems_stays() -> None:
    easy = [Problem.of(f"statement {i}", "1", level="elementary") for i in range(2000)]
    found = [rollout(problem, "x", index) for problem in easy for index in range(2)]
    by_id = {problem.id: problem for problem in easy}
    kept = {}
    for share in (0.0, 0.3, 0.6, 1.0):
        chosen, dropped = curate.hard_and_clean(
            found, by_id, levels=("college",), keep_easier=share, per_problem=2, seed=1
        )
        kept[share] = {one.problem_id for one in chosen}
        assert len(chosen) == 2 * len(kept[share]) == len(found) - dropped["easier level"]  # whole problems
        assert len(kept[share]) / len(easy) == pytest.approx(share, abs=0.04)
    assert kept[0.3] < kept[0.6]
    again, _ = curate.hard_and_clean(
        reversed(found), by_id, levels=("college",), keep_easier=0.3, per_problem=2, seed=1
    )
    other, _ = curate.hard_and_clean(found, by_id, levels=("college",), keep_easier=0.3, per_problem=2, seed=2)
    assert {one.problem_id for one in again} == kept[0.3] != {one.problem_id for one in other}


def test_pairs_match_lengths_and_use_each_rollout_once() -> None:
    found = rollouts(EASY, 10, 20, 30, 11, 29)
    judged = verdicts(found, True, True, True, False, False)
    pairs, dropped = curate.pairs(found, judged, per_problem=9, max_length_ratio=2.0)
    assert sorted(lengths(pairs)) == [(10, 11), (30, 29)] and not +dropped
    again, _ = curate.pairs(found[::-1], judged[::-1], per_problem=9, max_length_ratio=2.0)
    assert again == pairs
    twice = rollouts(EASY, 10, 40, 10, 11)
    pairs, dropped = curate.pairs(twice, verdicts(twice, True, True, False, False), per_problem=9, max_length_ratio=9.0)
    assert lengths(pairs) == [(10, 10), (40, 11)] and not +dropped


def test_pairs_of_one_problem_are_limited() -> None:
    found = rollouts(EASY, 10, 11, 12, 10, 11, 12)
    judged = verdicts(found, True, True, True, False, False, False)
    pairs, dropped = curate.pairs(found, judged, per_problem=2, max_length_ratio=2.0)
    assert len(pairs) == 2 and {right - wrong for right, wrong in lengths(pairs)} == {0}
    assert dropped == {"its problem has enough pairs": 1}


def test_pairs_never_cross_problems_and_say_why_a_wrong_rollout_has_no_partner() -> None:
    found = [*rollouts(EASY, 10, 21), *rollouts(HARD, 10, 20)]
    judged = verdicts(found, True, False, False, None)
    pairs, dropped = curate.pairs(found, judged, per_problem=1, max_length_ratio=2.0)
    assert pairs == [] and dropped == {"no right rollout of similar length": 1, "no right rollout of its problem": 1}
    pairs, dropped = curate.pairs(found, judged, per_problem=1, max_length_ratio=2.1)
    assert lengths(pairs) == [(10, 21)] and dropped == {"no right rollout of its problem": 1}
    used_up = rollouts(EASY, 10, 10, 10)
    pairs, dropped = curate.pairs(used_up, verdicts(used_up, True, False, False), per_problem=9, max_length_ratio=2.0)
    assert len(pairs) == 1 and dropped == {"its problem has enough pairs": 1}


def test_what_only_the_rules_call_wrong_is_not_rejected() -> None:
    found = rollouts(EASY, 10, 11, 12, 13, 14, 15)
    judged = verdicts(found, True, False, False, False, None, True)
    undecided = "judge undecided, rules: different"
    reasons = {1: CONFLICT, 2: undecided, 3: "judged different", 4: "judge undecided, rules: timed out", 5: CONFLICT}
    judged = [replace(one, reason=reasons.get(index, one.reason)) for index, one in enumerate(judged)]
    pairs, dropped = curate.pairs(found, judged, per_problem=9, max_length_ratio=9.0)
    assert lengths(pairs) == [(15, 13)], "where the judge is trusted, what it calls equal is right"
    assert dropped == {CONFLICT: 1, undecided: 1}


def test_an_empty_response_is_never_part_of_a_pair() -> None:
    found = [rollout(EASY, "", 0), rollout(EASY, "x", 1)]
    assert curate.pairs(found, verdicts(found, False, True), per_problem=1, max_length_ratio=9.0)[0] == []


def test_samples_are_prompt_response_and_end_of_turn(chat: Chat) -> None:
    one = rollout(EASY, "<think> April: 3. </think> The answer is \\boxed{3}.")
    (sample,), dropped = curate.samples([one], PROBLEMS, chat, sequence_length=100)
    prompt = chat.prompt_ids(EASY.statement)
    assert sample.tokens == prompt + chat.response_ids(one.text) and sample.tokens[-1] == chat.end
    assert (sample.prompt_len, sample.problem_id, sample.rollout_id) == (len(prompt), EASY.id, one.id)
    assert not dropped
    size = len(sample.tokens)
    assert curate.samples([one], PROBLEMS, chat, sequence_length=size)[0] == [sample]
    kept, dropped = curate.samples([one], PROBLEMS, chat, sequence_length=size - 1)
    assert kept == [] and dropped == {"longer than sequence_length": 1}


@pytest.mark.parametrize(("right_finish", "wrong_finish"), [("stop", "length"), ("length", "stop")])
def test_a_pair_ends_in_end_of_turn_only_where_the_response_did(
    chat: Chat, right_finish: str, wrong_finish: str
) -> None:
    right, wrong = rollout(HARD, "April: 5.", 0, right_finish), rollout(HARD, "April: 6. April:", 1, wrong_finish)
    (pair,), dropped = curate.token_pairs([(right, wrong)], PROBLEMS, chat, sequence_length=100)
    prompt = chat.prompt_ids(HARD.statement)
    assert pair.chosen == prompt + chat.response_ids(right.text, ended=right_finish == "stop")
    assert pair.rejected == prompt + chat.response_ids(wrong.text, ended=wrong_finish == "stop")
    assert (pair.chosen[-1] == chat.end, pair.rejected[-1] == chat.end) == (
        right_finish == "stop",
        wrong_finish == "stop",
    )
    assert (pair.problem_id, pair.chosen_id, pair.rejected_id) == (HARD.id, right.id, wrong.id)
    assert pair.prompt_len == len(prompt) and pair.chosen_ref_logprob is None and not dropped
    size = max(len(pair.chosen), len(pair.rejected))
    assert curate.token_pairs([(right, wrong)], PROBLEMS, chat, sequence_length=size)[0] == [pair]
    kept, dropped = curate.token_pairs([(right, wrong)], PROBLEMS, chat, sequence_length=size - 1)
    assert kept == [] and dropped == {"longer than sequence_length": 1}
