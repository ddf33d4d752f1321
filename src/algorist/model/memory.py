"""How much memory training takes, term by term, before it begins; and what is computed again so that it fits.

Weights, gradients and optimizer states are counted. What the layers keep for the backward pass is measured on this
model, on rows of two short lengths: the difference is what a token costs, and it is right for every architecture and
attention. Sampling of stage 4 has memory of its own, which is not planned here.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from algorist.model import recompute
from algorist.model.batches import Document, lay_out
from algorist.model.optimizers import Optimizer
from algorist.model.policy import Policy
from algorist.model.recompute import KINDS, Kind

_USABLE = 0.92  # of the memory: an allocator loses some of it between blocks, and the plan is a plan
_GRADIENTS = 0.3  # of what a layer keeps: its gradients that exist at once, measured
_LENGTH = 128  # tokens of the shorter row that is measured
_TILES = {"cpu": 2**21}  # logits that the head holds at once (model/head.py)
_TILE_ELSEWHERE = 3 * 2**25


@dataclass(frozen=True)
class Kept:
    """Bytes a token, by what is computed again in the backward pass."""

    all: Mapping[Kind, float]  # that are kept until then
    work: Mapping[Kind, float]  # that come with the backward of a layer: what is computed again, and gradients


@dataclass(frozen=True)
class Need:
    """Bytes of training with micro-batches of at most `tokens` tokens."""

    tokens: int
    weights: int
    gradients: int
    optimizer: int
    activations: Mapping[Kind, int]
    work: Mapping[Kind, int]  # casts of weights, and the head or the layer whose backward runs, at their most
    copies: int = 0  # models beside the policy: a reference, a sampler of its own

    @classmethod
    def of(cls, policy: Policy, optimizer: Optimizer, tokens: int, copies: int = 0) -> Need:
        """What training of a policy needs with so many models like it on its device; two short forwards are run."""
        trained = [p for p in policy.parameters() if p.requires_grad]
        kept = measure(policy)
        head, casts = _head(policy), _casts(policy)
        trunks = 1 if policy.critic is None or policy.critic.trunk is None else 2  # both wait for one backward
        return cls(
            tokens=tokens,
            weights=_size(policy.parameters()),
            gradients=_size(trained),
            optimizer=optimizer.planned_bytes(),
            activations={kind: round(trunks * kept.all[kind] * tokens) for kind in KINDS},
            work={
                kind: max(head, casts, round(kept.work[kind] * tokens)) + (casts if kind == "none" else 0)
                for kind in KINDS
            },
            copies=copies * _size(policy.model.parameters()),
        )

    def total(self, kind: Kind) -> int:
        """All terms together, at the moment when most is held."""
        return self.weights + self.copies + self.gradients + self.optimizer + self.activations[kind] + self.work[kind]


def choose(need: Need, room: int, asked: Literal["auto", "none", "selective", "full"]) -> Kind:
    """What was asked for, or the fastest kind of recompute that fits into `room` bytes; "full" where none does."""
    if asked != "auto":
        return asked
    return next((kind for kind in KINDS if need.total(kind) <= _USABLE * room), "full")


def describe(need: Need, room: int, kind: Kind, asked: str) -> str:
    """The plan in one line, and in a second one what to do where it does not fit."""
    unit, name = (2**30, "GiB") if need.total(kind) >= 2**30 else (2**20, "MiB")
    terms = {
        "weights": need.weights,
        **({"copies": need.copies} if need.copies else {}),
        "gradients": need.gradients,
        "optimizer": need.optimizer,
        "activations": need.activations[kind],
        "work": need.work[kind],
    }
    said = " + ".join(f"{term} {size / unit:.1f}" for term, size in terms.items())
    line = (
        f"memory: {said} = {need.total(kind) / unit:.1f} {name} of {room / 2**30:.1f} GiB for {need.tokens:,} tokens "
        f"at a time; recompute: {kind}{' (auto)' if asked == 'auto' else ''}"
    )
    if need.total(kind) <= room:
        return line
    less = "Lower tokens_per_batch" if kind == "full" else 'Take recompute = "auto" or lower tokens_per_batch'
    return (
        f"{line}\nmemory: THIS DOES NOT FIT, and the run may be killed. {less} (a longer document still stands whole), "
        'take optimizer = "adamw8bit", or train an adapter with lora.rank.'
    )


def measure(policy: Policy) -> Kept:
    """What a token costs until the backward pass, from the forward of a short row and of one twice as long."""
    short, long = (_tally(policy, length) for length in (_LENGTH, 2 * _LENGTH))
    found = Counter({place: (long[place] - short[place]) / _LENGTH for place in long})
    config, layers = policy.model.config.get_text_config(), len(recompute.layers(policy.model))
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    attention = layers * heads * (width * policy.precision.itemsize + 4)  # what it gives, and its normalisers
    inside = {
        "none": found["layers"],
        "selective": found["inputs"] + found["shared"] + found["products"] + attention,
        "full": found["inputs"] + found["shared"],
    }
    again = {kind: max(0.0, found["layers"] - inside[kind]) for kind in KINDS}
    return Kept(
        all={kind: found["around"] + inside[kind] for kind in KINDS},
        work={kind: (again[kind] + _GRADIENTS * found["layers"]) / max(layers, 1) for kind in KINDS},
    )


def available(device: torch.device) -> int:
    """Bytes that this process may use in all, what it uses already included."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    return _available(Path("/"))


