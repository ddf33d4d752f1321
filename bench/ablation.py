"""The three remedies of stage 4, each alone and together, beside plain GRPO and DAPO: the same sampled tokens for all.

    python bench/ablation.py RUN OUT [--seeds 5] [--tokens 150_000] [--arms plain length balance annealing all dapo]
        [--set learning_rate=0.003]

RUN is a finished run of recipes/tiny.toml. Every arm starts from its stage-3 checkpoint and has stage 4's settings of
its recipe but for what the arm changes, and `--set` for all of them; the seed moves everything that stage 4 draws. An
arm takes as many generations as the token budget allows, told by a pilot of two generations. Held-out problems are
asked at the start, at every quarter of the way and at the end (temperature 0.6, as the paper evaluates). One JSON line
for each (arm, seed) goes to OUT/results.jsonl as soon as it is there: the same command goes on where it was stopped.
Another `--set` wants another OUT: pilots and results are told apart by arm and seed only. docs/make_ablation.py draws
what is there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from algorist import journal, store
from algorist import recipe as recipes
from algorist.data import sources
from algorist.generate.rollouts import Native, Speaker, rollouts
from algorist.generate.sampling import Sampling
from algorist.model import chat as chats
from algorist.model import devices
from algorist.model.chat import Chat, load_tokenizer
from algorist.model.policy import Policy
from algorist.numerics.estimates import mean_interval
from algorist.records import Problem
from algorist.stage import Run, Step
from algorist.stages import rlvr
from algorist.tasks import sections
from algorist.train import train
from algorist.verify.pool import Pool

# What an arm changes of the recipe's [rlvr]. "plain" takes all three remedies away; the next three give one back.
_NO_LENGTH = ("prompts.max_length_spread=1e9",)
_NO_BALANCE = (
    "oversample=0",
    "balance=false",
    "max_prompt_accuracy=1.0",
    "refills=0",
    "objective.keep_flat=true",
    "prompts.max_accuracy=1.0",
)
_NO_ANNEALING = ("temperature.end=1.0",)
ARMS: dict[str, tuple[str, ...]] = {
    "plain": (*_NO_LENGTH, *_NO_BALANCE, *_NO_ANNEALING),
    "length": (*_NO_BALANCE, *_NO_ANNEALING),
    "balance": (*_NO_LENGTH, *_NO_ANNEALING),
    "annealing": (*_NO_LENGTH, *_NO_BALANCE),
    "all": (),
    "dapo": (
        *_NO_LENGTH,
        *_NO_ANNEALING,
        "oversample=0",
        "balance=false",
        "max_prompt_accuracy=1.0",
        "refills=8",
        "prompts.max_accuracy=1.0",
        "reward.overlong=0.2",
        "objective.average='token'",
        "objective.clip_high=0.28",
    ),
}
_PILOT, _POINTS = 2, 3  # generations; evaluations on the way
_WATCHED, _ASKED = 200, 2  # held-out problems asked on the way; samples of each of all at the end
_SHARED = ("problems", "benchmarks", "sets", "dpo")  # of the run that every arm starts from


def opened(source: Path, root: Path, changes: Sequence[str], seed: int, steps: int) -> Run:
    """An arm's run of stage 4 in `root`; what comes before it is linked from the finished run."""
    root.mkdir(parents=True, exist_ok=True)
    for name in _SHARED:
        if not (root / name).exists():
            (root / name).symlink_to((source / name).resolve())
    overrides = [f"rlvr.{change}" for change in (*changes, f"steps={steps}")]
    recipe = replace(recipes.read(source / "recipe.toml", sections(), overrides), seed=seed)
    parent = root / "dpo" / "checkpoint"
    model = recipe.of("model", chats.Settings)
    chat = Chat.of(load_tokenizer(str(parent)), model.prompt, system=model.system)
    return Run(recipe, root, rlvr.STAGE, str(parent), chat, model.precision, model.weights, model.attention)


def choose(run: Run, out: Path) -> int:
    """Select an arm's prompts, and say how many there are. Their rollouts are the same for all arms of a seed."""
    known, own = out / "prompts" / str(run.seed), run.folder / "prompts"
    for name in ("rollouts", "verdicts"):
        if known.exists():
            shutil.copytree(known / name, own / name)
    chosen = rlvr.STAGE.curate(run)
    for name in ("rollouts", "verdicts"):
        shutil.copytree(own / name, known / name, dirs_exist_ok=True)
    return chosen.rows


