"""How often each checkpoint of a run of recipes/tiny.toml is terse, and how often each of the two styles is right.

    python bench/styles.py runs/tiny

A chain of the told style names the event before it computes ("Ann wins 3, so ..."), a terse one does not.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from algorist import store
from algorist.records import Rollout, Verdict

TOLD = ", so "


def styles(folder: Path) -> dict[str, list[bool]]:
    """Style -> whether each of its responses was judged right, from the rollouts and verdicts of one benchmark."""
    verdicts = {verdict.rollout_id: verdict.right is True for verdict in store.read(folder / "verdicts", Verdict)}
    found: dict[str, list[bool]] = {"told": [], "terse": []}
    for rollout in store.read(folder / "rollouts", Rollout):
        found["told" if TOLD in rollout.text else "terse"].append(verdicts[rollout.id])
    return found


def main() -> None:
    """A line for each checkpoint that was scored."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("run", type=Path)
    root = words.parse_args().run
    for stage in ("base", "midtrain", "sft", "dpo", "rlvr"):
        place = root / "scores" / stage / "toy"
        if not (place / "verdicts" / store.MANIFEST).exists():
            continue
        parts = [
            f"{style}: {len(rights):5,} responses, {sum(rights) / max(len(rights), 1):6.1%} right"
            for style, rights in styles(place).items()
        ]
        print(f"{stage:9}", *parts, sep="  ")


if __name__ == "__main__":
    main()
