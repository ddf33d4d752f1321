"""Causal attention within the documents of a flat row, in five ways; model/probe.py chooses among them.

A path is a function of where documents begin. It works out once per row what its kernel wants to know and returns an
`Attend`, which every layer calls:

- grouped   SDPA on each document where it stands, or, of short ones, on groups of similar length; runs everywhere
- varlen    torch.nn.attention.varlen, one kernel over offsets of documents; CUDA, half precision
- flex      FlexAttention with a mask of blocks, compiled once for all lengths; CUDA, on a CPU without gradients
- cudnn     groups on a coarse grid of lengths under cuDNN's SDPA; CUDA, half precision
- flash     flash_attn_varlen_func of flash-attn 3 or 2, where one is installed; CUDA, half precision

None builds a mask over pairs of tokens. None repeats keys for the query heads that share them, but "grouped" on a GPU
in float32, where no kernel of torch shares them.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

# query (T, H, D), key and value (T, K, D), scale of the scores or None for 1/sqrt(D) → (T, H, D).
# H is a multiple of K; all three have one dtype.
Attend = Callable[[Tensor, Tensor, Tensor, float | None], Tensor]
# bounds (D + 1 offsets, from 0 to T) and device → Attend.
Path = Callable[[Sequence[int], torch.device], Attend]

# Documents this long on average are attended one by one. On a CPU a call costs what gathering 32 tokens costs
# (measured); on a GPU, where a dozen kernels are launched for each, thousands.
_ALONE = {"cpu": 32, "cuda": 2048}
_SIMILAR = 0.9  # a group holds documents at least this share as long as its longest
_BLOCK = 128  # tokens of FlexAttention's blocks


def grouped(bounds: Sequence[int], device: torch.device) -> Attend:
    """Causal SDPA, document by document or by groups of documents of similar length."""
    if bounds[-1] >= _ALONE[device.type] * (len(bounds) - 1):
        return Alone(tuple(np.diff(bounds).tolist()))
    return Groups.of(np.asarray(bounds), _by_similarity(np.diff(bounds)), device)


def varlen(bounds: Sequence[int], device: torch.device) -> Attend:
    """The kernel for ragged rows that torch itself has (FlashAttention's)."""
    kernel, options = _varlen_kernel()
    offsets, longest = _offsets(bounds, device)

    def attend(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        where = (offsets, offsets, longest, longest)
        return kernel(query, key, value, *where, scale=scale, **options)  # type: ignore[no-any-return]

    return attend


def flash(bounds: Sequence[int], device: torch.device) -> Attend:
    """flash-attn 3 (`flash_attn_interface`) where it is installed, else 2 (`flash_attn`)."""
    kernel = _flash_kernel()
    offsets, longest = _offsets(bounds, device)

    def attend(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        where = (offsets, offsets, longest, longest)
        out = kernel(query, key, value, *where, softmax_scale=scale, causal=True)
        return out[0] if isinstance(out, tuple) else out  # type: ignore[no-any-return]  # some give log-sum-exp too

    return attend


def cudnn(bounds: Sequence[int], device: torch.device) -> Attend:
    """Groups under cuDNN's SDPA. It plans each shape anew, so shapes are few: see `_by_grid`."""
    groups = Groups.of(np.asarray(bounds), _by_grid(np.diff(bounds)), device)

    def attend(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return groups(query, key, value, scale)

    return attend


def flex(bounds: Sequence[int], device: torch.device) -> Attend:
    """FlexAttention. Blocks that no document of a query reaches are skipped, and blocks within one document are
    computed without a mask. On a CPU it is not compiled and holds the scores of all pairs: for tests of the rest."""
    mask = blocks(bounds, device)

    def attend(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
        shared = query.shape[1] != key.shape[1]
        out = _flex_kernel(device.type)(q, k, v, block_mask=mask, scale=scale, enable_gqa=shared)
        return out[0].transpose(0, 1)  # type: ignore[no-any-return]

    return attend


PATHS: Mapping[str, Path] = {"grouped": grouped, "varlen": varlen, "flex": flex, "cudnn": cudnn, "flash": flash}


def missing(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a path of PATHS cannot train on a device in the precision `dtype`; None where it may be tried."""
    if name == "grouped":
        return None
    if device.type != "cuda":
        return "it needs a CUDA device"
    if name != "flex" and dtype == torch.float32:
        return "it computes in half precision only, and [model] precision is float32"
    if name == "flash" and not any(importlib.util.find_spec(module) for module in _FLASH):
        return "flash-attn is not installed"
    return None


@dataclass(frozen=True)
class Alone:
    """Each document attended where it stands: nothing is gathered, nothing is filled up."""

    lengths: tuple[int, ...]  # of the documents, in tokens

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """An `Attend`."""
        rows = (x.transpose(0, 1)[None] for x in (query, key, value))
        parts = (torch.split(x, list(self.lengths), dim=2) for x in rows)  # (1, H, L, D) each
        outputs = [_causal(q, k, v, scale)[0].transpose(0, 1) for q, k, v in zip(*parts, strict=True)]
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0]


@dataclass(frozen=True)
class Groups:
    """Documents gathered side by side. The places that fill up a group stand behind the real tokens, so causality
    hides them, and nothing comes back from them."""

    shapes: tuple[tuple[int, int], ...]  # (documents n, length L) of each group
    there: Tensor  # (N,) int64: which token stands at each place of the groups, a document's last where it is filled up
    back: Tensor  # (T,) int64: at which place each token stands

    @classmethod
    def of(cls, bounds: np.ndarray, groups: Sequence[tuple[np.ndarray, int]], device: torch.device) -> Groups:
        """The layout of groups given as (indices of documents, length to which they are filled up)."""
        starts, lengths = bounds[:-1], np.diff(bounds)
        there, back, shapes = [], np.empty(bounds[-1], np.int64), []
        offset = 0
        for chosen, length in groups:
            places = np.arange(length)
            index = starts[chosen, None] + np.minimum(places, lengths[chosen, None] - 1)
            real = places < lengths[chosen, None]
            back[index[real]] = offset + np.flatnonzero(real)
            there.append(index.ravel())
            shapes.append((len(chosen), length))
            offset += index.size
        return cls(tuple(shapes), torch.from_numpy(np.concatenate(there)).to(device), torch.from_numpy(back).to(device))

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """An `Attend`."""
        sizes = [n * length for n, length in self.shapes]
        gathered = (_There.apply(x, self.there, self.back) for x in (query, key, value))  # type: ignore[no-untyped-call]
        parts = [torch.split(x, sizes) for x in gathered]
        outputs = []
        for (n, length), *rows in zip(self.shapes, *parts, strict=True):
            q, k, v = (x.unflatten(0, (n, length)).transpose(1, 2) for x in rows)  # (n, H, L, D)
            outputs.append(_causal(q, k, v, scale).transpose(1, 2).flatten(0, 1))
        joined = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
        return _Back.apply(joined, self.back)  # type: ignore[no-untyped-call, no-any-return]


class _There(torch.autograd.Function):
    """(T, ...) tokens to their (N, ...) places. Backward takes each token's own place alone: the places that fill up
    have no gradient, and a sum over places, which autograd would take, is slow on a GPU and rounds as it likes."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, there: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return rows.index_select(0, there)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        return slope.index_select(0, back), None, None


class _Back(torch.autograd.Function):
    """(N, ...) places to their (T, ...) tokens."""

    @staticmethod
    def forward(ctx: Any, places: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        ctx.places = len(places)
        return places.index_select(0, back)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        (back,) = ctx.saved_tensors
        return slope.new_zeros((ctx.places, *slope.shape[1:])).index_copy_(0, back, slope), None


def blocks(bounds: Sequence[int], device: torch.device) -> Any:
    """FlexAttention's block mask of causal attention within documents, from offsets alone.

    torch's create_block_mask asks for every pair of tokens first: 256 MiB at 16,384 tokens.
    """
    from torch.nn.attention.flex_attention import BlockMask

    starts, total = torch.tensor(bounds[:-1]), bounds[-1]
    count = -(-total // _BLOCK)
    first = torch.arange(count) * _BLOCK
    last = torch.clamp(first + _BLOCK, max=total) - 1
    begin = [starts[torch.searchsorted(starts, token, right=True) - 1] for token in (first, last)]
    row, column = torch.arange(count)[:, None], torch.arange(count)
    seen = (column >= begin[0][:, None] // _BLOCK) & (column <= row)
    # Every query of the block is in the document of its last one, and so is the whole block of keys. A block that the
    # row does not fill is never full.
    full = (column * _BLOCK >= begin[1][:, None]) & (column < row) & (first[:, None] + _BLOCK <= total)
    document = torch.full((count * _BLOCK,), -1, dtype=torch.int32)
    document[:total] = torch.bucketize(torch.arange(total), starts, right=True)
    document = document.to(device)

    def visible(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (document[query] == document[key])

    partly, fully = _ordered(seen & ~full, device), _ordered(full, device)
    lengths = (total, total)
    return BlockMask.from_kv_blocks(*partly, *fully, BLOCK_SIZE=_BLOCK, mask_mod=visible, seq_lengths=lengths)


def _ordered(chosen: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """(1, 1, R) int32 counts and (1, 1, R, C) int32 column numbers, chosen ones first, of an (R, C) bool matrix."""
    columns = torch.argsort(chosen.int(), dim=1, descending=True, stable=True)
    return chosen.sum(1, dtype=torch.int32)[None, None].to(device), columns.int()[None, None].to(device)


def _by_similarity(lengths: np.ndarray) -> list[tuple[np.ndarray, int]]:
    """Groups, longest documents first, filled up to the longest of each."""
    order = np.argsort(-lengths, kind="stable")
    falling = -lengths[order]
    groups, first = [], 0
    while first < len(order):
        longest = int(lengths[order[first]])
        after = int(np.searchsorted(falling, -_SIMILAR * longest, side="right"))
        groups.append((order[first:after], longest))
        first = after
    return groups


def _by_grid(lengths: np.ndarray) -> list[tuple[np.ndarray, int]]:
    """Groups of 2^k documents filled up to steps of an eighth of the power of two above them, 128 at least."""
    steps = np.maximum(128, 2 ** np.ceil(np.log2(lengths)).astype(np.int64) // 8)
    filled = -(-lengths // steps) * steps
    groups = []
    for length in np.unique(filled)[::-1].tolist():
        chosen = np.flatnonzero(filled == length)
        while len(chosen):
            size = 1 << (len(chosen).bit_length() - 1)
            groups.append((chosen[:size], length))
            chosen = chosen[size:]
    return groups


def _causal(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """(n, H, L, D) causal attention of n documents that fill L places each."""
    shared = query.shape[1] != key.shape[1]
    if shared and query.is_cuda and query.dtype == torch.float32:
        # No kernel but torch's plain one, which holds all pairs, shares keys between queries of this type.
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
        shared = False
    return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=shared)


def _offsets(bounds: Sequence[int], device: torch.device) -> tuple[Tensor, int]:
    """(D + 1,) int32 offsets on the device, and the tokens of the longest document."""
    return torch.tensor(bounds, dtype=torch.int32, device=device), int(np.diff(bounds).max())


_FLASH = ("flash_attn_interface", "flash_attn")


@functools.cache
def _varlen_kernel() -> tuple[Callable[..., Any], dict[str, Any]]:
    from torch.nn.attention.varlen import varlen_attn

    options: dict[str, Any] = {"window_size": (-1, 0)}  # causal
    # torch 2.11 takes fewer heads of keys as they come, later versions want to be told.
    if "enable_gqa" in inspect.signature(varlen_attn).parameters:
        options["enable_gqa"] = True
    return varlen_attn, options


@functools.cache
def _flash_kernel() -> Callable[..., Any]:
    module = next(name for name in _FLASH if importlib.util.find_spec(name))
    return importlib.import_module(module).flash_attn_varlen_func  # type: ignore[no-any-return]


@functools.cache
def _flex_kernel(device: str) -> Callable[..., Any]:
    """One compiled kernel for rows of all lengths: with static shapes each length would be compiled for seconds."""
    from torch.nn.attention.flex_attention import flex_attention

    # Compiled with dynamic shapes for a CPU, torch 2.13 writes C++ that does not compile.
    kernel: Callable[..., Any] = flex_attention
    return torch.compile(kernel, dynamic=True) if device == "cuda" else kernel
