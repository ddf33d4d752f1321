"""Quotas against exact fractions, and the draw against the chances that it promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algorist.numerics.quotas import draw_keys, water_fill
from oracles import quotas as twins

CELLS = st.lists(st.tuples(st.integers(0, 60), st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0, 4.0])), min_size=1, max_size=8)


@settings(max_examples=400, deadline=None)
@given(CELLS, st.integers(0, 300))
def test_water_fill_equals_its_twin(cells: list[tuple[int, float]], total: int) -> None:
    supply, weights = [list(part) for part in zip(*cells, strict=True)]
    found = water_fill(supply, weights, total)
    assert found == twins.water_fill(supply, weights, total)
    assert sum(found) == min(total, sum(n for n, w in cells if w > 0))
    assert all(0 <= q <= (n if w > 0 else 0) for q, (n, w) in zip(found, cells, strict=True))


@settings(max_examples=200, deadline=None)
@given(CELLS, st.integers(0, 300))
def test_one_more_to_take_and_no_kind_loses_more_than_rounding(cells: list[tuple[int, float]], total: int) -> None:
    supply, weights = [list(part) for part in zip(*cells, strict=True)]
    less, more = water_fill(supply, weights, total), water_fill(supply, weights, total + 1)
    assert all(b >= a - 1 for a, b in zip(less, more, strict=True))


def test_equal_weights_fill_to_one_height() -> None:
    assert water_fill([5, 50, 50], [1, 1, 1], 45) == [5, 20, 20]
    assert water_fill([5, 50, 50], [1, 1, 1], 46) == [5, 21, 20]
    assert water_fill([7, 3], [1.0, 1.0], 100) == [7, 3] and water_fill([], [], 4) == []


def test_draw_keys_equal_their_twin() -> None:
    rng = np.random.default_rng(0)
    uniforms, weights = rng.uniform(0.01, 1, 200), rng.uniform(0.3, 5, 200)
    np.testing.assert_allclose(draw_keys(uniforms, weights), twins.draw_keys(uniforms, weights), rtol=1e-12)


def test_the_greatest_key_is_drawn_in_proportion_to_weight() -> None:
    rng = np.random.default_rng(1)
    weights = [1.0, 2.0, 5.0]
    first = [int(np.argmax(draw_keys(rng.uniform(size=3), weights))) for _ in range(8000)]
    shares = np.bincount(first) / len(first)
    assert shares == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=0.02)
