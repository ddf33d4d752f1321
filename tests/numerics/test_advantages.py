"""Advantages against their twins, and the numbers that the paper's recipe implies."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from algorist.numerics.advantages import (
    centred,
    difficulty_weighted,
    gae,
    group_relative,
    leave_one_out,
    whitened,
)
from oracles import advantages as twins


@pytest.mark.parametrize("seed", range(5))
def test_group_relative_equals_its_twin(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rewards = rng.normal(size=int(rng.integers(2, 20)))
    assert group_relative(torch.from_numpy(rewards)).tolist() == pytest.approx(twins.group_relative(rewards.tolist()))


@pytest.mark.parametrize("size", [1, 4, 64])
def test_a_balanced_group_has_advantages_of_exactly_one(size: int) -> None:
    """After balancing, advantages are exactly +1 and -1, whatever the group's size."""
    rewards = torch.tensor([1.0] * size + [-1.0] * size)
    assert torch.equal(group_relative(rewards), rewards)


@pytest.mark.parametrize(("group", "right", "wrong"), [(10, 3.0, -1 / 3), (64, 7.94, -0.13), (128, 11.27, -0.09)])
def test_one_right_answer_in_an_unbalanced_group(group: int, right: float, wrong: float) -> None:
    """The imbalance that the paper names: one right answer among many is worth far more than any wrong one."""
    found = group_relative(torch.tensor([1.0] + [-1.0] * (group - 1)))
    assert float(found[0]) == pytest.approx(right, abs=0.005)
    assert found[1:].tolist() == pytest.approx([wrong] * (group - 1), abs=0.005)
    assert float(found.sum()) == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("advantage", [group_relative, centred, leave_one_out])
@pytest.mark.parametrize("size", [1, 3, 8, 1000])
@pytest.mark.parametrize("value", [1.0, -1.0, 0.0, 0.7, 1 / 3, -0.8137])
def test_equal_rewards_teach_nothing(value: float, size: int, advantage: Callable[[Tensor], Tensor]) -> None:
    """Whatever their size: the mean of equal numbers is rounded, and its error must not be blown up to 1."""
    for kind in (torch.float32, torch.float64):
        assert advantage(torch.full((size,), value, dtype=kind)).tolist() == [0.0] * size


def test_an_epsilon_keeps_responses_alike_that_are_alike() -> None:
    """Shaped rewards: two right responses of nearly one length are told apart at full strength, or hardly."""
    rewards = torch.tensor([0.75, 0.7501], dtype=torch.float64)
    assert group_relative(rewards).tolist() == pytest.approx([-1.0, 1.0])
    assert group_relative(rewards, epsilon=1e-3).tolist() == pytest.approx([-0.0476, 0.0476], abs=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_other_baselines_equal_their_twins(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rewards = rng.normal(size=int(rng.integers(2, 20)))
    accuracy = float(rng.random())
    given = torch.from_numpy(rewards)
    for ours, twin in ((centred, twins.centred), (leave_one_out, twins.leave_one_out)):
        assert ours(given).tolist() == pytest.approx(twin(rewards.tolist()), rel=1e-12, abs=1e-15)
    assert group_relative(given, epsilon=0.1).tolist() == pytest.approx(
        twins.group_relative(rewards.tolist(), epsilon=0.1)
    )
    for knobs in ({}, {"least": 0.1, "most": 3.0, "middle": 0.4, "slope": 3.0}):
        found = difficulty_weighted(given, accuracy, **knobs)
        assert found.tolist() == pytest.approx(
            twins.difficulty_weighted(rewards.tolist(), accuracy, **knobs), rel=1e-12
        )


def test_leaving_one_out_is_centring_made_unbiased() -> None:
    rewards = torch.tensor([1.0, -1.0, -1.0, 0.5], dtype=torch.float64)
    assert torch.allclose(leave_one_out(rewards), centred(rewards) * 4 / 3)
    assert leave_one_out(torch.tensor([1.0])).tolist() == [0.0]


@pytest.mark.parametrize("size", [2, 4, 128])
def test_without_the_deviation_one_right_answer_is_worth_at_most_two(size: int) -> None:
    """Dr. GRPO against the imbalance of the paper's complaint: 2 - 2/G where GRPO gives sqrt(G - 1)."""
    rewards = torch.tensor([1.0] + [-1.0] * (size - 1))
    assert float(centred(rewards)[0]) == pytest.approx(2 - 2 / size)
    assert float(group_relative(rewards)[0]) == pytest.approx((size - 1) ** 0.5, rel=1e-6)


def test_hard_prompts_weigh_what_is_right_and_easy_ones_what_is_wrong() -> None:
    both = torch.tensor([1.0, -1.0])
    hard, easy = difficulty_weighted(both, 0.1), difficulty_weighted(both, 0.9)
    assert hard.tolist() == pytest.approx([1.5, -0.6], abs=0.02) and easy.tolist() == pytest.approx(
        [0.6, -1.5], abs=0.02
    )
    assert difficulty_weighted(torch.zeros(2), 0.5).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.99, 0.95), (0.9, 0.0), (0.5, 1.0)])
