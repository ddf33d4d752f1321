"""What the layers keep for the backward pass, and what they compute a second time to save memory.

Every kind gives the same loss and the same gradients, bit for bit on the CPU: what is computed again is computed by
the same kernels from the same numbers. Transformers' own gradient checkpointing works only in training mode, which
would turn dropout on (see Policy.train), so the layers' forward is wrapped here.

    none       everything that a derivative needs is kept
    selective  matrix products and attention are kept; norms, activations, products and casts are computed again, and
               so is what torch.compile has made of an attention (FlexAttention), because nothing is seen inside it
    full       a layer's input is kept; the layer is computed again
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from transformers.modeling_layers import GradientCheckpointingLayer

Kind = Literal["none", "selective", "full"]
KINDS: tuple[Kind, ...] = ("none", "selective", "full")  # from the fastest to the smallest
_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")
_CHEAP = 8  # a product of so many times more columns than it sums over, as an adapter's second, is computed again


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """The decoder layers of a causal LM of transformers, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, GradientCheckpointingLayer)}


def products(layer: nn.Module) -> list[nn.Linear]:
    """The matrix products of a layer whose results "selective" keeps, in no order."""
    found = [module for module in layer.modules() if isinstance(module, nn.Linear)]
    return [module for module in found if not _is_cheap(module.in_features, module.out_features)]


def apply(model: nn.Module, kind: Kind) -> None:
    """Let every layer of a causal LM of transformers keep what `kind` says; once for a model, adapters attached before.

    Without gradients nothing changes.
    """
    if kind == "none":
        return
    for layer in layers(model).values():
        how: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}  # no layer draws random numbers
        if kind == "selective":
            how["context_fn"] = partial(_keeping, len(products(layer)))
        layer.forward = partial(_again, layer.forward, how)


def _again(forward: Callable[..., Any], how: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    return checkpoint(forward, *args, **how, **kwargs) if torch.is_grad_enabled() else forward(*args, **kwargs)


def _keeping(last: int) -> Any:
    """For one forward of a layer: keep what attention and matrix products give, the `last` product left out.

    No derivative inside the layer needs what leaves it, and the second run stops before it is computed.
    """
    counts = {False: count(1), True: count(1)}  # of the first run and, up to torch 2.12, of the second

    def keep(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        name = operation.name()
        if name.partition(".")[0] in _PRODUCTS:
            left, right = args[-2:]
            kept = not _is_cheap(left.shape[-1], right.shape[-1]) and next(counts[context.is_recompute]) < last
        else:
            kept = "attention" in name or "attn" in name  # as in the names of all of them
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(keep)  # type: ignore[no-untyped-call]


def _is_cheap(inner: int, outer: int) -> bool:
    return _CHEAP * inner < outer
