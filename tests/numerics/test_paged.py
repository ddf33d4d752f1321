"""Attention over pages beside its twin: ragged lengths, shared heads, both types, one thread and more."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from algorist.numerics import paged
from oracles import paged as oracle

PAGE = 4


@pytest.fixture(params=[1, 3], ids=["alone", "together"])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    monkeypatch.setattr(paged, "_ALONE", 0)  # so small a work would never be shared
    yield request.param
    torch.set_num_threads(before)


def cache(pages: int, heads: int, dim: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Pages of normal numbers, a whole page of no numbers at the end."""
    found = torch.randn(pages, heads, PAGE, dim, generator=torch.Generator().manual_seed(seed)).to(dtype)
    found[-1] = torch.nan
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "shared", "dim"), [(4, 2, 6), (3, 3, 1), (5, 1, 16)])
def test_equals_the_twin(threads: int, dtype: torch.dtype, heads: int, shared: int, dim: int) -> None:
    used = torch.tensor([1, 3, 4, 5, 8, 11, 12], dtype=torch.int32)  # within a page, at its border, past it
    keys, values = (cache(22, shared, dim, dtype, seed) for seed in (1, 2))
    generator = torch.Generator().manual_seed(3)
    table = torch.randperm(21, generator=generator).int().view(7, 3)
    table[torch.arange(3) * PAGE >= used[:, None]] = 21  # pages beyond the end must not be read
    query = 3 * torch.randn(7, heads, dim, generator=generator)
    found = paged.attend(query, keys, values, table, used, 0.7)
    given = (query.tolist(), keys.tolist(), values.tolist(), table.tolist(), used.tolist())
    expected = torch.tensor(oracle.attend(*given, 0.7), dtype=torch.float64)
    assert found.dtype == torch.float32 and found.shape == query.shape
    assert float((found - expected).abs().max()) < 2e-6


def test_what_stands_after_the_last_token_is_not_read(threads: int) -> None:
    keys, values = (cache(3, 2, 4, torch.float32, seed) for seed in (1, 2))
    keys[1, :, 2:] = values[1, :, 2:] = torch.nan
    table, used = torch.tensor([[0, 1]]).int(), torch.tensor([PAGE + 2]).int()
    assert paged.attend(torch.ones(1, 2, 4), keys, values, table, used, 1.0).isfinite().all()


def test_large_scores_do_not_overflow(threads: int) -> None:
    keys = torch.tensor([1000.0, -1000.0, 999.0, 0.0]).view(1, 1, PAGE, 1)
    values = torch.tensor([1.0, 50.0, 2.0, 70.0]).view(1, 1, PAGE, 1)
    table, used = torch.tensor([[0]]).int(), torch.tensor([4]).int()
    found = paged.attend(torch.ones(1, 1, 1), keys, values, table, used, 1.0)
    assert found.item() == pytest.approx((1 + 2 / 2.718281828) / (1 + 1 / 2.718281828), abs=1e-6)


def test_exp_is_that_of_float64() -> None:
    x = np.linspace(-87, 0, 4001).astype(np.float32)
    found = np.array([paged._exp(one) for one in x])
    assert found == pytest.approx(np.exp(x.astype(np.float64)), rel=3e-7)
    assert paged._exp(np.float32(0)) == 1 and paged._exp(np.float32(-88.5)) == 0 == paged._exp(np.float32(-3e38))


def test_weights_are_those_of_float64() -> None:
    """Scores of both signs, and so far apart that a weight may be too small for a number."""
    scores = np.random.default_rng(1).permutation(np.linspace(-700, 90, 1999)).astype(np.float32)
    expected = np.exp(0.25 * (scores.astype(np.float64) - scores.max()))
    expected /= expected.sum()
    paged._softmax(scores, np.float32(0.25))
    assert scores == pytest.approx(expected, rel=1e-5, abs=2e-38)  # scores of 200 are rounded to 1e-5
    assert scores.min() == 0 and scores.sum(dtype=np.float64) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("one", [np.nan, np.inf])
def test_a_score_that_is_no_number_is_not_hidden(one: float) -> None:
    """The sampler finds weights that have grown too far by logits that are no numbers."""
    scores = np.array([1, 2, one, -3, 4], dtype=np.float32)
    paged._softmax(scores, np.float32(1))
    assert np.isnan(scores).all()


def test_a_score_without_hope_has_no_weight() -> None:
    scores = np.array([-np.inf, -200, -200], dtype=np.float32)  # all below what exp has numbers for
    paged._softmax(scores, np.float32(1))
    assert scores.tolist() == [0, 0.5, 0.5]


def test_threads_change_no_bit() -> None:
    """Each task is one thread's, so that a run is the same on other machines."""
    before, found = torch.get_num_threads(), []
    keys, values = (cache(331, 2, 64, torch.float32, seed)[:-1] for seed in (1, 2))
    table, used = torch.arange(330).int().view(66, 5), torch.full((66,), 5 * PAGE).int()
    used[::3] = 7
    query = torch.randn(66, 4, 64, generator=torch.Generator().manual_seed(3))
    many = [x.repeat(1, 8, 1, 1) for x in (keys, values)]  # enough to be shared by threads
    assert int(used.sum()) * 16 * 64 > paged._ALONE
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(paged.attend(query.repeat(1, 8, 1), *many, table, used, 0.125))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
