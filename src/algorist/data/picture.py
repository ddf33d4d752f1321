"""The funnel as a picture: an SVG that any browser shows, one bar for each step, as long as what entered it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

Bar = tuple[str, str, Mapping[str, int], int]  # name, lane, reason → dropped, left

_WIDTH, _LEFT, _BAR = 1100, 330, 560  # pixels: the picture, where bars begin, the longest bar
_ROW, _LINE, _GAP = 26, 15, 16  # pixels: a bar with its place, a line of reasons, between lanes
_KEPT = {"problems": "#2f6f9f", "rollouts": "#3f8f5f"}
_OTHER, _DROPPED = "#8f5fa0", ("#d98c5f", "#e3b36b", "#c9a0a0", "#b9b9c9", "#d9c9a9", "#a9b9a9")
_MOST = 8  # reasons named under a bar


def picture(bars: Sequence[Bar]) -> str:
    """An SVG of the bars: kept in the lane's colour, each reason of loss in its own, and all of it in numbers."""
    parts: list[str] = []
    y = 34
    lane = ""
    longest: dict[str, int] = {}
    for _, own, dropped, left in bars:
        longest[own] = max(longest.get(own, 1), left + sum(dropped.values()))
    for name, own, dropped, left in bars:
        if own != lane:
            lane = own
            y += _GAP
            parts.append(text(14, y, own, "bold"))
            y += 8
        scale = _BAR / longest[own]
        parts.append(text(26, y + 14, name))
        x = float(_LEFT)
        shades = [(left, _KEPT.get(own, _OTHER)), *zip(dropped.values(), _DROPPED * (1 + len(dropped)), strict=False)]
        for count, colour in shades:
            parts.append(f'<rect x="{x:.1f}" y="{y}" width="{count * scale:.2f}" height="18" fill="{colour}"/>')
            x += count * scale
        entered = left + sum(dropped.values())
        share = f" ({100 * left / entered:.1f} %)" if entered else ""
        parts.append(text(_LEFT + _BAR + 10, y + 14, f"{left:,} of {entered:,}{share}"))
        y += _ROW + (6 if dropped else 0)
        for (reason, count), colour in zip(_named(dropped), _DROPPED * (1 + _MOST), strict=False):
            parts.append(f'<rect x="{_LEFT}" y="{y - 8}" width="9" height="9" fill="{colour}"/>')
            parts.append(text(_LEFT + 15, y, f"{count:,} {reason}", "small"))
            y += _LINE
        y += 4 if dropped else 0
    title = text(14, 24, "The funnel: what came in, what was left out and why, what was kept", "bold")
    return sheet(_WIDTH, y + 14, [title, *parts])


def sheet(width: int, height: int, parts: Sequence[str]) -> str:
    """An SVG of `parts` on white, with the classes "bold" and "small" for its words."""
    style = (
        "text{font:13px system-ui,sans-serif;fill:#222}.bold{font-weight:600}.small{font-size:11px;fill:#555}"
        "svg{background:#fff}"
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}">'
    ground = f'<rect width="{width}" height="{height}" fill="#fff"/>'
    return "\n".join([head, f"<style>{style}</style>", ground, *parts, "</svg>", ""])


def text(x: float, y: float, words: str, kind: str = "") -> str:
    """Words of a picture whose line begins at a place."""
    mark = f' class="{kind}"' if kind else ""
    return f'<text x="{x:g}" y="{y:g}"{mark}>{escape(words)}</text>'


def _named(dropped: Mapping[str, int]) -> list[tuple[str, int]]:
    """The reasons in their order; the smallest of many are put together."""
    reasons = list(dropped.items())
    if len(reasons) <= _MOST:
        return reasons
    rest = reasons[_MOST - 1 :]
    return [*reasons[: _MOST - 1], (f"for {len(rest)} other reasons", sum(count for _, count in rest))]
