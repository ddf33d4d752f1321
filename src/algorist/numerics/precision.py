"""What a number format can hold: which weights a small step would move at all.

A weight that is held in bfloat16 has 8 significant bits, so near 0.02 its neighbours are 6e-5 or 1.2e-4 away. A step
of 5e-7 is rounded back to where the weight was, at every step anew, and nothing is learned without any sign of it.
"""

from torch import Tensor


def moved_share(weights: Tensor, step: float) -> float:
    """The share of weights that are another number after a step of this size away from zero, 0 to 1.

        moved  <=>  step > ulp / 2,    ulp = 2 ** (floor(log2 |w|) - bits),    bits = -log2(eps) of the format

    Rounding is to the nearest number, halves to the even one, as the hardware does it. A weight of 0 always moves.

    Args:
        weights  any shape, of a floating-point type
        step     size of the update, in units of the weights, above 0

    >>> import torch
    >>> moved_share(torch.tensor([0.02, 0.0001], dtype=torch.bfloat16), 5e-7)
    0.5
    >>> moved_share(torch.tensor([0.02, 0.0001]), 5e-7)
    1.0
    """
    if weights.numel() == 0:
        return 1.0
    sizes = weights.detach().abs()
    # In float64 no step is lost before the one rounding that is asked about.
    moved = (sizes.double() + step).to(weights.dtype) != sizes
    return moved.double().mean().item()
