"""Packing: nothing cut, nothing lost, the plan that the oracle makes, and close to the fewest rows possible."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from algorist.numerics.packing import pack
from algorist.numerics.shingles import Rows
from oracles import packing as twins


def told(rows: Rows) -> list[list[int]]:
    return [row.tolist() for row in rows]


def drawn(median: float, spread: float, count: int) -> NDArray[np.int64]:
    """Lengths from a lognormal, those above 16,384 left out."""
    normal = np.random.default_rng(7).standard_normal(2 * count)
    lengths = np.ceil(median * np.exp(spread * normal)).astype(np.int64)
    return lengths[lengths <= 16_384][:count]


@given(st.data(), st.one_of(st.integers(1, 70), st.integers(4_090, 4_100), st.integers(1, 300_000)))
@settings(max_examples=300, deadline=None)
def test_the_plan_is_the_oracles(data: st.DataObject, capacity: int) -> None:
    few = data.draw(st.lists(st.integers(1, capacity), min_size=1, max_size=12))
    lengths = data.draw(st.lists(st.one_of(st.integers(1, capacity), st.sampled_from(few)), max_size=120))
    assert told(pack(lengths, capacity)) == twins.pack(lengths, capacity)


@pytest.mark.parametrize(("median", "spread"), [(2_600, 0.75), (7_200, 0.65)])
@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint16])
def test_the_plan_of_many_documents_is_the_oracles(median: float, spread: float, kind: type) -> None:
    lengths = drawn(median, spread, 20_000)
    rows = pack(lengths.astype(kind), 16_384)
    assert told(rows) == twins.pack(lengths.tolist(), 16_384)
    assert rows.values.dtype == rows.starts.dtype == np.int64


@pytest.mark.parametrize(("median", "spread", "least"), [(2_600, 0.75, 0.999), (7_200, 0.65, 0.9945)])
def test_rows_are_nearly_full(median: float, spread: float, least: float) -> None:
    lengths = drawn(median, spread, 200_000)
    rows = pack(lengths, 16_384)
    assert len(lengths) == 200_000 and np.array_equal(np.sort(rows.values), np.arange(200_000))
    sizes = np.add.reduceat(lengths[rows.values], rows.starts[:-1])
    assert sizes.max() <= 16_384 and sizes.mean() / 16_384 >= least


@pytest.mark.parametrize("seed", range(30))
def test_rows_are_whole_valid_and_near_the_optimum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    capacity = int(rng.integers(5, 20))
    lengths = rng.integers(1, capacity + 1, size=int(rng.integers(1, 9))).tolist()
    rows = told(pack(lengths, capacity))
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in row) <= capacity for row in rows)
    fewest = twins.fewest(lengths, capacity)
    # For so few documents best-fit decreasing needs at most one row more than the optimum.
    assert fewest <= len(rows) <= fewest + 1


@pytest.mark.parametrize("seed", range(5))
def test_rows_are_as_full_as_best_fit_leaves_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = np.minimum(rng.geometric(0.02, size=400), 256).tolist()
    rooms = sorted(256 - sum(lengths[i] for i in row) for row in told(pack(lengths, 256)))
    assert rooms == twins.best_fit_rooms(lengths, 256)


def test_exact_fits_open_no_further_row() -> None:
    assert len(pack([6, 4, 7, 3, 5, 5], 10)) == twins.fewest([6, 4, 7, 3, 5, 5], 10) == 3


def test_equal_lengths_keep_their_order() -> None:
    assert told(pack([4, 4, 4, 4], 8)) == [[0, 1], [2, 3]]


@pytest.mark.parametrize("lengths", [[], np.empty(0, np.int32)])
def test_no_documents_make_no_rows(lengths: list[int] | NDArray[np.int32]) -> None:
    assert told(pack(lengths, 8)) == []


@pytest.mark.parametrize("lengths", [[3, 9], [0, 3], [-1, 3]])
def test_a_document_that_does_not_fit_is_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError) as error:
        pack(np.array(lengths), 8)
    assert str(error.value) == f"document lengths lie in {min(lengths)}..{max(lengths)}, rows hold 1..8 tokens"
