"""The output head beside its peers: loss and gradients of tokens over a large vocabulary, in turns, in one process.

    python bench/loss.py [--sizes 16384x2048x256,512x200064x256] [--ignored 0,0.3] [--rounds 5] [--precision float32]

Sizes are tokens x words x width. The logits are peaked as a trained model's are, with a mean loss of 0.5 nats, because
some kernels skip small probabilities and would have nothing to do at random ones. Each contender makes the mean loss
over the tokens that are not ignored and the gradients by states and weight. Printed are medians (on a CPU, of processor
time), how often the three matrix products alone would fit into them, the memory in use above inputs and gradients at
its highest, and the relative error of the gradients beside float64 (float32 on a GPU); a row is printed as a table line
and as JSON. What is not installed or does not run is skipped, with the reason.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from algorist.model import head

IGNORED = -100
MIB = 2**20


class Case(NamedTuple):
    """What every contender is given."""

    hidden: Tensor  # (N, H), wants a gradient
    weight: Tensor  # (V, H), wants a gradient
    targets: Tensor  # (N,) int64, IGNORED where a token does not count


Contender = Callable[[Case], Tensor]


def peaked(tokens: int, words: int, width: int, ignored: float, device: str, precision: torch.dtype) -> Case:
    """Surer and less sure tokens, their mean loss 0.5 nats."""
    draw = torch.Generator().manual_seed(1)
    weight = torch.randn(words, width, generator=draw) / width**0.5
    targets = torch.randint(words, (tokens,), generator=draw)
    noise = torch.randn(tokens, width, generator=draw) / width**0.5
    sureness = torch.exp(0.4 * torch.randn(tokens, 1, generator=draw))
    hidden = sureness * (functional.embedding(targets, weight) + 0.5 * noise)
    some = slice(0, min(256, tokens))
    logits = (hidden[some].to(device) @ weight.to(device).T).cpu()
    low, high = 0.0, 1000.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if functional.cross_entropy(middle * logits, targets[some]) > 0.5 else (low, middle)
    targets[torch.rand(tokens, generator=draw) < ignored] = IGNORED
    leaf = [one.to(device, precision).requires_grad_() for one in (high * hidden, weight)]
    return Case(*leaf, targets.to(device))


def at_once(case: Case, held: int | None = None) -> Tensor:
    """Ours where the gradient is known beforehand: supervised training."""
    scored = (case.targets != IGNORED).nonzero()[:, 0]
    weights = torch.full((len(scored),), -1.0 / len(scored), device=case.hidden.device)
    output, targets = head.Output(case.weight), case.targets[scored]
    return head.weighted_sum(case.hidden[scored], output, targets, weights, precision=case.hidden.dtype, held=held)[0]


def scored(case: Case, held: int | None = None) -> Tensor:
    """Ours where it is not: preferences and reinforcement learning."""
    places = (case.targets != IGNORED).nonzero()[:, 0]
    output, targets = head.Output(case.weight), case.targets[places]
    return -head.scores(case.hidden[places], output, targets, precision=case.hidden.dtype, held=held).logprobs.mean()


def plain(case: Case) -> Tensor:
    """All logits at once, as the models of transformers do it."""
    return functional.cross_entropy(functional.linear(case.hidden, case.weight).float(), case.targets)


def native() -> Contender:
    """torch's own, in chunks of its choice."""
    options = torch.nn.LinearCrossEntropyOptions()
    return lambda case: functional.linear_cross_entropy(case.hidden, case.weight, case.targets, options=options)


def trl() -> Contender:
    """What TRL's trainers call; it is given the tokens that count."""
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as width

    def loss(case: Case) -> Tensor:
        valid = case.targets != IGNORED
        given = (case.hidden[valid], case.weight, None, case.targets[valid], 1.0, width, None, 1.0, ())
        return -ChunkedLogProbFunction.apply(*given)[0].mean()

    return loss


