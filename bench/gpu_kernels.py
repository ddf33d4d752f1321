"""The rows of bench/gpu.py that need no model: ceilings of the machine, attention, and the output head.

Attention counts operations as FlashAttention's authors do: the backward is two and a half times the forward, and half
of the square belongs to a causal document. Each contender is compared with attention in float32.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import gpu_work as work
import loss as heads
import torch
from gpu_work import Say, Size
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from algorist.model import kernels

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]  # (T, H, D) queries, (T, K, D) keys and values → (T, H, D)
Maker = Callable[[Sequence[int], torch.device], Attention]  # of offsets of documents
_DIFFERS = 2e-2  # of output and gradients from those of float32, relative; right ones in bfloat16 are at 5e-3


def now(device: torch.device) -> float:
    """Seconds, once the device has done all it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def taken(call: Callable[[], object], device: torch.device, times: int) -> float:
    """Seconds of one call, the mean of some."""
    begin = now(device)
    for _ in range(times):
        call()
    return (now(device) - begin) / times


def ceilings(size: Size, device: torch.device, until: float, say: Say) -> None:
    """Large matrix products, a copy, and the launch of kernels that do nothing."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    n = size.square
    a, b, out = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(3))
    source = torch.zeros(size.copied, dtype=torch.uint8, device=device)
    target, one = torch.ones_like(source), torch.zeros(1, device=device)
    calls: list[tuple[str, str, float, Callable[[], object], int]] = [
        (f"matmul {n}^3", "TFLOP/s", 2e-12 * n**3, lambda: torch.mm(a, b, out=out), 20),
        (f"copy {size.copied / 1e9:g} GB", "TB/s", 2e-12 * size.copied, lambda: target.copy_(source), 5),
        ("launch", "us", 1e6, lambda: one.add_(1), 1000),
    ]
    for name, unit, work_done, call, times in calls:
        if work.left(until) < 1:
            return
        call()
        seconds = statistics.median(taken(call, device, times) for _ in range(5))
        value = work_done * seconds if unit == "us" else work_done / seconds
        say({"set": name, "who": "this machine", "value": value, "unit": unit})


def attention(size: Size, device: torch.device, until: float, say: Say) -> None:
    """Forward and backward of one layer's attention: ours by each path, and the ways of plain torch, in turns."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    sets = {"one document": [size.row]} | {name: work.packed_rows(name, 1, size)[0] for name in ("short", "long")}
    makers: dict[str, Maker] = {f"ours: {name}": _ours(name, dtype) for name in kernels.PATHS}
    makers |= {
        "SDPA per document": per_document,
        "SDPA per document, cuDNN": cudnn,
        "SDPA, dense mask": dense,
        "FlexAttention": flex,
        "varlen_attn": varlen,
    }
    for name, lengths in sets.items():
        bounds = [0, *torch.tensor(lengths).cumsum(0).tolist()]
        rows, slope = _rows(size, bounds[-1], device, dtype)
        expected = _exact(bounds, rows, slope)
        calls: dict[str, Callable[[], object]] = {}
        facts: dict[str, dict[str, Any]] = {}
        for who, maker in makers.items():
            if work.left(until) < 30 * (device.type == "cuda"):
                break
            try:
                maker(bounds, device)  # the first may compile
                begin = now(device)
                attend = maker(bounds, device)
                layout = now(device) - begin
                error = max(map(_error, _run(attend, rows, slope), expected))
                if not error <= _DIFFERS:
                    raise ValueError(f"differs from attention in float32 by {error:.2g}")
            except Exception as reason:  # each kernel fails in its own way
                say({"set": name, "who": who, "failed": first_line(reason)})
                continue
            calls[who] = functools.partial(_run, attend, rows, slope)
            facts[who] = {"error": error, "layout_ms": 1e3 * layout, "documents": len(lengths)}
        del expected
        asked = 7.0 * size.hidden * sum(length**2 for length in lengths)
        for who, seconds in in_turns(calls, size.rounds, device, until, times=3).items():
            rate = {"value": 1e-12 * asked / seconds, "unit": "TFLOP/s", "operations": asked, "seconds": seconds}
            say({"set": name, "who": who, **rate, **facts[who]})


def loss(size: Size, device: torch.device, until: float, say: Say) -> None:
    """The contenders of bench/loss.py on peaked logits, all labels counted and 30 % of them ignored."""
    cuda = device.type == "cuda"
    for ignored in (0.0, 0.3):
        if work.left(until) < 60 * cuda:
            return
        name, precision = f"{ignored:.0%} ignored", torch.bfloat16 if cuda else torch.float32
        case = heads.peaked(size.row, size.vocabulary, size.hidden, ignored, device.type, precision)
        asked = 6.0 * int((case.targets != heads.IGNORED).sum()) * size.vocabulary * size.hidden
        value, *gradients = heads.reference(case)
        names = [
            who for who in heads.contenders(None) if cuda or who.startswith(("ours", "plain"))
        ]  # bench/loss.py has all
        calls: dict[str, Callable[[], object]] = {}
        facts: dict[str, dict[str, Any]] = {}
        for who, contender in heads.opened(names, None, case).items():
            if work.left(until) < 10 * cuda:
                break
            try:
                found = float(heads.step(contender, case))
                error = max(heads.error(leaf.grad, b) for leaf, b in zip(case[:2], gradients, strict=True))
                if not abs(found - value) <= 1e-2 * value:
                    raise ValueError(f"its loss is {found:.4f}, {value:.4f} was expected")
                extra = {"extra_mib": heads.highest(contender, case)} if cuda else {}
            except Exception as reason:  # peers fail in ways of their own
                say({"set": name, "who": who, "failed": first_line(reason)})
                continue
            calls[who], facts[who] = functools.partial(heads.step, contender, case), {"error": error, **extra}
        del gradients
        for who, seconds in in_turns(calls, size.rounds, device, until).items():
            rate = {"value": 1e3 * seconds, "unit": "ms", "operations": asked, "seconds": seconds}
            say({"set": name, "who": who, **rate, **facts[who]})


