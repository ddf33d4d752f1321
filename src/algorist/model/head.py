"""The output head: log-probabilities and entropy of given tokens, and their gradients, without [tokens, vocabulary].

A vocabulary of 200,064 words and a row of 16,384 tokens are 13 GB of float32 logits, and a plain softmax holds them
three times over. Here only a tile of them is held (model/tiles.py). `scores` computes the logits once for the
log-probabilities and once more in the backward, since the gradient that will come back is not known before.
`weighted_sum` is for losses whose gradient is known beforehand, as in supervised training: there each tile becomes its
gradient at once, and nothing is computed twice.

Matrix products are computed in `precision`; logits, softmax, entropy and the sums over tiles are float32 (float64 for
float64). On a CPU, where a product of bfloat16 comes rounded to bfloat16, the logits are rounded too. Tokens that no
loss asks for are not passed, and so cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from algorist.model import tiles
from algorist.model.tiles import Output, Rows, Sums

# Logits held at once. A CPU works in its caches; a GPU wants large products, and this is 384 MiB of float32.
_TILE = {"cpu": 2**21}
_TILE_ELSEWHERE = 3 * 2**25
_COLUMNS = 2048  # the fewest words worth a pass over all states
_ROWS = {"cpu": 128}  # the fewest tokens worth a pass over all output weights and their gradients
_ROWS_ELSEWHERE = 2048


class Scores(NamedTuple):
    """What `scores` found; both carry the gradient."""

    logprobs: Tensor  # (N,)
    entropy: Tensor | None  # (N,) nats, where asked for


def scores(
    hidden: Tensor,
    output: Output,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    precision: torch.dtype = torch.float32,
    with_entropy: bool = False,
    held: int | None = None,
) -> Scores:
    """Log-probabilities of given tokens and, where asked, the entropy of the distributions that they were taken from.

        logits = (hidden @ weight.T + bias) / temperature        p = softmax(logits)
        logprobs_n = log p_n[targets_n]                          entropy_n = -sum_v p_nv log p_nv

    Args:
        hidden        (N, H) states of the trunk, N >= 0
        output        weight (V, H) and bias (V,) or None, see `output_weight`
        targets       (N,) int64, 0 to V - 1
        temperature   above 0
        precision     of the matrix products; float64 makes everything float64
        with_entropy  whether the entropy is computed
        held          logits held at once at most; None: what suits the device

    Returns:
        float32, with a gradient for hidden, weight and bias where these want one.
    """
    plan = _Plan.of(hidden, output, temperature, precision, held)
    return Scores(*_Scores.apply(hidden, *output, targets, plan, with_entropy))  # type: ignore[no-untyped-call]


def weighted_sum(
    hidden: Tensor,
    output: Output,
    targets: Tensor,
    weights: Tensor,
    *,
    temperature: float = 1.0,
    precision: torch.dtype = torch.float32,
    held: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The weighted sum of the log-probabilities of `scores`, for a quarter less work and for one backward.

        total = sum_n weights_n logprobs_n

    The gradients are computed beside the sum, a tile at a time, and wait for the backward.

    Args:
        weights  (N,) constants; the other arguments are those of `scores`

    Returns:
        total     float32 scalar, with a gradient for hidden, weight and bias where these want one
        logprobs  (N,) float32, without a gradient
    """
    plan = _Plan.of(hidden, output, temperature, precision, held)
    return _WeightedSum.apply(hidden, *output, targets, weights, plan)  # type: ignore[no-untyped-call, no-any-return]


def output_weight(module: nn.Module) -> Output:
    """Weight and bias of an output embedding that is a plain linear layer, also under an adapter of peft.

    With LoRA the weight is that of the base plus scaling B A of each active adapter, with a gradient for A and B. A
    copy that peft trains in the layer's place ("modules_to_save") counts as the layer.

    Raises:
        TypeError where the layer computes something else.
    """
    layer: Any = module
    copies = getattr(layer, "modules_to_save", None)
    if isinstance(copies, nn.ModuleDict):
        replaced = layer.active_adapters and not layer.disable_adapters
        return output_weight(copies[layer.active_adapters[0]] if replaced else layer.original_module)
    if hasattr(layer, "get_delta_weight"):
        return _with_lora(layer)
    plain = isinstance(layer, nn.Linear) and type(layer).forward is nn.Linear.forward
    if not plain or not layer.weight.is_floating_point():
        raise TypeError(f"The output embedding is a {type(layer).__name__}; a plain linear layer was expected.")
    return Output(layer.weight, layer.bias)


def _with_lora(layer: Any) -> Output:
    output = output_weight(layer.get_base_layer())
    if layer.disable_adapters or layer.merged:
        return output
    for name in (name for name in layer.active_adapters if name in layer.lora_A):
        if name in getattr(layer, "lora_variant", {}) or layer.lora_B[name].bias is not None:
            raise TypeError(f'The adapter "{name}" of the output embedding is no plain LoRA without a bias.')
        output = output._replace(weight=output.weight + layer.get_delta_weight(name))
    return output


