"""Rollouts side by side: the native sampler, transformers' generate and its continuous batching, on the same work.

    python bench/rollout.py [--rounds 3] [--prompts 48] [--median 250] [--longest 768] [--precision float32] [--all]

The model has the shape of Phi-3 and 4.5M parameters (see bench/train.py). Prompts are ragged, and each response has a
length of its own, log-normal, because random weights never stop: ours and continuous batching are told it, generate
speaks until the longest of its batch is done, and what it says beyond is not counted. All are greedy.

First each setting runs once, and the fastest of each contender stays: generate with the prompts in order, and sorted by
their length. Then the fastest take turns, each in a process of its own. A last row, "oracle", sorts by the length of
the responses, which nobody knows before: a bound of what sorting gives, run once and never chosen. The tokens of every
response are compared with ours before any time is printed; a response counts as equal up to where the two likeliest
tokens are as close as rounding. Time is that of the whole work, after a short one that warms up. Memory is the largest
resident set of the process, and beside it what the work added.
A row is printed as JSON too.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from train import VOCABULARY, model

Work = list[tuple[list[int], int]]  # (prompt, tokens of the response)

OURS, COMPILED = "ours", "ours, compiled"
SLOTS = (32, 48)
GENERATE: dict[str, dict[str, Any]] = {
    "generate dynamic x 16": {"kind": "dynamic", "batch": 16, "order": "as given"},
    "generate dynamic x 32": {"kind": "dynamic", "batch": 32, "order": "as given"},
    "generate dynamic x 32, by prompt": {"kind": "dynamic", "batch": 32, "order": "prompt"},
}
ORACLE: dict[str, dict[str, Any]] = {
    "oracle: generate dynamic x 32, by response": {"kind": "dynamic", "batch": 32, "order": "response"},
}
BATCHING: dict[str, dict[str, Any]] = {
    "continuous batching": {},
    "continuous batching, 32-token pages": {"page_size": 32},
}
MORE: dict[str, dict[str, dict[str, Any]]] = {  # that a short run leaves out: --all
    "generate": {
        "generate dynamic x 64": {"kind": "dynamic", "batch": 64, "order": "as given"},
        "generate static x 32": {"kind": "static", "batch": 32, "order": "as given"},
    },
    "cb": {"continuous batching, 64 requests": {"max_requests_per_batch": 64}},
}


def work(options: argparse.Namespace, share: float = 1.0) -> Work:
    """Prompts of 20 to 180 tokens, and lengths around the median; the same in every process."""
    draw = np.random.default_rng(11)
    count = options.prompts
    lengths = np.clip(draw.lognormal(np.log(options.median), 0.6, count).astype(int), 8, options.longest)
    prompts = [draw.integers(2, VOCABULARY, draw.integers(20, 181)).tolist() for _ in range(count)]
    return [(p, max(1, int(n * share))) for p, n in zip(prompts, lengths.tolist(), strict=True)]


def ours(precision: str, slots: int, compiled: bool) -> tuple[Callable[[Work], list[list[int]]], dict[str, Any]]:
    """The native sampler."""
    from algorist.generate.batching import How, Tally
    from algorist.generate.native import sample
    from algorist.generate.sampling import Request, Sampling
    from algorist.model import devices
    from algorist.model.policy import Policy

    devices.settle()
    policy = Policy(model("eager"), precision=precision)
    if compiled:
        policy.fuse()
    notes: dict[str, Any] = {}

    def run(some: Work) -> list[list[int]]:
        requests = [Request(tuple(prompt), key, max_tokens=length) for key, (prompt, length) in enumerate(some)]
        tally = Tally()
        given = sample(policy, requests, Sampling(0.0), end_ids=(), num_slots=slots, how=How(tally=tally))
        notes.update({name: round(value, 2) for name, value in tally.seconds.items()})
        notes.update({"steps": tally.steps, "cache_tokens": tally.most, "preempted": tally.preempted})
        return [list(response.tokens) for response in given]

    return run, notes


def generate(precision: str, how: dict[str, Any]) -> Callable[[Work], list[list[int]]]:
    """transformers' generate, in batches padded on the left, each until its longest response is done."""
    import torch

    peer = model("sdpa").eval()

    def run(some: Work) -> list[list[int]]:
        order = list(range(len(some)))
        if how["order"] != "as given":
            order.sort(key=lambda i: len(some[i][0]) if how["order"] == "prompt" else some[i][1])
        said: dict[int, list[int]] = {}
        for first in range(0, len(order), how["batch"]):
            batch = order[first : first + how["batch"]]
            longest = max(len(some[i][0]) for i in batch)
            ids = torch.tensor([[0] * (longest - len(some[i][0])) + some[i][0] for i in batch])
            mask = torch.tensor([[0] * (longest - len(some[i][0])) + [1] * len(some[i][0]) for i in batch])
            with torch.inference_mode(), torch.autocast("cpu", getattr(torch, precision), precision != "float32"):
                out = peer.generate(
                    ids,
                    attention_mask=mask,
                    max_new_tokens=max(some[i][1] for i in batch),
                    do_sample=False,
                    eos_token_id=None,
                    pad_token_id=0,
                    cache_implementation=how["kind"],
                )
            said |= {i: row[longest : longest + some[i][1]] for i, row in zip(batch, out.tolist(), strict=True)}
        return [said[i] for i in range(len(some))]

    return run


