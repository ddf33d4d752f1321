"""What the sampler asks of the model: prompts into the cache, and one more token for each sequence.

Between two calls the policy is the trainer's. During one it is lent: matrices are in the type of the products, cast
once and not at every step; and rotary factors that were settled for all lengths are not looked up by length, which
would make a GPU wait; and on a CPU few rows are multiplied by packed weights. The numbers are the trainer's, but for
rounding.

On a GPU a decoding step is a captured graph, replayed for every batch that it is large enough for. On a CPU, where the
trainer has compiled its layers, a step is compiled whole; layers alone would not pay, so short is the way through each.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch.fx.experimental import _config as symbols

from algorist.generate.products import Loan, Products
from algorist.model import longrope, memory
from algorist.model.attention import Documents
from algorist.model.cache import Decode, Kept, Pages, Prefill
from algorist.model.policy import Policy

_SHARE = {"cpu": 0.5, "cuda": 0.8}  # of the memory that is free: the rest is for logits, activations and the allocator


def room(kept: Kept, device: torch.device) -> int:
    """Tokens that a cache may hold where not all that may come fits: those of the largest power of two of bytes that
    leaves enough of the memory that is free now. Who has to wait, and so who finishes first, follows from it.
    """
    free = int(_SHARE[device.type] * (memory.available(device) - memory.used(device)))
    return memory.in_wide_steps(free) // kept.bytes


class Steps:
    """Forward passes of a policy over a cache."""

    def __init__(self, policy: Policy, pages: Pages) -> None:
        self.policy, self.pages = policy, pages
        self._lent = [*_cast(policy), *_settled(policy.model)]
        self._products = Products(policy)
        self._graphs: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, dict[str, Tensor]]] = {}
        self._captures = policy.device.type == "cuda"
        self._compiles = bool(policy.fused) and policy.device.type == "cpu"

    def prefill(self, texts: Sequence[Sequence[int]], held: Sequence[Sequence[int]]) -> Tensor:
        """(n, H) last states of n texts, whose keys and values are written to the pages `held` of each."""
        device, size = self.policy.device, self.pages.size
        lengths = [len(text) for text in texts]
        bounds = np.cumsum([0, *lengths])
        places = [np.arange(length) for length in lengths]
        into = [np.asarray(pages)[place // size] for pages, place in zip(held, places, strict=True)]
        positions = np.concatenate(places)
        given = _upload(device, np.concatenate(texts), positions, np.concatenate(into), positions % size)
        with self._borrowed():
            states = self.policy.trunk(
                given[0],
                given[1],
                documents=Documents.of(bounds.tolist(), device, self.policy.path),
                prefill=Prefill(self.pages, given[2:]),
            )
        return states[torch.from_numpy(bounds[1:] - 1).to(device)]

    def logits(self, states: Tensor) -> Tensor:
        """(n, V) float32 for (n, H) states."""
        with self._borrowed():
            return self.policy.logits(states)

    def decode(self, tokens: NDArray[np.int64], lengths: NDArray[np.int64], table: NDArray[np.int32]) -> Tensor:
        """(S, V) float32 logits after one more token of each sequence.

        Args:
            tokens   (S,) the last tokens
            lengths  (S,) tokens that the cache holds of each sequence
            table    (S, W) pages of each sequence, room for the new token included
        """
        device, size = self.policy.device, self.pages.size
        into = table[np.arange(len(table)), lengths // size]
        rows = _upload(device, tokens, lengths, into, lengths % size)
        given, positions = rows[0], rows[1]
        widest = int(lengths.max()) // size + 1
        used = (positions + 1).int()
        with self._borrowed(self._products.loans), self._products.lent(len(tokens)):
            layout = Decode(self.pages, rows[2:], torch.from_numpy(table).to(device), used, widest)
            if self._captures:
                try:
                    return self._replay(given, positions, layout)
                except RuntimeError as error:
                    self._captures = False
                    self._graphs.clear()
                    warnings.warn(
                        f"sampling goes on without CUDA graphs, more slowly: {_first_line(error)}", stacklevel=2
                    )
            return self._run(given, positions, layout)

    def _run(self, tokens: Tensor, positions: Tensor, layout: Decode) -> Tensor:
        if not self._compiles:
            return _forward(self.policy, tokens, positions, layout)
        # A graph for any number of rows holds for no single row, which so stands there twice, nor for parts of tensors.
        twice = 2 if len(tokens) == 1 else 1
        table, used = layout.table.repeat(twice, 1), layout.used.repeat(twice)
        whole = replace(layout, where=layout.where.repeat(1, twice), table=table, used=used)
        try:
            run = _compiled(self.policy.fused)
            return run(self.policy, tokens.repeat(twice), positions.repeat(twice), whole)[: len(tokens)]
        except (RuntimeError, FailOnRecompileLimitHit) as error:
            self._compiles = False
            warnings.warn(f"sampling goes on uncompiled, more slowly: {_first_line(error)}", stacklevel=2)
            return self._run(tokens, positions, layout)

    def _replay(self, tokens: Tensor, positions: Tensor, layout: Decode) -> Tensor:
        """A step by the graph of the next larger batch and width. Rows that fill it up write to page 0."""
        count, width = len(tokens), layout.table.shape[1]
        key = (_round_up(count), min(width, 1 << (layout.widest - 1).bit_length()))
        with torch.cuda.device(tokens.device):  # a graph belongs to the current device's stream
            if key not in self._graphs:
                self._graphs[key] = self._capture(*key, width, tokens.device)
            graph, buffers = self._graphs[key]
            given = {"tokens": tokens, "positions": positions, "where": layout.where, "used": layout.used}
            for name, tensor in given.items():
                buffers[name][..., :count] = tensor
                buffers[name][..., count:] = 1 if name == "used" else 0
            buffers["table"][:count] = layout.table
            buffers["table"][count:] = 0
            graph.replay()
            return buffers["logits"][:count]

    def _capture(
        self, rows: int, widest: int, width: int, device: torch.device
    ) -> tuple[torch.cuda.CUDAGraph, dict[str, Tensor]]:
        """A graph whose rows all write to page 0 while it is made."""
        buffers = {name: torch.zeros(rows, dtype=torch.int64, device=device) for name in ("tokens", "positions")}
        buffers["where"] = torch.zeros(2, rows, dtype=torch.int64, device=device)
        buffers["used"] = torch.ones(rows, dtype=torch.int32, device=device)
        buffers["table"] = torch.zeros(rows, width, dtype=torch.int32, device=device)
        layout = Decode(self.pages, buffers["where"], buffers["table"], buffers["used"], widest)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries set themselves up in a first run, which cannot be captured
            for _ in range(2):
                self._run(buffers["tokens"], buffers["positions"], layout)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        pool = next((known.pool() for known, _ in self._graphs.values()), None)
        # A trainer may work in another thread meanwhile (`engine.ahead`): what it does is no mistake of the capture's.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            buffers["logits"] = self._run(buffers["tokens"], buffers["positions"], layout)
        return graph, buffers

    @contextmanager
    def _borrowed(self, more: Sequence[Loan] = ()) -> Iterator[None]:
        """The policy as sampling wants it, for one forward."""
        lent = [*self._lent, *more]
        before = [(place, name, place.get(name, self)) for place, name, _ in lent]
        try:
            for place, name, value in lent:
                place[name] = value
            yield
        finally:
            for place, name, value in before:
                if value is self:  # there was nothing
                    del place[name]
                else:
                    place[name] = value


def _forward(policy: Policy, tokens: Tensor, positions: Tensor, layout: Decode) -> Tensor:
    return policy.logits(policy.trunk(tokens, positions, decode=layout))


@functools.cache
def _compiled(backend: str) -> Callable[[Policy, Tensor, Tensor, Decode], Tensor]:
    """A step as one graph for any number of rows: of a few rows, most is the way from operation to operation."""
    run = torch.compile(_forward, dynamic=True, fullgraph=True, backend=backend)

    def apart(*given: Any) -> Tensor:
        # Otherwise two sizes that happen to be equal at first are taken for one.
        with symbols.patch(use_duck_shape=False):  # type: ignore[attr-defined]
            return run(*given)

    return apart


def _cast(policy: Policy) -> Iterator[Loan]:
    """Matrices in the type of the products."""
    if policy.precision == torch.float32:
        return
    for module in policy.model.modules():
        if isinstance(module, nn.Linear) and module.weight.dtype == torch.float32:
            yield module._parameters, "weight", module.weight.detach().to(policy.precision)


def _settled(model: nn.Module) -> Iterator[Loan]:
    """Rotary embeddings that have one set of factors for all lengths, and so need not ask for the longest."""
    config: Any = model.config
    if longrope.switches_at(config.get_text_config()) is None:
        for module in model.modules():
            if getattr(module, "rope_type", None) == "longrope":
                yield module.__dict__, "rope_type", "default"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _upload(device: torch.device, *rows: Any) -> Tensor:
    """(n, T) int64 on the device, in one transfer."""
    return torch.from_numpy(np.stack([np.asarray(row, dtype=np.int64) for row in rows])).to(device)


def _round_up(count: int) -> int:
    """1, 2, 3, 4, 6, 8, 12, 16, 24, 32 …: the rows of captured graphs."""
    power = 1 << (count - 1).bit_length()
    return power * 3 // 4 if count <= power * 3 // 4 else power
