"""Tokens per second of the native sampler beside transformers' generate, on the same work, interleaved.

    python bench/sampler.py [--rounds 5] [--prompts 64] [--max-tokens 96]

Both decode greedily from the same random model and the same ragged prompts; before anything is timed their tokens
are compared. Nothing ends early (no token counts as an end), so both speak equally many tokens.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

import torch

from algorist.generate.native import sample
from algorist.generate.sampling import Request, Sampling
from algorist.model.policy import Policy
from algorist.toy import base, words

PAD = 0


def prompts(count: int) -> list[tuple[int, ...]]:
    """Ragged prompts of 10 to 70 tokens."""
    chooser = random.Random(7)
    return [tuple(chooser.randrange(5, 100) for _ in range(chooser.randrange(10, 71))) for _ in range(count)]


def ours(policy: Policy, asked: list[tuple[int, ...]], max_tokens: int) -> list[list[int]]:
    """What the native sampler says."""
    requests = [Request(prompt, key) for key, prompt in enumerate(asked)]
    return [list(r.tokens) for r in sample(policy, requests, Sampling(0.0, 1.0, max_tokens), end_ids=[-1])]


def theirs(model: torch.nn.Module, asked: list[tuple[int, ...]], max_tokens: int) -> list[list[int]]:
    """What generate says, the batch padded on the left."""
    longest = max(map(len, asked))
    ids = torch.tensor([[PAD] * (longest - len(p)) + list(p) for p in asked])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in asked])
    with torch.inference_mode():
        out = model.generate(  # type: ignore[operator]
            ids, attention_mask=mask, max_new_tokens=max_tokens, do_sample=False, eos_token_id=None, pad_token_id=PAD
        )
    return out[:, longest:].tolist()  # type: ignore[no-any-return]


def main() -> None:
    """Compare, then time round after round."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--prompts", type=int, default=64)
    arguments.add_argument("--max-tokens", type=int, default=96)
    args = arguments.parse_args()
    shape = {"hidden_size": 128, "num_layers": 4, "num_heads": 4, "mlp_size": 384, "context": 512}
    model = base.model(len(words.tokenizer()), 7, **shape)
    peer = base.model(len(words.tokenizer()), 7, **shape).eval()
    policy = Policy(model)
    asked = prompts(args.prompts)
    said = [ours(policy, asked, args.max_tokens), theirs(peer, asked, args.max_tokens)]
    same = sum(a == b for a, b in zip(*said, strict=True))
    print(f"greedy tokens equal for {same} of {len(asked)} prompts")
    spoken = sum(map(len, said[0]))
    rates: dict[str, list[float]] = {"native": [], "generate": []}
    for _ in range(args.rounds):
        for name, speak in (
            ("native", lambda: ours(policy, asked, args.max_tokens)),
            ("generate", lambda: theirs(peer, asked, args.max_tokens)),
        ):
            started = time.perf_counter()
            speak()
            rates[name].append(spoken / (time.perf_counter() - started))
    for name, found in rates.items():
        print(f"{name:9} {statistics.median(found):8,.0f} tokens/s (from {min(found):,.0f} to {max(found):,.0f})")
    print(f"ratio     {statistics.median(rates['native']) / statistics.median(rates['generate']):8.2f}")


if __name__ == "__main__":
    main()
