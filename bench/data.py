"""The data engine end to end on a made-up corpus, at growing sizes: does the cost grow linearly, and memory not?

    python bench/data.py                          10,000 and 100,000 rollouts
    python bench/data.py --rows 1000000           a million

Each size is a traced data set (eight rollouts a problem, right and wrong ones, planted near-duplicates, loops and
benchmark questions) that `algorist gather` reads, judges, labels, cleans and curates in a process of its own. Printed
are seconds by task, rollouts a second, and the largest process's peak memory; a JSON line for each size. Peers that do
a part of this (rensa, datatrove) stand beside near-duplicates and leaks in bench/clean.py.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROLLOUTS = 8  # of a problem
THINGS = [
    "apples",
    "boxes",
    "cards",
    "coins",
    "pens",
    "stamps",
    "shells",
    "ropes",
    "tiles",
    "wheels",
    "bricks",
    "roses",
    "kites",
    "drums",
    "lamps",
]
PLACES = [
    "market",
    "harbour",
    "village",
    "school",
    "library",
    "station",
    "theatre",
    "garden",
    "museum",
    "bakery",
    "workshop",
    "stadium",
]
NAMES = [
    "Ada",
    "Boris",
    "Chen",
    "Dora",
    "Emil",
    "Farah",
    "Goran",
    "Hana",
    "Ivan",
    "Jana",
    "Karim",
    "Lena",
    "Marek",
    "Nadia",
    "Otto",
    "Petra",
]
WORDS = [
    "then",
    "first",
    "careful",
    "value",
    "count",
    "total",
    "remaining",
    "because",
    "therefore",
    "simply",
    "notice",
    "since",
    "compute",
    "result",
    "check",
    "next",
    "step",
    "amount",
    "sum",
    "difference",
    "product",
    "share",
    "equal",
    "group",
    "each",
    "half",
    "twice",
    "left",
    "over",
    "taken",
    "given",
    "away",
    "again",
]
RECIPE = """name = "bench"
[data]
problems = ["{corpus}"]
benchmarks = {{ exam = "{exam}" }}
[teacher]
url = ""
[model]
base = "toy"
[curate.sft]
levels = []
[curate.dpo]
levels = []
max_auc = 1.0
"""


def statement(index: int) -> tuple[str, int]:
    """A problem of its own for each index, and its answer."""
    draw = random.Random(f"problem {index}")
    who, other = draw.sample(NAMES, 2)
    thing, place = draw.choice(THINGS), draw.choice(PLACES)
    many, each, gone = draw.randrange(20, 9_000), draw.randrange(2, 60), draw.randrange(2, 19)
    extra = " ".join(draw.choice(WORDS) for _ in range(12))
    text = (
        f"{who} carries {many} {thing} to the {place} number {index}. On the way {other} adds {each} bags of {gone} "
        f"{thing} and writes down: {extra}. How many {thing} reach the {place}?"
    )
    return text, many + each * gone


def rollout(index: int, sample: int, answer: int) -> tuple[str, bool]:
    """A chain of about a hundred words and whether it is right; one in fifty loops to its end."""
    draw = random.Random(f"rollout {index} {sample}")
    right = draw.random() < 0.3 + 0.6 * ((index * 7919) % 100) / 100
    lines = [" ".join(draw.choice(WORDS) for _ in range(12)) + f" {draw.randrange(9_999)}." for _ in range(8)]
    if draw.random() < 0.02:
        lines = lines[:3] + [lines[3]] * 40
    said = answer if right else answer + draw.randrange(1, 50)
    return f"<think>\n{' '.join(lines)}\n</think>\nThe answer is \\boxed{{{said}}}.", right


def rows(count: int, exam: list[str]) -> Iterator[dict[str, object]]:
    """A traced data set of `count` rollouts; of a hundred problems one repeats another, of a thousand one leaks."""
    for index in range(count // ROLLOUTS):
        text, answer = statement(index)
        if index % 100 == 99:
            text, answer = statement(index - 1)
            text = text.replace("On the way", "Along the way")
        if index % 1_000 == 500:
            text = f"Solve this one. {exam[index % len(exam)]}"
        for sample in range(ROLLOUTS):
            said, right = rollout(index, sample, answer)
            yield {
                "problem": text,
                "answer": str(answer),
                "completion": said,
                "sample": sample,
                "model": "made-up",
                "correct": right,
                "level": ("elementary", "middle", "high school", "college", "graduate")[index % 5],
                "domain": ("algebra", "geometry", "number theory", "probability")[index % 4],
            }


def measure(count: int, folder: Path, verbose: bool) -> dict[str, object]:
    """One size: made, gathered in a process of its own, and measured."""
    folder.mkdir(parents=True)
    exam = [statement(10**9 + index) for index in range(500)]
    asked, corpus, recipe = folder / "exam.jsonl", folder / "corpus.jsonl", folder / "bench.toml"
    asked.write_text("".join(json.dumps({"question": q, "answer": str(a)}) + "\n" for q, a in exam))
    with corpus.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows(count, [q for q, _ in exam]))
    recipe.write_text(RECIPE.format(corpus=corpus, exam=asked))
    words = [sys.executable, "-m", "algorist", "gather", str(recipe), "--out", str(folder / "run")]
    started = time.monotonic()
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr and process.stdout
    said = process.stderr.read()
    shown = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    if status:
        raise SystemExit(said[-2_000:])
    if verbose:
        print(shown)
    tasks = {name: int(took) for name, took in re.findall(r"^(\S+): done in (\d+) s$", said, re.M)}
    size = sum(path.stat().st_size for path in (folder / "run").rglob("*") if path.is_file())
    return {
        "rollouts": count,
        "seconds": round(seconds, 1),
        "rollouts_per_second": round(count / seconds),
        "peak_mib": usage.ru_maxrss // 1024,  # of the largest process: the one that chooses, or one worker
        "corpus_mib": corpus.stat().st_size >> 20,
        "run_mib": size >> 20,
        "tasks": tasks,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder unless given")
    parser.add_argument("--verbose", action="store_true", help="print the funnel of each size")
    arguments = parser.parse_args()
    place = arguments.folder or Path(tempfile.mkdtemp())
    print(f"{'rollouts':>10} {'seconds':>9} {'a second':>9} {'peak MiB':>9}  seconds by task")
    for count in arguments.rows:
        found = measure(count, place / str(count), arguments.verbose)
        tasks = ", ".join(f"{name} {took}" for name, took in found["tasks"].items() if took)  # type: ignore[attr-defined]
        print(
            f"{found['rollouts']:>10,} {found['seconds']:>9} {found['rollouts_per_second']:>9,} {found['peak_mib']:>9,}"
            f"  {tasks}"
        )
        print(json.dumps(found), flush=True)
        shutil.rmtree(place / str(count))


if __name__ == "__main__":
    main()
