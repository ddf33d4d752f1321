"""Documents a second that the repetition detector reads on one core, beside a set of n-grams in plain Python.

    python bench/repetition.py [--documents 64] [--rounds 5] [--rollouts FILE.jsonl]

A document is 10,000 words and signs (a token of a model is about as much): chains without a pattern, chains that loop,
and chains with Chinese words among the English ones. With --rollouts, the `completion` of each line is read as well.
The set counts how many 20-grams of words differ, which is what repetition penalties do; it finds no loops.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from algorist.data.repetition import Settings, flag
from algorist.numerics.address import rng

WORDS = 10_000
VOCABULARY = (
    *"so we let then point angle line circle sum of the product is equal to side and half from which follows".split(),  # noqa: SIM905
    *(str(n) for n in range(40)),
    *("=", "+", "-", r"\frac{1}{2}", "x^2", "(a", "b)", ",", "."),
)
SETTINGS = Settings()


def chain(seed: int, count: int = WORDS) -> str:
    """`count` words without a pattern; a formula counts as one, so documents are somewhat longer than WORDS."""
    return " ".join(rng(seed, "bench", "repetition").choice(VOCABULARY, count).tolist())


def documents(kind: str, count: int) -> list[str]:
    """`count` documents of a kind."""
    if kind == "loop":
        return [chain(seed, WORDS // 4) + (" " + chain(seed, 60)) * (WORDS * 3 // 4 // 60) for seed in range(count)]
    if kind == "languages":
        return [chain(seed).replace("circle", "圆") for seed in range(count)]
    return [chain(seed) for seed in range(count)]


def ours(text: str) -> object:
    """What the data engine asks of each rollout."""
    return flag(text, "How many circles are there?", SETTINGS)


def plain(text: str) -> object:
    """The share of different 20-grams of words split at white space."""
    words = text.lower().split()
    grams = list(zip(*(words[start:] for start in range(20)), strict=False))
    return len(set(grams)) / max(1, len(grams))


def rate(function: Callable[[str], object], texts: Sequence[str], rounds: int) -> tuple[float, float]:
    """(median, spread) of documents a second of processor time over some rounds."""
    found = []
    for _ in range(rounds):
        before = time.process_time()
        for text in texts:
            function(text)
        found.append(len(texts) / (time.process_time() - before))
    return statistics.median(found), max(found) - min(found)


def main() -> None:
    """A line for each kind of document."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--documents", type=int, default=64)
    words.add_argument("--rounds", type=int, default=5)
    words.add_argument("--rollouts", type=Path)
    args = words.parse_args()
    sets = {kind: documents(kind, args.documents) for kind in ("plain", "loop", "languages")}
    if args.rollouts:
        with open(args.rollouts, encoding="utf-8") as lines:
            sets["rollouts"] = [json.loads(line)["completion"] for line in lines]
    ours("what numba compiles is compiled before anything is timed")
    for kind, texts in sets.items():
        size = sum(map(len, texts)) / len(texts)
        for name, function in (("algorist", ours), ("set of 20-grams", plain)):
            middle, spread = rate(function, texts, args.rounds)
            speed = middle * size / 1e6
            print(f"{kind:10} {name:16} {middle:8,.0f} documents/s (± {spread / 2:,.0f}) of {size:,.0f} characters,"
                  f" {speed:6.1f} MB/s")  # fmt: skip


if __name__ == "__main__":
    main()