def batching(jobs: Work, precision: str, how: dict[str, Any]) -> Callable[[Work], list[list[int]]]:
    """transformers' continuous batching, each request with its own length."""
    import torch
    from transformers import ContinuousBatchingConfig, GenerationConfig

    peer = model("sdpa").eval()
    tokens = sum(len(prompt) + length for prompt, length in jobs)
    size = how.get("page_size", 256)
    more = {"num_blocks": tokens // size + 2 * len(jobs), "max_batch_tokens": 2_048}  # all at once, and no more
    settings = ContinuousBatchingConfig(**{**more, **how})
    plain = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=8)

    def run(some: Work) -> list[list[int]]:
        with torch.autocast("cpu", getattr(torch, precision), precision != "float32"):
            manager = peer.init_continuous_batching(generation_config=plain, continuous_batching_config=settings)
            manager.start()
            names = [manager.add_request(p, f"r{i}", max_new_tokens=n) for i, (p, n) in enumerate(some)]
            found: dict[str, list[int]] = {}
            while len(found) < len(names):
                result = manager.get_result(timeout=1)
                if result is None and not manager.is_running():
                    raise RuntimeError("the manager has stopped")
                if result is not None and result.is_finished():
                    found[result.request_id] = list(result.generated_tokens)
            manager.stop(block=True)
        return [found[name] for name in names]

    return run


def child(name: str, options: argparse.Namespace) -> None:
    """One contender: prints its figures as JSON."""
    warnings.filterwarnings("ignore")
    jobs, precision, notes = work(options), options.precision, {}
    if name in (OURS, COMPILED):
        run, notes = ours(precision, options.slots, name == COMPILED)
    elif name.startswith(("generate", "oracle")):
        run = generate(precision, (GENERATE | MORE["generate"] | ORACLE)[name])
    else:
        run = batching(jobs, precision, (BATCHING | MORE["cb"])[name])
    run(work(options, 0.05))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, spent = time.perf_counter(), time.process_time()
    said = run(jobs)
    seconds, spent = time.perf_counter() - started, time.process_time() - spent
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert [len(row) for row in said] == [length for _, length in jobs]
    speed = sum(map(len, said)) / seconds
    row = {
        "said": said,
        "speed": speed,
        "processor_s": spent,
        "peak_gib": peak / 2**20,
        "grown_gib": (peak - before) / 2**20,
    }
    print(json.dumps(row | {"notes": notes}))


