"""What one-step-off, streaming and partial rollouts gain over synchronous RL, and which split of the GPUs pays.

    python bench/async_sim.py [--seed 0] [--recommend 32]    published figures, predicted and compared
    python bench/async_sim.py --gpus 8 --mean 3300 --median 2500 --longest 16384 --tokens-per-second 2000 \
                              --training-seconds 90          the best schedule and split for figures of one's own

The model is that of bench/async_run.py: a discrete-event run with the rule by which it cannot dead-lock. Rates come
from published *synchronous* steps alone: the decode step's fixed part is set so that a synchronous generation takes the
published seconds (its part per token of context is that of the memory, at 60 % of its rate); training is the published
seconds times GPUs, and serial + parallel / GPUs by least squares where a system publishes several sizes; hand-over is
what the step has left. The speed-up is then predicted; nothing is fitted to it. Lengths are not published: rows are
predicted with three sets of them, and the extremes are printed. Rows whose basis is "trainer given" take the
asynchronous trainer's published seconds too: they judge the schedule alone and are no predictions. Where the basis is
"... assumed", a setting is not published. A row is a table line and a JSON line.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from async_run import calibrated, simulate
from async_work import ONE_OFF, OVER_CARRY, PARTIAL, SCHEDULES, STREAM, SYNC, Rates, Schedule, Work

STEPS = 3  # versions that are timed
NEAR = 0.2  # of the published figure
EFFICIENCY = 0.6  # of the memory's rate that decoding reaches


@dataclass(frozen=True)
class Sync:
    """A published synchronous step: GPUs, and seconds of the whole, of generation, of old log-probs, of the update."""

    gpus: int
    step: float
    generation: float
    logprobs: float
    update: float


@dataclass(frozen=True)
class Anchor:
    """A published speed-up and the settings it was reached with."""

    name: str
    schedule: Schedule
    gpus: tuple[int, int]  # sampler, trainer
    sync: Sync
    work: Work
    rates: Rates  # kv, slots and GPUs of an engine
    published: float
    basis: str = "synchronous"
    sizes: tuple[Sync, ...] = ()  # other sizes of the same system
    scored: bool = False  # whether the asynchronous trainer computes old log-probs too
    given: float = 0.0  # seconds of the asynchronous trainer, if they are given
    slots: int = 1024  # of an engine when it is asynchronous
    over: Schedule | None = None  # the schedule that it is faster than, if that is not the synchronous one


def memory(kv_bytes: int, gpus: int, terabytes: float) -> float:
    """Seconds of a decode step per token of context on an engine of so many GPUs."""
    return kv_bytes / gpus / (terabytes * 1e12) / EFFICIENCY


# verl, docs/advance/fully_async.md: H20, Qwen2.5-Math-7B, DAPO, 512 x 16, 28K, engines of 4 GPUs with 16 prompts each.
VERL = (
    Sync(32, 790.10, 357.41, 107.71, 313.81),
    Sync(64, 365.28, 150.72, 70.26, 133.41),
    Sync(128, 356.30, 177.85, 53.92, 113.81),
)
DAPO = Work(512, 16, 1_800, 1_000, 28 * 1024)
H20 = Rates(0.0, memory(57_344, 4, 4.0), 0.0, slots=1024, gpus=4)
# Mean and median are guesses: with them the updates run at 31 to 53 % of the chip's 148 TFLOP/s.
# verl, docs/advance/one_step_off.md: 32 H20, 8 + 24; DAPO's batch is taken. Its steps and its hours differ.
OFF = (Sync(32, 749, 321, 88, 286), Sync(32, 699, 207, 119, 344))
# NeMo-RL 0.5: 16 H100, Llama-3.1-8B, 64 x 32, 4K, 8 + 8. Only the step is published: split as its issue 959 measured.
NEMO = Sync(16, 92.8, 92.8 * 58 / 112, 92.8 * 18 / 112, 92.8 * 28 / 112)
LLAMA = Work(64, 32, 950, 850, 4096, 110)
# verl-recipe, partial_rollout: Qwen3-4B, 8 H20; batch and lengths as in its script for GSM8K.
RECIPE = Sync(8, 26.1, 26.1, 0, 0)
GSM8K = Work(128, 8, 190, 165, 1024, 120)
# AReaL 0.3: H800, 1.5B on 128, 7B on 192, 512 x 16, 27K, three quarters sample, staleness 4; hours of 1,000 steps. How
# the synchronous step divides is not published: 0.8 for generation is what others see.
AREAL = (Sync(128, 147.6, 0.8 * 147.6, 0, 0.2 * 147.6), Sync(192, 207.7, 0.8 * 207.7, 0, 0.2 * 207.7))
BOBA = Work(512, 16, 7_500, 5_500, 27 * 1024)
FOUR = replace(PARTIAL, ahead=4.0, parts=1)
DRAIN = replace(FOUR, cut="drain")
GIVEN, ALONE = "trainer given", "generation alone"


def anchors() -> tuple[Anchor, ...]:
    """Published speed-ups: synchronous step over asynchronous step, as their pages tell them."""
    steps, given = {32: 294.77, 64: 189.26, 128: 150.63}, {32: 269.80, 64: 156.98, 128: 113.16}
    rows = []
    for sync in VERL:
        half, ratio = (sync.gpus // 2, sync.gpus // 2), sync.step / steps[sync.gpus]
        row = Anchor(f"verl fully async, {sync.gpus}", PARTIAL, half, sync, DAPO, H20, ratio, sizes=VERL, slots=256)
        rows += [row, replace(row, basis=GIVEN, given=given[sync.gpus])]
    for ahead, step, update in ((0.0, 231.34, 98.77), (0.1, 171.30, 109.12), (0.3, 146.11, 103.22)):
        schedule = STREAM if ahead == 0 else replace(PARTIAL, ahead=ahead)
        name, ratio = f"verl streaming, stale {ahead:g}, 128", VERL[2].step / step
        row = Anchor(name, schedule, (64, 64), VERL[2], DAPO, H20, ratio, sizes=VERL, slots=256)
        rows += [row, replace(row, basis=GIVEN, given=update)]
    engine, short = replace(H20, kv=memory(57_344, 2, 4.0), gpus=2), replace(DAPO, longest=8192, mean=1_600)
    long = replace(DAPO, longest=20_480)
    rows += [
        Anchor("verl one-step-off, FSDP2", ONE_OFF, (8, 24), OFF[0], long, engine, 749 / 520, scored=True),
        Anchor("verl one-step-off, Megatron", ONE_OFF, (8, 24), OFF[1], short, engine, 699 / 566, scored=True),
        Anchor("verl one-step-off, FSDP2, hours", ONE_OFF, (8, 24), OFF[0], long, engine, 19.3 / 15.57, scored=True),
        Anchor(
            "verl one-step-off, Megatron, hours", ONE_OFF, (8, 24), OFF[1], short, engine, 18.35 / 13.1, scored=True
        ),
    ]
    h100 = Rates(0.0, memory(131_072, 1, 3.35), 0.0, slots=1024)
    rows.append(
        Anchor("NeMo-RL one-step-off", ONE_OFF, (8, 8), NEMO, LLAMA, h100, 92.8 / 64.8, "split assumed", scored=True)
    )
    qwen = Rates(0.0, memory(147_456, 1, 4.0), 0.0, slots=1024)
    rows.append(
        Anchor("verl-recipe partial, generation", OVER_CARRY, (8, 8), RECIPE, GSM8K, qwen, 26.1 / 18.5, "batch assumed")
    )
    small, large = (Rates(0.0, memory(size, 1, 3.35), 0.0, slots=1024) for size in (28_672, 57_344))
    rows += [
        Anchor("AReaL 1.5B", FOUR, (96, 32), AREAL[0], BOBA, small, 41.0 / 14.8, "split assumed"),
        Anchor("AReaL 7B", FOUR, (144, 48), AREAL[1], BOBA, large, 57.7 / 25.4, "split assumed"),
        Anchor("AReaL 1.5B, interrupting", FOUR, (24, 8), AREAL[0], BOBA, small, 1.12, ALONE, given=1e-3, over=DRAIN),
        Anchor("AReaL 7B, interrupting", FOUR, (24, 8), AREAL[1], BOBA, large, 1.17, ALONE, given=1e-3, over=DRAIN),
    ]
    return tuple(rows)


def amdahl(sizes: tuple[Sync, ...]) -> tuple[float, float]:
    """(serial seconds, parallel GPU-seconds) of updates at several sizes, least squares, not negative."""
    gpus, seconds = np.array([[size.gpus, size.update] for size in sizes], float).T
    (serial, parallel), *_ = np.linalg.lstsq(np.stack([np.ones(len(gpus)), 1 / gpus], 1), seconds, rcond=None)
    return max(0.0, float(serial)), float(parallel)


def fitted(anchor: Anchor, work: Work, seed: int) -> Rates:
    """The rates of an anchor's machine, from its synchronous figures (and the trainer's seconds, if they are given)."""
    sync = anchor.sync
    serial, parallel = amdahl(anchor.sizes) if anchor.sizes else (0.0, sync.update * sync.gpus)
    parallel += sync.logprobs * sync.gpus if anchor.scored else 0.0
    if anchor.given:
        serial, parallel = 0.0, anchor.given * anchor.gpus[1]
    rates = calibrated(work, anchor.rates, sync.gpus, sync.generation, seed)
    return replace(
        rates,
        train=parallel / work.tokens,
        serial=serial,
        prefill=(sync.logprobs or sync.update / 3) * sync.gpus / work.tokens / rates.gpus,  # a forward pass, as those
        hand_over=max(0.0, sync.step - sync.generation - sync.logprobs - sync.update),
    )


def predicted(anchor: Anchor, work: Work, seed: int) -> float:
    """Speed-up over the published synchronous step, or over the schedule it is compared with."""
    rates = replace(fitted(anchor, work, seed), slots=anchor.slots)
    seconds = simulate(work, rates, anchor.schedule, anchor.gpus, STEPS, seed).seconds
    if anchor.over:
        return simulate(work, rates, anchor.over, anchor.gpus, STEPS, seed).seconds / seconds
    return anchor.sync.step / seconds


def lengths(anchor: Anchor, seed: int) -> Iterator[float]:
    """Speed-ups with the anchor's lengths, and with others at which generation can be as fast as published."""
    yield predicted(anchor, anchor.work, seed)
    for by in () if anchor.given else (0.6, 1.6):
        work = replace(anchor.work, mean=anchor.work.mean * by, median=anchor.work.median * by)
        with suppress(ValueError):
            yield predicted(anchor, work, seed)


