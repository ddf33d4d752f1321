"""Optimizers: what a step does, what the states take, how they are saved, and rates that move nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from algorist.errors import RunError
from algorist.model import lora
from algorist.model.optimizers import Optimizer, require_movement
from algorist.model.policy import Policy
from model import tiny

KINDS = ("adamw", "muon", "adamw8bit")
# Large enough that torchao holds some states in 8 bits (4,096 weights or more, in blocks of 256).
SHAPE = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}


@pytest.fixture(autouse=True)
def _uncompiled() -> Iterator[None]:
    """Torchao compiles its step, half a minute for each shape on a CPU; the same code runs eagerly here."""
    with torch.compiler.set_stance("force_eager"):
        yield


def made(kind: str, *, weight_decay: float = 0.1) -> tuple[Policy, Optimizer]:
    if kind == "adamw8bit":
        pytest.importorskip("torchao")
    policy = Policy(tiny.build("Llama", **SHAPE))
    return policy, Optimizer(policy, kind=kind, weight_decay=weight_decay)


def learn(policy: Policy, optimizer: Optimizer, seed: int, rate: float = 1e-2) -> None:
    row = tiny.row(seed, [9, 5])
    policy.logprobs(row).mul(row.weights).sum().neg().backward()
    optimizer.step(rate)


def test_adamw_is_its_equation() -> None:
    """Three steps of Loshchilov and Hutter 2019, algorithm 2, in float64, one weight at a time."""
    weights = [1.0, -0.5, 0.25]
    slopes = [[0.3, -2.0, 1e-9], [0.1, 2.0, 0.0], [-0.7, 1.0, 3.0]]
    rates, decay, (one, two), eps = [0.1, 0.05, 0.01], 0.1, (0.9, 0.95), 1e-8
    layer = torch.nn.Linear(3, 1, bias=False)
    layer.weight.data = torch.tensor([weights])
    optimizer = Optimizer(layer, kind="adamw", weight_decay=decay)
    for slope, rate in zip(slopes, rates, strict=True):
        layer.weight.grad = torch.tensor([slope])
        optimizer.step(rate)
        assert layer.weight.grad is None
    for place, weight in enumerate(weights):
        mean = square = 0.0
        for step, rate in enumerate(rates):
            slope = slopes[step][place]
            mean = one * mean + (1 - one) * slope
            square = two * square + (1 - two) * slope**2
            weight -= rate * decay * weight
            scale = (square / (1 - two ** (step + 1))) ** 0.5 + eps
            weight -= rate * mean / (1 - one ** (step + 1)) / scale
        assert float(layer.weight.detach()[0, place]) == pytest.approx(weight, rel=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_first_step_moves_weights_by_about_the_rate(kind: str) -> None:
    policy, optimizer = made(kind, weight_decay=0.0)
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    learn(policy, optimizer, 1, rate=1e-3)
    for name, p in policy.named_parameters():
        if ".layers." in name and p.ndim == 2:
            moved = (p.detach() - before[name]).abs()
            assert 0.05e-3 < float(moved.square().mean().sqrt()) < 1.1e-3, name


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_state_goes_on_bit_for_bit(kind: str, tmp_path: Path) -> None:
    straight, optimizer = made(kind)
    learn(straight, optimizer, 1)
    learn(straight, optimizer, 2)
    safetensors.torch.save_file(optimizer.state(), tmp_path / "state.safetensors")
    resumed, again = made(kind)
    resumed.load_state_dict(straight.state_dict())
    again.load(safetensors.torch.load_file(tmp_path / "state.safetensors"))
    expected = optimizer.state()
    assert again.state().keys() == expected.keys()
    assert all(torch.equal(found, expected[name]) for name, found in again.state().items())
    forgetful = Policy(tiny.build("Llama", **SHAPE))
    forgetful.load_state_dict(straight.state_dict())
    for policy, own in (
        (straight, optimizer),
        (resumed, again),
        (forgetful, Optimizer(forgetful, kind=kind, weight_decay=0.1)),
    ):
        learn(policy, own, 3)
        learn(policy, own, 4)
    assert same(straight, resumed) and not same(straight, forgetful)


def same(one: Policy, other: Policy) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_the_states_take_what_was_planned(kind: str) -> None:
    policy, optimizer = made(kind)
    planned = optimizer.planned_bytes()
    learn(policy, optimizer, 1)
    # The step count, and in 8 bits the table that codes stand for, are there once for each tensor.
    own = ("/step", "/qmap")
    taken = sum(t.numel() * t.element_size() for n, t in optimizer.state().items() if not n.endswith(own))
    assert planned == taken
    weights = sum(p.numel() * p.element_size() for p in policy.parameters())
    assert {"adamw": taken == 2 * weights, "muon": taken < 1.5 * weights, "adamw8bit": taken < weights}[kind]


def test_8_bits_hold_the_states_of_large_matrices_alone() -> None:
    policy, optimizer = made("adamw8bit")
    learn(policy, optimizer, 1)
    state = optimizer.state()
    large = {name for name, p in policy.named_parameters() if p.numel() >= 4096 and p.numel() % 256 == 0}
    assert {address.split("/")[0] for address in state if address.endswith("/codes")} == large != set()
    assert all(state[f"{name}/exp_avg/codes"].dtype == torch.uint8 for name in large)


def test_without_torchao_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(RunError) as error:
        Optimizer(tiny.policy(), kind="adamw8bit", weight_decay=0.0)
    assert str(error.value) == (
        'optimizer = "adamw8bit" needs torchao, which is not installed. '
        "Install the extra with pip install '.[eightbit]'."
    )


def in_bfloat16() -> Policy:
    model = tiny.build("Llama")
    with torch.no_grad():
        for p in model.parameters():
            p.data = (0.02 * p / p.square().mean().sqrt()).to(torch.bfloat16)
    return Policy(model, precision="bfloat16")


def test_a_rate_that_moves_no_weight_is_refused() -> None:
    with pytest.raises(RunError) as error:
        require_movement(in_bfloat16(), "dpo", 5e-7)
    assert str(error.value) == (
        "[dpo] learning_rate = 5e-07 would move 0.8% of the trained weights: they are held in bfloat16, and so small "
        'a step is rounded away. Set [model] weights = "float32", train an adapter with lora.rank, or take a rate from '
        "3.2e-05 up."
    )
    require_movement(in_bfloat16(), "dpo", 3.2e-5)


def test_such_a_rate_does_move_nothing() -> None:
    """What is refused is what happens: the optimizer itself, ten steps."""

    def moved(policy: Policy) -> float:
        before: dict[str, Tensor] = {name: p.detach().clone() for name, p in policy.named_parameters()}
        optimizer = Optimizer(policy, kind="adamw", weight_decay=0.0)
        for seed in range(10):
            learn(policy, optimizer, seed, rate=5e-7)
        total = sum(p.numel() for p in policy.parameters())
        return sum(int((p != before[name]).sum()) for name, p in policy.named_parameters()) / total

    assert moved(in_bfloat16()) < 0.1
    assert moved(Policy(in_bfloat16().model.float())) > 0.9


@pytest.mark.parametrize("policy", [tiny.policy, lambda: tiny.policy(critic="shared")])
def test_float32_moves_at_every_rate_of_the_recipe(policy: Callable[[], Policy]) -> None:
    require_movement(policy(), "dpo", 5e-7)


def test_an_adapter_beside_bfloat16_weights_moves() -> None:
    policy = in_bfloat16()
    pytest.importorskip("peft")
    lora.attach(policy.model, rank=2, alpha=4, targets=(), address=(1,))
    require_movement(policy, "dpo", 5e-7)
