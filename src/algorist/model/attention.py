"""Attention that knows where documents begin, registered with transformers under the name "algorist".

Two layouts travel to it through the keyword arguments of the model's forward:

- `documents`: a flat row of whole documents (training, log-probabilities, prefill). It carries the path that
  model/probe.py chose of model/kernels.py: attention is causal within each document, and no mask is ever built.
- `slots`: one token for each of S sequences (sampling). Keys and values live in a cache of slots.

Both work for a model of transformers that uses its attention interface and nothing beside it, which model/selfcheck.py
finds out; the model's own rotary embedding has been applied before we are called.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import AttentionInterface

from algorist.model.kernels import PATHS, Attend

NAME = "algorist"


@dataclass(frozen=True)
class Documents:
    """Where the documents of a flat row stand, worked out once for one path of attention; every layer asks it."""

    attend: Attend

    @classmethod
    def of(cls, bounds: Sequence[int], device: torch.device, path: str = "grouped") -> Documents:
        """Documents begin at `bounds[:-1]` and end at `bounds[-1]`; `path` names one of model/kernels.py."""
        return cls(PATHS[path](bounds, device))


class Slots:
    """A cache of keys and values: for each layer, S sequences of at most L tokens.

    Sequences live in slots 0..used-1; `lengths` says how many tokens of each are cached. The sampler moves sequences
    between slots; attention only writes and reads.
    """

    def __init__(self, num_layers: int, num_slots: int, capacity: int, device: torch.device) -> None:
        self.lengths = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self.capacity = capacity
        self._keys: list[Tensor | None] = [None] * num_layers
        self._values: list[Tensor | None] = [None] * num_layers

    def layer(self, index: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """(S, H, L, D) keys and values of one layer, made at first use in the shape of `like` (1, H, T, D)."""
        keys, values = self._keys[index], self._values[index]
        if keys is None or values is None:
            shape = (len(self.lengths), like.shape[1], self.capacity, like.shape[3])
            keys = self._keys[index] = like.new_zeros(shape)
            values = self._values[index] = like.new_zeros(shape)
        return keys, values

    def copy(self, source: Tensor, target: Tensor, longest: int) -> None:
        """Copy the first `longest` tokens of slots `source` (n,) to slots `target` (n,), in every layer."""
        self.lengths[target] = self.lengths[source]
        for cache in (*self._keys, *self._values):
            if cache is not None:
                cache[target, :, :longest] = cache[source, :, :longest]


@dataclass(frozen=True)
class Prefill:
    """Write the keys and values of a flat row into slots while attending within documents."""

    slots: Slots
    slot: Tensor  # (T,) int64: which slot each token belongs to
    place: Tensor  # (T,) int64: at which place in it


@dataclass(frozen=True)
class Decode:
    """One new token in each of the first S slots: written, then attending to everything its slot holds."""

    slots: Slots
    place: Tensor  # (S,) int64: where the new token goes
    mask: Tensor  # (S, 1, 1, L) bool: which places of the slot it may see
    longest: int  # L: places that any of the S sequences uses, the new token included


def forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    documents: Documents | None = None,
    prefill: Prefill | None = None,
    decode: Decode | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of transformers' interface: (1, H, T, D) query, key and value → (1, T, H, D).

    Exactly one of `documents` (with or without `prefill`) and `decode` says how tokens relate; `attention_mask` is
    None, because transformers builds none for an implementation that it does not know.
    """
    if decode is not None:
        return _decode(module, query, key, value, decode, scaling), None
    assert documents is not None, "no layout came here: it comes from Policy, and not every model passes it on"
    if prefill is not None:
        _remember(module, prefill.slots, prefill.slot, prefill.place, key, value)
    # Under autocast the rotary embedding leaves float32, and only SDPA would be given the compute type by itself.
    q, k, v = (x[0].transpose(0, 1).to(value.dtype) for x in (query, key, value))  # (T, H, D)
    return documents.attend(q, k, v, scaling)[None], None


def _decode(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, decode: Decode, scaling: float | None
) -> Tensor:
    size = query.shape[2]
    every = torch.arange(size, device=query.device)
    keys, values = _remember(module, decode.slots, every, decode.place, key, value)
    q = query[0].transpose(0, 1)[:, :, None].to(keys.dtype)  # (S, H, 1, D)
    k, v = keys[:size, :, : decode.longest], values[:size, :, : decode.longest]
    # Query heads that share a key head stand in one matrix: (S, Hkv, H/Hkv, D), so nothing is repeated.
    q = q.view(size, k.shape[1], -1, q.shape[3])
    out = scaled_dot_product_attention(q, k, v, attn_mask=decode.mask, scale=scaling)
    return out.reshape(1, size, query.shape[1], -1)


def _remember(
    module: torch.nn.Module, slots: Slots, slot: Tensor, place: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor]:
    """Write (1, H, T, D) keys and values to T places; returns the layer's whole cache."""
    index = module.layer_idx
    assert isinstance(index, int)
    # Under autocast the rotary embedding leaves keys in float32 beside values in bfloat16: one type is cached.
    keys, values = slots.layer(index, value)
    keys[slot, :, place] = key[0].transpose(0, 1).to(keys.dtype)
    values[slot, :, place] = value[0].transpose(0, 1)
    return keys, values


def fuse(model: torch.nn.Module, *, backend: str = "inductor") -> None:
    """Compile the decoder layers of a model of transformers, in place: norms, rotary embedding, gate and residuals
    become few loops, and less is kept for backward. Attention stays as it is.

    Compiled once for all lengths, and once more where no gradient is asked for: layers have the same code, and what
    depends on lengths stands in `Documents`, which the compiler does not look into. The first row waits for it.
    Recompute (model/recompute.py) goes around it, so it comes after it, and only "full" can: inside of "selective"
    torch 2.13 finds tensors changed that it had kept, and the other way round nothing would be compiled.
    """
    layers = model.config.get_text_config().num_hidden_layers  # type: ignore[union-attr, operator]
    stacks = (part for part in model.modules() if isinstance(part, torch.nn.ModuleList) and len(part) == layers)
    for layer in next(stacks):
        layer.forward = torch.compile(layer.forward, dynamic=True, backend=backend)


AttentionInterface.register(NAME, torch.compiler.disable(forward))  # type: ignore[no-untyped-call]
