"""In which order a stage that learns from stored documents reads them, and where in it a resumed run begins."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from algorist.numerics.address import rng
from algorist.stage import Run


def num_steps(run: Run, count: int) -> int:
    """Optimizer steps over `count` rows or pairs: in each epoch one for each full batch, and a smaller last one."""
    return _per_epoch(run, count) * int(run.settings.epochs)


def steps(run: Run, name: str, count: int) -> Iterator[NDArray[np.int64]]:
    """Which of `count` rows or pairs make up each optimizer step, from `run.start` on: each epoch in its own order.

    Args:
        name  what is ordered, "rows" or "pairs": a part of the address that the order is drawn from

    The order of an epoch is drawn once, from its address alone. Whatever came before is not looked at.
    """
    size, per_epoch = run.training.batch_size, _per_epoch(run, count)
    for epoch in range(run.start // max(per_epoch, 1), run.settings.epochs):
        order = rng(run.seed, run.stage.name, name, epoch).permutation(count)
        for place in range(max(run.start - epoch * per_epoch, 0), per_epoch):
            yield order[place * size : (place + 1) * size]


def _per_epoch(run: Run, count: int) -> int:
    return -(-count // run.training.batch_size)