def held_out(
    run: Run, policy: Policy, problems: Sequence[Problem], pool: Pool, samples: int
) -> tuple[list[float], float]:
    """Share of right samples of each held-out problem, and the mean length of a response."""
    speaker = Speaker(Native(policy, run.chat.stops), run.chat, "held out")
    wanted = [(problem, i) for problem in problems for i in range(samples)]
    said = rollouts(speaker, wanted, Sampling(0.6, 0.95, run.settings.max_tokens), address=(0, "ablation"))
    verdicts = pool.verdicts(said, {problem.id: problem.answer for problem in problems})
    right = [verdict.right is True for verdict in verdicts]
    shares = [sum(right[i : i + samples]) / samples for i in range(0, len(right), samples)]
    return shares, sum(one.num_tokens for one in said) / len(said)


def watched(run: Run, problems: Sequence[Problem], pool: Pool, curve: list[dict[str, float]]) -> Run:
    """The run, with evaluations before its first generation and after each quarter of them."""
    every = max(1, run.settings.steps // _POINTS)

    def steps(this: Run, policy: Policy) -> Iterator[Step]:
        sampled = 0.0
        for generation, step in enumerate(rlvr.STAGE.steps(this, policy)):
            if generation % every == 0:
                shares, length = held_out(this, policy, problems[:_WATCHED], pool, 1)
                point = {"generation": generation, "tokens": sampled, "accuracy": sum(shares) / len(shares)}
                curve.append({**point, "length": length})
            sampled += step.facts["sampled_tokens"]
            yield step

    return replace(run, stage=replace(run.stage, steps=steps))


def pilot(source: Path, out: Path, arm: str, changes: Sequence[str]) -> float:
    """Sampled tokens of one generation of an arm, from its first two."""
    place = out / "pilot" / f"{arm}.json"
    if not place.exists():
        root = out / "pilot" / arm
        shutil.rmtree(root, ignore_errors=True)
        run = opened(source, root, changes, 0, _PILOT)
        choose(run, out)
        train(run)
        tokens = [entry["sampled_tokens"] for entry in journal.read(run.folder)]
        store.write_json(place, {"tokens": sum(tokens) / len(tokens)})
        shutil.rmtree(root)
    return float(store.read_json(place)["tokens"])


def take(source: Path, out: Path, arm: str, changes: Sequence[str], seed: int, budget: int) -> dict[str, Any]:
    """One arm with one seed, from prompt selection to its final score."""
    started = time.monotonic()
    steps = max(2, round(budget / pilot(source, out, arm, changes)))
    root = out / f"{arm}-{seed}"
    shutil.rmtree(root, ignore_errors=True)
    run = opened(source, root, changes, seed, steps)
    prompts = choose(run, out)
    names = list(run.recipe.of("data", sources.Settings).benchmarks)
    (problems,) = sources.read_benchmarks(root / "benchmarks", names).values()
    curve: list[dict[str, float]] = []
    with Pool.of(run.recipe) as pool:
        train(watched(run, problems, pool, curve))
        policy = run.opened(run.folder / "checkpoint")
        shares, length = held_out(run, policy, problems, pool, _ASKED)
    entries = journal.read(run.folder)
    sampled = sum(entry["sampled_tokens"] for entry in entries)
    watched_too = shares[:_WATCHED]
    point = {"generation": steps, "tokens": sampled, "accuracy": sum(watched_too) / len(watched_too)}
    curve.append({**point, "length": length})
    kept = [
        {
            "tokens": total,
            **{
                name: entry.get(name)
                for name in ("accuracy", "grad_norm", "entropy", "length_spread", "wasted", "temperature")
            },
        }
        for total, entry in zip(itertools.accumulate(e["sampled_tokens"] for e in entries), entries, strict=True)
    ]
    shutil.rmtree(root)
    return {
        "arm": arm,
        "seed": seed,
        "steps": steps,
        "prompts": prompts,
        "sampled_tokens": sampled,
        "learned_tokens": sum(entry["tokens"] for entry in entries),
        "shares": shares,
        "interval": mean_interval(shares),
        "length": length,
        "curve": curve,
        "generations": kept,
        "seconds": time.monotonic() - started,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=150_000)
    parser.add_argument("--arms", nargs="*", default=list(ARMS))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of [rlvr], for all arms")
    options = parser.parse_args()
    devices.settle()
    results = options.out / "results.jsonl"
    options.out.mkdir(parents=True, exist_ok=True)
    done = (
        {(row["arm"], row["seed"]) for row in map(json.loads, results.read_text().splitlines())}
        if results.exists()
        else set()
    )
    for seed in range(1, options.seeds + 1):
        for arm in options.arms:
            if (arm, seed) in done:
                continue
            row = take(options.run, options.out, arm, (*options.set, *ARMS[arm]), seed, options.tokens)
            with open(results, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            value, low, high = row["interval"]
            print(
                f"{arm:10} seed {seed}: {100 * value:.1f} % ({100 * low:.1f} to {100 * high:.1f}), from "
                f"{100 * row['curve'][0]['accuracy']:.1f} %, {row['steps']} generations, "
                f"{row['sampled_tokens']:,} tokens sampled, {row['seconds']:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