def in_wide_steps(size: int) -> int:
    """The largest power of two that is at most `size`, and 1 at least.

    For what follows from free memory and is to be the same again in a run that goes on: free memory is never twice the
    same, and such a number changes only where it lies at the border of two.
    """
    return 1 << max(0, size.bit_length() - 1)


def used(device: torch.device) -> int:
    """Bytes that this process uses now; 0 where that cannot be told."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else _resident(Path("/"))


def _resident(root: Path) -> int:
    try:
        pages = (root / "proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:  # no Linux
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _available(root: Path) -> int:
    """Those of the main memory: what the machine has free, or the least that a control group leaves."""
    try:
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # no Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    own = root / "proc/self/cgroup"
    group = own.read_text(encoding="ascii").rpartition("0::/")[2].strip() if own.exists() else ""
    top = root / "sys/fs/cgroup"
    for folder in (top / group, *(top / group).parents, top / "memory"):
        for most, now in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            if folder.is_relative_to(top) and (folder / most).exists():
                limit = (folder / most).read_text(encoding="ascii").strip()
                if limit != "max":
                    free = min(free, int(limit) - int((folder / now).read_text(encoding="ascii")) + _cached(folder))
    return free + _resident(root)


def _cached(folder: Path) -> int:
    """Bytes of files that a control group holds in memory and can drop."""
    stat = folder / "memory.stat"
    lines = stat.read_text(encoding="ascii").splitlines() if stat.exists() else []
    return sum(int(line.split()[1]) for line in lines if line.split()[0] in ("inactive_file", "total_inactive_file"))


def _tally(policy: Policy, length: int) -> Counter[str]:
    """Bytes that a forward over a row of two documents keeps for the backward, by place.

    around    outside the layers, the last states included
    layers    inside them
    inputs    what enters them one after another
    shared    what all of them are given: the rotary embedding
    products  what their matrix products give, the last of each layer left out (see model/recompute.py)
    """
    found: Counter[str] = Counter()
    held: dict[int, Tensor] = {p.untyped_storage().data_ptr(): p for p in policy.parameters()}
    given: dict[int, int] = {}
    place, last = "around", 0

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            held[storage.data_ptr()] = tensor  # so that nothing else takes its address
            found[place] += storage.nbytes()
        return tensor

    def enter(_: nn.Module, inputs: tuple[Any, ...], others: dict[str, Any]) -> None:
        nonlocal place
        place = "layers"
        found["inputs"] += inputs[0].nbytes
        given.update({id(x): x.nbytes for x in tree_leaves(others) if isinstance(x, Tensor)})

    def leave(*_: Any) -> None:
        nonlocal place
        place = "around"
        found["products"] -= last

    def multiplied(_: nn.Module, __: Any, output: Tensor) -> None:
        nonlocal last
        last = output.nbytes
        found["products"] += last

    row = lay_out([Document.of([0] * (length // 2), 1)] * 2).to(policy.device)
    with ExitStack() as hooks:
        for layer in recompute.layers(policy.model).values():
            hooks.enter_context(layer.register_forward_pre_hook(enter, with_kwargs=True))
            hooks.enter_context(layer.register_forward_hook(leave))
            for module in recompute.products(layer):
                hooks.enter_context(module.register_forward_hook(multiplied))
        hooks.enter_context(torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor))
        states = policy.hidden(row)
    found["around"] += states.nbytes
    found["shared"] = sum(given.values())
    return found


def _casts(policy: Policy) -> int:
    """Bytes of the copies of the layers' matrices in the precision of products, where weights are of another."""
    found = [
        module.weight
        for layer in recompute.layers(policy.model).values()
        for module in layer.modules()
        if isinstance(module, nn.Linear)
    ]
    return sum(weight.numel() * policy.precision.itemsize for weight in found if weight.dtype != policy.precision)


def _head(policy: Policy) -> int:
    """Bytes of the output head at work: its cast and its gradient beside the sum, and one tile of logits twice."""
    weight = policy.model.get_output_embeddings().weight
    cast = policy.precision.itemsize if weight.dtype != policy.precision else 0
    gradient = 4 if weight.requires_grad else 0
    logits = _TILES.get(weight.device.type, _TILE_ELSEWHERE)
    return int(weight.numel() * (cast + gradient) + logits * (4 + policy.precision.itemsize))


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