@dataclass(frozen=True)
class _Plan:
    """How the logits are computed, and in which tiles."""

    scale: float  # 1 / temperature
    precision: torch.dtype
    needed: bool  # whether anything wants a gradient
    rows: int  # tokens of a tile of `scores`
    columns: int  # and its words
    whole: int  # tokens of a tile of `weighted_sum`, which spans the vocabulary

    @classmethod
    def of(cls, hidden: Tensor, output: Output, temperature: float, precision: torch.dtype, held: int | None) -> _Plan:
        """For (N, H) states."""
        assert temperature > 0
        tokens, vocabulary, device = max(1, len(hidden)), len(output.weight), hidden.device.type
        tile = held or _TILE.get(device, _TILE_ELSEWHERE)
        columns = min(vocabulary, tile, max(_COLUMNS, tile // tokens))
        fewest = 1 if held else _ROWS.get(device, _ROWS_ELSEWHERE)
        needed = torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in (hidden, *output))
        return cls(
            scale=1.0 / temperature,
            precision=precision,
            needed=needed,
            rows=min(tokens, max(1, tile // columns)),
            columns=columns,
            whole=min(tokens, max(fewest, tile // vocabulary)),
        )

    @property
    def wide(self) -> torch.dtype:
        """The type of logits and sums."""
        return torch.promote_types(self.precision, torch.float32)

    def cast(self, weight: Tensor, bias: Tensor | None) -> Output:
        """An output embedding as the products take it."""
        return Output(weight.to(self.precision), None if bias is None else bias.to(self.wide))


def _slices(total: int, step: int) -> Iterator[slice]:
    yield from (slice(first, min(first + step, total)) for first in range(0, total, step))


def _spare(tile: Tensor) -> Tensor | None:
    """Where the plain code of a CPU works: in the tile itself. Compiled code needs no memory."""
    return tile if tile.device.type == "cpu" else None


class _Scores(torch.autograd.Function):
    """`scores`: forward and backward by tiles, those of the same words one after another."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, plan: _Plan, with_entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        with torch.autocast(hidden.device.type, enabled=False):
            states, read = hidden.to(plan.precision), tiles.suited(hidden.device, tiles.read)
            memory = states.new_empty((plan.rows, plan.columns), dtype=plan.wide)
            found = memory.new_zeros(3 + with_entropy, len(states))
            for columns in _slices(len(weight), plan.columns):
                part = plan.cast(*Output(weight, bias).words(columns))
                for rows in _slices(len(states), plan.rows):
                    size = slice(rows.stop - rows.start), slice(columns.stop - columns.start)
                    tile = tiles.project(memory[size], states[rows], part, plan.scale)
                    new = read(tile, targets[rows] - columns.start, with_entropy, _spare(tile))
                    new = new if columns.start == 0 else tiles.join(tuple(found[:, rows]), new)
                    found[:, rows] = torch.stack(new)
            logprobs, normalisers, entropy = tiles.settle(tuple(found))
        ctx.save_for_backward(hidden, weight, bias, targets, normalisers, entropy)
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor | None, entropy_slopes: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, normalisers, entropy = ctx.saved_tensors
        plan: _Plan = ctx.plan
        with torch.autocast(hidden.device.type, enabled=False):
            states, gradient = hidden.to(plan.precision), tiles.suited(hidden.device, tiles.gradient)
            sums = Sums((hidden, weight, bias), ctx.needs_input_grad[:3], plan.wide)
            given = torch.zeros_like(normalisers) if slopes is None else slopes * plan.scale
            given_entropy = None if entropy_slopes is None else entropy_slopes * plan.scale
            all_rows = Rows(targets, normalisers, given, entropy, given_entropy)
            memory = states.new_empty((plan.rows, plan.columns), dtype=plan.wide)
            for columns in _slices(len(weight), plan.columns):
                part = plan.cast(*Output(weight, bias).words(columns))
                for rows in _slices(len(states), plan.rows):
                    size = slice(rows.stop - rows.start), slice(columns.stop - columns.start)
                    tile = tiles.project(memory[size], states[rows], part, plan.scale)
                    found = gradient(tile, all_rows.cut(rows, columns.start), plan.precision, _spare(tile))
                    sums.add(rows, columns, found, states[rows], part.weight)
        return *sums.found(), None, None, None


class _WeightedSum(torch.autograd.Function):
    """`weighted_sum`: each tile spans the vocabulary and becomes its gradient as soon as it is read."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor, plan: _Plan
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(hidden.device.type, enabled=False):
            states, output = hidden.to(plan.precision), plan.cast(weight, bias)
            wanted = tuple(plan.needed and asked for asked in ctx.needs_input_grad[:3])
            sums = Sums((hidden, weight, bias), wanted, plan.wide)
            weights = weights.to(plan.wide)
            logprobs = torch.empty_like(weights)
            memory = states.new_empty((plan.whole, len(weight)), dtype=plan.wide)
            read, gradient = (tiles.suited(states.device, function) for function in (tiles.read, tiles.gradient))
            for rows in _slices(len(states), plan.whole):
                tile = tiles.project(memory[: rows.stop - rows.start], states[rows], output, plan.scale)
                part = read(tile, targets[rows], False, _spare(tile))
                logprobs[rows], normalisers, _ = tiles.settle(part)
                if plan.needed:
                    each = Rows(targets[rows], normalisers, weights[rows] * plan.scale)
                    if _spare(tile) is None:
                        found = gradient(tile, each, plan.precision, None)
                    else:
                        found = tiles.gradient_of_read(tile, part[2], each, plan.precision)
                    sums.add(rows, slice(None), found, states[rows], output.weight)
        ctx.gradients = sums.found()
        ctx.mark_non_differentiable(logprobs)
        return (weights * logprobs).sum(), logprobs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        assert ctx.gradients is not None, "an earlier backward has taken the gradients of this weighted sum"
        found, ctx.gradients = ctx.gradients, None
        return *(None if part is None else part.mul_(slope) for part in found), None, None, None
