"""KL estimators: against their twins, and their values and gradients against the closed form, token by token.

A vocabulary of a few tokens can be summed over: what is tested is the expectation itself, no sample of it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from algorist.numerics.divergence import Estimator, kl_estimate, kl_penalty
from oracles import divergence as twins

ESTIMATORS: tuple[Estimator, ...] = ("k1", "k2", "k3")


def distributions(seed: int = 0, size: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of a policy, log-probabilities of a reference and of an old policy."""
    draw = torch.Generator().manual_seed(seed)
    logits, reference, old = torch.randn(3, size, dtype=torch.float64, generator=draw)
    return logits.requires_grad_(), reference.log_softmax(0), old.log_softmax(0)


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q)).sum()


def gradient(value: Tensor, logits: Tensor) -> list[float]:
    found: list[float] = torch.autograd.grad(value, logits, retain_graph=True)[0].tolist()
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_equal_their_twins(estimator: Estimator, seed: int) -> None:
    rng = np.random.default_rng(seed)
    here, there, old = (torch.from_numpy(-np.abs(rng.normal(size=30))) for _ in range(3))
    weights = torch.from_numpy(rng.random(30))
    lists = (here.tolist(), there.tolist())
    found = kl_estimate(here, there, estimator=estimator)
    assert found.tolist() == pytest.approx(twins.kl_estimate(*lists, estimator=estimator), rel=1e-9, abs=1e-14)
    for before in (None, old):
        penalty = kl_penalty(here, there, weights, estimator=estimator, old_logprobs=before)
        past = None if before is None else before.tolist()
        twin = twins.kl_penalty(*lists, weights.tolist(), estimator=estimator, old_logprobs=past)
        assert float(penalty.value) == pytest.approx(twin["value"], rel=1e-9)
        assert float(penalty.metrics["kl_reference"]) == pytest.approx(twin["kl_reference"], rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_values_on_policy(seed: int) -> None:
    """k1 and k3 have the mean KL(policy || reference); k2 has another, near it where the two are near."""
    logits, reference, _ = distributions(seed)
    policy = logits.detach().log_softmax(0)
    true = float(kl(policy, reference))
    means = {k: float(kl_penalty(policy, reference, policy.exp(), estimator=k).value) for k in ESTIMATORS}
    assert means["k1"] == pytest.approx(true, rel=1e-12) and means["k3"] == pytest.approx(true, rel=1e-12)
    assert means["k2"] != pytest.approx(true, rel=0.01)
    near = (policy + 0.01 * (reference - policy)).log_softmax(0)
    half = float(kl_penalty(policy, near, policy.exp(), estimator="k2").value)
    assert half == pytest.approx(float(kl(policy, near)), rel=0.02)


GRADIENTS: dict[Estimator, Callable[[Tensor, Tensor], Tensor]] = {
    "k1": lambda policy, reference: 0.0 * policy.sum(),
    "k2": kl,
    "k3": lambda policy, reference: kl(reference, policy),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradients_on_policy_without_the_ratio(estimator: Estimator, seed: int) -> None:
    """Only k2 has the gradient of KL(policy || reference); k1 has none, k3 that of KL(reference || policy)."""
    logits, reference, _ = distributions(seed)
    policy = logits.log_softmax(0)
    value = kl_penalty(policy, reference, policy.detach().exp(), estimator=estimator).value
    expected = gradient(GRADIENTS[estimator](policy, reference), logits)
    assert gradient(value, logits) == pytest.approx(expected, rel=1e-10, abs=1e-14)
    true = gradient(kl(policy, reference), logits)
    assert (gradient(value, logits) == pytest.approx(true, rel=1e-3)) == (estimator == "k2")


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_values_and_gradients_with_the_ratio(estimator: Estimator, moved: bool) -> None:
    """k1 and k3 have value and gradient of the KL, on policy and after it has moved on; k2 those of its own mean."""
    logits, reference, old = distributions(5)
    policy = logits.log_softmax(0)
    before = old if moved else policy.detach()
    value = kl_penalty(policy, reference, before.exp(), estimator=estimator, old_logprobs=before).value
    true = (policy.exp() * (policy - reference).square() / 2).sum() if estimator == "k2" else kl(policy, reference)
    assert value.item() == pytest.approx(true.item(), rel=1e-12)
    assert gradient(value, logits) == pytest.approx(gradient(true, logits), rel=1e-10, abs=1e-14)


def test_the_metric_is_the_same_whatever_is_optimised() -> None:
    logits, reference, old = distributions(6)
    policy = logits.log_softmax(0)
    found = {float(kl_penalty(policy, reference, old.exp(), estimator=k).metrics["kl_reference"]) for k in ESTIMATORS}
    assert len(found) == 1
    assert not kl_penalty(policy, reference, old.exp()).metrics["kl_reference"].requires_grad


def test_near_the_reference_k3_keeps_its_digits() -> None:
    """In float32, e^-d - 1 + d written as it stands is rounding only; its true value there is d^2 / 2."""
    distance = torch.tensor([1e-4, -1e-4])
    found = kl_estimate(distance, torch.zeros(2), estimator="k3")
    assert found.tolist() == pytest.approx([5e-9, 5e-9], rel=0.1)
    assert kl_estimate(torch.randn(1000) * 1e-3, torch.zeros(1000), estimator="k3").min() > -1e-10


def test_cutting_a_step_does_not_change_the_sum() -> None:
    here, there, weights = torch.randn(3, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    parts = [kl_penalty(here[s], there[s], weights[s]).value for s in (slice(6), slice(6, None))]
    assert float(sum(parts)) == pytest.approx(float(kl_penalty(here, there, weights).value), rel=1e-12)
