"""Addressed randomness against whole numbers of Python, and published outputs."""

import itertools

import numpy as np
import pytest
import torch

from algorist.numerics.address import key, rng, uniforms
from oracles import address as twins

ADDRESSES = [(17,), (17, "rlvr", 3), ("é", 1, ("a", 2)), (0, "x", 1.5, None)]


@pytest.mark.parametrize("address", ADDRESSES)
def test_key_equals_its_twin(address: tuple[object, ...]) -> None:
    assert key(*address) == twins.key(*address)
    assert 0 <= key(*address) < 2**63


def test_keys_differ_where_any_part_differs() -> None:
    keys = {key(seed, stage, step) for seed in range(10) for stage in ("sft", "dpo") for step in range(10)}
    assert len(keys) == 200
    assert len({key(1, 23), key(12, 3), key("1", 23), key(23, 1)}) == 4


@pytest.mark.parametrize("address", ADDRESSES)
def test_rng_is_philox_keyed_by_the_address(address: tuple[object, ...]) -> None:
    expected = list(itertools.islice(twins.rng(*address), 12))
    assert rng(*address).bit_generator.random_raw(12).tolist() == expected


def test_uniforms_equal_their_twin() -> None:
    draws = np.random.default_rng(0)
    keys = draws.integers(0, 2**63, size=200)
    counters = draws.integers(0, 100_000, size=200)
    keys[:2] = 0, 2**63 - 1
    found = uniforms(torch.from_numpy(keys), torch.from_numpy(counters))
    assert found.dtype == torch.float64
    assert found.tolist() == twins.uniforms(keys.tolist(), counters.tolist())


def test_uniforms_of_seed_0_are_the_published_ones() -> None:
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    found = uniforms(torch.zeros(3, dtype=torch.int64), torch.arange(3))
    assert found.tolist() == [(output >> 11) / 2**53 for output in published]


def test_uniforms_fill_the_unit_interval_evenly() -> None:
    found = uniforms(torch.full((20_000,), key(1)), torch.arange(20_000))
    counts = torch.histc(found, bins=20, min=0, max=1)
    assert counts.min() > 850 and counts.max() < 1150
