"""AdamW, or Muon for the matrices of the trunk with AdamW for everything else, behind one small face.

Weights are float32 masters: at the recipe's learning rates a bfloat16 weight would not move.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Optimizer:
    """One or two torch optimizers that step together at one learning rate.

    Muon's updates are scaled to the size that AdamW's would have (Liu et al. 2025, "Muon is scalable"), so that one
    learning rate means the same for both; `others_rate` multiplies it for what Muon does not take.
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
        adamw = torch.optim.AdamW([p for _, p in others], lr=0.0, betas=(0.9, 0.95), weight_decay=weight_decay)
        self._add(adamw, (n for n, _ in others), others_rate if kind == "muon" else 1.0)

    def _add(self, part: torch.optim.Optimizer, names: Iterable[str], rate: float) -> None:
        self._parts.append(part)
        self._names.append(list(names))
        self._rates.append(rate)

    def step(self, learning_rate: float) -> None:
        """Move the weights and forget the gradients."""
        for part, rate in zip(self._parts, self._rates, strict=True):
            for group in part.param_groups:
                group["lr"] = rate * learning_rate
            part.step()
            part.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Every tensor of the state, by parameter name and state name: flat, so that it can be saved without pickle."""
        flat: dict[str, Tensor] = {}
        for part, names in zip(self._parts, self._names, strict=True):
            for index, values in part.state_dict()["state"].items():
                flat |= {f"{names[index]}/{key}": torch.as_tensor(value) for key, value in values.items()}
        return flat

    def load(self, flat: dict[str, Tensor]) -> None:
        """Take up a state from `state()`."""
        for part, names in zip(self._parts, self._names, strict=True):
            saved: dict[str, Any] = part.state_dict()
            by_name = {name: index for index, name in enumerate(names)}
            states: dict[int, dict[str, Tensor]] = {}
            for address, value in flat.items():
                name, _, key = address.rpartition("/")
                if name in by_name:
                    states.setdefault(by_name[name], {})[key] = value
            part.load_state_dict({"state": states, "param_groups": saved["param_groups"]})
