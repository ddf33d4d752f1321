"""Advantages against their twins, and the numbers that the paper's recipe implies."""

import numpy as np
import pytest
import torch

from algorist.numerics.advantages import gae, group_relative
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


@pytest.mark.parametrize("value", [1.0, -1.0, 0.0])
def test_equal_rewards_teach_nothing(value: float) -> None:
    assert group_relative(torch.full((8,), value)).tolist() == [0.0] * 8


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
