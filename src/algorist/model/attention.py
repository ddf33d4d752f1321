"""Attention that knows where documents begin, registered with transformers under the name "algorist".

Two layouts travel to it through the keyword arguments of the model's forward:

- `documents`: a flat row of whole documents (training, log-probabilities, prefill). It carries the path that
  model/probe.py chose of model/kernels.py: attention is causal within each document, and no mask is ever built.
- `decode`: one token for each of S sequences (sampling). Keys and values live in pages (model/cache.py), and `prefill`
  beside `documents` writes those of prompts there.

Both work for a model of transformers that uses its attention interface and nothing beside it, which model/selfcheck.py
finds out; the model's own rotary embedding has been applied before we are called.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import AttentionInterface

from algorist.model.cache import Decode, Prefill
from algorist.model.kernels import PATHS, Attend

NAME = "algorist"


class Documents:
    """Where the documents of a flat row stand, worked out once for one path of attention; every layer asks it.

    No dataclass: into the fields of one torch 2.11 looks, and compiles layers anew where lengths differ.
    """

    def __init__(self, attend: Attend) -> None:
        self.attend = attend

    @classmethod
    def of(cls, bounds: Sequence[int], device: torch.device, path: str = "grouped") -> Documents:
        """Documents begin at `bounds[:-1]` and end at `bounds[-1]`; `path` names one of model/kernels.py."""
        return cls(PATHS[path](bounds, device))


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
    if decode is None:
        return _within(module, query, key, value, scaling, documents, prefill), None
    rows = [x[0].transpose(0, 1) for x in (query, key, value)]
    decode.pages.write(_layer(module), decode.where, *rows[1:])
    scale = rows[0].shape[2] ** -0.5 if scaling is None else scaling
    return decode.attend(_layer(module), rows[0], scale).to(value.dtype)[None], None


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _within(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    documents: Documents | None,
    prefill: Prefill | None,
) -> Tensor:
    """Out of the compiler's sight: it would compile anew for every layer and length."""
    assert documents is not None, "no layout came here: it comes from Policy, and not every model passes it on"
    if prefill is not None:
        prefill.pages.write(_layer(module), prefill.where, key[0].transpose(0, 1), value[0].transpose(0, 1))
    # Under autocast the rotary embedding leaves float32, and only SDPA would be given the compute type by itself.
    q, k, v = (x[0].transpose(0, 1).to(value.dtype) for x in (query, key, value))  # (T, H, D)
    return documents.attend(q, k, v, scaling)[None]


def _layer(module: torch.nn.Module) -> int:
    index = module.layer_idx
    assert isinstance(index, int)
    return index


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


AttentionInterface.register(NAME, forward)
