"""What a decoding step of the native sampler costs on a CPU, and what its matrix products do: by rows and by threads.

    python bench/decode.py [--rows 4 12 20 32] [--tokens 200]
    GOMP_SPINCOUNT=300000 python bench/decode.py      torch's own default

The first line is processor time that goes on after a product is done: torch's threads wait by spinning. The model is
that of bench/train.py. The first table is milliseconds of a whole step with `--tokens` tokens in the cache of each row.
The second is the products of a step alone, as torch computes them from weights as they lie (x W^T), from transposed
copies (x V, V = W^T), the other way round ((W x^T)^T), from weights that MKL has packed, which is what the sampler does
(generate/products.py), and from weights that oneDNN has. Then a layer of a 0.5B and of a 1.5B model, in two ways.
A row is printed as JSON too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

import numpy as np

import algorist  # noqa: F401  # before torch, whose threads then wait as in a run

# isort: split
import torch
from torch import Tensor
from train import VOCABULARY, model

from algorist.generate.batching import Batching, How
from algorist.generate.sampling import Request, Sampling
from algorist.model.policy import Policy

_STEPS, _ROUNDS = 40, 5
_LAYERS = {  # (outputs, inputs) of the products of one layer
    "0.5B": ((1152, 896), (896, 896), (9728, 896), (896, 4864)),
    "1.5B": ((2048, 1536), (1536, 1536), (17920, 1536), (1536, 8960)),
}


def spun() -> float:
    """Milliseconds of processor time that are spent after a product in parallel is done, the median of `_STEPS`."""
    matrix, taken = torch.randn(512, 512), []
    for _ in range(_STEPS):
        matrix @ matrix
        started = time.process_time()
        time.sleep(0.05)
        taken.append(1e3 * (time.process_time() - started))
    return statistics.median(taken)


def step(policy: Policy, rows: int, tokens: int) -> float:
    """Milliseconds of one step, the median of `_STEPS`."""
    draw = np.random.default_rng(0)
    prompts = [tuple(draw.integers(2, VOCABULARY, tokens).tolist()) for _ in range(rows)]
    requests = [Request(prompt, key) for key, prompt in enumerate(prompts)]
    turns = Batching(policy, requests, Sampling(0.0, 1.0, 2 * _STEPS), frozenset(), num_slots=rows, how=How()).turns()
    for _ in range(24):  # the prompts, the first calls, and those before weights are packed
        next(turns)
    taken = []
    for _ in range(_STEPS):
        started = time.perf_counter()
        next(turns)
        taken.append(1e3 * (time.perf_counter() - started))
    turns.close()
    return statistics.median(taken)


def products(matrices: list[Tensor], rows: int, only: tuple[str, ...] = ()) -> dict[str, float]:
    """Milliseconds of a step's products, the median of `_ROUNDS`, by how the weights lie; `only` names some ways."""
    inputs = {width: torch.randn(rows, width) for width in {matrix.shape[1] for matrix in matrices}}
    turned = [matrix.t().contiguous() for matrix in matrices]
    given = [inputs[matrix.shape[1]] for matrix in matrices]
    ways: dict[str, Callable[[], object]] = {
        "as they lie": lambda: [x @ w.t() for x, w in zip(given, matrices, strict=True)],
        "transposed": lambda: [x @ v for x, v in zip(given, turned, strict=True)],
        "other way round": lambda: [(w @ x.t()).t() for x, w in zip(given, matrices, strict=True)],
    }
    if torch.backends.mkl.is_available():
        ready = [torch.ops.mkl._mkl_reorder_linear_weight(matrix, 16) for matrix in matrices]
        ways["packed"] = lambda: [
            torch.ops.mkl._mkl_linear(x, p, w, None, rows) for x, p, w in zip(given, ready, matrices, strict=True)
        ]
    if torch.backends.mkldnn.is_available():
        blocked = [torch.ops.mkldnn._reorder_linear_weight(matrix, 16) for matrix in matrices]
        ways["oneDNN"] = lambda: [
            torch.ops.mkldnn._linear_pointwise(x, p, None, "none", [], "") for x, p in zip(given, blocked, strict=True)
        ]
    return {name: timed(way) for name, way in ways.items() if not only or name in only}


def timed(way: Callable[[], object]) -> float:
    """Milliseconds of a call, the median of `_ROUNDS` of five."""
    way()
    taken = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        for _ in range(5):
            way()
        taken.append(200 * (time.perf_counter() - started))
    return statistics.median(taken)


def main() -> None:
    """Both tables."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rows", type=int, nargs="*", default=[4, 12, 20, 32])
    arguments.add_argument("--tokens", type=int, default=200)
    args = arguments.parse_args()
    policy = Policy(model("eager")).eval()
    layers = [one.weight.detach() for one in policy.model.modules() if isinstance(one, torch.nn.Linear)]
    most = torch.get_num_threads()
    print(f"GOMP_SPINCOUNT={os.environ['GOMP_SPINCOUNT']}: {spun():.2f} ms are spun after a product")
    for threads in dict.fromkeys((1, most)):
        torch.set_num_threads(threads)
        for rows in args.rows:
            with torch.inference_mode():
                found = products(layers, rows)
            whole = step(policy, rows, args.tokens)
            said = ", ".join(f"{name} {value:.1f}" for name, value in found.items())
            print(f"{threads} threads, {rows:3} rows: a step {whole:.1f} ms; its products: {said}")
            row = {"bench": "decode", "threads": threads, "rows": rows, "tokens": args.tokens, "step_ms": whole}
            print(json.dumps({**row, "products_ms": found}), flush=True)
            for size, shapes in _LAYERS.items():
                with torch.inference_mode():
                    found = products([torch.randn(*shape) for shape in shapes], rows, ("as they lie", "packed"))
                said = ", ".join(f"{name} {value:.1f}" for name, value in found.items())
                print(f"{threads} threads, {rows:3} rows: a layer of a {size} model: {said} ms", flush=True)


if __name__ == "__main__":
    main()
