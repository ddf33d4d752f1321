"""Attention of one query per sequence over keys and values in pages, on a CPU: nothing is gathered, nothing filled up.

SDPA wants each sequence's keys in one piece, and all sequences of one call as long as the longest. Here every sequence
reads its own pages, so that what is read from memory is what is used; that is what bounds a decoding step. Heads of
the query that share a key head read a page together.

What bounds it is memory, so a page is asked for while the one before it is worked on, and exp is a polynomial, which
unlike the one of C is computed for many scores at once.

Threads are Python's, one of them the caller's, and take the next few sequences when they are done with some. Those of
numba's own layers would bring a second OpenMP beside torch's, and wait for the slowest.
"""

from __future__ import annotations

import functools
import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from torch import Tensor

_ALONE = 2**18  # numbers of keys that one thread reads sooner than another wakes up
_LINE = 64  # bytes that a processor fetches together
_PARTS = 4  # of the work, for each thread: sequences differ in length, and cores may be busy


def attend(query: Tensor, keys: Tensor, values: Tensor, table: Tensor, used: Tensor, scale: float) -> Tensor:
    """softmax(q k^T * scale) v over the first tokens of each sequence; no gradient.

    Args:
        query   (S, H, D) float32
        keys    (N, K, P, D) N pages of P tokens for K heads, float32 or bfloat16; H is a multiple of K
        values  (N, K, P, D)
        table   (S, W) int32: the pages of each sequence, in order
        used    (S,) int32: tokens of each sequence, at least 1
        scale   of the scores

    Returns:
        (S, H, D) float32

    >>> values = torch.tensor([1.0, 3.0, 8.0, 100.0]).view(2, 1, 2, 1)          # two pages of two tokens
    >>> table, used = torch.tensor([[0, 1]]).int(), torch.tensor([3]).int()     # the fourth is not used
    >>> attend(torch.zeros(1, 1, 1), values, values, table, used, 1.0).item()   # (1 + 3 + 8) / 3
    4.0
    """
    assert query.dtype == torch.float32 and used.dtype == table.dtype == torch.int32
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    pages = [x if x.dtype == torch.float32 else x.view(torch.uint16) for x in (keys, values)]  # numpy has no bfloat16
    cache, layout = (pages[0].numpy(), pages[1].numpy()), (table.numpy(), used.numpy())
    arrays = (query.contiguous().numpy(), out.numpy(), cache, layout)
    tasks, threads = len(query) * keys.shape[1], torch.get_num_threads()
    if threads == 1 or int(layout[1].sum()) * keys.shape[1] * keys.shape[3] < _ALONE:
        _some(0, tasks, *arrays, scale)
    else:
        _together(tasks, threads, arrays, scale)
    return out


