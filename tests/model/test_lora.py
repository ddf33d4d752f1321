"""Adapters: LoRA's equation, addressed beginnings, what is trained, and merging that never touches the live weights."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open

from algorist.errors import RecipeError, RunError
from algorist.model import checkpoints, lora
from algorist.model.optimizers import Optimizer
from algorist.model.policy import Policy
from algorist.records import Checkpoint
from algorist.toy import words
from model import tiny

peft = pytest.importorskip("peft")
LENGTHS = [9, 14, 3]


def adapted(family: str = "Llama", *, rank: int = 2, alpha: float = 8.0, moved: bool = True, **how: Any) -> Policy:
    """A tiny policy with adapters, which are no zeros any more where `moved`."""
    policy = tiny.policy(family, **how)
    lora.attach(policy.model, rank=rank, alpha=alpha, targets=(), address=(7, "sft"))
    if moved:
        generator = torch.Generator().manual_seed(3)
        for tensor in lora.tensors(policy.model).values():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    return policy


def learn(policy: Policy, optimizer: Optimizer, seed: int) -> None:
    row = tiny.row(seed, LENGTHS)
    policy.logprobs(row).mul(row.weights).sum().neg().backward()
    optimizer.step(1e-2)


@pytest.mark.parametrize("family", tiny.KINDS)
def test_an_adapter_is_its_equation(family: str) -> None:
    """W x + (alpha / rank) B A x: the same as a model whose W is that sum."""
    policy = adapted(family)
    plain = tiny.policy(family)
    own = dict(policy.named_parameters())
    for name, parameter in plain.named_parameters():
        a, b = (own.get(name.removesuffix("weight") + f"lora_{part}.default.weight") for part in "AB")
        if a is not None and b is not None:
            parameter.data += 8.0 / 2 * (b.double() @ a.double()).float()
    row = tiny.row(1, LENGTHS)
    tiny.assert_close(policy.logprobs(row), plain.logprobs(row))
    assert not torch.equal(plain.logprobs(row), tiny.policy(family).logprobs(row))


@pytest.mark.parametrize("family", tiny.KINDS)
def test_before_training_nothing_is_changed(family: str) -> None:
    row = tiny.row(1, LENGTHS)
    assert torch.equal(adapted(family, moved=False).logprobs(row), tiny.policy(family).logprobs(row))


def test_the_beginning_is_drawn_from_its_address() -> None:
    first, again = adapted(moved=False), adapted(moved=False)
    torch.manual_seed(5)
    other = tiny.policy("Llama")
    lora.attach(other.model, rank=2, alpha=8.0, targets=(), address=(8, "sft"))
    one, two, three = (lora.tensors(policy.model) for policy in (first, again, other))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    for name, tensor in one.items():
        if ".lora_B." in name:
            assert not tensor.any()
            continue
        bound = tensor.shape[1] ** -0.5
        assert 0.8 * bound < float(tensor.abs().max()) <= bound and not torch.equal(tensor, three[name])
    assert len({tuple(tensor.flatten()[:4].tolist()) for name, tensor in one.items() if ".lora_A." in name}) == 14


def test_adapters_and_critic_are_trained_and_nothing_else() -> None:
    policy = adapted(critic="shared")
    frozen = {name: p.detach().clone() for name, p in policy.named_parameters() if not p.requires_grad}
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    adapters = {f"model.{name}" for name in lora.tensors(policy.model)}
    assert trained == adapters | {"critic.head.weight", "critic.head.bias"}
    assert "model.lm_head.weight" in frozen and "model.model.norm.weight" in frozen
    row, optimizer = tiny.row(1, LENGTHS), Optimizer(policy, kind="adamw", weight_decay=0.1)
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    hidden = policy.hidden(row)
    (policy.values(row, hidden).sum() + policy.logprobs(row, hidden=hidden).sum()).backward()
    optimizer.step(1e-2)
    for name, p in policy.named_parameters():
        assert torch.equal(p, before[name]) is (name in frozen), name


def test_named_targets_alone() -> None:
    policy = tiny.policy("Llama")
    lora.attach(policy.model, rank=1, alpha=1.0, targets=("q_proj", "v_proj"), address=(1,))
    assert {name.split(".")[-4] for name in lora.tensors(policy.model)} == {"q_proj", "v_proj"}
    with pytest.raises(RecipeError) as error:
        lora.attach(tiny.build("Phi3"), rank=1, alpha=1.0, targets=("q_proj",), address=(1,))
    assert str(error.value) == (
        "lora.targets: q_proj is no matrix of this model's layers. Known here: o_proj, qkv_proj, gate_up_proj, "
        "down_proj."
    )


def test_without_peft_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(RunError) as error:
        lora.attach(tiny.build(), rank=8, alpha=1.0, targets=(), address=(1,))
    assert str(error.value) == (
        "lora.rank = 8 needs peft, which is not installed. Install the extra with pip install '.[lora]'."
    )


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft's own, of transformers' names
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", tiny.KINDS)
def test_merged_as_peft_merges(family: str, tied: bool) -> None:
    model = tiny.build(family, tied=tied)
    theirs = copy.deepcopy(model)
    lora.attach(model, rank=2, alpha=8.0, targets=(), address=(1,))
    generator = torch.Generator().manual_seed(3)
    for tensor in lora.tensors(model).values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    names = sorted({name.split(".")[-4] for name in lora.tensors(model)})
    wrapped = peft.get_peft_model(theirs, peft.LoraConfig(r=2, lora_alpha=8.0, target_modules=names))
    with torch.no_grad():
        for name, parameter in wrapped.base_model.model.named_parameters():
            if name in lora.tensors(model):
                parameter.copy_(lora.tensors(model)[name])
    expected = wrapped.merge_and_unload().state_dict()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = lora.merged(model)
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", tiny.KINDS)
def test_a_checkpoint_is_a_plain_model(tmp_path: Path, family: str, tied: bool) -> None:
    """from_pretrained opens it without peft's wrappers, with the log-probabilities of the policy that was saved."""
    policy = Policy(tiny.build(family, tied=tied))
    lora.attach(policy.model, rank=2, alpha=8.0, targets=(), address=(1,))
    optimizer = Optimizer(policy, kind="adamw", weight_decay=0.0)
    learn(policy, optimizer, 1)
    row = tiny.row(2, LENGTHS)
    before = policy.logprobs(row)
    checkpoints.save(tmp_path / "c", policy, words.tokenizer(), Checkpoint("", "sft", 1))
    assert torch.equal(policy.logprobs(row), before), "saving touched the live weights"
    assert not list(tmp_path.glob("c/adapter*"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "c", dtype=torch.float32)
    assert theirs.state_dict().keys() == tiny.build(family, tied=tied).state_dict().keys()
    tiny.assert_close(Policy(theirs).logprobs(row), before)
    shared = theirs.get_input_embeddings().weight is theirs.get_output_embeddings().weight
    assert shared is tied


def test_a_save_on_the_way_goes_on_bit_for_bit(tmp_path: Path) -> None:
    parent = tiny.policy("Phi3")
    checkpoints.save(tmp_path / "parent", parent, words.tokenizer(), Checkpoint("", "base", 0))

    def opened() -> tuple[Policy, Optimizer]:
        policy = checkpoints.open_policy(tmp_path / "parent", precision="float32", critic="shared")
        lora.attach(policy.model, rank=2, alpha=8.0, targets=(), address=(1,))
        return policy, Optimizer(policy, kind="adamw", weight_decay=0.1)

    straight, optimizer = opened()
    learn(straight, optimizer, 1)
    straight.critic.head.bias.data.fill_(0.5)  # type: ignore[union-attr]
    card = checkpoints.save(tmp_path / "step", straight, words.tokenizer(), Checkpoint("", "sft", 1), optimizer)
    resumed, again = opened()
    assert checkpoints.resume(tmp_path / "step", resumed, again) == 1
    for seed in (2, 3):
        learn(straight, optimizer, seed)
        learn(resumed, again, seed)
    expected = dict(straight.named_parameters())
    assert all(torch.equal(p, expected[name]) for name, p in resumed.named_parameters())
    plain = checkpoints.save(tmp_path / "plain", straight, words.tokenizer(), Checkpoint("", "sft", 1))
    assert plain.id != card.id and plain.id == checkpoints.weights_id(tmp_path / "plain")


def test_the_id_does_not_depend_on_what_a_resumed_run_needs(tmp_path: Path) -> None:
    policy = adapted()
    optimizer = Optimizer(policy, kind="adamw", weight_decay=0.0)
    learn(policy, optimizer, 1)
    ids = [
        checkpoints.save(tmp_path / name, policy, words.tokenizer(), Checkpoint("", "sft", 1), how).id
        for name, how in (("with", optimizer), ("without", None))
    ]
    assert ids[0] == ids[1]
    assert (tmp_path / "with" / "adapters.safetensors").exists()


def test_tied_weights_are_written_once(tmp_path: Path) -> None:
    model = tiny.build("Phi3", tied=True)
    lora.attach(model, rank=2, alpha=8.0, targets=(), address=(1,))
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)  # whose merged copies are others than the live weights
    checkpoints.save(tmp_path / "c", Policy(model), words.tokenizer(), Checkpoint("", "sft", 1))
    with safe_open(tmp_path / "c" / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(tiny.build("Phi3", tied=True).state_dict()) - {"lm_head.weight"}


def test_a_critic_is_float32_whatever_the_weights_are(tmp_path: Path) -> None:
    checkpoints.save(tmp_path / "parent", tiny.policy("Phi3"), words.tokenizer(), Checkpoint("", "base", 0))
    policy = checkpoints.open_policy(tmp_path / "parent", precision="bfloat16", weights="bfloat16", critic="own")
    types = {name.partition(".")[0]: p.dtype for name, p in policy.named_parameters()}
    assert types == {"model": torch.bfloat16, "critic": torch.float32}
    row = tiny.row(1, LENGTHS)
    policy.values(row).square().sum().backward()
    assert policy.critic is not None and policy.critic.head.weight.grad is not None


def test_weights_in_bfloat16_with_float32_adapters(tmp_path: Path) -> None:
    """The frozen weights take half the memory; an adapter's part that their last bit would lose stays in the save."""
    checkpoints.save(tmp_path / "parent", tiny.policy("Phi3"), words.tokenizer(), Checkpoint("", "base", 0))
    policy = checkpoints.open_policy(tmp_path / "parent", precision="bfloat16", weights="bfloat16", critic="shared")
    lora.attach(policy.model, rank=2, alpha=2.0, targets=(), address=(1,))
    types = {name: p.dtype for name, p in policy.named_parameters()}
    assert {dtype for name, dtype in types.items() if "lora" in name or "critic" in name} == {torch.float32}
    assert {dtype for name, dtype in types.items() if "lora" not in name and "critic" not in name} == {torch.bfloat16}
    optimizer = Optimizer(policy, kind="adamw", weight_decay=0.0)
    row = tiny.row(1, LENGTHS)
    policy.logprobs(row).mul(row.weights).sum().neg().backward()
    optimizer.step(1e-5)
    checkpoints.save(tmp_path / "c", policy, words.tokenizer(), Checkpoint("", "sft", 1))
    saved = checkpoints.open_policy(tmp_path / "c", precision="float32")
    name = "model.layers.0.mlp.down_proj"
    layer = policy.model.get_submodule(name)
    change = saved.model.get_submodule(name).weight - layer.base_layer.weight.float()
    expected = layer.get_delta_weight("default").detach()
    assert 0 < float(expected.abs().max()) < 1e-4
    tiny.assert_close(change, expected, tolerance=2e-2)
