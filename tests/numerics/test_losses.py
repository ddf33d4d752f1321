"""Losses against their twins, and their gradients against finite differences, both in double precision."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from algorist.numerics import losses
from algorist.numerics.losses import Loss
from oracles import losses as twins

STEP = 1e-6


def numbers(seed: int, names: str, count: int) -> dict[str, Tensor]:
    """`count` numbers under each name: log-probabilities negative, weights with zeros among them."""
    rng = np.random.default_rng(seed)
    found = {}
    for name in names.split():
        values = rng.normal(size=count)
        if "weights" in name:
            values = np.where(rng.random(count) < 0.3, 0.0, rng.random(count)) / count
        elif "logprobs" in name:
            values = -np.abs(values)
        found[name] = torch.from_numpy(values)
    return found


PAIRS = "chosen rejected ref_chosen ref_rejected weights"
CASES = [
    ("cross_entropy", "logprobs weights", {}, "logprobs"),
    ("dpo_loss", PAIRS, {"beta": 0.1}, "chosen rejected"),
    ("dpo_loss", PAIRS, {"beta": 2.5}, "chosen rejected"),
    ("dpo_loss", PAIRS, {"beta": 0.7, "label_smoothing": 0.2}, "chosen rejected"),
    ("apo_zero_loss", PAIRS, {"beta": 0.1}, "chosen rejected"),
    ("apo_zero_loss", PAIRS, {"beta": 2.5}, "chosen rejected"),
    ("clipped_policy_loss", "logprobs old_logprobs advantages weights", {}, "logprobs"),
    (
        "clipped_policy_loss",
        "logprobs old_logprobs advantages weights",
        {"clip_low": 0.2, "clip_high": 0.28},
        "logprobs",
    ),
    ("clipped_policy_loss", "logprobs old_logprobs advantages weights", {"dual_clip": 1.5}, "logprobs"),
    ("entropy_bonus", "entropy weights", {}, "entropy"),
    ("value_loss", "values returns weights old_values", {"clip": 0.5}, "values"),
]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("name", "tensors", "knobs", "trained"), CASES)
def test_value_and_metrics_equal_the_twin(
    name: str, tensors: str, knobs: dict[str, float], trained: str, seed: int
) -> None:
    inputs = numbers(seed, tensors, 40)
    expected = getattr(twins, name)(**{key: value.tolist() for key, value in inputs.items()}, **knobs)
    for key in trained.split():
        inputs[key].requires_grad_()
    found: Loss = getattr(losses, name)(**inputs, **knobs)
    assert {key: float(value) for key, value in found.metrics.items()} == pytest.approx(expected, rel=1e-12, abs=1e-15)
    value = (
        -expected["entropy_bonus"] if "entropy_bonus" in expected else expected.get("loss", expected.get("value_loss"))
    )
    assert found.value.item() == pytest.approx(value, rel=1e-12)
    assert not any(metric.requires_grad for metric in found.metrics.values())


@pytest.mark.parametrize(("name", "tensors", "knobs", "trained"), CASES)
def test_gradient_equals_finite_differences(name: str, tensors: str, knobs: dict[str, float], trained: str) -> None:
    inputs = numbers(7, tensors, 25)
    loss: Callable[..., Loss] = getattr(losses, name)
    leaves = {key: inputs[key].clone().requires_grad_() for key in trained.split()}
    loss(**{**inputs, **leaves}, **knobs).value.backward()
    for key, leaf in leaves.items():
        assert leaf.grad is not None
        for place in range(len(leaf)):
            values = []
            for direction in (1, -1):
                moved = inputs[key].clone()
                moved[place] += direction * STEP
                values.append(float(loss(**{**inputs, key: moved}, **knobs).value))
            slope = (values[0] - values[1]) / (2 * STEP)
            assert float(leaf.grad[place]) == pytest.approx(slope, rel=1e-6, abs=1e-9), f"{key}[{place}]"


def test_the_clipping_cases_are_all_met() -> None:
    """The random numbers above must reach both clipped branches, or they would prove little."""
    inputs = numbers(7, "logprobs old_logprobs advantages weights", 25)
    ratio = (inputs["logprobs"] - inputs["old_logprobs"]).exp()
    spoken = inputs["weights"] > 0
    for sign, beyond in ((1, ratio > 1.28), (-1, ratio < 0.8), (1, ratio < 0.8), (-1, ratio > 1.28)):
        assert (spoken & beyond & (sign * inputs["advantages"] > 0)).any()
    assert (spoken & (ratio > 1.5) & (inputs["advantages"] < 0)).any()


def test_clipped_tokens_give_no_gradient_and_the_others_do() -> None:
    old = torch.zeros(4)
    new = torch.tensor([2.0, 0.5, 2.0, 0.5]).log().requires_grad_()
    advantages = torch.tensor([1.0, -1.0, -1.0, 1.0])  # beyond both bounds; then far out but pulling back
    losses.clipped_policy_loss(new, old, advantages, torch.ones(4)).value.backward()
    assert new.grad is not None
    assert new.grad.tolist() == pytest.approx([0.0, 0.0, 2.0, -0.5])


def test_a_dual_clip_ends_what_one_token_can_lose() -> None:
    old = torch.zeros(3)
    new = torch.tensor([100.0, 100.0, 2.0]).log().requires_grad_()
    advantages = torch.tensor([-1.0, 1.0, -1.0])  # far out and pushed back; far out and clipped as ever; not yet so far
    found = losses.clipped_policy_loss(new, old, advantages, torch.ones(3), dual_clip=3.0)
    found.value.backward()
    assert found.value.item() == pytest.approx(3.0 - 1.2 + 2.0)
    assert new.grad is not None and new.grad.tolist() == pytest.approx([0.0, 0.0, 2.0])
    assert float(found.metrics["clipped"]) == 2.0


def test_the_ratio_tail_is_the_weight_beyond_half_and_double() -> None:
    ratios = torch.tensor([0.4, 0.6, 1.0, 1.9, 2.1])
    weights = torch.tensor([0.1, 0.2, 0.3, 0.15, 0.25])
    found = losses.clipped_policy_loss(ratios.log(), torch.zeros(5), torch.ones(5), weights)
    assert float(found.metrics["ratio_tail"]) == pytest.approx(0.35)


@pytest.mark.parametrize("centre", [0.0, 5.0])
def test_on_policy_the_gradient_is_that_of_the_policy_gradient_theorem(centre: float) -> None:
    """Every token of a small vocabulary, weighted by how often it is drawn: the gradient of the expected reward.

    Whatever constant stands beside the reward (a baseline), clipping and the dual clip included: the ratio is 1.
    """
    logits = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    rewards = torch.tensor([1.0, -1.0, 0.5, 0.0, 2.0, -3.0], dtype=torch.float64)
    logprobs = logits.log_softmax(0)
    often = logprobs.detach().exp()
    found = losses.clipped_policy_loss(logprobs, logprobs.detach(), rewards - centre, often, dual_clip=3.0)
    (ours,) = torch.autograd.grad(found.value, logits, retain_graph=True)
    (theorem,) = torch.autograd.grad(-(logits.softmax(0) * rewards).sum(), logits)
    assert ours.tolist() == pytest.approx(theorem.tolist(), rel=1e-12, abs=1e-15)
    assert all(float(found.metrics[name]) == 0.0 for name in ("clipped", "ratio_tail", "kl"))


def test_the_entropy_bonus_leads_to_the_uniform_distribution() -> None:
    logits = torch.tensor([3.0, 0.0, -1.0], dtype=torch.float64, requires_grad=True)
    probabilities = logits.softmax(0)
    entropy = -(probabilities * probabilities.log()).sum()
    losses.entropy_bonus(entropy[None], torch.ones(1)).value.backward()
    assert logits.grad is not None
    closed = probabilities * (probabilities.log() + entropy)  # of -H, by hand
    assert logits.grad.tolist() == pytest.approx(closed.tolist())
    assert logits.grad[0] > 0  # a step against it makes the likeliest token less likely


def test_a_critic_without_bound_is_plain_least_squares() -> None:
    values, returns, old = torch.tensor([1.0, 4.0]), torch.tensor([3.0, 1.0]), torch.tensor([-9.0, 9.0])
    found = losses.value_loss(values, returns, torch.full((2,), 0.5), old_values=old, clip=math.inf)
    assert float(found.value) == pytest.approx((4 + 9) / 4)


@pytest.mark.parametrize(
    ("name", "far", "expected"),
    [
        ("dpo_loss", -2000.0, 1000.0 + math.log(2) / 2),
        ("dpo_loss", 2000.0, math.log(2) / 2),
        ("apo_zero_loss", -2000.0, (1.5 + 1.0) / 2),
        ("apo_zero_loss", 2000.0, (0.5 + 1.0) / 2),
    ],
)
def test_preferences_stay_finite_far_out(name: str, far: float, expected: float) -> None:
    chosen, zero, half = torch.tensor([far, 0.0], requires_grad=True), torch.zeros(2), torch.full((2,), 0.5)
    found: Loss = getattr(losses, name)(chosen, zero, zero, zero, half, beta=1.0)
    found.value.backward()
    assert chosen.grad is not None and chosen.grad.isfinite().all()
    assert found.value.item() == pytest.approx(expected)


def test_a_smoothed_preference_has_its_least_loss_where_the_odds_are_those_of_the_labels() -> None:
    """With a share s of labels wrong, no margin beyond log((1 - s) / s) gains anything."""
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    margin = torch.tensor([math.log(0.9 / 0.1)], dtype=torch.float64, requires_grad=True)
    losses.dpo_loss(margin, zero, zero, zero, one, beta=1.0, label_smoothing=0.1).value.backward()
    assert margin.grad is not None
    assert float(margin.grad) == pytest.approx(0.0, abs=1e-12)


def test_what_two_falls_gain() -> None:
    """Both responses become less likely, the rejected one more so: DPO is content, APO-zero is not."""
    zero, one = torch.zeros(1), torch.ones(1)
    chosen, rejected = torch.tensor([-40.0]), torch.tensor([-60.0])
    assert float(losses.dpo_loss(chosen, rejected, zero, zero, one, beta=0.1).value) < 0.13 < math.log(2)
    assert float(losses.apo_zero_loss(chosen, rejected, zero, zero, one, beta=0.1).value) == pytest.approx(
        0.9845, abs=1e-4
    )


@pytest.mark.parametrize("seed", range(4))
def test_pair_likelihoods_equal_their_twin(seed: int) -> None:
    inputs = numbers(seed, "logprobs ref_logprobs", 80) | numbers(seed, "weights", 40)
    inputs["lengths"] = torch.from_numpy(np.random.default_rng(seed).integers(1, 50, size=80)).double()
    inputs["logprobs"].requires_grad_()
    found = losses.pair_likelihoods(**inputs)
    expected = twins.pair_likelihoods(**{key: value.tolist() for key, value in inputs.items()})
    assert {key: float(value) for key, value in found.items()} == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert not any(metric.requires_grad for metric in found.values())


@pytest.mark.parametrize(("name", "tensors", "knobs", "trained"), CASES)
def test_cutting_a_step_does_not_change_the_sum(name: str, tensors: str, knobs: dict[str, float], trained: str) -> None:
    inputs = numbers(3, tensors, 30)
    whole = getattr(losses, name)(**inputs, **knobs)
    parts = [getattr(losses, name)(**{k: v[s] for k, v in inputs.items()}, **knobs) for s in (slice(7), slice(7, None))]
    for metric, value in whole.metrics.items():
        assert float(sum(part.metrics[metric] for part in parts)) == pytest.approx(float(value), rel=1e-12)