def in_turns(
    calls: dict[str, Callable[[], object]], rounds: int, device: torch.device, until: float, times: int = 1
) -> dict[str, float]:
    """Seconds of each call, the median of the rounds for which there was time; each has run before."""
    spent: dict[str, list[float]] = {who: [] for who in calls}
    for _ in range(rounds):
        for who, call in calls.items():
            if work.left(until) > 1:
                spent[who].append(taken(call, device, times))
    return {who: statistics.median(found) for who, found in spent.items() if found}


def first_line(reason: BaseException) -> str:
    """What an exception says, short enough for a table."""
    said = (str(reason).strip() or type(reason).__name__).splitlines()[0]
    return f"out of memory: {said[:80]}" if isinstance(reason, torch.OutOfMemoryError) else said[:160]


def _run(attend: Attention, rows: Sequence[Tensor], slope: Tensor) -> list[Tensor]:
    """Output and gradients of queries, keys and values."""
    leaves = [x.detach().requires_grad_() for x in rows]
    out = attend(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, slope)]


def _rows(
    size: Size, tokens: int, device: torch.device, dtype: torch.dtype
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """Random queries, keys and values, and a slope of the output."""
    torch.manual_seed(0)
    q, k, v, slope = (
        torch.randn(tokens, heads, size.head_dim, device=device, dtype=dtype)
        for heads in (size.heads, size.kv_heads, size.kv_heads, size.heads)
    )
    return (q, k, v), slope


def _exact(bounds: Sequence[int], rows: Sequence[Tensor], slope: Tensor) -> list[Tensor]:
    """The same in float32, keys repeated, so that no path is needed that only some kernels have."""
    shared = rows[0].shape[1] // rows[1].shape[1]
    attend = per_document(bounds, slope.device)

    def repeated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1))

    return _run(repeated, [x.float() for x in rows], slope.float())


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected).norm() / expected.norm())


def _ours(name: str, dtype: torch.dtype) -> Maker:
    def maker(bounds: Sequence[int], device: torch.device) -> Attention:
        reason = kernels.missing(name, device, dtype)
        if reason:
            raise RuntimeError(reason)
        attend = kernels.PATHS[name](bounds, device)
        return lambda q, k, v: attend(q, k, v, None)

    return maker


def per_document(bounds: Sequence[int], device: torch.device) -> Attention:
    """A call of SDPA for each document, by the kernel that it picks."""
    parts = list(zip(bounds, bounds[1:], strict=False))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        found = []
        for begin, end in parts:
            rows = (x[begin:end].transpose(0, 1)[None] for x in (q, k, v))
            shared = q.shape[1] != k.shape[1]
            found.append(scaled_dot_product_attention(*rows, is_causal=True, enable_gqa=shared)[0].transpose(0, 1))
        return torch.cat(found)

    return attend


def cudnn(bounds: Sequence[int], device: torch.device) -> Attention:
    """The same under cuDNN."""
    _cuda_only(device)
    attend = per_document(bounds, device)

    def inside(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return attend(q, k, v)

    return inside


def dense(bounds: Sequence[int], device: torch.device) -> Attention:
    """SDPA under a mask of all pairs, keys repeated: what transformers does with packed rows under "sdpa"."""
    document, place = _documents(bounds, device), torch.arange(bounds[-1], device=device)
    mask = (document[:, None] == document) & (place[:, None] >= place)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        shared = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
        rows = (x.transpose(0, 1)[None] for x in (q, k, v))
        return scaled_dot_product_attention(*rows, attn_mask=mask)[0].transpose(0, 1)

    return attend


def flex(bounds: Sequence[int], device: torch.device) -> Attention:
    """FlexAttention with the mask of blocks that torch makes, compiled as torch compiles it."""
    from torch.nn.attention.flex_attention import create_block_mask

    _cuda_only(device)
    document = _documents(bounds, device)

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (document[query] == document[key])

    mask, kernel = create_block_mask(visible, None, None, bounds[-1], bounds[-1], device=device), _compiled_flex()

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = (x.transpose(0, 1)[None] for x in (q, k, v))
        return kernel(*rows, block_mask=mask, enable_gqa=True)[0].transpose(0, 1)

    return attend


@functools.cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def varlen(bounds: Sequence[int], device: torch.device) -> Attention:
    """torch's kernel for ragged rows, called as its documentation does; keys repeated where it wants to be told."""
    from torch.nn.attention.varlen import varlen_attn

    _cuda_only(device)
    offsets = torch.tensor(bounds, dtype=torch.int32, device=device)
    longest = max(b - a for a, b in zip(bounds, bounds[1:], strict=False))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        shared = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
        return varlen_attn(q, k, v, offsets, offsets, longest, longest, window_size=(-1, 0))

    return attend


def _documents(bounds: Sequence[int], device: torch.device) -> Tensor:
    count = torch.tensor(bounds).diff()
    return torch.repeat_interleave(torch.arange(len(count)), count).to(device)


def _cuda_only(device: torch.device) -> None:
    if device.type != "cuda":
        raise RuntimeError("it needs a CUDA device")
