"""The sampler's correction against its twin, and what it is for: expectations under the trainer's policy."""

from __future__ import annotations

import itertools
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from algorist.numerics.importance import correction
from algorist.numerics.losses import clipped_policy_loss
from oracles import importance as twins

BOUNDS = (0, 7, 8, 25, 40)


def numbers(seed: int, count: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    """Trainer's and sampler's log-probabilities, and weights that are 0 at the beginning of each document."""
    rng = np.random.default_rng(seed)
    sampler = -np.abs(rng.normal(size=count))
    old = sampler + rng.normal(scale=0.7, size=count)
    weights = rng.random(count) / count
    for start, end in itertools.pairwise(BOUNDS):
        weights[start : start + (end - start) // 3] = 0.0
    return torch.from_numpy(old), torch.from_numpy(sampler), torch.from_numpy(weights)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bounds", [None, BOUNDS])
@pytest.mark.parametrize("knobs", [{}, {"high": 1.2}, {"kind": "mask", "low": 0.5}, {"low": 0.8, "high": 1.25}])
def test_equals_its_twin(knobs: dict[str, Any], bounds: tuple[int, ...] | None, seed: int) -> None:
    old, sampler, weights = numbers(seed)
    found = correction(old, sampler, weights, **knobs, bounds=bounds)
    coefficients, touched = twins.correction(
        old.tolist(),
        sampler.tolist(),
        weights.tolist(),
        **knobs,
        bounds=bounds,
    )
    assert found.coefficients.tolist() == pytest.approx(coefficients, rel=1e-12)
    assert float(found.touched) == pytest.approx(touched, rel=1e-12, abs=1e-15)


def test_the_cases_are_all_met() -> None:
    old, sampler, weights = numbers(0)
    ratio = (old - sampler).exp()
    assert ((weights > 0) & (ratio > 2)).any() and ((weights > 0) & (ratio < 0.5)).any() and (weights == 0).any()
    by_response = correction(old, sampler, weights, kind="mask", low=0.9, high=1.1, bounds=BOUNDS)
    assert 0 < float(by_response.touched) < float(weights.sum())


def test_what_is_not_trained_on_cannot_touch_anything() -> None:
    old, sampler, weights = numbers(1)
    spoilt = torch.where(weights > 0, old, 50.0)
    for bounds in (None, BOUNDS):
        plain, other = (correction(one, sampler, weights, bounds=bounds) for one in (old, spoilt))
        assert torch.equal(plain.coefficients, other.coefficients) and torch.equal(plain.touched, other.touched)


@pytest.mark.parametrize("bounds", [None, (0, 4)])
@pytest.mark.parametrize("kind", ["truncate", "mask"])
def test_equal_numbers_change_nothing(kind: Literal["truncate", "mask"], bounds: tuple[int, ...] | None) -> None:
    logprobs = torch.tensor([-1.0, -0.1, -7.0, 0.0])
    found = correction(logprobs, logprobs.clone(), torch.full((4,), 0.25), kind=kind, bounds=bounds)
    assert found.coefficients.tolist() == [1.0] * 4 and float(found.touched) == 0.0


def test_documents_do_not_see_each_other() -> None:
    old, sampler, weights = numbers(2)
    whole = correction(old, sampler, weights, bounds=BOUNDS)
    cut = [
        correction(old[part], sampler[part], weights[part], bounds=(0, part.stop - part.start))
        for part in (slice(a, b) for a, b in itertools.pairwise(BOUNDS))
    ]
    assert torch.allclose(torch.cat([part.coefficients for part in cut]), whole.coefficients, rtol=1e-12, atol=0)
    assert float(sum(part.touched for part in cut)) == pytest.approx(float(whole.touched))


def test_it_is_a_constant() -> None:
    old = torch.tensor([-1.0, -2.0], requires_grad=True)
    found = correction(old, torch.tensor([-1.5, -1.5]), torch.ones(2))
    assert not found.coefficients.requires_grad and not found.touched.requires_grad


def test_with_it_the_gradient_is_the_trainers_own() -> None:
    """Tokens drawn by a sampler that is off: with wide bounds the expected gradient is that of the trainer's policy."""
    draw = torch.Generator().manual_seed(4)
    logits = torch.randn(5, dtype=torch.float64, generator=draw).requires_grad_()
    sampler = (logits.detach() + 0.4 * torch.randn(5, dtype=torch.float64, generator=draw)).log_softmax(0)
    rewards = torch.tensor([1.0, -1.0, 0.0, 2.0, -0.5], dtype=torch.float64)
    logprobs, often = logits.log_softmax(0), sampler.exp()
    (true,) = torch.autograd.grad(-(logits.softmax(0) * rewards).sum(), logits)
    gaps = []
    for high in (1.0, 1.2, 100.0):
        fixed = correction(logprobs.detach(), sampler, often, high=high).coefficients
        value = clipped_policy_loss(logprobs, logprobs.detach(), fixed * rewards, often).value
        (found,) = torch.autograd.grad(value, logits, retain_graph=True)
        gaps.append(float((found - true).norm()))
    assert gaps[2] < 1e-12 < gaps[1] < gaps[0]
