"""Which prompts and responses are kept: every choice is one that the twin allows, and every allowed one is met."""

import itertools

import numpy as np
import pytest

from algorist.numerics.groups import idle_share, length_spread, select, wants_more
from oracles import groups as twins


@pytest.mark.parametrize("seed", range(5))
def test_length_spread_equals_its_twin(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 20_000, size=int(rng.integers(2, 12))).tolist()
    assert length_spread(lengths) == pytest.approx(twins.length_spread(lengths), rel=1e-12)


def test_length_spread_of_nothing_to_compare() -> None:
    for lengths in ([], [5], [0, 0], [7, 7, 7]):
        assert length_spread(lengths) == twins.length_spread(lengths) == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_idle_share_equals_its_twin(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 20_000, size=int(rng.integers(1, 12))).tolist()
    assert idle_share(lengths) == pytest.approx(twins.idle_share(lengths), abs=1e-12)
    assert idle_share([]) == twins.idle_share([]) == idle_share([0, 0]) == twins.idle_share([0, 0]) == 0.0


@pytest.mark.parametrize("keep_flat", [True, False])
@pytest.mark.parametrize("balance", [True, False])
@pytest.mark.parametrize("max_accuracy", [0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("size", [0, 1, 2, 5, 6])
def test_select_keeps_what_the_twin_allows(size: int, max_accuracy: float, balance: bool, keep_flat: bool) -> None:
    how = {"balance": balance, "max_accuracy": max_accuracy, "keep_flat": keep_flat}
    for right in itertools.product([True, False], repeat=size):
        reason, allowed = twins.select(right, **how)
        found = select(right, np.random.default_rng(0), **how)
        assert found.reason == reason, right
        assert found.kept in allowed, right


def test_a_share_at_the_threshold_does_not_exceed_it() -> None:
    right = [True] * 29 + [False] * 71  # 0.29 * 100 is 28.999999999999996
    assert select(right, np.random.default_rng(0), max_accuracy=0.29).reason == "kept"


def test_select_draws_every_balanced_subset_about_equally_often() -> None:
    right = [True, False, False, False, True, False]
    _, allowed = twins.select(right, balance=True, max_accuracy=0.5)
    rng = np.random.default_rng(11)
    counts = dict.fromkeys(allowed, 0)
    for _ in range(1200):
        counts[select(right, rng).kept] += 1
    assert len(counts) == 6  # 4 choose 2
    assert min(counts.values()) > 150 and max(counts.values()) < 250


def test_above_one_half_the_right_ones_are_drawn_from() -> None:
    right = [True, True, True, False]
    kept = {select(right, np.random.default_rng(seed), max_accuracy=1.0).kept for seed in range(50)}
    assert kept == {(0, 3), (1, 3), (2, 3)}


@pytest.mark.parametrize(("enough_right", "most"), [(1, 4), (2, 4), (3, 3)])
def test_wants_more_equals_its_twin(enough_right: int, most: int) -> None:
    for size in range(6):
        for right in itertools.product([True, False], repeat=size):
            expected = twins.wants_more(right, enough_right=enough_right, most=most)
            assert wants_more(right, enough_right=enough_right, most=most) is expected
