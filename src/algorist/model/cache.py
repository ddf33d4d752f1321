"""The cache of keys and values that sampling decodes from: pages of tokens, handed out as sequences grow.

A sequence of 200 tokens holds 200 tokens of cache, whatever it may grow to, and a prompt's pages are held once for all
its samples. Which page belongs to whom is the sampler's business (generate/native.py); attention writes and reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import varlen
from torch.nn.functional import scaled_dot_product_attention

# Tokens of a page. FlashAttention 2 reads pages of multiples of 256; a CPU loses less to pages that are half empty.
PAGE = {"cpu": 32, "cuda": 256}


@dataclass(frozen=True)
class Kept:
    """What is cached of a token."""

    layers: int
    heads: int  # of keys and values
    head_dim: int
    dtype: torch.dtype

    @classmethod
    def of(cls, model: Any, precision: torch.dtype) -> Kept:
        """For a causal LM of transformers whose products are computed in `precision`."""
        text = model.config.get_text_config()
        heads = text.num_attention_heads
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
        dtype = model.get_input_embeddings().weight.dtype if precision == torch.float32 else precision
        return cls(text.num_hidden_layers, getattr(text, "num_key_value_heads", None) or heads, head_dim, dtype)

    @property
    def bytes(self) -> int:
        """Of one token in all layers."""
        return 2 * self.layers * self.heads * self.head_dim * self.dtype.itemsize


class Pages:
    """Pages of keys and values of all layers, and who may have how many of them.

    Page 0 belongs to nobody: rows that only fill a batch up may write there. On a CPU memory is used once a page is
    written, and a page given back is the next to be handed out, so that what is used is the most that was held.
    """

    def __init__(self, kept: Kept, count: int, device: torch.device) -> None:
        self.size = PAGE[device.type]
        self.total = count
        self.keys, self.values = ([_pages(kept, count + 1, device) for _ in range(kept.layers)] for _ in range(2))
        self._users = np.zeros(count + 1, dtype=np.int32)
        self._free: list[int] = []
        self._fresh = 1  # pages from here on were never handed out
        self.most = 0  # pages held at once so far

    @property
    def free(self) -> int:
        """Pages that can be had."""
        return len(self._free) + self.total + 1 - self._fresh

    def pages(self, tokens: int) -> int:
        """Pages that so many tokens take."""
        return -(-tokens // self.size)

    def take(self, count: int) -> list[int]:
        """`count` pages for one user; there must be so many free ones."""
        assert count <= self.free
        again = min(count, len(self._free))
        found = [self._free.pop() for _ in range(again)] + list(range(self._fresh, self._fresh + count - again))
        self._fresh += count - again
        self._users[found] = 1
        self.most = max(self.most, self.total - self.free)
        return found

    def share(self, pages: Sequence[int]) -> None:
        """One more user of pages that are full, and so will not be written again."""
        self._users[pages] += 1

    def give_back(self, pages: Sequence[int]) -> None:
        """One user less; whoever has no user left is free."""
        self._users[pages] -= 1
        self._free += [page for page in pages if not self._users[page]]

    def copy(self, source: Sequence[int], target: Sequence[int]) -> None:
        """Copy whole pages in every layer."""
        device = self.keys[0].device
        read, written = torch.tensor([source, target], device=device)
        for cache in (*self.keys, *self.values):
            cache[written] = cache[read]

    def write(self, layer: int, where: Tensor, key: Tensor, value: Tensor) -> None:
        """Keep (T, K, D) keys and values of a layer at `where` (2, T): pages, and places in them."""
        for cache, fresh in ((self.keys[layer], key), (self.values[layer], value)):
            cache.index_put_((where[0], where[1]), fresh.to(cache.dtype))


def _pages(kept: Kept, count: int, device: torch.device) -> Tensor:
    """(N, P, K, D) for one layer. On a CPU the tokens of one head stand together, because one thread reads them."""
    size = PAGE[device.type]
    if device.type == "cpu":
        return torch.empty(count, kept.heads, size, kept.head_dim, dtype=kept.dtype).transpose(1, 2)
    return torch.empty(count, size, kept.heads, kept.head_dim, dtype=kept.dtype, device=device)


@dataclass(frozen=True)
class Prefill:
    """Keep the keys and values of a flat row of T tokens while attending within documents."""

    pages: Pages
    where: Tensor  # (2, T) int64: see Pages.write


@dataclass(frozen=True)
class Decode:
    """One new token in each of S sequences: kept, then attending to all that its sequence holds."""

    pages: Pages
    where: Tensor  # (2, S) int64: see Pages.write
    table: Tensor  # (S, W) int32: the pages of each sequence, in order
    used: Tensor  # (S,) int32: tokens of each sequence, the new one included
    widest: int  # pages that any sequence uses

    def attend(self, layer: int, query: Tensor, scale: float) -> Tensor:
        """(S, H, D) for queries (S, H, D), by the layer's pages."""
        keys, values = self.pages.keys[layer], self.pages.values[layer]
        if query.device.type == "cpu" and keys.dtype in (torch.float32, torch.bfloat16):
            attend = _opaque if torch.compiler.is_compiling() else _paged
            return attend(query.float(), keys.transpose(1, 2), values.transpose(1, 2), self.table, self.used, scale)
        if query.device.type == "cuda" and keys.dtype in (torch.float16, torch.bfloat16):
            return self._flash(query.to(keys.dtype), keys, values, scale)
        return self._gathered(query.to(keys.dtype), keys, values, scale)

    def _flash(self, query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """One kernel of torch that reads pages where they stand."""
        offsets = torch.arange(len(query) + 1, dtype=torch.int32, device=query.device)
        return varlen.varlen_attn(  # type: ignore[return-value]
            query,
            keys,
            values,
            offsets,
            None,
            1,
            self.widest * self.pages.size,
            scale=scale,
            enable_gqa=query.shape[1] != keys.shape[2],
            seqused_k=self.used,
            block_table=self.table[:, : self.widest].contiguous(),
        )

    def _gathered(self, query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """By copies of the pages, for what no kernel reads where it stands: float64, float32 on a GPU."""
        pages = self.table[:, : self.widest].long()
        hidden = torch.arange(self.widest * self.pages.size, device=query.device) >= self.used[:, None]
        # Nothing was ever written to the end of a last page, and 0 times what stands there may be no number.
        k, v = (cache[pages].flatten(1, 2).masked_fill(hidden[..., None, None], 0) for cache in (keys, values))
        k, v = k.transpose(1, 2), v.transpose(1, 2)
        # Query heads that share a key head stand in one matrix: (S, K, H/K, D), so nothing is repeated.
        q = query.view(len(query), k.shape[1], -1, query.shape[2])
        out = scaled_dot_product_attention(q, k, v, attn_mask=~hidden[:, None, None], scale=scale)
        return out.reshape(query.shape)


def _paged(query: Tensor, keys: Tensor, values: Tensor, table: Tensor, used: Tensor, scale: float) -> Tensor:
    from algorist.numerics import paged  # numba takes a second to load, and only sampling on a CPU needs it

    return paged.attend(query, keys, values, table, used, scale)


# For the compiler of a whole step (generate/steps.py), which has to know of its output no more than the shape.
_opaque = torch.library.custom_op("algorist::paged_attention", _paged, mutates_args=())


@_opaque.register_fake
def _(query: Tensor, *_: object) -> Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)
