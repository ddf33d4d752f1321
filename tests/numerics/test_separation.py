"""Newton's weights against slow steps uphill, and what they must tell apart."""

from __future__ import annotations

import numpy as np
import pytest

from algorist.numerics.separation import bradley_terry
from oracles import separation as twins


@pytest.mark.parametrize("seed", range(4))
def test_weights_equal_their_twin(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(40, 3)) + rng.normal(scale=0.3, size=3)
    slow = twins.bradley_terry(rows.tolist(), ridge=0.05)
    np.testing.assert_allclose(bradley_terry(rows, ridge=0.05), slow, rtol=1e-5, atol=1e-7)


def test_what_tells_all_pairs_apart_has_a_finite_weight() -> None:
    rows = np.stack([np.full(500, 1.0), np.random.default_rng(0).normal(size=500)], axis=1)
    weights = bradley_terry(rows)
    assert np.isfinite(weights).all() and weights[0] > 3 and abs(weights[1]) < 0.3


def test_turned_pairs_turn_the_weights() -> None:
    rows = np.random.default_rng(1).normal(loc=0.2, size=(100, 4))
    np.testing.assert_allclose(bradley_terry(-rows), -bradley_terry(rows), atol=1e-8)


def test_without_pairs_there_is_nothing_to_weigh() -> None:
    assert bradley_terry(np.zeros((0, 3))).tolist() == [0.0, 0.0, 0.0]