def _together(tasks: int, threads: int, arrays: tuple[Any, ...], scale: float) -> None:
    """All tasks, by this thread and as many others as come to help before they are done."""
    parts = min(tasks, _PARTS * threads)
    tickets = itertools.count()

    def work() -> None:
        while (part := next(tickets)) < parts:
            _some(part * tasks // parts, (part + 1) * tasks // parts, *arrays, scale)

    helpers = [_pool(threads - 1).submit(work) for _ in range(threads - 1)]
    work()
    for helper in helpers:
        if not helper.cancel():
            helper.result()


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


def _wide(number: Any) -> Any:
    """A float32 as it is, or a bfloat16, given as its 16 bits, as float32."""
    raise NotImplementedError  # for compiled code alone


@overload(_wide, strict=False)
def _typed(number: Any) -> Any:
    if number == types.float32:
        return lambda number: number
    return lambda number: np.uint32(np.uint32(number) << np.uint32(16)).view(np.float32)


@intrinsic
def _fetch(_: Any, array: Any, index: Any) -> Any:
    """Ask the processor for the line of memory of array.reshape(-1)[index], and do not wait for it."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, given[0]).data
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        takes = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        prefetch = cgutils.get_or_insert_function(builder.module, takes, "llvm.prefetch.p0i8")
        address = builder.bitcast(builder.gep(data, [given[1]]), byte)
        builder.call(prefetch, [address, number(0), number(3), number(1)])  # to read, into the nearest cache, data
        return context.get_dummy_value()

    return types.void(array, types.intp), code


@numba.njit(nogil=True, cache=True)
def _some(first: int, last: int, query: Any, out: Any, cache: Any, layout: Any, scale: float) -> None:
    """Tasks `first` to `last`; a task is a sequence and a key head."""
    (keys, values), (table, used) = cache, layout
    heads = keys.shape[1]
    group = query.shape[1] // heads
    for task in range(first, last):
        row, head = task // heads, task % heads
        mine = slice(head * group, (head + 1) * group)
        pages, weights = table[row], np.empty((group, used[row]), np.float32)
        _scores(query[row, mine], keys, head, pages, weights)
        for member in range(group):  # a loop over the rows themselves would not know that their numbers stand together
            _softmax(weights[member], np.float32(scale))
        _sums(weights, values, head, pages, out[row, mine])


@numba.njit(cache=True)
def _after(cache: Any, head: int, pages: Any, start: int, end: int) -> Any:
    """Where the page after the one of token `start` begins, as an index of all numbers; -1 if there is none."""
    if start + cache.shape[2] >= end:
        return -1
    return (np.int64(pages[start // cache.shape[2] + 1]) * cache.shape[1] + head) * cache.shape[2] * cache.shape[3]


@numba.njit(fastmath={"reassoc", "contract"}, cache=True)
def _scores(query: Any, keys: Any, head: int, pages: Any, scores: Any) -> None:
    """Products of each query with each key."""
    (size, dim), line = keys.shape[2:], _LINE // keys.itemsize
    for start in range(0, scores.shape[1], size):
        page, count = pages[start // size], min(size, scores.shape[1] - start)
        whole, after = count // 4 * 4, _after(keys, head, pages, start, scores.shape[1])
        for token in range(0, whole, 4):  # four at once: sums over the lanes of a register do not wait for each other
            for index in range(after + token * dim, after + (token + 4) * dim if after >= 0 else -1, line):
                _fetch(keys, index)
            for member in range(len(query)):
                a = b = c = d = np.float32(0)
                for i in range(dim):
                    asked = query[member, i]
                    a += asked * _wide(keys[page, head, token, i])
                    b += asked * _wide(keys[page, head, token + 1, i])
                    c += asked * _wide(keys[page, head, token + 2, i])
                    d += asked * _wide(keys[page, head, token + 3, i])
                for lane, score in enumerate((a, b, c, d)):
                    scores[member, start + token + lane] = score
        for member in range(len(query)):
            for token in range(whole, count):
                score = np.float32(0)
                for i in range(dim):
                    score += query[member, i] * _wide(keys[page, head, token, i])
                scores[member, start + token] = score


@numba.njit(fastmath={"reassoc", "contract"}, cache=True)
def _softmax(scores: Any, scale: float) -> None:
    """In place. A score that is no number makes all weights so."""
    top = np.int32(-(2**31))
    for bits in scores.view(np.int32):  # floats are ordered as these integers are, and integers are compared in vectors
        top = max(top, np.int32(_ordered(bits)))
    most, total = np.int32(_ordered(top)).view(np.float32), np.float32(0)
    for token in range(len(scores)):
        scores[token] = _exp((scores[token] - most) * scale)
        total += scores[token]
    share = np.float32(1) / total
    for token in range(len(scores)):
        scores[token] *= share


@numba.njit(cache=True)
def _ordered(bits: int) -> Any:
    """The bits of a float as an integer that is ordered like it, and back."""
    return bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))


@numba.njit(fastmath={"contract"}, cache=True)
def _exp(x: Any) -> Any:
    """e^x for x <= 0, to 3e-7 of itself: 2^n times the series of e^r, |r| <= log(2) / 2. 0 from e^-87.7 down."""
    x = max(x, np.float32(-88.1))
    power = np.rint(x * np.float32(1.4426950))  # / log 2
    r = x - power * np.float32(0.693359375)  # log 2 in two parts: few digits first, so that this product is exact
    r = r + power * np.float32(2.1219444e-4)
    series = np.float32(1 / 720)
    series = series * r + np.float32(1 / 120)
    series = series * r + np.float32(1 / 24)
    series = series * r + np.float32(1 / 6)
    series = series * r + np.float32(1 / 2)
    series = series * r + np.float32(1)
    series = series * r + np.float32(1)
    return series * np.int32((np.int32(power) + np.int32(127)) << np.int32(23)).view(np.float32)


@numba.njit(fastmath={"reassoc", "contract"}, cache=True)
def _sums(weights: Any, values: Any, head: int, pages: Any, out: Any) -> None:
    """Weighted sums of values."""
    (size, dim), line = values.shape[2:], _LINE // values.itemsize
    out[:] = 0
    for start in range(0, weights.shape[1], size):
        page, count = pages[start // size], min(size, weights.shape[1] - start)
        whole, after = count // 4 * 4, _after(values, head, pages, start, weights.shape[1])
        for token in range(0, whole, 4):  # four at once: sums are loaded and stored a quarter as often
            for index in range(after + token * dim, after + (token + 4) * dim if after >= 0 else -1, line):
                _fetch(values, index)
            for member in range(len(weights)):
                weight = weights[member, start + token :]
                a, b, c, d = weight[0], weight[1], weight[2], weight[3]
                for i in range(dim):
                    out[member, i] += (
                        a * _wide(values[page, head, token, i])
                        + b * _wide(values[page, head, token + 1, i])
                        + c * _wide(values[page, head, token + 2, i])
                        + d * _wide(values[page, head, token + 3, i])
                    )
        for member in range(len(weights)):
            for token in range(whole, count):
                for i in range(dim):
                    out[member, i] += weights[member, start + token] * _wide(values[page, head, token, i])
