"""Rewards against their twins, at the corners of their formulas, and against TRL's where it has them."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from algorist.numerics import rewards
from oracles import rewards as twins


def responses(count: int) -> list[list[int]]:
    """Token ids that repeat themselves more and less, from none at all to one token over and over."""
    rng = np.random.default_rng(7)
    found: list[list[int]] = [[], [3], [1, 2], [4] * 30, list(range(40)), [1, 2, 3] * 9, [0, 0, 1] * 7 + [200_000] * 8]
    for _ in range(count):
        length, kinds = rng.integers(1, 60), rng.integers(1, 6)
        found.append([int(token) for token in rng.integers(0, kinds, size=length)])
    return found


def groups(count: int) -> list[tuple[list[bool], list[int]]]:
    rng = np.random.default_rng(8)
    found = [([True], [5]), ([False, False], [3, 4]), ([True, True], [9, 9]), ([True, False], [1, 100_000])]
    for _ in range(count):
        size = int(rng.integers(1, 12))
        found.append(((rng.random(size) < rng.random()).tolist(), rng.integers(1, 30_000, size=size).tolist()))
    return found


LENGTHS = [0, 1, 79, 80, 81, 90, 99, 100, 101, 250]
KNOBS: list[tuple[str, dict[str, Any]]] = [
    ("overlong_penalty", {"max_length": 100, "margin": 20}),
    ("overlong_penalty", {"max_length": 100, "margin": 100}),
    ("cosine_length", {"max_length": 100}),
    (
        "cosine_length",
        {"max_length": 90, "right_short": 2.0, "right_long": 0.0, "wrong_short": -3.0, "wrong_long": 0.1},
    ),
    ("phi4_accuracy", {"max_length": 100, "right_control": 80, "wrong_control": 12}),
    ("phi4_accuracy", {}),
    ("phi4_accuracy", {"well_formed": False}),
    ("phi4_accuracy", {"well_formed": False, "finished": False}),
]


@pytest.mark.parametrize(("name", "knobs"), KNOBS)
def test_rewards_of_a_length_equal_their_twins(name: str, knobs: dict[str, Any]) -> None:
    for length in [*LENGTHS, 3_702, 25_600, 30_000, 31_744, 40_000]:
        for given in [(length,)] if name == "overlong_penalty" else [(True, length), (False, length)]:
            expected = getattr(twins, name)(*given, **knobs)
            assert getattr(rewards, name)(*given, **knobs) == pytest.approx(expected, rel=1e-12, abs=1e-15), given


@pytest.mark.parametrize("ngram", [1, 2, 3, 5])
def test_rewards_of_repetition_equal_their_twins(ngram: int) -> None:
    for tokens in responses(60):
        found = rewards.repetition_penalty(tokens, ngram=ngram, most=-0.7)
        assert found == pytest.approx(twins.repetition_penalty(tokens, ngram=ngram, most=-0.7), rel=1e-12), tokens
        for often in (1, 2, 5):
            found = rewards.phi4_repetition(tokens, ngram=ngram, often=often)
            assert found == pytest.approx(twins.phi4_repetition(tokens, ngram=ngram, often=often), rel=1e-12), tokens


def test_the_whole_phi4_reward_equals_its_twin() -> None:
    small = {"max_length": 50, "right_control": 30, "wrong_control": 10}
    for tokens in responses(20):
        for right in (True, False):
            for facts in ({}, {"finished": False}, {"well_formed": False}, small):
                found = rewards.phi4_reward(right, tokens, **facts)
                expected = twins.phi4_reward(right, tokens, **facts)
                assert found == pytest.approx(expected, rel=1e-12)
                assert -9 / 13 <= found <= 8 / 13


def test_rewards_of_a_group_equal_their_twins() -> None:
    for right, lengths in groups(40):
        for knobs in ({"alpha": 0.5}, {"alpha": 0.05, "epsilon": 1.0, "wrong": -0.5}):
            found = rewards.relative_length(right, lengths, **knobs)
            assert found == pytest.approx(twins.relative_length(right, lengths, **knobs), rel=1e-9)
        for least in (0.0, 0.5, 1.0):
            found = rewards.length_when_easy(right, lengths, alpha=0.4, least_accuracy=least)
            expected = twins.length_when_easy(right, lengths, alpha=0.4, least_accuracy=least)
            assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", ["cosine_length", "phi4_accuracy"])
def test_a_right_response_is_always_worth_more_than_a_wrong_one(name: str) -> None:
    """Length may not be bought with correctness: the least for right is a whole above the most for wrong."""
    knobs = {"max_length": 31_744} if name == "cosine_length" else {}
    worth = {
        right: [getattr(rewards, name)(right, n, **knobs) for n in range(0, 33_000, 100)] for right in (True, False)
    }
    assert min(worth[True]) - max(worth[False]) >= 1.0 - 1e-12
    assert worth[True] == sorted(worth[True], reverse=True) and worth[False] == sorted(worth[False])


def test_length_counts_among_right_responses_of_easy_groups_only() -> None:
    easy, hard = [True, True, True, False], [True, False, False, False]
    lengths = [100, 200, 300, 50]
    found = rewards.length_when_easy(easy, lengths, alpha=0.2, least_accuracy=0.75)
    assert 1.0 > found[0] > found[1] > found[2] > 0.8 and found[3] == 0.0
    assert found[1] == pytest.approx(0.9)
    assert rewards.length_when_easy(hard, lengths, alpha=0.2, least_accuracy=0.75) == [1.0, 0.0, 0.0, 0.0]
    of_more = {
        accuracy: rewards.length_when_easy(hard, lengths, alpha=0.2, least_accuracy=0.75, accuracy=accuracy)
        for accuracy in (0.7, 0.8)
    }
    assert of_more[0.7][0] == 1.0 > of_more[0.8][0]


def test_wrong_responses_do_not_move_the_length_that_right_ones_are_measured_by() -> None:
    right = [True, True, False]
    found = [rewards.relative_length(right, [100, 200, other], alpha=0.3)[:2] for other in (1, 25_000)]
    assert found[0] == found[1]
    assert rewards.relative_length([True, False], [7, 9], alpha=0.3) == [1.0, -1.0]


def test_a_long_response_takes_no_time() -> None:
    tokens = np.random.default_rng(0).integers(0, 200_000, size=25_000).tolist()
    rewards.phi4_reward(True, tokens)
    before = time.process_time()
    for _ in range(10):
        rewards.phi4_reward(True, tokens)
    assert time.process_time() - before < 0.5


def test_against_trl() -> None:
    """TRL 1.16 has two of them; the cosine is Open-R1's and not in it."""
    theirs = pytest.importorskip("trl.rewards")
    for ngram, most in ((3, -1.0), (2, -0.5)):
        penalty = theirs.get_repetition_penalty_reward(ngram_size=ngram, max_penalty=most)
        for tokens in responses(20):
            expected = penalty(completion_ids=[tokens])[0]
            assert rewards.repetition_penalty(tokens, ngram=ngram, most=most) == pytest.approx(expected)
    overlong = theirs.get_soft_overlong_punishment(max_completion_len=100, soft_punish_cache=20)
    for length in LENGTHS:
        expected = overlong(completion_ids=[[0] * length])[0]
        assert rewards.overlong_penalty(length, max_length=100, margin=20) == pytest.approx(expected)
