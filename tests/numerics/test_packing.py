"""Packing: nothing cut, nothing lost, best fit indeed, and close to the fewest rows possible."""

import numpy as np
import pytest

from algorist.numerics.packing import pack
from oracles import packing as twins


@pytest.mark.parametrize("seed", range(30))
def test_rows_are_whole_valid_and_near_the_optimum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    capacity = int(rng.integers(5, 20))
    lengths = rng.integers(1, capacity + 1, size=int(rng.integers(1, 9))).tolist()
    rows = pack(lengths, capacity)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in row) <= capacity for row in rows)
    fewest = twins.pack(lengths, capacity)
    # For so few documents best-fit decreasing needs at most one row more than the optimum.
    assert fewest <= len(rows) <= fewest + 1


@pytest.mark.parametrize("seed", range(5))
def test_rows_are_as_full_as_best_fit_leaves_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = np.minimum(rng.geometric(0.02, size=400), 256).tolist()
    rooms = sorted(256 - sum(lengths[i] for i in row) for row in pack(lengths, 256))
    assert rooms == twins.best_fit_rooms(lengths, 256)


def test_exact_fits_open_no_further_row() -> None:
    assert len(pack([6, 4, 7, 3, 5, 5], 10)) == twins.pack([6, 4, 7, 3, 5, 5], 10) == 3


def test_equal_lengths_keep_their_order() -> None:
    assert pack([4, 4, 4, 4], 8) == [[0, 1], [2, 3]]
    assert pack([], 8) == []


@pytest.mark.parametrize("lengths", [[3, 9], [0, 3]])
def test_a_document_that_does_not_fit_is_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError) as error:
        pack(lengths, 8)
    assert str(error.value) == f"document lengths lie in {min(lengths)}..{max(lengths)}, rows hold 1..8 tokens"
