"""Attention of one query per sequence over keys and values in pages, on a CPU: nothing is gathered, nothing filled up.

SDPA wants each sequence's keys in one piece, and all sequences of one call as long as the longest. Here every sequence
reads its own pages, and threads take the next sequence and key head when they are done with one, so that what is read
from memory is what is used; that is what bounds a decoding step.

The work is shared among the threads of torch's own OpenMP where that is GNU's (Linux): those of another pool would
compete with them, because they wait spinning. Elsewhere it is done by one thread.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from numba import types
from numba.extending import intrinsic
from torch import Tensor

_LEAST = -3.0e38  # below every score; no infinity, whose differences are not numbers


def attend(query: Tensor, keys: Tensor, values: Tensor, table: Tensor, used: Tensor, scale: float) -> Tensor:
    """softmax(q k^T * scale) v over the first tokens of each sequence.

    Args:
        query   (S, H, D) float32
        keys    (N, P, K, D) N pages of P tokens, float32 or bfloat16; H is a multiple of K
        values  (N, P, K, D)
        table   (S, W) int32: the pages of each sequence, in order
        used    (S,) int32: tokens of each sequence, at least 1
        scale   of the scores

    Returns:
        (S, H, D) float32
    """
    query = query.contiguous()
    assert query.dtype == torch.float32 and keys.is_contiguous() and values.is_contiguous()
    assert table.stride(1) == 1 and used.dtype == table.dtype == torch.int32
    out = torch.empty_like(query)
    pages, size, kv_heads, _ = keys.shape
    factor = torch.tensor([scale], dtype=torch.float64)
    tensors = (query, keys, values, out, table, used, factor)
    shapes = (*query.shape, kv_heads, pages, size, table.stride(0))
    wanted = np.array([0, *shapes, *(x.data_ptr() for x in tensors)], dtype=np.int64)
    _together(_WORK[keys.dtype], wanted)
    return out


def _together(work: Any, wanted: Any) -> None:
    """Run `work` on all threads of torch at once, or on this one."""
    threads = torch.get_num_threads()
    team = _team()
    if team is None or threads == 1:
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(work.address)(wanted.ctypes.data)
    else:
        team(work.address, wanted.ctypes.data, threads, 0)


@functools.cache
def _team() -> Callable[[int, int, int, int], object] | None:
    """`GOMP_parallel` of the OpenMP that torch has loaded, None where there is none."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        found = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD | os.RTLD_NOW).GOMP_parallel
    except (OSError, AttributeError):
        return None
    found.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    found.restype = None
    return found


@intrinsic
def _pointer(_: Any, address: Any) -> Any:
    """A pointer from an integer."""

    def generate(context: Any, builder: Any, __: Any, given: Any) -> Any:
        return builder.inttoptr(given[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), generate


@intrinsic
def _ticket(_: Any, counter: Any) -> Any:
    """The next number of a counter that threads share."""

    def generate(context: Any, builder: Any, __: Any, given: Any) -> Any:
        return builder.atomic_rmw("add", given[0], context.get_constant(types.int64, 1), "monotonic")

    return types.int64(types.CPointer(types.int64)), generate


@intrinsic
def _wide(_: Any, number: Any) -> Any:
    """A float32 as it is, or a bfloat16, given as its 16 bits, as float32."""

    def generate(context: Any, builder: Any, __: Any, given: Any) -> Any:
        if number == types.float32:
            return given[0]
        bits = builder.zext(given[0], context.get_value_type(types.int32))
        bits = builder.shl(bits, context.get_constant(types.int32, 16))
        return builder.bitcast(bits, context.get_value_type(types.float32))

    return types.float32(number), generate


@numba.njit(fastmath={"reassoc", "contract"}, cache=True)
def _one(task: int, query: Any, keys: Any, values: Any, out: Any, where: Any, scale: Any) -> None:
    """One sequence and key head: scores of a page, then the weighted sum, corrected when a larger score comes."""
    table, used = where
    size, kv_heads, dim = keys.shape[1], keys.shape[2], keys.shape[3]
    sequence, head = task // kv_heads, task % kv_heads
    group = query.shape[1] // kv_heads
    tokens = used[sequence]
    weights = np.empty(size, np.float32)
    summed = np.zeros((group, dim), np.float32)
    top = np.full(group, np.float32(_LEAST), np.float32)
    total = np.zeros(group, np.float32)
    for start in range(0, tokens, size):
        page = table[sequence, start // size]
        count = min(size, tokens - start)
        for member in range(group):
            row = head * group + member
            best = top[member]
            for token in range(count):
                score = np.float32(0)
                for i in range(dim):
                    score += query[sequence, row, i] * _wide(keys[page, token, head, i])
                score *= scale
                weights[token] = score
                best = max(best, score)
            shrink = np.exp(top[member] - best)
            top[member] = best
            total[member] *= shrink
            for i in range(dim):
                summed[member, i] *= shrink
            for token in range(count):
                weights[token] = np.exp(weights[token] - best)
                total[member] += weights[token]
            whole = count // 4 * 4
            for token in range(0, whole, 4):  # four at once: sums are loaded and stored a quarter as often
                a, b, c, d = weights[token], weights[token + 1], weights[token + 2], weights[token + 3]
                for i in range(dim):
                    summed[member, i] += (
                        a * _wide(values[page, token, head, i])
                        + b * _wide(values[page, token + 1, head, i])
                        + c * _wide(values[page, token + 2, head, i])
                        + d * _wide(values[page, token + 3, head, i])
                    )
            for token in range(whole, count):
                for i in range(dim):
                    summed[member, i] += weights[token] * _wide(values[page, token, head, i])
    for member in range(group):
        for i in range(dim):
            out[sequence, head * group + member, i] = summed[member, i] / total[member]


@numba.njit(cache=True)
def _all(wanted: Any, keys: Any, values: Any) -> None:
    """Task after task, until the threads have taken all of them."""
    rows, heads, dim, kv_heads, width = wanted[1], wanted[2], wanted[3], wanted[4], wanted[7]
    query = numba.carray(_pointer(wanted[8]), (rows, heads, dim), np.float32)
    out = numba.carray(_pointer(wanted[11]), (rows, heads, dim), np.float32)
    table = numba.carray(_pointer(wanted[12]), (rows, width), np.int32)
    used = numba.carray(_pointer(wanted[13]), (rows,), np.int32)
    scale = np.float32(numba.carray(_pointer(wanted[14]), (1,), np.float64)[0])
    task = _ticket(wanted)
    while task < rows * kv_heads:
        _one(task, query, keys, values, out, (table, used), scale)
        task = _ticket(wanted)


@numba.cfunc(types.void(types.CPointer(types.int64)), cache=True)
def _in_float32(wanted: Any) -> None:
    shape = (wanted[5], wanted[6], wanted[4], wanted[3])
    keys = numba.carray(_pointer(wanted[9]), shape, np.float32)
    _all(wanted, keys, numba.carray(_pointer(wanted[10]), shape, np.float32))


@numba.cfunc(types.void(types.CPointer(types.int64)), cache=True)
def _in_bfloat16(wanted: Any) -> None:
    shape = (wanted[5], wanted[6], wanted[4], wanted[3])
    keys = numba.carray(_pointer(wanted[9]), shape, np.uint16)
    _all(wanted, keys, numba.carray(_pointer(wanted[10]), shape, np.uint16))


_WORK = {torch.float32: _in_float32, torch.bfloat16: _in_bfloat16}