def row(anchor: Anchor, seed: int) -> dict[str, Any]:
    """The anchor's line."""
    found = list(lengths(anchor, seed))
    error = found[0] / anchor.published - 1
    return {
        "bench": "cpu.async_sim",
        "anchor": anchor.name,
        "schedule": anchor.schedule.name,
        "basis": anchor.basis,
        "gpus": list(anchor.gpus),
        "published": round(anchor.published, 3),
        "predicted": round(found[0], 3),
        "lowest": round(min(found), 3),
        "highest": round(max(found), 3),
        "error": round(error, 3),
        "near": abs(error) <= NEAR,
    }


def coarse(seconds: Callable[[int], float], splits: range) -> int:
    """A split found by looking at a few evenly spread ones and then closer and closer around the best."""
    last = len(splits) - 1
    step = max(1, last // 3)
    best = min({*range(0, last + 1, step), last}, key=lambda at: seconds(splits[at]))
    while step > 1:
        step = (step + 1) // 2
        best = min({max(0, best - step), best, min(last, best + step)}, key=lambda at: seconds(splits[at]))
    return int(splits[best])


def recommended(work: Work, rates: Rates, gpus: int, seed: int) -> Iterator[dict[str, Any]]:
    """Each schedule with the split that makes it fastest, fastest schedule first; and what a coarse search would find.

    Schedules that throw responses away come last: they train on the short ones.
    """
    found = []
    for schedule in SCHEDULES:
        splits = range(gpus, gpus + 1) if schedule.colocated else range(rates.gpus, gpus, rates.gpus)

        @cache
        def seconds(sampler: int, schedule: Schedule = schedule) -> float:
            split = (gpus, gpus) if schedule.colocated else (sampler, gpus - sampler)
            return simulate(work, rates, schedule, split, 2, seed).seconds

        if splits:
            guess = coarse(seconds, splits)
            looks = seconds.cache_info().currsize
            best = min(splits, key=seconds)
            found.append((schedule.cut == "discard", seconds(best), schedule, best, guess, seconds(guess), looks))
    found.sort(key=lambda one: one[:2])
    sync = next(one[1] for one in found if one[2] == SYNC)
    for discards, spent, schedule, sampler, guess, other, looks in found:
        yield {
            "bench": "cpu.async_sim",
            "schedule": schedule.name,
            "gpus": [sampler, gpus if schedule.colocated else gpus - sampler],
            "seconds": round(spent, 2),
            "over_sync": round(sync / spent, 3),
            "responses_per_second": round(work.groups * work.group / spent, 2),
            "discards": discards,
            "coarse": guess,
            "coarse_loss": round(other / spent - 1, 4),
            "looks": looks,
        }


def tell(work: Work, rates: Rates, gpus: int, seed: int) -> None:
    """Print the schedules, best first."""
    lines = list(recommended(work, rates, gpus, seed))
    print(f"\n{gpus} GPUs, engines of {rates.gpus}: the best of all splits; what a coarse search loses against it")
    for line in lines:
        sampler, trainer = line["gpus"]
        print(f"{line['schedule']:26} {sampler:4} + {trainer:<4} {line['seconds']:8.1f} s a version"
              f" {line['over_sync']:6.2f}x sync {line['responses_per_second']:8.2f} responses/s"
              f"   coarse {line['coarse_loss']:.1%} in {line['looks']} looks"
              f"{'   throws long responses away' if line['discards'] else ''}")  # fmt: skip
    for line in lines:
        print(json.dumps({**line, "total": gpus}))


def published(seed: int, recommend: int) -> None:
    """The table of anchors, and the split for verl's machine at a size of its own."""
    lines = []
    print(f"{'anchor':34} {'basis':14} {'GPUs':>9} {'published':>9} {'predicted':>9} {'lengths x 0.6-1.6':>18} error")
    for anchor in anchors():
        line = row(anchor, seed)
        lines.append(line)
        print(f"{anchor.name:34} {anchor.basis:14} {anchor.gpus[0]:4}+{anchor.gpus[1]:<4} {line['published']:9.2f}"
              f" {line['predicted']:9.2f} {line['lowest']:11.2f}-{line['highest']:.2f}  {line['error']:+8.1%}"
              f" {'' if line['near'] else '  outside 20 %'}")  # fmt: skip
    for line in lines:
        print(json.dumps(line))
    for basis in dict.fromkeys(str(line["basis"]) for line in lines):
        mine = [line for line in lines if line["basis"] == basis]
        print(f"{basis}: {sum(bool(line['near']) for line in mine)} of {len(mine)} within 20 %")
    # Nobody computes old log-probs here, so that only the schedules differ.
    size = next((sync for sync in VERL if sync.gpus == recommend), VERL[1])
    base = Anchor("", SYNC, (size.gpus, size.gpus), size, DAPO, H20, 1.0, sizes=VERL)
    tell(DAPO, fitted(base, DAPO, seed), recommend, seed)


def main() -> None:
    """Published figures, or one's own."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--recommend", type=int, default=32, help="GPUs for which verl's machine is split")
    words.add_argument("--gpus", type=int, help="one's own machine: all GPUs")
    words.add_argument("--engine", type=int, default=1, help="GPUs of a decoding engine")
    words.add_argument("--slots", type=int, default=256, help="responses an engine decodes at once")
    words.add_argument("--groups", type=int, default=64, help="prompts a version, a multiple of 4")
    words.add_argument("--group", type=int, default=8, help="responses a prompt")
    words.add_argument("--mean", type=float, default=3_300, help="tokens of a response")
    words.add_argument("--median", type=float, default=2_500)
    words.add_argument("--longest", type=int, default=16_384)
    words.add_argument("--tokens-per-second", type=float, default=2_000, help="of a GPU, over a synchronous generation")
    words.add_argument("--training-seconds", type=float, default=90, help="of a synchronous step, on all GPUs")
    words.add_argument("--hand-over", type=float, default=2, help="seconds")
    words.add_argument("--kv", type=float, default=5e-8, help="seconds of a decode step per token of context")
    args = words.parse_args()
    start = time.process_time()
    if args.gpus:
        work = Work(args.groups, args.group, args.mean, args.median, args.longest)
        rates = Rates(0.0, args.kv, 0.0, 0.0, args.hand_over, slots=args.slots, gpus=args.engine)
        generation = work.tokens / args.tokens_per_second / args.gpus
        rates = calibrated(work, rates, args.gpus, generation, args.seed)
        rates = replace(rates, train=args.training_seconds * args.gpus / work.tokens)
        tell(work, rates, args.gpus, args.seed)
    else:
        published(args.seed, args.recommend)
    print(f"{time.process_time() - start:.0f} s of one core")


if __name__ == "__main__":
    main()
