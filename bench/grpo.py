"""A GRPO step side by side: ours and TRL's trainer on the same prompts, groups and lengths, each in its own process.

    python bench/grpo.py [ragged equal] [--rounds 3] [--steps 2] [--precision float32] [--all]

The model has the shape of Phi-3 and 4.5M parameters (bench/train.py). A step is 8 prompts of 20 to 100 tokens with 8
responses each, at temperature 1, a rule's verdict on each, advantages, and one update on all of them: the micro-batches
differ, the mean over responses does not. Lengths are log-normal with median 100, up to 320, or all of one length with
the same sum; how they are imposed is said in bench/grpo_steps.py. Ours takes the way of `algorist run`: sampler,
rollouts and verdicts stored and read again, sampler and trainer compared, layout, loss, AdamW.

First both learn from the same given responses, for both ways of averaging, and the gradients are compared; then each
of TRL's settings runs once, and the fastest stays. Then they take turns. Speed is that of all response tokens over
whole steps after one that warms up. Memory is the largest resident set of the process, and beside it what came after
the model was made. A row is printed as JSON too. With one setting of TRL (`--only`) and
two rounds a kind of lengths takes eight minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import grpo_steps as steps
import grpo_trl
import numpy as np
from grpo_steps import GROUP, Turn, Work
from train import VOCABULARY, model

GAP = 1e-3  # between gradients in float32, relative, above which nothing is timed
OURS = ("ours", "ours, compiled")
# TRL's settings: completions of one forward and backward, and who generates.
THEIRS: dict[str, dict[str, Any]] = {
    f"{generate} x {batch}": {"generate": generate, "batch": batch}
    for generate, batches in (("static", (8, 16, 32)), ("dynamic", (8, 32)))
    for batch in batches
}
THEIRS["cb x 16"] = {"generate": "cb", "batch": 16}


def work(kind: str, options: argparse.Namespace) -> Work:
    """The same in every process: given responses, a turn that warms up, and those that are timed."""
    draw = np.random.default_rng(21)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(draw.integers(2, VOCABULARY, length).tolist())

    turns = []
    for _ in range(2 + options.steps):
        count = options.prompts * GROUP
        lengths = np.clip(draw.lognormal(np.log(options.median), 0.65, count).astype(int), 8, options.longest)
        if kind == "equal":
            lengths[:] = round(lengths.mean())
        prompts = tuple(ids(int(n)) for n in draw.integers(20, 101, options.prompts))
        turns.append(Turn(prompts, tuple(lengths.tolist())))
    chosen = turns[1:]
    if options.gradient:
        chosen = [Turn(turns[0].prompts, turns[0].lengths, tuple(map(ids, turns[0].lengths)))]
    longest = max(max(turn.lengths) for turn in turns)
    how = {"average": options.average, "tokens_per_batch": options.tokens_per_batch}
    return Work(tuple(chosen), VOCABULARY, longest, gradients=bool(options.gradient), **how)


def child(kind: str, name: str, precision: str, options: argparse.Namespace) -> None:
    """One contender: prints its figures as JSON, or writes its gradient."""
    warnings.filterwarnings("ignore")
    asked = work(kind, options)
    told: list[tuple[dict[str, float], dict[str, Any]]] = []

    def tell(index: int, seconds: dict[str, float], facts: dict[str, Any]) -> bool:
        if "gradient" in facts:
            np.savez(options.gradient, **facts.pop("gradient"))
        told.append((seconds, facts))
        return True

    if name in OURS:
        from algorist.model import devices
        from algorist.model.optimizers import Optimizer
        from algorist.model.policy import Policy

        devices.settle()
        policy = Policy(model("eager"), precision=precision)
        policy.train()
        if "compiled" in name:
            policy.fuse()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        steps.ours(asked, policy, Optimizer(policy, kind="adamw", weight_decay=0.0), tell)
    else:
        peer = model("sdpa")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        grpo_trl.theirs(asked, peer, THEIRS[name], tell, bf16=precision == "bfloat16")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    timed = list(zip(asked.turns, told, strict=True))[1:]
    found = {"peak_gib": peak / 2**20, "grown_gib": (peak - before) / 2**20, "facts": [facts for _, facts in told]}
    if timed:
        found["speed"] = statistics.median(turn.tokens / sum(seconds.values()) for turn, (seconds, _) in timed)
        phases = {name: statistics.median(seconds[name] for _, (seconds, _) in timed) for name in steps.PHASES}
        found |= {"seconds": {name: round(value, 3) for name, value in phases.items()}}
    print(json.dumps(found))


def call(kind: str, name: str, precision: str, options: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """The figures of one contender in a process of its own."""
    command = [sys.executable, __file__, kind, "--child", name, "--precision", precision]
    for key in ("steps", "prompts", "median", "longest", "average", "tokens_per_batch"):
        command += [f"--{key.replace('_', '-')}", str(more.get(key, getattr(options, key)))]
    command += ["--gradient", more["gradient"]] if "gradient" in more else []
    quiet = {"TOKENIZERS_PARALLELISM": "false", "TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **quiet})
    if done.returncode:
        return {"failed": (done.stderr.strip() or "no word").splitlines()[-1]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def agree(kind: str, options: argparse.Namespace) -> None:
    """Ends the program unless both compute the same gradient from the same responses."""
    for average in ("response", "token"):
        with tempfile.TemporaryDirectory() as folder:
            files = {name: str(Path(folder, f"{i}.npz")) for i, name in enumerate(("ours", "static x 8"))}
            how = {"average": average, "prompts": min(options.prompts, 4)}
            ran = {n: call(kind, n, "float32", options, gradient=f, **how) for n, f in files.items()}
            for name, found in ran.items():
                if "failed" in found:
                    sys.exit(f"{name}: {found['failed']}")
            one, two = (dict(np.load(file)) for file in files.values())
        gap = steps.apart(one, two)
        said = ", ".join(f"{name} {found['facts'][0]['loss']:.3g}" for name, found in ran.items())
        print(f"  mean over {average}s: gradients within {gap:.1e}, losses {said}", flush=True)
        print(json.dumps({"bench": f"grpo.{kind}", "average": average, "gradient_gap": float(f"{gap:.2g}")}))
        if gap > GAP:
            sys.exit("The gradients differ: no times.")


def compare(kind: str, options: argparse.Namespace) -> None:
    """All in turns."""
    print(f"{kind}: {work(kind, options).turns[-1].tokens:,} response tokens a step")
    agree(kind, options)
    names = [name for name in THEIRS if options.only in name]
    tried = {(name, p): call(kind, name, p, options) for name in names for p in options.precision}
    for (name, precision), found in tried.items():
        said = found.get("failed") or f"{found['speed']:,.0f} tokens/s, {found['peak_gib']:.2f} GiB, {found['seconds']}"
        print(f"  TRL {name} {precision}: {said}", flush=True)
    sound = {key: found for key, found in tried.items() if "failed" not in found}
    if not sound:
        sys.exit("No setting of TRL runs here.")
    best = max(sound, key=lambda key: sound[key]["speed"])
    contenders = [(name, precision) for name in OURS for precision in options.precision]
    contenders += list(sound) if options.all else [best]
    rounds: dict[tuple[str, str], list[dict[str, Any]]] = {key: [] for key in contenders}
    for _ in range(options.rounds):
        for key in contenders:
            found = call(kind, *key, options)
            if "failed" in found:
                sys.exit(f"{' '.join(key)}: {found['failed']}")
            rounds[key].append(found)
    show(kind, rounds, best, options)


def show(kind: str, rounds: dict[tuple[str, str], list[dict[str, Any]]], best: Any, options: Any) -> None:
    """The rows; ratios are to the best of TRL."""
    print(f"{kind}: {options.steps} steps after one, medians of {options.rounds} rounds in turns")
    top = statistics.median(found["speed"] for found in rounds[best])
    for (name, precision), found in rounds.items():
        speed = statistics.median(one["speed"] for one in found)
        row: dict[str, Any] = {"bench": f"grpo.{kind}", "who": name if name in OURS else f"TRL {name}"}
        row |= {"precision": precision, "tokens_per_s": round(speed), "ratio": round(speed / top, 2)}
        row |= {"rounds": [round(one["speed"]) for one in found]}
        row |= {key: round(max(one[key] for one in found), 3) for key in ("peak_gib", "grown_gib")}
        middle = sorted(found, key=lambda one: float(one["speed"]))[len(found) // 2]
        row |= {"seconds": middle["seconds"]}
        gap = [facts["logprob_gap"] for one in found for facts in one["facts"] if "logprob_gap" in facts]
        row |= {"logprob_gap": float(f"{max(gap):.2g}")} if gap else {}
        memory = f"{row['peak_gib']:.2f} GiB (+{row['grown_gib']:.2f})"
        spent = ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in row["seconds"].items())
        print(f"  {row['who']:20} {precision:9} {speed:7,.0f} tokens/s  x{row['ratio']:.2f}  {memory}  s: {spent}")
        print(json.dumps(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", default=["ragged", "equal"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--median", type=int, default=100, help="tokens of a response")
    parser.add_argument("--longest", type=int, default=320)
    parser.add_argument("--average", default="response", choices=["response", "token"])
    parser.add_argument("--tokens-per-batch", type=int, default=1_024, help="of ours")
    parser.add_argument("--precision", nargs="*", default=["float32"])
    parser.add_argument("--only", default="", help="try only settings of TRL with this in their name")
    parser.add_argument("--all", action="store_true", help="keep every setting of TRL in the turns")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--gradient", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for kind in options.kinds:
        if options.child:
            child(kind, options.child, options.precision[0], options)
        else:
            compare(kind, options)


if __name__ == "__main__":
    main()
