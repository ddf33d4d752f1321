"""Tokens from logits: one uniform number, one token.

A vocabulary of 200,064 words is neither sorted nor summed word by word: the words are summed in blocks, the uniform
number chooses a block, and within it a word.
"""

from __future__ import annotations

import torch
from torch import Tensor

from algorist.generate.sampling import Sampling

_BLOCK = 512  # words summed together; a vocabulary of few blocks is summed word by word
_LIKELIEST = 256  # words among which the nucleus of top_p is looked for first


def draw(logits: Tensor, uniform: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Draw tokens by inverting the cumulative distribution at one uniform number each.

    Args:
        logits   (n, V) float32
        uniform  (n,) float64 in [0, 1)

    Returns:
        tokens (n,) int64 and their log-probabilities (n,) float64 at the sampling temperature, before top_p; at
        temperature 0 the likeliest tokens, with log-probabilities at temperature 1.
    """
    top, likeliest = logits.max(1, keepdim=True)
    scale = 1 / (sampling.temperature or 1.0)
    weights = (logits - top).mul_(scale).exp_()
    if sampling.temperature == 0:
        return likeliest[:, 0], -weights.sum(1, dtype=torch.float64).log()
    if sampling.top_p < 1:
        total = weights.sum(1, keepdim=True, dtype=torch.float64)
        tokens = _nucleus(weights, total, uniform, sampling.top_p)
    else:
        tokens, total = _any(weights, uniform)
    chosen = (logits.gather(1, tokens) - top).double() * scale
    return tokens[:, 0], (chosen - total.log())[:, 0]


def _any(weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """(n, 1) tokens drawn by weights (n, V), and the (n, 1) sums of all weights."""
    count, vocabulary = weights.shape
    blocks = vocabulary // _BLOCK
    if blocks < 8:
        cumulative = weights.cumsum(1, dtype=torch.float64)
        return _invert(cumulative, uniform[:, None] * cumulative[:, -1:]), cumulative[:, -1:]
    whole = weights[:, : blocks * _BLOCK].view(count, blocks, _BLOCK)
    rest = weights[:, blocks * _BLOCK :].sum(1, keepdim=True, dtype=torch.float64)
    sums = torch.cat([whole.sum(2, dtype=torch.float64), rest], dim=1).cumsum(1)
    share = uniform[:, None] * sums[:, -1:]
    block = _invert(sums, share)
    before = torch.where(block > 0, sums.gather(1, (block - 1).clamp(min=0)), 0)
    places = block * _BLOCK + torch.arange(_BLOCK, device=weights.device)
    within = weights.gather(1, places.clamp(max=vocabulary - 1)).masked_fill(places >= vocabulary, 0)
    return block * _BLOCK + _invert(within.cumsum(1, dtype=torch.float64), share - before), sums[:, -1:]


def _nucleus(weights: Tensor, total: Tensor, uniform: Tensor, top_p: float) -> Tensor:
    """(n, 1) tokens drawn among the fewest likeliest that hold `top_p` of the (n, 1) totals."""
    ordered, places = weights.topk(min(_LIKELIEST, weights.shape[1]), dim=1)
    cumulative = ordered.cumsum(1, dtype=torch.float64)
    tokens = _among(ordered, cumulative, top_p * total, places, uniform)
    wide = (cumulative[:, -1:] < top_p * total)[:, 0].nonzero()[:, 0]
    if len(wide) and ordered.shape[1] < weights.shape[1]:
        ordered, places = weights[wide].sort(dim=1, descending=True, stable=True)
        cumulative = ordered.cumsum(1, dtype=torch.float64)
        tokens[wide] = _among(ordered, cumulative, top_p * total[wide], places, uniform[wide])
    return tokens


def _among(ordered: Tensor, cumulative: Tensor, held: Tensor, places: Tensor, uniform: Tensor) -> Tensor:
    """(n, 1) tokens at `places` of weights in falling order, drawn among the first that hold (n, 1) `held`."""
    kept = ordered.masked_fill(cumulative - ordered >= held, 0)  # the likeliest token always stays
    nucleus = kept.cumsum(1, dtype=torch.float64)
    return places.gather(1, _invert(nucleus, uniform[:, None] * nucleus[:, -1:]))


def _invert(cumulative: Tensor, share: Tensor) -> Tensor:
    """(n, 1) first place whose cumulative weight exceeds (n, 1) `share`, and one that has weight in any case."""
    below = torch.nextafter(cumulative[:, -1:], torch.zeros_like(share))
    found = torch.searchsorted(cumulative, torch.minimum(share, below).clamp(min=0), right=True)
    return found.clamp(max=cumulative.shape[1] - 1)  # among what is no number there is no such place