def call(name: str, options: argparse.Namespace, slots: int = 0) -> dict[str, Any]:
    """The figures of one contender in a process of its own."""
    command = [sys.executable, __file__, "--child", name, "--slots", str(slots or options.slots)]
    for key in ("prompts", "median", "longest", "precision"):
        command += [f"--{key}", str(getattr(options, key))]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if done.returncode:
        return {"failed": (done.stderr.strip() or "no word").splitlines()[-1]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def same(ours: list[list[int]], theirs: list[list[int]]) -> tuple[int, float]:
    """(responses that are equal throughout, share of tokens before the first difference)."""
    shared = [
        next((i for i, (a, b) in enumerate(zip(x, y, strict=True)) if a != b), len(x))
        for x, y in zip(ours, theirs, strict=True)
    ]
    whole = sum(n == len(x) for n, x in zip(shared, ours, strict=True))
    return whole, sum(shared) / sum(map(len, ours))


def fastest(kind: str, names: list[str], options: argparse.Namespace) -> list[str]:
    """The one of a contender's settings that takes turns, none where no setting runs."""
    speeds = {}
    for name in names:
        found = call(name, options)
        said = found.get("failed") or f"{found['speed']:,.0f} tokens/s, {found['peak_gib']:.2f} GiB"
        print(f"  {name}: {said}", flush=True)
        if "failed" not in found:
            speeds[name] = found["speed"]
    if not speeds:
        print(f"  no setting of {kind} runs here")
        return []
    return [max(speeds, key=lambda name: speeds[name])]


def compare(options: argparse.Namespace) -> None:
    """All in turns."""
    slots = {}
    for number in [options.slots] if options.slots else SLOTS:
        found = call(OURS, options, number)
        if "failed" in found:
            sys.exit(found["failed"])
        slots[number] = found["speed"]
        print(f"  ours, {number} slots: {found['speed']:,.0f} tokens/s, {found['notes']}", flush=True)
    options.slots = max(slots, key=lambda number: slots[number])
    known = {"generate": GENERATE, "cb": BATCHING}
    if options.all:
        known = {kind: names | MORE[kind] for kind, names in known.items()}
    chosen = {kind: [n for n in names if options.only in n] for kind, names in known.items()}
    best = {kind: fastest(kind, names, options) for kind, names in chosen.items()}
    contenders = [OURS, COMPILED, *(name for names in best.values() for name in names), *ORACLE]
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    for _ in range(options.rounds):
        for name in contenders:
            found = call(name, options)
            if "failed" in found:
                sys.exit(f"{name}: {found['failed']}")
            rounds[name].append(found)
    rounds |= {name: [call(name, options)] for name in ORACLE}  # once: nobody could choose it
    show(rounds, best, options)


def show(rounds: dict[str, list[dict[str, Any]]], best: dict[str, list[str]], options: argparse.Namespace) -> None:
    """The rows, tokens compared first."""
    said = rounds[OURS][0]["said"]
    print(f"{len(said)} responses, {sum(map(len, said)):,} tokens, {options.precision}, {options.slots} slots")
    for name, found in rounds.items():
        whole, shared = same(said, found[0]["said"])
        print(f"  {name}: {whole} of {len(said)} responses equal ours, {shared:.1%} of tokens before a difference")
    speeds = {name: statistics.median(one["speed"] for one in found) for name, found in rounds.items()}
    for name, found in rounds.items():
        row: dict[str, Any] = {"bench": "rollout", "who": name, "precision": options.precision}
        row |= {"tokens_per_s": round(speeds[name]), "rounds": [round(one["speed"]) for one in found]}
        for kind, names in best.items():
            if names and name in (OURS, COMPILED):
                row[f"over_{kind}"] = round(speeds[name] / max(speeds[one] for one in names), 2)
        row |= {key: round(max(one[key] for one in found), 3) for key in ("peak_gib", "grown_gib")}
        print(f"  {name:36} {speeds[name]:8,.0f} tokens/s  {row['peak_gib']:.2f} GiB (+{row['grown_gib']:.2f})")
        print(json.dumps(row | found[-1]["notes"]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--median", type=int, default=250, help="tokens of a response")
    parser.add_argument("--longest", type=int, default=768)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--slots", type=int, default=0, help="sequences that ours decodes together; 0: the best")
    parser.add_argument("--only", default="", help="try only settings of the peers with this in their name")
    parser.add_argument("--all", action="store_true", help="try more settings of the peers")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options)
    else:
        compare(options)


if __name__ == "__main__":
    main()