def test_gae_equals_the_double_sum(gamma: float, lam: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rewards, values = rng.normal(size=(2, 17))
    found = gae(torch.from_numpy(rewards), torch.from_numpy(values), gamma=gamma, lam=lam)
    expected = twins.gae(rewards.tolist(), values.tolist(), gamma=gamma, lam=lam)
    assert found.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-14)


def test_gae_without_a_critic_is_the_reward_of_the_last_token() -> None:
    rewards = torch.tensor([0.0, 0.0, 0.0, -1.0])
    assert gae(rewards, torch.zeros(4), gamma=1.0, lam=1.0).tolist() == [-1.0] * 4


@pytest.mark.parametrize("seed", range(3))
def test_gae_of_a_row_is_gae_of_its_documents(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rewards, values = rng.normal(size=(2, 23))
    bounds = (0, 1, 9, 9, 23)
    knobs: dict[str, Any] = {"gamma": 0.97, "lam": 0.9}
    found = gae(torch.from_numpy(rewards), torch.from_numpy(values), bounds=bounds, **knobs)
    expected = twins.gae(rewards.tolist(), values.tolist(), bounds=bounds, **knobs)
    assert found.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-14)
    parts = [gae(torch.from_numpy(rewards[a:b]), torch.from_numpy(values[a:b]), **knobs) for a, b in pairwise(bounds)]
    assert torch.equal(found, torch.cat(parts))


def test_a_prompt_changes_nothing_in_the_response_behind_it() -> None:
    rewards, values = torch.randn(2, 9, generator=torch.Generator().manual_seed(0))
    alone = gae(rewards[4:], values[4:], gamma=0.9, lam=0.8)
    assert torch.equal(gae(rewards, values, gamma=0.9, lam=0.8, bounds=(0, 9))[4:], alone)


def test_gae_is_a_constant_in_the_type_of_the_rewards() -> None:
    values = torch.ones(3, requires_grad=True)
    found = gae(torch.zeros(3), values, gamma=1.0, lam=1.0)
    assert not found.requires_grad and found.dtype == torch.float32
    assert gae(torch.zeros(0), torch.zeros(0), gamma=1.0, lam=1.0).tolist() == []


def test_gae_of_a_long_response_takes_no_time() -> None:
    """25,000 tokens: some 0.2 ms, where a loop over tensors takes more than a second."""
    rewards, values = torch.randn(2, 25_000)
    gae(rewards, values, gamma=1.0, lam=0.95)
    before = time.process_time()
    for _ in range(10):
        gae(rewards, values, gamma=1.0, lam=0.95)
    assert time.process_time() - before < 0.2


@pytest.mark.parametrize("seed", range(3))
def test_whitened_equals_its_twin_and_has_mean_0_and_deviation_1(seed: int) -> None:
    rng = np.random.default_rng(seed)
    advantages, weights = torch.from_numpy(rng.normal(3.0, 2.0, size=50)), torch.from_numpy(rng.random(50))
    weights[rng.random(50) < 0.3] = 0.0
    found = whitened(advantages, weights)
    assert found.tolist() == pytest.approx(twins.whitened(advantages.tolist(), weights.tolist()), rel=1e-10)
    assert float((weights * found).sum()) == pytest.approx(0.0, abs=1e-12)
    assert float((weights * found.square()).sum() / weights.sum()) == pytest.approx(1.0)
    assert torch.allclose(whitened(advantages, 17 * weights), found)


@pytest.mark.parametrize("value", [0.0, 0.7, -123.456])
def test_whitening_what_is_all_the_same_gives_nothing(value: float) -> None:
    advantages, weights = torch.full((7,), value), torch.tensor([0.1, 0.2, 0.3, 0.0, 0.1, 0.1, 0.2])
    advantages[3] = 99.0  # not trained on
    assert whitened(advantages, weights).tolist() == [0.0] * 7
