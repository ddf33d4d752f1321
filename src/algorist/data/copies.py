"""Copies among the rollouts of a problem: what a set would learn from twice.

A teacher that is sure of an answer says it in the same words again, and traced sets hold some texts twice. Each copy
weighs like a rollout of its own and teaches nothing that the first does not. Exact copies have the same token ids; near
ones share their runs of five ids (data/dedup.py). Which problems are the same is another question, which stands there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from algorist.data import dedup
from algorist.data.candidates import Drops, cells, keep

COPY = "copy of another rollout of its problem"
NEAR_COPY = "near-copy of another rollout of its problem"


def check(near: float) -> None:
    """Raise ValueError where `near` is no similarity that `distinct` takes."""
    if near <= 0:
        raise ValueError("near is a similarity above 0. Write 1.0 to drop exact copies only, 2.0 to drop none.")


def distinct(measures: Path, table: pl.DataFrame, near: float, dropped: Drops) -> pl.DataFrame:
    """The first of all rollouts of a problem that are the same or nearly so, in the order of the shard.

    Args:
        measures  the shard that holds the token ids of these rollouts
        table     row (of the shard), problem_id and num_tokens of each
        near      Jaccard similarity from which two are copies; 1: only exact ones are, above: none
        dropped   where the others are counted
    """
    if near <= 1:  # the ids are read of those alone that could be the same
        alike = table.filter(pl.len().over("problem_id", "num_tokens") > 1)
        again = _again(measures, alike, dedup.same_rollouts)
        table = keep(table, pl.when(pl.col("row").is_in(again)).then(pl.lit(COPY)), dropped)
    if near < 1:
        again = _again(measures, table, partial(dedup.near_rollouts, near=near))
        table = keep(table, pl.when(pl.col("row").is_in(again)).then(pl.lit(NEAR_COPY)), dropped)
    return table


def _again(measures: Path, table: pl.DataFrame, find: Callable[[list[Any]], list[int]]) -> list[int]:
    """Rows that repeat an earlier one of their problem; `find`: token ids of each → the places of those."""
    if table.is_empty():
        return []
    problem_of = dict(zip(table["row"], table["problem_id"], strict=True))
    found = []
    for _, group in itertools.groupby(cells(measures, "tokens", problem_of), lambda cell: problem_of[cell[0]]):
        rows, tokens = zip(*group, strict=True)
        found += [rows[place] for place in find([ids.values.to_numpy() for ids in tokens])]
    return found
