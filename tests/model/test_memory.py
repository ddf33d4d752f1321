"""The memory plan: against every tensor that is alive, against the figures of the real model, and in words."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from algorist.model import lora, memory, recompute
from algorist.model.memory import Need
from algorist.model.optimizers import Optimizer
from algorist.model.policy import Policy
from algorist.model.recompute import KINDS, Kind
from model import tiny

LENGTHS = [300, 290, 30]
SHAPE = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "max_position_embeddings": 512}


class Alive(TorchDispatchMode):
    """Bytes of all tensors that were made inside and still exist, now and at most."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.own = {p.untyped_storage()._cdata for p in policy.parameters()}
        self.made: dict[int, tuple[Any, int]] = {}
        self.most = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self.own:
                storage = tensor.untyped_storage()
                self.made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.most = max(self.most, self.now())
        return out

    def now(self) -> int:
        self.made = {key: found for key, found in self.made.items() if not found[0].expired()}
        return sum(size for _, size in self.made.values())


def made(family: str, precision: str = "float32", *, adapted: bool = False) -> Policy:
    model = tiny.build(family, **SHAPE)
    if adapted:
        pytest.importorskip("peft")
        lora.attach(model, rank=4, alpha=8, targets=(), address=(1,))
    return Policy(model, precision=precision)


@pytest.mark.parametrize(
    ("family", "precision", "adapted"),
    [
        ("Phi3", "float32", False),
        ("Phi3", "bfloat16", True),
        ("Llama", "float32", True),
        ("Llama", "bfloat16", False),
        ("Qwen3", "bfloat16", False),
    ],
)
def test_what_is_kept_and_what_comes_with_the_backward(family: str, precision: str, adapted: bool) -> None:
    """What a forward leaves alive within 5 %, the most that is alive in a second step within 20 %."""
    row, tokens = tiny.row(1, LENGTHS), sum(LENGTHS)
    for kind in KINDS:
        policy = made(family, precision, adapted=adapted)
        kept, casts = memory.measure(policy), memory._casts(policy)
        recompute.apply(policy.model, kind)
        with Alive(policy) as forward:
            hidden = policy.hidden(row)
        casts_now = casts if kind == "none" else 0  # they are made again with the products
        assert kept.all[kind] * tokens == pytest.approx(forward.now() - casts_now, rel=0.05)
        hidden.sum().backward()
        del hidden
        with Alive(policy) as second:
            policy.hidden(row).sum().backward()
        planned = (kept.all[kind] + kept.work[kind]) * tokens + casts_now
        assert planned == pytest.approx(second.most, rel=0.20), kind


def test_measuring_leaves_nothing_behind() -> None:
    policy = made("Llama")
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    memory.measure(policy)
    assert all(p.grad is None for p in policy.parameters())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in policy.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())
    assert memory.measure(policy) == memory.measure(policy)


def test_the_figures_of_phi_4_mini() -> None:
    """A layer an eighth as wide, so an eighth of the bytes; 16,384 tokens and 32 layers.

    Selective agrees with what arithmetic says of it (35.4 GB: layer inputs, matrix products, attention). Without
    recompute it says 50.5 GB, which asks for fused norms and a residual stream in bfloat16: the modules of
    transformers keep each norm's float32 input and its normalised states beside their casts.
    """
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.75}
    config = transformers.Phi3Config(
        vocab_size=64,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=1,
        num_attention_heads=3,
        num_key_value_heads=1,
        rope_parameters=rope,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=1,
    )
    policy = Policy(transformers.Phi3ForCausalLM(config), precision="bfloat16")
    kept = memory.measure(policy)
    around = kept.all["full"] - 4 * 384  # the residual stream is float32, like the embedding
    gigabytes = {kind: 8 * 32 * 16_384 * (kept.all[kind] - around) / 1e9 for kind in KINDS}
    assert gigabytes["selective"] == pytest.approx(35.4, rel=0.02)
    assert gigabytes["full"] == pytest.approx(32 * 16_384 * 12_288 / 1e9, rel=0.01)
    assert gigabytes["none"] == pytest.approx(78.8, rel=0.06)


def test_the_terms_of_a_policy() -> None:
    policy = made("Llama")
    weights = sum(p.numel() * 4 for p in policy.parameters())
    need = Need.of(policy, Optimizer(policy, kind="adamw", weight_decay=0.0), 1000)
    assert (need.weights, need.gradients, need.optimizer) == (weights, weights, 2 * weights)
    assert need.activations["none"] > need.activations["selective"] > need.activations["full"] > 0
    assert need.total("none") == 4 * weights + need.activations["none"] + need.work["none"]
    beside = Need.of(policy, Optimizer(policy, kind="adamw", weight_decay=0.0), 1000, copies=2)
    assert (beside.weights, beside.copies) == (weights, 2 * weights)
    assert beside.total("none") == need.total("none") + 2 * weights
    small = made("Llama", adapted=True)
    need = Need.of(small, Optimizer(small, kind="adamw", weight_decay=0.0), 1000)
    trained = sum(p.numel() * 4 for p in small.parameters() if p.requires_grad)
    assert (need.weights, need.gradients, need.optimizer) == (weights + trained, trained, 2 * trained)


