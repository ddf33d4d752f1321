"""Who enters where not all can: quotas of levels and domains, and pairs whose lengths favour no side."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import polars as pl
import pytest

from algorist.data import balance
from algorist.data.candidates import Choice, Proposal
from algorist.data.curate import LevelWeights
from algorist.numerics.quotas import draw_keys, water_fill

EVEN = LevelWeights(1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
HARDER = LevelWeights()


def proposals(shards: int, **columns: Any) -> list[Proposal]:
    """Candidates dealt out to shards; each shard has lost two already."""
    table = pl.DataFrame(columns).with_row_index("row")
    return [Proposal(table.gather_every(shards, place).to_arrow(), {"before": 2}) for place in range(shards)]


def rows(choices: list[Choice]) -> list[int]:
    return sorted(row for choice in choices for row in choice.table["row"].to_pylist())


def lost(choices: list[Choice]) -> Counter[str]:
    return sum((Counter(choice.dropped) for choice in choices), Counter[str]())


def mixture(count: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "level": rng.choice(
            ["", "elementary", "high school", "college", "graduate"], count, p=[0.1, 0.5, 0.2, 0.15, 0.05]
        ),
        "domain": rng.choice(["algebra", "geometry", "calculus"], count, p=[0.7, 0.25, 0.05]),
        "draw": draw_keys(rng.uniform(size=count).tolist(), [1.0] * count),
    }


def test_everything_stays() -> None:
    found = balance.everything(proposals(3, draw=[0.1, 0.2, 0.3, 0.4]))
    assert rows(found) == [0, 1, 2, 3] and lost(found) == {"before": 6}


def test_the_greatest_draws_stay() -> None:
    found = balance.drawn(proposals(3, draw=[0.1, 0.9, 0.3, 0.8, 0.2]), 2)
    assert rows(found) == [1, 3] and lost(found) == {"before": 6, "not drawn: the set is full": 3}
    assert rows(balance.drawn(proposals(2, draw=[0.1, 0.9]), 0)) == [0, 1]
    assert rows(balance.drawn(proposals(2, draw=[0.1, 0.9]), 9)) == [0, 1]


def test_levels_and_domains_get_their_quotas_and_in_a_cell_the_greatest_draws_stay() -> None:
    data = mixture(3000)
    found = balance.by_level_and_domain(proposals(4, **data), 600, HARDER, 0.5)
    kept = rows(found)
    assert len(kept) == 600 and lost(found)["not drawn: its level and domain are full"] == 2400
    cells = Counter(zip(data["level"], data["domain"], strict=True))
    chosen = Counter((data["level"][row], data["domain"][row]) for row in kept)
    levels = sorted({level for level, _ in cells})
    supply = [sum(n for (level, _), n in cells.items() if level == one) for one in levels]
    for one, room in zip(levels, water_fill(supply, [HARDER.of(level) for level in levels], 600), strict=True):
        mine = {cell: n for cell, n in sorted(cells.items()) if cell[0] == one}
        quotas = water_fill(list(mine.values()), [n**0.5 for n in mine.values()], room)
        assert [chosen[cell] for cell in mine] == quotas
    for cell in cells:
        draws = {row: data["draw"][row] for row in range(3000) if (data["level"][row], data["domain"][row]) == cell}
        best = sorted(draws, key=lambda row: -draws[row])[: chosen[cell]]
        assert set(best) == {row for row in kept if row in draws}


@pytest.mark.parametrize(("power", "algebra"), [(0.0, 1 / 3), (1.0, 0.7)])
def test_domains_share_a_level_equally_or_as_they_come(power: float, algebra: float) -> None:
    data = mixture(20_000)
    kept = rows(balance.by_level_and_domain(proposals(2, **data), 600, EVEN, power))
    counts = Counter((data["level"][row]) for row in kept)
    assert set(counts.values()) == {120}, "all levels weigh the same and none runs dry"
    assert np.mean([data["domain"][row] == "algebra" for row in kept]) == pytest.approx(algebra, abs=0.03)


def test_harder_levels_get_more_room_until_they_run_dry() -> None:
    data = mixture(3000)
    kept = Counter(
        data["level"][row] for row in rows(balance.by_level_and_domain(proposals(1, **data), 900, HARDER, 0.5))
    )
    supply = Counter(data["level"])
    assert kept["graduate"] == supply["graduate"], "all of the rarest and hardest"
    assert kept["college"] > kept["high school"] > kept["elementary"] > 0


def test_without_a_size_or_with_too_great_a_one_all_stay() -> None:
    data = mixture(50)
    for size in (0, 50, 1000):
        assert len(rows(balance.by_level_and_domain(proposals(2, **data), size, HARDER, 0.5))) == 50


def test_hard_problems_are_drawn_more_often_but_not_only() -> None:
    rng = np.random.default_rng(3)
    hard = rng.random(20_000) < 0.5
    draws = draw_keys(rng.uniform(size=20_000).tolist(), np.where(hard, 4.0, 1.0).tolist())
    data = {"level": [""] * 20_000, "domain": [""] * 20_000, "draw": draws}
    kept = rows(balance.by_level_and_domain(proposals(3, **data), 500, HARDER, 0.5))
    assert np.mean(hard[kept]) == pytest.approx(0.8, abs=0.05)


def lengths(count: int, seed: int = 0) -> dict[str, Any]:
    """Pairs whose rejected response is mostly the longer one."""
    rng = np.random.default_rng(seed)
    chosen = rng.integers(50, 100, count)
    rejected = np.maximum(1, (chosen * rng.lognormal(0.1, 0.3, count)).astype(int))
    places = rng.integers(0, 2, count).astype(np.int32)
    return {"chosen_tokens": chosen, "rejected_tokens": rejected, "place": places, "draw": rng.uniform(size=count)}


@pytest.mark.parametrize("size", [0, 500, 501])
def test_in_every_class_of_length_ratio_no_side_is_favoured(size: int) -> None:
    data = lengths(3000)
    found = balance.pairs(proposals(3, **data), size, True)
    kept = np.asarray(rows(found))
    chosen, rejected = data["chosen_tokens"][kept], data["rejected_tokens"][kept]
    longer = np.sign(chosen - rejected)
    assert longer.sum() == 0 and (np.sign(data["chosen_tokens"] - data["rejected_tokens"]).sum() < -500)
    ratio = np.maximum(chosen, rejected) / np.minimum(chosen, rejected)
    for low, high in zip((1.0, *balance.RATIOS), (*balance.RATIOS, np.inf), strict=True):
        assert longer[(ratio > low) & (ratio <= high)].sum() == 0
    assert len(kept) in ((size - 1, size) if size else (len(kept),)) and len(kept) > 400
    reasons = lost(found)
    assert sum(reasons.values()) - reasons["before"] == 2 * (3000 - len(kept)), "a pair is two rollouts"
    again = balance.pairs(proposals(1, **data), size, True)
    assert rows(again) == kept.tolist()


def test_first_pairs_of_all_problems_come_before_second_ones() -> None:
    data = lengths(1000)
    first = set(np.flatnonzero(data["place"] == 0))
    kept = rows(balance.pairs(proposals(2, **data), 300, False))
    assert len(kept) == 300 and set(kept) <= first
    kept = rows(balance.pairs(proposals(2, **data), 800, False))
    assert len(kept) == 800 and first <= set(kept)
    assert len(rows(balance.pairs(proposals(2, **data), 0, False))) == 1000
