"""LoRA: small trained adapters beside frozen matrices (Hu et al. 2021), through peft.

    W x  becomes  W x + (alpha / rank) B A x,    A (rank, in) drawn at random, B (out, rank) zero at first

The adapters are put into the model in place, so that trunk and head are called as before. What is saved is a model
without them: the products are added to copies of the matrices in float32, and the live weights are never touched,
because adding and taking away again would round them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from algorist.errors import RecipeError, RunError
from algorist.model import recompute
from algorist.numerics.address import rng

_NAME = "default"  # peft's, of an adapter
_HELD = ".base_layer.weight"  # peft's, of a matrix that has an adapter


def attach(model: nn.Module, *, rank: int, alpha: float, targets: tuple[str, ...], address: tuple[object, ...]) -> None:
    """Put adapters beside matrices of the layers and freeze everything else.

    Args:
        model    a causal LM of transformers
        rank     of each adapter, at least 1
        alpha    the adapter's part is scaled by alpha / rank
        targets  last parts of the matrices' names, such as "o_proj"; none: every matrix of the layers
        address  of the random numbers: the same address gives the same adapters

    Raises:
        RecipeError where a target is no matrix of this model, RunError where peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError:
        raise RunError(
            f"lora.rank = {rank} needs peft, which is not installed. Install the extra with pip install '.[lora]'."
        ) from None
    chosen = _matrices(model, targets)
    # Its own first values come from torch's global generator; ours take their place.
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=chosen, init_lora_weights=False)
    inject_adapter_in_model(config, model, adapter_name=_NAME)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_is_adapter(name))
        if _is_adapter(name):
            parameter.data = _first(name, parameter, address)


def attached(model: nn.Module) -> bool:
    """Whether the model has adapters."""
    return any(_is_adapter(name) for name, _ in model.named_parameters())


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """The adapters' tensors by name, float32."""
    return {name: p.detach() for name, p in model.named_parameters() if _is_adapter(name)}


def load(model: nn.Module, found: Mapping[str, Tensor]) -> None:
    """Take up the adapters' tensors from `tensors()` of a model with the same adapters."""
    own = tensors(model)
    assert own.keys() == found.keys(), "these are the adapters of another recipe"
    for name, tensor in own.items():
        tensor.copy_(found[name])


@torch.no_grad()
def merged(model: nn.Module) -> dict[str, Tensor]:
    """The weights of the model without adapters that computes what this one does: float32, on the CPU, by plain name.

        W + (alpha / rank) B A

    The sum is taken and kept in float32 also where W is held in bfloat16, whose last bit is larger than most of B A.
    """
    found: dict[str, Tensor] = {}
    moved: dict[int, Tensor] = {}  # by address, so that tied weights stay tied
    for name, tensor in model.state_dict().items():
        if _is_adapter(name):
            continue
        plain = name.replace(".base_layer.", ".")
        if name.endswith(_HELD):
            change = model.get_submodule(name.removesuffix(_HELD)).get_delta_weight(_NAME)  # type: ignore[operator]
            found[plain] = (tensor.float() + change).cpu()
        else:
            found[plain] = moved.setdefault(tensor.data_ptr(), tensor.float().cpu())
    return found


def _matrices(model: nn.Module, targets: tuple[str, ...]) -> list[str]:
    """Names of the matrices of the layers whose last part is a target."""
    inner = recompute.layers(model).items()
    every = [f"{name}.{n}" for name, layer in inner for n, module in layer.named_modules() if type(module) is nn.Linear]
    known = dict.fromkeys(name.rpartition(".")[2] for name in every)
    if unknown := [target for target in targets if target not in known]:
        raise RecipeError(
            f"lora.targets: {unknown[0]} is no matrix of this model's layers. Known here: {', '.join(known)}."
        )
    return [name for name in every if not targets or name.rpartition(".")[2] in targets]


def _first(name: str, parameter: Tensor, address: tuple[object, ...]) -> Tensor:
    """What an adapter's tensor holds before training, float32: B is 0, A uniform within 1 / sqrt(in)."""
    first = torch.zeros(parameter.shape, dtype=torch.float32)
    if ".lora_A." in name:
        bound = 1 / math.sqrt(parameter.shape[1])
        first = torch.from_numpy(rng(*address, "lora", name).uniform(-bound, bound, parameter.shape)).float()
    return first.to(parameter.device)


def _is_adapter(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name
