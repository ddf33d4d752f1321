"""Attention of one query per sequence over keys and values in pages, on a CPU: nothing is gathered, nothing filled up.

SDPA wants each sequence's keys in one piece, and all sequences of one call as long as the longest. Here every sequence
reads its own pages, so that what is read from memory is what is used; that is what bounds a decoding step. Heads of
the query that share a key head read a page together.

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
from numba import types
from numba.extending import overload
from torch import Tensor

_ALONE = 2**18  # numbers of keys that one thread reads sooner than another wakes up
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
        for scores in weights:
            _softmax(scores, np.float32(scale))
        _sums(weights, values, head, pages, out[row, mine])


@numba.njit(fastmath={"reassoc", "contract"}, cache=True)
def _scores(query: Any, keys: Any, head: int, pages: Any, scores: Any) -> None:
    """Products of each query with each key."""
    size, dim = keys.shape[2:]
    for start in range(0, scores.shape[1], size):
        page = pages[start // size]
        for member in range(len(query)):
            for token in range(min(size, scores.shape[1] - start)):
                score = np.float32(0)
                for i in range(dim):
                    score += query[member, i] * _wide(keys[page, head, token, i])
                scores[member, start + token] = score


@numba.njit(fastmath={"reassoc", "contract"}, cache=True)
def _softmax(scores: Any, scale: float) -> None:
    """In place."""
    top, total = scores.max(), np.float32(0)
    for token in range(len(scores)):
        scores[token] = np.exp((scores[token] - top) * scale)
        total += scores[token]
    for token in range(len(scores)):
        scores[token] /= total


@numba.njit(fastmath={"reassoc", "contract"}, cache=True)
def _sums(weights: Any, values: Any, head: int, pages: Any, out: Any) -> None:
    """Weighted sums of values."""
    size, dim = values.shape[2:]
    out[:] = 0
    for start in range(0, weights.shape[1], size):
        page, count = pages[start // size], min(size, weights.shape[1] - start)
        for member in range(len(weights)):
            weight = weights[member, start:]
            whole = count // 4 * 4
            for token in range(0, whole, 4):  # four at once: sums are loaded and stored a quarter as often
                a, b, c, d = weight[token], weight[token + 1], weight[token + 2], weight[token + 3]
                for i in range(dim):
                    out[member, i] += (
                        a * _wide(values[page, head, token, i])
                        + b * _wide(values[page, head, token + 1, i])
                        + c * _wide(values[page, head, token + 2, i])
                        + d * _wide(values[page, head, token + 3, i])
                    )
            for token in range(whole, count):
                for i in range(dim):
                    out[member, i] += weight[token] * _wide(values[page, head, token, i])
