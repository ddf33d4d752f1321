"""Which weights a step moves: against a list of neighbours, against the addition itself, and at the recipe's rates."""

from __future__ import annotations

import pytest
import torch

from algorist.numerics.precision import moved_share
from oracles import precision as oracle

STEPS = (5e-7, 1e-5, 6.1e-5, 2.0**-13, 1e-3)


def drawn(dtype: torch.dtype) -> torch.Tensor:
    return (0.02 * torch.randn(400, generator=torch.Generator().manual_seed(0))).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("step", STEPS)
def test_as_the_oracle_counts(dtype: torch.dtype, step: float) -> None:
    weights = drawn(dtype)
    bits = 16 if dtype == torch.bfloat16 else 32
    expected = oracle.moved_share(weights.tolist(), step, bits=bits)
    assert moved_share(weights, step) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("step", STEPS)
def test_as_the_addition_itself_shows(dtype: torch.dtype, step: float) -> None:
    sizes = drawn(dtype).abs()
    after = (sizes.float() + step).to(dtype) if dtype == torch.bfloat16 else sizes + torch.tensor(step)
    assert moved_share(-sizes, step) == pytest.approx(float((after != sizes).double().mean()), abs=1e-12)


def test_halfway_goes_to_the_even_number() -> None:
    even, odd = torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([1.0 + 2.0**-7], dtype=torch.bfloat16)
    half = 2.0**-8  # numbers near 1 are 2 ** -7 apart
    assert (moved_share(even, half), moved_share(odd, half)) == (0.0, 1.0)
    assert moved_share(even, half * 1.01) == 1.0


def test_zero_always_moves_and_nothing_is_no_obstacle() -> None:
    assert moved_share(torch.zeros(3, dtype=torch.bfloat16), 1e-9) == 1.0
    assert moved_share(torch.zeros(0), 1e-9) == 1.0


def test_the_recipes_rates_need_float32() -> None:
    """Stage 3 and 4 at 5e-7, stages 1 and 2 at 1e-5, on weights of the usual size."""
    assert moved_share(drawn(torch.bfloat16), 5e-7) < 0.03
    assert moved_share(drawn(torch.bfloat16), 1e-5) < 0.25
    assert moved_share(drawn(torch.float32), 5e-7) == 1.0