def liger() -> Contender:
    """Liger's fused linear cross-entropy, the gradient of the weight added up in float32."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy as fused

    return lambda case: fused(case.hidden, case.weight, case.targets, accum_dtype=torch.float32)


def cut(filter_eps: float | str | None) -> Callable[[], Contender]:
    """Cut cross-entropy, with its filter of small probabilities or without."""

    def contender() -> Contender:
        from cut_cross_entropy import linear_cross_entropy as fused

        return lambda case: fused(case.hidden, case.weight, case.targets, filter_eps=filter_eps)

    return contender


def contenders(held: int | None) -> dict[str, Callable[[], Contender]]:
    """Makers of the contenders, by name."""
    return {
        "ours: weighted sum": lambda: lambda case: at_once(case, held),
        "ours: scores": lambda: lambda case: scored(case, held),
        "plain, all logits": lambda: plain,
        "torch linear_cross_entropy": native,
        "TRL chunked": trl,
        "Liger": liger,
        "cut cross-entropy": cut("high"),
        "cut cross-entropy, unfiltered": cut(None),
    }


def products(case: Case, rows: int = 2048) -> None:
    """The three matrix products that any of them needs, and nothing else; those of ignored tokens are not needed."""
    hidden, weight = case.hidden.detach()[case.targets != IGNORED], case.weight.detach()
    logits = hidden.new_empty(min(rows, len(hidden)), len(weight))
    for part in hidden.split(rows):
        tile = torch.mm(part, weight.T, out=logits[: len(part)])
        torch.mm(tile, weight)
        torch.mm(tile.T, part)


def step(contender: Contender, case: Case) -> Tensor:
    """The loss, with new gradients."""
    case.hidden.grad = case.weight.grad = None
    loss = contender(case)
    loss.backward()
    return loss.detach()


def reference(case: Case) -> tuple[float, Tensor, Tensor]:
    """Loss and gradients, a few tokens at a time in float64, on a GPU in float32."""
    wide = torch.float32 if case.hidden.is_cuda else torch.float64
    weight = case.weight.detach().to(wide).requires_grad_()
    by_hidden, total = torch.zeros_like(case.hidden, dtype=wide), 0.0
    places = (case.targets != IGNORED).nonzero()[:, 0]
    for part in places.split(max(1, 2**25 // len(weight))):
        states = case.hidden.detach()[part].to(wide).requires_grad_()
        loss = functional.cross_entropy(states @ weight.T, case.targets[part], reduction="sum") / len(places)
        loss.backward()
        by_hidden[part], total = states.grad, total + loss.item()
    return total, by_hidden, weight.grad


def error(found: Tensor | None, expected: Tensor) -> float:
    """Relative, of the matrix as a whole."""
    return float((found.to(expected.dtype) - expected).norm() / expected.norm())


def seconds(call: Callable[[], Any], cuda: bool) -> float:
    """Of processor time, or of time on a GPU."""
    if cuda:
        torch.cuda.synchronize()
    clock = time.perf_counter if cuda else time.process_time
    begin = clock()
    call()
    if cuda:
        torch.cuda.synchronize()
    return clock() - begin


def highest(contender: Contender, case: Case) -> float | None:
    """MiB in use at the highest point of a step, above inputs and gradients; None where it cannot be told."""
    gradients = sum(one.numel() * one.element_size() for one in (case.hidden, case.weight))
    case.hidden.grad = case.weight.grad = None
    if case.hidden.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(contender, case)
        return (torch.cuda.max_memory_allocated() - before - gradients) / MIB
    try:
        ctypes.CDLL(None).malloc_trim(0)  # freed memory that the allocator keeps would be used again unseen
        Path("/proc/self/clear_refs").write_text("5")  # the mark of the highest point starts from here
        before = resident("VmRSS")
        step(contender, case)
        return (resident("VmHWM") - before - gradients) / MIB
    except (OSError, AttributeError):  # not Linux
        return None


def resident(mark: str) -> int:
    """Bytes of this process in memory, now (VmRSS) or at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(mark))


