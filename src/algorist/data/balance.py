"""Balance: which of all candidates enter a set, so that no level, domain or length crowds out the rest.

These functions see every shard's candidates at once, as a few numbers each, and say for each shard which of its lines
stay. What they choose depends on the candidates alone, not on how they are spread over shards or in which order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import polars as pl
import pyarrow as pa

from algorist.data.candidates import Choice, Proposal
from algorist.data.curate import LevelWeights
from algorist.numerics.quotas import water_fill

# Lengths of a pair are balanced among pairs whose longer response is up to this many times as long as the shorter.
RATIOS = (1.02, 1.05, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 3.0)


FULL = "not drawn: the set is full"
_ORDER = pl.col("place") - pl.col("draw")  # first pairs of all problems before their second ones, else at random

Step = Callable[[pl.DataFrame], pl.Series]  # candidates → for each why it stays out, null where it stays


def everything(proposals: Sequence[Proposal]) -> list[Choice]:
    """All that the shards propose."""
    return [Choice(one.table, one.dropped) for one in proposals]


def drawn(proposals: Sequence[Proposal], size: int) -> list[Choice]:
    """The `size` candidates of greatest `draw`; all where size is 0."""

    def late(table: pl.DataFrame) -> pl.Series:
        return _why(table["draw"].rank("ordinal", descending=True) > size, FULL)

    return _narrowed(proposals, [late] if size else [])


def by_level_and_domain(
    proposals: Sequence[Proposal], size: int, level_weights: LevelWeights, domain_power: float
) -> list[Choice]:
    """A draw of `size` candidates, balanced over levels and, inside of each level, over domains; all where size is 0.

    Levels share the set by their weights, and domains share a level's part by their supply to the power `domain_power`,
    both by water-filling: what a small cell cannot fill goes to the others. In a cell the greatest `draw` come first.
    """

    def late(table: pl.DataFrame) -> pl.Series:
        quota = quotas(table, size, level_weights, domain_power)
        rooms = [(level, domain, room) for (level, domain), room in quota.items()]
        cells = pl.DataFrame(rooms, {"level": pl.String, "domain": pl.String, "room": pl.Int64}, orient="row")
        marked = table.select("level", "domain", "draw").join(cells, on=["level", "domain"], maintain_order="left")
        place = pl.col("draw").rank("ordinal", descending=True).over("level", "domain")
        return _why(marked.select(place > pl.col("room")).to_series(), "not drawn: its level and domain are full")

    return _narrowed(proposals, [late] if size else [])


def quotas(
    table: pl.DataFrame, size: int, level_weights: LevelWeights, domain_power: float
) -> dict[tuple[str, str], int]:
    """(level, domain) → how many of the set's `size` it gets."""
    supply = {(level, domain): n for level, domain, n in sorted(table.group_by("level", "domain").len().rows())}
    levels = sorted({level for level, _ in supply})
    in_level = [sum(n for (level, _), n in supply.items() if level == one) for one in levels]
    rooms = water_fill(in_level, [level_weights.of(level) for level in levels], size)
    found: dict[tuple[str, str], int] = {}
    for one, room in zip(levels, rooms, strict=True):
        mine = {cell: n for cell, n in supply.items() if cell[0] == one}
        shares = water_fill(list(mine.values()), [n**domain_power for n in mine.values()], room)
        found |= dict(zip(mine, shares, strict=True))
    return found


def pairs(proposals: Sequence[Proposal], size: int, even: bool) -> list[Choice]:
    """At most `size` pairs, problems' best matches first; with `even`, no length difference favours a side.

    Among pairs of about the same length ratio (RATIOS) as many have the longer one chosen as rejected: the surplus of
    the commoner kind is left out. So neither the sign of the difference nor its size says which of the two is right.
    A pair that is left out counts as two rollouts.

    Args:
        proposals  with columns chosen_tokens, rejected_tokens, place (of the pair in its problem, from 0) and draw
        size       0: all
    """

    def surplus(table: pl.DataFrame) -> pl.Series:
        sides = _sides(table)
        least = sides.group_by("ratio").agg(
            pl.min_horizontal((pl.col("longer") == 1).sum(), (pl.col("longer") == -1).sum()).alias("least")
        )
        sides = sides.join(least, on="ratio", maintain_order="left")
        place = pl.col("order").rank("ordinal").over("ratio", "longer")
        return _why(
            sides.select((pl.col("longer") != 0) & (place > pl.col("least"))).to_series(),
            "left out so that lengths are balanced",
        )

    def full(table: pl.DataFrame) -> pl.Series:
        if not even:
            return _why(table.select(_ORDER).to_series().rank("ordinal") > size, FULL)
        # One pair of each side of the same ratio come and go together, at the order of the later one.
        couple = pl.col("order").rank("ordinal").over("ratio", "longer")
        alone = pl.when(pl.col("longer") == 0).then(pl.col("order"))
        sides = _sides(table).with_columns(couple.alias("couple"), alone.alias("alone"))
        late = sides.select(pl.col("order").max().over("ratio", pl.col("longer").abs(), "couple", "alone")).to_series()
        return _why(late.rank("max") > size, FULL)

    return _narrowed(proposals, [*([surplus] if even else []), *([full] if size else [])], weight=2)


def _sides(table: pl.DataFrame) -> pl.DataFrame:
    """The order, the class of the length ratio, and 1, 0 or -1: the chosen response is longer, as long, shorter."""
    chosen, rejected = table["chosen_tokens"].to_numpy(), table["rejected_tokens"].to_numpy()
    ratio = np.searchsorted(RATIOS, np.maximum(chosen, rejected) / np.minimum(chosen, rejected))
    longer = np.sign(chosen.astype(np.int64) - rejected)
    return table.select(_ORDER.alias("order"), pl.Series("ratio", ratio), pl.Series("longer", longer))


def _why(out: pl.Series, reason: str) -> pl.Series:
    """`reason` where `out`, else null."""
    return pl.select(pl.when(out).then(pl.lit(reason))).to_series()


def _narrowed(proposals: Sequence[Proposal], steps: Sequence[Step], *, weight: int = 1) -> list[Choice]:
    """What stays of each shard when every step has named its losses, each of which counts `weight` times."""
    dropped = [dict(one.dropped) for one in proposals]
    tables = [
        cast(pl.DataFrame, pl.from_arrow(one.table)).with_row_index("line").with_columns(pl.lit(shard).alias("shard"))
        for shard, one in enumerate(proposals)
    ]
    table = pl.concat(tables)
    for step in steps:
        marked = table.with_columns(step(table).alias("why"))
        lost = marked.drop_nulls("why").group_by("shard", "why").len()
        for shard, why, count in lost.rows():
            dropped[shard][why] = dropped[shard].get(why, 0) + weight * count
        table = marked.filter(pl.col("why").is_null()).drop("why")
    lines = dict(table.group_by("shard").agg(pl.col("line").sort()).rows())
    return [
        Choice(one.table.take(pa.array(lines.get(shard, []), pa.int64())), dropped[shard])
        for shard, one in enumerate(proposals)
    ]
