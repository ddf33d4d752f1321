"""The twin of numerics/precision.py: one weight at a time, its two neighbours from torch's own list of numbers."""

from __future__ import annotations

import torch
from torch import Tensor


def moved_share(weights: Tensor, step: float) -> float:
    moved = 0
    for weight in weights.flatten():
        size = weight.abs()
        above = torch.nextafter(size, torch.tensor(torch.inf, dtype=size.dtype))
        # Nearer to the number above than to where it was; halfway, the one with an even last digit is taken.
        halfway = (float(size) + float(above)) / 2
        is_odd = bool(size.view(torch.int16 if size.dtype == torch.bfloat16 else torch.int32) % 2)
        moved += float(size) + step > halfway or (float(size) + step == halfway and is_odd)
    return moved / weights.numel()