def in_a_process_of_its_own(name: str, size: str, ignored: float, args: argparse.Namespace) -> float | None:
    """`highest` on a CPU, where what other contenders have left in memory would disturb it."""
    words = [sys.executable, __file__, "--memory-of", name, "--sizes", size, "--ignored", str(ignored)]
    words += ["--precision", args.precision, "--threads", str(args.threads)]
    words += ["--held", str(args.held)] if args.held else []
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def opened(names: list[str], held: int | None, case: Case) -> dict[str, Contender]:
    """The contenders that run, each once on a few tokens; the reason where one does not."""
    small = Case(*(one.detach()[:64].clone().requires_grad_() for one in case[:2]), case.targets[:64] % 64)
    found = {}
    for name in names:
        try:
            contender = contenders(held)[name]()
            step(contender, small)
            found[name] = contender
        except Exception as reason:  # peers fail in ways of their own
            print(f"{name} is skipped: {type(reason).__name__}: {(str(reason).strip() or '-').splitlines()[0]}")
    return found


def measure(size: str, ignored: float, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one size."""
    device, precision = args.device, getattr(torch, args.precision)
    tokens, words, width = map(int, size.split("x"))
    case = peaked(tokens, words, width, ignored, device, precision)
    cuda = case.hidden.is_cuda
    running = opened(list(contenders(args.held)), args.held, case)
    loss, by_hidden, by_weight = reference(case)
    rows: dict[str, dict[str, Any]] = {}
    for name, contender in list(running.items()):
        try:
            found = float(step(contender, case))
        except torch.OutOfMemoryError:
            print(f"{name} is skipped: out of memory")
            del running[name]
            continue
        if abs(found - loss) > 0.01 * loss:
            print(f"{name} is skipped: its loss is {found:.4f}, {loss:.4f} was expected")
            del running[name]
            continue
        errors = {
            "error_hidden": error(case.hidden.grad, by_hidden),
            "error_weight": error(case.weight.grad, by_weight),
        }
        rows[name] = {
            "bench": name,
            "size": size,
            "ignored": ignored,
            "precision": args.precision,
            "loss": found,
        } | errors
    del by_hidden, by_weight
    for name, contender in running.items():
        own = cuda or in_a_process_of_its_own(name, size, ignored, args)
        rows[name]["extra_mib"] = highest(contender, case) if cuda else own
    work: dict[str, Callable[[], Any]] = {"products": lambda: products(case)}
    work |= {name: lambda contender=contender: step(contender, case) for name, contender in running.items()}
    taken: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(args.rounds + 1):  # the first warms up
        for name, call in work.items():
            spent = seconds(call, cuda)
            taken[name] += [spent] if turn else []
    bound = statistics.median(taken["products"])
    for name, row in rows.items():
        row |= {"ms": 1000 * statistics.median(taken[name]), "products_ms": 1000 * bound}
    return list(rows.values())


def main() -> None:
    """A table for each size and share of ignored tokens."""
    cuda = torch.cuda.is_available()
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--device", default="cuda" if cuda else "cpu")
    words.add_argument("--sizes", default="16384x200064x3072" if cuda else "16384x2048x256,512x200064x256")
    words.add_argument("--ignored", default="0,0.3")
    words.add_argument("--precision", default="bfloat16" if cuda else "float32", choices=["float32", "bfloat16"])
    words.add_argument("--rounds", type=int, default=20 if cuda else 5)
    words.add_argument("--threads", type=int, default=1, help="of a CPU")
    words.add_argument("--held", type=int, help="logits that ours holds at once; by default what suits the device")
    words.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = words.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        case = peaked(*map(int, args.sizes.split("x")), float(args.ignored), "cpu", getattr(torch, args.precision))
        print(json.dumps(highest(opened([args.memory_of], args.held, case)[args.memory_of], case)))
        return
    for size in args.sizes.split(","):
        for ignored in map(float, args.ignored.split(",")):
            rows = measure(size, ignored, args)
            print(f"{size} tokens x words x width, {ignored:.0%} ignored, {args.precision}, {args.device}")
            for row in rows:
                print(
                    f"  {row['bench']:30} {row['ms']:9.1f} ms   products {row['products_ms'] / row['ms']:4.0%}   "
                    f"{row['extra_mib'] or float('nan'):9.1f} MiB   errors {row['error_hidden']:.1e} "
                    f"{row['error_weight']:.1e}   loss {row['loss']:.4f}"
                )
            for row in rows:
                print(json.dumps(row))


if __name__ == "__main__":
    main()
