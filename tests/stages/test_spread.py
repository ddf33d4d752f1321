"""The picture of prompt selection: well-formed, and its bars count what they are given."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from algorist.stages.spread import picture


def bars(svg: str, colour: str) -> list[float]:
    found = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}rect")
    return [float(one.attrib["height"]) for one in found if one.attrib["fill"] == colour]


def test_bars_count_the_candidates_and_the_kept() -> None:
    spread = np.linspace(0, 1, 200).tolist()
    kept = [value <= 0.25 for value in spread]
    svg = picture(spread, [value / 2 for value in spread], kept, 0.25)
    every, some = bars(svg, "#c9ccd4"), bars(svg, "#2f6f9f")
    assert len(every) == len(some) == 48
    assert sum(some[:24]) / sum(every[:24]) == pytest.approx(sum(kept) / 200, rel=0.02)
    assert sum(height > 0 for height in some[:24]) == 6  # a quarter of the range
    assert "200 candidates (grey), 50 kept (blue)" in svg and "kept up to 0.25" in svg
    assert "mean 0.500 before, 0.123 after" in svg and "mean 0.250 before, 0.062 after" in svg


@pytest.mark.parametrize("kept", [True, False])
def test_candidates_that_are_all_alike(kept: bool) -> None:
    svg = picture([0.0] * 3, [0.0] * 3, [kept] * 3, 1e9)
    assert sum(height > 0 for height in bars(svg, "#c9ccd4")) == 2 and "kept up to" not in svg
    assert ("none kept" in svg) is not kept
