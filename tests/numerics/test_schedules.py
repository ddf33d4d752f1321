"""Schedules against their twins, at every step."""

import itertools

import pytest

from algorist.numerics.schedules import learning_rate, temperature
from oracles import schedules as twins


@pytest.mark.parametrize("num_steps", [1, 7, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.33, 1.0])
@pytest.mark.parametrize("end", [0.0, 0.1, 1.0])
def test_learning_rate_equals_its_twin(num_steps: int, warmup: float, end: float) -> None:
    for step in range(num_steps):
        found = learning_rate(step, num_steps, peak=3e-4, warmup=warmup, end=end)
        expected = twins.learning_rate(step, num_steps, peak=3e-4, warmup=warmup, end=end)
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-15)
        assert 0 < found <= 3e-4 * (1 + 1e-12)


def test_learning_rate_meets_its_peak_once_and_falls() -> None:
    rates = [learning_rate(step, 100, peak=1.0, warmup=0.1, end=0.0) for step in range(100)]
    assert rates[9] == rates[10] == 1.0
    assert all(a < b for a, b in itertools.pairwise(rates[:10]))
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))


@pytest.mark.parametrize(("num_steps", "over"), [(100, 0.5), (7, 0.5), (10, 1.0), (5, 0.0), (3, 0.1)])
def test_temperature_equals_its_twin(num_steps: int, over: float) -> None:
    for step in range(num_steps):
        found = temperature(step, num_steps, start=1.0, end=0.6, over=over)
        assert found == pytest.approx(twins.temperature(step, num_steps, start=1.0, end=0.6, over=over), rel=1e-12)


def test_temperature_of_the_paper() -> None:
    """1.0 to 0.6 over the first half of the steps, then fixed at the temperature of the evaluation."""
    found = [temperature(step, 200, start=1.0, end=0.6, over=0.5) for step in (0, 25, 50, 100, 150, 199)]
    assert found == pytest.approx([1.0, 0.9, 0.8, 0.6, 0.6, 0.6], abs=1e-12)
