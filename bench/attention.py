"""Attention within the documents of a row on a CPU: the package's path beside other ways, in turns, in one process.

    python bench/attention.py [--tokens 8192] [--rounds 5] [--threads 1]

Rows are log-normal documents around a median length, up to 1,024 tokens, 4 query and 2 key heads of 64, float32.
Times are processor milliseconds of one layer, forward and backward, medians of the rounds; the layout, made once for
all layers, stands apart. Outputs are compared first. A row is printed as a table line and as JSON.

- ours           what the package takes: documents of 32 tokens on average alone, shorter ones in groups
- alone, groups  each of the two by itself
- indexed        groups 0.8 similar gathered by indexing, as the package did before
- dense mask     one call of SDPA with a mask over all pairs of tokens, as rows are packed elsewhere
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from algorist.model import kernels
from algorist.model.kernels import Alone, Attend, Groups

CPU = torch.device("cpu")
HEADS, KV_HEADS, SIZE, LONGEST = 4, 2, 64, 1024


def drawn(median: int, tokens: int) -> tuple[int, ...]:
    """Offsets of documents that fill the row."""
    draw, bounds = np.random.default_rng(0), [0]
    while bounds[-1] < tokens:
        length = int(np.clip(draw.lognormal(np.log(median), 0.8), 1, LONGEST))
        bounds.append(min(bounds[-1] + length, tokens))
    return tuple(bounds)


def groups(bounds: tuple[int, ...]) -> Attend:
    return Groups.of(np.asarray(bounds), kernels._by_similarity(np.diff(bounds)), CPU)


def indexed(bounds: tuple[int, ...]) -> Attend:
    """Gathered with plain indexing, whose backward is a sum over places."""
    lengths = np.diff(bounds)
    order = np.argsort(-lengths, kind="stable")
    parts, first = [], 0
    while first < len(order):
        size = int((lengths[order[first:]] >= 0.8 * lengths[order[first]]).sum())
        parts.append((order[first : first + size], int(lengths[order[first]])))
        first += size
    layout = Groups.of(np.asarray(bounds), parts, CPU)
    places = [
        x.view(shape)
        for x, shape in zip(layout.there.split([n * m for n, m in layout.shapes]), layout.shapes, strict=True)
    ]

    def attend(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        outputs = []
        for index in places:
            q, k, v = (x[index].transpose(1, 2) for x in (query, key, value))
            out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
            outputs.append(out.transpose(1, 2).flatten(0, 1))
        return torch.cat(outputs)[layout.back]

    return attend


def dense(bounds: tuple[int, ...]) -> Attend:
    document = torch.repeat_interleave(torch.arange(len(bounds) - 1), torch.tensor(bounds).diff())
    mask = (document[:, None] == document).tril()

    def attend(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)[0].transpose(0, 1)

    return attend


WAYS: dict[str, Callable[[tuple[int, ...]], Attend]] = {
    "ours": lambda bounds: kernels.grouped(bounds, CPU),
    "alone": lambda bounds: Alone(tuple(np.diff(bounds).tolist())),
    "groups": groups,
    "indexed": indexed,
    "dense mask": dense,
}


def measure(median: int, tokens: int, rounds: int) -> None:
    bounds = drawn(median, tokens)
    rows = [torch.randn(1, count, tokens, SIZE)[0].transpose(0, 1) for count in (HEADS, KV_HEADS, KV_HEADS)]
    leaves, slope = [x.requires_grad_() for x in rows], torch.randn(tokens, HEADS, SIZE)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
    expected = WAYS["ours"](bounds)(*leaves, None)
    for turn in range(rounds + 1):
        for name, way in WAYS.items():
            attend = out = None  # what the last way held is given back before the clock runs
            begin = time.process_time()
            attend = way(bounds)
            ready = time.process_time()
            out = attend(*leaves, None)
            torch.autograd.grad(out, leaves, slope)
            end = time.process_time()
            assert float((out - expected).abs().max()) < 1e-4, name
            if turn:
                taken[name].append((ready - begin, end - ready))
    mean = tokens / (len(bounds) - 1)
    for name, times in taken.items():
        layout, layer = (1e3 * statistics.median(parts) for parts in zip(*times, strict=True))
        print(
            f"median {median:4} mean {mean:6.1f}  {name:12} layer {layer:8.1f} ms  layout {layout:6.2f} ms", flush=True
        )
        row = {"median": median, "mean": mean, "way": name, "layer_ms": layer, "layout_ms": layout, "tokens": tokens}
        print(json.dumps(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    for median in (8, 24, 160):
        measure(median, args.tokens, args.rounds)


if __name__ == "__main__":
    main()
