"""What real servers answer through our own client: samples and tokens per second, and what arrived.

    python bench/servers.py URL [URL …] --model NAME [--problems 50] [--samples 8] [--max-tokens 64] [--seeded]

Each server is asked alone, then, where there are several, all of them at once. Problems are those of the toy world, a
new log is made for every pass, and nothing is started or stopped: docs/teachers.md says how the servers of its table
were. With --again the pass over all servers is made a second time from the same log, which must ask for nothing.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path

from algorist import store
from algorist.data import teacher
from algorist.records import Problem, Rollout
from algorist.toy import world

COLUMNS = ("servers", "asked", "arrived", "seconds", "samples/s", "tokens/s", "tokens each", "cut", "same", "failed")


def measured(urls: tuple[str, ...], shard: Path, log: Path, args: argparse.Namespace) -> list[str]:
    """One row of the table."""
    settings = teacher.Settings(
        url=urls,
        model=args.model,
        samples=args.samples,
        temperature=args.temperature,
        top_p=args.top_p,
        max_tokens=args.max_tokens,
        concurrency=args.concurrency,
        seeded=args.seeded,
        patience=args.patience,
        prompt="{problem}",
    )
    usage = teacher.ask([shard], log, settings, seed=1)
    rollouts = teacher.rollouts_of(shard, log, settings, seed=1)
    check(rollouts, args.samples)
    for reason, count in usage.refused.items():
        print(f"left out: {count} questions: {reason}: {usage.words}")
    seconds = max(usage.seconds, 1e-9)
    tokens = usage.completion_tokens
    return [
        " + ".join(f"{url} ({answered})" for url, answered, _ in usage.servers),
        f"{args.problems * args.samples - usage.found:,}",
        f"{usage.samples:,}",
        f"{usage.seconds:.1f}",
        f"{usage.samples / seconds:.1f}",
        f"{tokens / seconds:,.0f}",
        f"{tokens / max(usage.samples, 1):.1f}",
        f"{share(rollout.finish == 'length' for rollout in rollouts):.2f}",
        f"{1 - len({(one.problem_id, one.text) for one in rollouts}) / max(len(rollouts), 1):.2f}",
        str(sum(failed for _, _, failed in usage.servers)),
    ]


def check(rollouts: list[Rollout], samples: int) -> None:
    """Each sample arrived once: problems have the samples 0 … n - 1, or were left out."""
    found: dict[str, list[int]] = {}
    for rollout in rollouts:
        found.setdefault(rollout.problem_id, []).append(rollout.index)
    wrong = [indices for indices in found.values() if indices != list(range(samples))]
    assert not wrong, f"{len(wrong)} problems have other samples than asked for, such as {wrong[0]}"
    assert max(Counter(rollout.id for rollout in rollouts).values(), default=1) == 1


def share(marks: object) -> float:
    """Of how many it is true."""
    counted = list(marks)  # type: ignore[call-overload]
    return sum(counted) / max(len(counted), 1)


def main() -> None:
    """Ask, and print the table."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("urls", nargs="+", metavar="URL", help="up to and including /v1")
    words.add_argument("--model", required=True)
    words.add_argument("--problems", type=int, default=50)
    words.add_argument("--samples", type=int, default=8)
    words.add_argument("--temperature", type=float, default=0.6)
    words.add_argument("--top-p", type=float, default=0.95)
    words.add_argument("--max-tokens", type=int, default=64)
    words.add_argument("--concurrency", type=int, default=64)
    words.add_argument("--patience", type=float, default=600.0)
    words.add_argument("--seeded", action="store_true")
    words.add_argument("--again", action="store_true")
    words.add_argument("--together-only", action="store_true", help="leave out the passes of one server alone")
    args = words.parse_args()
    asked = world.problems(1, "servers", args.problems, range(2, 6))
    passes = [] if args.together_only else [(url,) for url in args.urls]
    if len(args.urls) > 1 or not passes:
        passes.append(tuple(args.urls))
    rows = [list(COLUMNS)]
    with tempfile.TemporaryDirectory() as scratch:
        store.write_shard(Path(scratch), 0, Problem, asked)
        shard = Path(scratch) / "00000.parquet"
        for index, urls in enumerate(passes):
            rows.append(measured(urls, shard, Path(scratch) / f"{index}.sqlite", args))
        if args.again:
            rows.append(measured(passes[-1], shard, Path(scratch) / f"{len(passes) - 1}.sqlite", args))
    widths = [max(len(row[place]) for row in rows) for place in range(len(COLUMNS))]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


if __name__ == "__main__":
    main()
