"""vLLM beside the native engine: the same tokens, the same log-probabilities, new weights, and what a hand-over costs.

    python bench/vllm_check.py [--precision float32] [--memory 0.1]

Runs where vllm is installed; bench/vllm_cpu.py makes such a place on a machine without a GPU. Each line is one figure;
exits with 1 where something does not hold. Equal tokens are asked for in float32 alone. The model is a random one of 3M
parameters, so rates say little.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Sequence

import torch

from algorist.generate import native
from algorist.generate.sampling import Request, Response, Sampling
from algorist.generate.vllm import Vllm, open_engine
from algorist.model import devices
from algorist.model.batches import Document, lay_out
from algorist.model.policy import Policy
from algorist.numerics.address import key
from algorist.toy import base, words

END = 3
GREEDY, DRAWN = Sampling(0.0, 1.0, 64), Sampling(0.8, 1.0, 64)


def prompts(count: int) -> list[Request]:
    """Ragged prompts of 3 to 70 tokens."""
    chooser = random.Random(7)
    lengths = [chooser.randrange(3, 71) for _ in range(count)]
    return [Request(tuple(chooser.randrange(5, 100) for _ in range(n)), key(7, i)) for i, n in enumerate(lengths)]


def policy_of(precision: str) -> Policy:
    """A random model whose distributions are far from flat."""
    shape = {"hidden_size": 256, "num_layers": 4, "num_heads": 4, "mlp_size": 768, "context": 512}
    model = base.model(len(words.tokenizer()), 7, **shape).to(devices.default())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0 if parameter.ndim == 2 else 1.0)
    return Policy(model, precision=precision)


def theirs(engine: Vllm, asked: Sequence[Request], sampling: Sampling) -> list[Response]:
    """What vLLM says, in the order of the requests."""
    found = dict(engine.stream(asked, sampling))
    return [found[index] for index in range(len(asked))]


def same(some: Sequence[Response], others: Sequence[Response]) -> int:
    """How many responses have the same tokens."""
    return sum(a.tokens == b.tokens for a, b in zip(some, others, strict=True))


def gap(policy: Policy, asked: Sequence[Request], said: Sequence[Response], temperature: float) -> list[float]:
    """How far each log-probability lies from the trainer's."""
    pairs = [(request.prompt, response) for request, response in zip(asked, said, strict=True)]
    row = lay_out([Document.of(prompt + response.tokens, len(prompt)) for prompt, response in pairs])
    with torch.no_grad():
        right = policy.logprobs(row.to(policy.device), temperature=temperature)[row.weights > 0].tolist()
    found = [logprob for _, response in pairs for logprob in response.logprobs]
    return [abs(a - b) for a, b in zip(found, right, strict=True)]


def check(policy: Policy, memory: float) -> list[tuple[str, bool | None, str]]:
    """(what is promised, whether it holds, the figures) one after the other; None where it is not promised."""
    asked, found = prompts(16), []
    exact = policy.precision == torch.float32  # in bfloat16 two programs round too differently for equal tokens
    started = time.perf_counter()
    engine = open_engine(policy, end_ids=[END], context=256, memory=memory, num_sequences=16)
    found.append(("it opens", True, f"{time.perf_counter() - started:.1f} s, import included"))

    started = time.perf_counter()
    before = theirs(engine, asked, GREEDY)
    spoken = sum(len(response.tokens) for response in before)
    rate = f"{spoken} tokens, {spoken / (time.perf_counter() - started):,.0f} a second"
    own = native.sample(policy, asked, GREEDY, end_ids=[END])
    tokens = same(before, own)
    found.append(
        (
            "greedy tokens are those of the native engine",
            tokens == 16 if exact else None,
            f"{tokens} of 16 responses; {rate}",
        )
    )

    drawn = theirs(engine, asked, DRAWN)
    apart = gap(policy, asked, drawn, DRAWN.temperature)
    close = f"of {len(apart)} tokens at temperature 0.8: mean {statistics.mean(apart):.1e}, largest {max(apart):.1e}"
    limit = 1e-4 if exact else 0.5
    found.append(("log-probabilities are those of the trainer", max(apart) < limit, close))
    again = theirs(engine, asked, DRAWN)
    found.append(("the same requests give the same responses", again == drawn, f"{same(again, drawn)} of 16"))
    alone = [theirs(engine, [request], DRAWN)[0] for request in asked]
    found.append(
        (
            "a response does not depend on its neighbours",
            same(alone, drawn) == 16 if exact else None,
            f"{same(alone, drawn)} of 16",
        )
    )

    heard: list[str] = []
    for _, response in engine.stream(asked, GREEDY, enough=lambda: len(heard) == 2):
        heard.append(response.finish)
    found.append(
        ("enough ends a stream", heard.count("unfinished") > 0, f"{heard.count('unfinished')} of 16 unfinished")
    )

    noise = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(0.2 * parameter.std() * torch.randn(parameter.shape, generator=noise).to(parameter.device))
    times = []
    for _ in range(5):
        engine.rest()
        started = time.perf_counter()
        engine.hand_over(policy)
        times.append(1000 * (time.perf_counter() - started))
    size = sum(parameter.numel() for parameter in policy.model.parameters()) / 1e6
    took = f"{statistics.median(times):.0f} ms for {size:.1f}M parameters, from {min(times):.0f} to {max(times):.0f}"
    after, own = theirs(engine, asked, GREEDY), native.sample(policy, asked, GREEDY, end_ids=[END])
    tokens, moved = same(after, own), 16 - same(after, before)
    found.append(
        (
            "new weights give the tokens of the native engine",
            tokens == 16 if exact else None,
            f"{tokens} of 16; hand-over {took}",
        )
    )
    found.append(("and others than the old ones", moved > 8, f"{moved} of 16 differ"))
    return found


def main() -> None:
    """Check, and print a line for each promise."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    arguments.add_argument("--memory", type=float, default=0.1)
    args = arguments.parse_args()
    found = check(policy_of(args.precision), args.memory)
    for what, holds, figures in found:
        print(f"{ {True: 'holds', False: 'FAILS', None: 'told '}[holds] }  {what}: {figures}")
    sys.exit(0 if all(holds is not False for _, holds, _ in found) else 1)


if __name__ == "__main__":
    main()
