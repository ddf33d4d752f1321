"""AdamW, with 8-bit states where memory is short, or Muon for the matrices of the trunk with AdamW for the rest.

All of them move a weight by about the learning rate at each step, whatever the size of its gradient. States are
float32 like the weights that they belong to, or 8-bit blocks with a float32 scale for each (torchao). They are saved
as plain tensors by parameter name, without pickle, and a run that takes them up again goes on bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from algorist.errors import RunError
from algorist.numerics.precision import moved_share

_BETAS = (0.9, 0.95)
_EPS = 1e-8
_BLOCK = 256  # weights that share a scale in 8-bit states
_SMALLEST = 4096  # weights: torchao keeps the states of smaller tensors in float32
_LOOKED_AT = 2**16  # weights of each tensor, evenly spread, when it is asked whether they would move


class Optimizer:
    """One or two torch optimizers that step together at one learning rate.

    Muon's updates are scaled to the size that AdamW's would have (Liu et al. 2025, "Muon is scalable"), so that one
    learning rate means the same for both; `others_rate` multiplies it for what Muon does not take. 8-bit states are
    those of Dettmers et al. 2021, "8-bit optimizers via block-wise quantization".

    Raises:
        RunError where `kind` needs a library that is not installed.
    """

    def __init__(self, policy: nn.Module, *, kind: str, weight_decay: float, others_rate: float = 1.0) -> None:
        named = [(name, p) for name, p in policy.named_parameters() if p.requires_grad]
        matrices = [(n, p) for n, p in named if kind == "muon" and p.ndim == 2 and ".layers." in n]
        taken = {id(p) for _, p in matrices}
        others = [(n, p) for n, p in named if id(p) not in taken]
        self._names: list[list[str]] = []
        self._parts: list[torch.optim.Optimizer] = []
        self._rates: list[float] = []
        if matrices:
            muon = torch.optim.Muon(
                [p for _, p in matrices], lr=0.0, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            )
            self._add(muon, (n for n, _ in matrices), 1.0)
        if others:
            adamw = _adamw8bit if kind == "adamw8bit" else _adamw
            part = adamw([p for _, p in others], weight_decay)
            self._add(part, (n for n, _ in others), others_rate if kind == "muon" else 1.0)

    def _add(self, part: torch.optim.Optimizer, names: Iterable[str], rate: float) -> None:
        self._parts.append(part)
        self._names.append(list(names))
        self._rates.append(rate)

    def step(self, learning_rate: float) -> None:
        """Move the weights and forget the gradients."""
        for part, rate in zip(self._parts, self._rates, strict=True):
            for group in part.param_groups:
                if isinstance(group["lr"], Tensor):  # torchao's, so that a new rate compiles nothing anew
                    group["lr"].fill_(rate * learning_rate)
                else:
                    group["lr"] = rate * learning_rate
            part.step()
            part.zero_grad(set_to_none=True)

    def planned_bytes(self) -> int:
        """Bytes that the states take from the first step on."""
        return sum(_state_bytes(part, p) for part in self._parts for g in part.param_groups for p in g["params"])

    def state(self) -> dict[str, Tensor]:
        """Every tensor of the state, flat: `parameter/state`, or `parameter/state/part` for what is held in 8 bits."""
        flat: dict[str, Tensor] = {}
        for part, names in zip(self._parts, self._names, strict=True):
            for index, values in part.state_dict()["state"].items():
                for key, value in values.items():
                    flat |= _plain(f"{names[index]}/{key}", value)
        return flat

    def load(self, flat: Mapping[str, Tensor]) -> None:
        """Take up a state from `state()`."""
        for part, names in zip(self._parts, self._names, strict=True):
            saved: dict[str, Any] = part.state_dict()
            by_name = {name: index for index, name in enumerate(names)}
            states: dict[int, dict[str, Any]] = {}
            for address, value in flat.items():
                name, key, *piece = address.split("/")
                if name in by_name:
                    of_parameter = states.setdefault(by_name[name], {})
                    if piece:
                        of_parameter.setdefault(key, {})[piece[0]] = value
                    else:
                        of_parameter[key] = value
            for of_parameter in states.values():
                for key, found in of_parameter.items():
                    if isinstance(found, dict):
                        of_parameter[key] = _in_8_bits(found)
            part.load_state_dict({"state": states, "param_groups": saved["param_groups"]})


def require_movement(policy: nn.Module, section: str, peak: float) -> None:
    """Refuse a learning rate that cannot move the weights in the format that they are held in.

    Args:
        policy   whose trained weights are looked at
        section  of the recipe, for the message
        peak     the largest learning rate: about how far an optimizer moves a weight in one step, at most

    Raises:
        RunError where less than half of the trained weights would be another number after such a step.
    """
    trained = [p for p in policy.parameters() if p.requires_grad]
    share = _moved(trained, peak)
    if share >= 0.5:
        return
    enough = peak
    while _moved(trained, enough) < 0.5:
        enough *= 2
    held = max(trained, key=torch.numel).dtype
    raise RunError(
        f"[{section}] learning_rate = {peak:g} would move {share:.1%} of the trained weights: they are held in "
        f"{str(held).removeprefix('torch.')}, and so small a step is rounded away. "
        f'Set [model] weights = "float32", train an adapter with lora.rank, or take a rate from {enough:.2g} up.'
    )


def _moved(tensors: list[nn.Parameter], step: float) -> float:
    """The share of all weights of these tensors that a step of this size moves."""
    total = moved = 0.0
    for tensor in tensors:
        every = max(1, tensor.numel() // _LOOKED_AT)
        moved += tensor.numel() * moved_share(tensor.detach().flatten()[::every], step)
        total += tensor.numel()
    return moved / total if total else 1.0


def _adamw(parameters: list[nn.Parameter], weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.0, betas=_BETAS, eps=_EPS, weight_decay=weight_decay, fused=True)


def _adamw8bit(parameters: list[nn.Parameter], weight_decay: float) -> torch.optim.Optimizer:
    """Torchao compiles its step for each shape of a tensor, at the first one: seconds on a GPU, minutes on a CPU."""
    try:
        from torchao.optim import AdamW8bit
    except ModuleNotFoundError:
        raise RunError(
            'optimizer = "adamw8bit" needs torchao, which is not installed. '
            "Install the extra with pip install '.[eightbit]'."
        ) from None
    adamw: torch.optim.Optimizer = AdamW8bit(
        parameters, lr=0.0, betas=_BETAS, eps=_EPS, weight_decay=weight_decay, block_size=_BLOCK
    )
    return adamw


def _state_bytes(part: torch.optim.Optimizer, parameter: nn.Parameter) -> int:
    whole = parameter.numel() * parameter.element_size()
    if isinstance(part, torch.optim.Muon):
        return whole
    blocks, rest = divmod(parameter.numel(), _BLOCK)
    if isinstance(part, torch.optim.AdamW) or rest or parameter.numel() < _SMALLEST:
        return 2 * whole
    return 2 * (parameter.numel() + 4 * blocks)


def _plain(address: str, value: Any) -> dict[str, Tensor]:
    """The tensors that a state is made of."""
    if not hasattr(value, "__tensor_flatten__"):
        return {address: torch.as_tensor(value)}
    pieces, _ = value.__tensor_flatten__()
    return {f"{address}/{piece}": getattr(value, piece) for piece in pieces}


def _in_8_bits(pieces: Mapping[str, Tensor]) -> Any:
    """A state of torchao's from its codes, scales and the table of values that codes stand for."""
    from torchao.optim.subclass_8bit import OptimState8bit

    signed = bool((pieces["qmap"] < 0).any())
    return OptimState8bit(pieces["codes"], pieces["scale"], pieces["qmap"], signed, dtype=torch.float32)
