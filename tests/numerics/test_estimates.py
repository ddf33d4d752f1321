"""Intervals against their definitions, and how often they hold the truth."""

import math

import numpy as np
import pytest

from algorist.numerics import estimates
from oracles import estimates as twins


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("samples", [1, 4, 64])
def test_mean_interval_equals_the_definition(seed: int, samples: int) -> None:
    rng = np.random.default_rng(seed)
    shares = (rng.binomial(samples, rng.random(25)) / samples).tolist()
    assert estimates.mean_interval(shares) == pytest.approx(twins.mean_interval(shares), abs=1e-9)


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("count", [1, 30])
def test_mean_interval_at_the_ends_keeps_its_width(value: float, count: int) -> None:
    mean, low, high = estimates.mean_interval([value] * count)
    assert (mean, low, high) == pytest.approx(twins.mean_interval([value] * count), abs=1e-9)
    assert 0.0 <= low < high <= 1.0


@pytest.mark.parametrize("value", [0.1, 0.25, 0.7])
def test_equal_shares_are_not_taken_for_certain(value: float) -> None:
    """Three times 0.1 has a computed variance of 1e-34, and so had an interval of no width."""
    mean, low, high = estimates.mean_interval([value] * 3)
    assert mean == pytest.approx(value) and high - low > 0.5


def test_z_is_the_two_sided_95_percent_point() -> None:
    assert pytest.approx(twins.Z, abs=1e-12) == estimates.Z


def test_mean_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(600):
        shares = rng.binomial(1, 0.3, size=40).tolist()
        _, low, high = estimates.mean_interval(shares)
        held += low <= 0.3 <= high
    assert 0.92 <= held / 600 <= 0.98


@pytest.mark.parametrize("seed", range(4))
def test_paired_change_equals_its_twin(seed: int) -> None:
    rng = np.random.default_rng(seed)
    before, after = rng.random((2, 30)).tolist()
    assert estimates.paired_change(before, after) == pytest.approx(twins.paired_change(before, after), rel=1e-9)


def test_paired_change_of_one_problem_says_that_it_knows_nothing() -> None:
    assert estimates.paired_change([0.0], [1.0]) == twins.paired_change([0.0], [1.0]) == (1.0, -math.inf, math.inf)