GIB = 2**30
NEED = Need(
    16_384,
    weights=14 * GIB,
    gradients=14 * GIB,
    optimizer=28 * GIB,
    activations={"none": 73 * GIB, "selective": 33 * GIB, "full": 6 * GIB},
    work={"none": 9 * GIB, "selective": 11 * GIB, "full": 12 * GIB},
)


@pytest.mark.parametrize(
    ("room", "kind"), [(151, "none"), (149, "selective"), (109, "selective"), (108, "full"), (10, "full")]
)
def test_the_fastest_kind_that_fits_with_a_margin(room: int, kind: Kind) -> None:
    assert memory.choose(NEED, room * GIB, "auto") == kind
    assert memory.choose(NEED, room * GIB, "none") == "none"


def test_the_plan_in_words() -> None:
    assert memory.describe(NEED, 139 * GIB, "selective", "auto") == (
        "memory: weights 14.0 + gradients 14.0 + optimizer 28.0 + activations 33.0 + work 11.0 = 100.0 GiB of "
        "139.0 GiB for 16,384 tokens at a time; recompute: selective (auto)"
    )
    assert memory.describe(NEED, 139 * GIB, "none", "none") == (
        "memory: weights 14.0 + gradients 14.0 + optimizer 28.0 + activations 73.0 + work 9.0 = 138.0 GiB of "
        "139.0 GiB for 16,384 tokens at a time; recompute: none"
    )
    said = memory.describe(replace(NEED, copies=7 * GIB), 139 * GIB, "full", "auto")
    assert said.startswith("memory: weights 14.0 + copies 7.0 + gradients 14.0 + ") and " = 81.0 GiB of " in said
    warning = (
        "memory: THIS DOES NOT FIT, and the run may be killed. {} (a longer document still stands whole), take "
        'optimizer = "adamw8bit", or train an adapter with lora.rank.'
    )
    said = memory.describe(NEED, 70 * GIB, "full", "auto").splitlines()
    assert said[1:] == [warning.format("Lower tokens_per_batch")]
    said = memory.describe(NEED, 100 * GIB, "none", "none").splitlines()
    assert said[1:] == [warning.format('Take recompute = "auto" or lower tokens_per_batch')]
    small = Need(64, 2**20, 2**20, 2**21, {"none": 2**20}, {"none": 2**19})
    assert memory.describe(small, GIB, "none", "auto") == (
        "memory: weights 1.0 + gradients 1.0 + optimizer 2.0 + activations 1.0 + work 0.5 = 5.5 MiB of 1.0 GiB for "
        "64 tokens at a time; recompute: none (auto)"
    )


def machine(root: Path, files: dict[str, str]) -> Path:
    page = os.sysconf("SC_PAGE_SIZE")
    usual = {
        "proc/meminfo": "MemTotal: 100 kB\nMemFree: 1 kB\nMemAvailable:    8388608 kB\n",
        "proc/self/statm": f"999 {GIB // page} 7\n",
        "proc/self/cgroup": "0::/\n",
    }
    for name, text in (usual | files).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 9.0),  # 8 GiB are free, and 1 GiB is ours already
        ({"sys/fs/cgroup/memory.max": "max\n", "sys/fs/cgroup/memory.current": "5\n"}, 9.0),
        (
            {
                "proc/self/cgroup": "0::/user/job\n",
                "sys/fs/cgroup/user/job/memory.max": f"{4 * GIB}\n",
                "sys/fs/cgroup/user/job/memory.current": f"{3 * GIB}\n",
                "sys/fs/cgroup/user/job/memory.stat": f"anon 5\ninactive_file {GIB // 2}\n",
                "sys/fs/cgroup/user/memory.max": f"{9 * GIB}\n",
                "sys/fs/cgroup/user/memory.current": f"{3 * GIB}\n",
            },
            2.5,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/docker/1\n1:cpu:/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{6 * GIB}\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{2 * GIB}\n",
            },
            5.0,
        ),
    ],
)
def test_memory_that_is_there(tmp_path: Path, files: dict[str, str], expected: float) -> None:
    assert memory._available(machine(tmp_path, files)) == pytest.approx(expected * GIB)


def test_memory_of_this_machine(tmp_path: Path) -> None:
    assert 2**28 < memory.available(torch.device("cpu")) < 2**45
    assert memory._available(tmp_path) > 2**28  # where nothing of Linux is there
