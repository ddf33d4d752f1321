"""Recompute: the same numbers in less memory, no product twice where it is selective, and nothing without gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from algorist.model import lora, recompute
from algorist.model.batches import Batch
from algorist.model.policy import Policy
from algorist.model.recompute import KINDS, Kind
from model import tiny

LENGTHS = [23, 9, 21, 5]


def made(kind: Kind, family: str = "Llama", precision: str = "float32", adapted: bool = False) -> Policy:
    model = tiny.build(family)
    if adapted:
        pytest.importorskip("peft")
        lora.attach(model, rank=2, alpha=8, targets=(), address=(1,))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.add_(0.05)
    recompute.apply(model, kind)
    return Policy(model, precision=precision)


def loss(policy: Policy, row: Batch) -> Tensor:
    return policy.logprobs(row).mul(row.weights).sum().neg()


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", tiny.KINDS)
def test_every_kind_gives_the_same_numbers_bit_for_bit(family: str, precision: str, adapted: bool) -> None:
    row = tiny.row(1, LENGTHS)
    found = []
    for kind in KINDS:
        policy = made(kind, family, precision, adapted)
        value = loss(policy, row)
        value.backward()
        found.append((value.detach(), tiny.gradient(policy)))
    assert float(found[0][1].abs().max()) > 0
    for value, gradient in found[1:]:
        assert torch.equal(value, found[0][0]) and torch.equal(gradient, found[0][1])


def test_the_gradient_of_a_critic_too() -> None:
    row, found = tiny.row(1, LENGTHS), []
    for kind in KINDS:
        policy = Policy(made("none").model, critic="own")
        assert policy.critic is not None and policy.critic.trunk is not None
        torch.nn.init.constant_(policy.critic.head.weight, 0.1)
        recompute.apply(policy.model, kind)
        recompute.apply(policy.critic.trunk, kind)
        hidden = policy.hidden(row)
        (policy.values(row, hidden).square().sum() + policy.logprobs(row, hidden=hidden).sum()).backward()
        found.append(tiny.gradient(policy))
    assert torch.equal(found[1], found[0]) and torch.equal(found[2], found[0])


@pytest.mark.parametrize("adapted", [False, True])
def test_what_is_computed_twice(adapted: bool) -> None:
    """Selective: no product of a matrix of the model. Full: all but the last of each layer, which nothing needs."""
    row, counted = tiny.row(1, LENGTHS), {}
    for kind in KINDS:
        policy = made(kind, "Phi3", adapted=adapted)
        with FlopCounterMode(display=False) as counter:
            policy.hidden(row).sum().backward()
        counted[kind] = counter.get_total_flops()
    tokens, last = sum(LENGTHS), 48 * 32  # down_proj
    matrices = {name: p.numel() for name, p in made("none", "Phi3", adapted=adapted).named_parameters() if p.ndim == 2}
    layers = sum(size for name, size in matrices.items() if ".layers." in name)
    small = sum(size for name, size in matrices.items() if "lora" in name)
    assert 0 <= counted["selective"] - counted["none"] <= 2 * tokens * small
    assert (counted["selective"] == counted["none"]) is not adapted
    twice = counted["full"] - counted["none"]
    assert (
        twice == 2 * tokens * (layers - 2 * last) if not adapted else twice >= 2 * tokens * (layers - small - 2 * last)
    )


def test_without_gradients_nothing_is_kept_or_computed_twice() -> None:
    row, counted = tiny.row(1, LENGTHS), set()
    with torch.no_grad():
        expected = made("none").hidden(row)
        for kind in KINDS:
            with FlopCounterMode(display=False) as counter:
                found = made(kind).hidden(row)
            assert torch.equal(found, expected) and not found.requires_grad
            counted.add(counter.get_total_flops())
    assert len(counted) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_keeps_its_own_weights(kind: Kind) -> None:
    policy, row = made(kind), tiny.row(1, LENGTHS)
    before = policy.logprobs(row).detach()
    other = copy.deepcopy(policy)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(policy.logprobs(row), before)
    assert not torch.equal(other.logprobs(row), before)


def test_the_layers_of_every_family_are_found() -> None:
    for family in tiny.KINDS:
        assert len(recompute.layers(tiny.build(family))) == 2
