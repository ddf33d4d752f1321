"""What prompt selection does, as a picture: length spread and idle time of the candidates' groups, before and after."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from algorist.data.picture import sheet, text

_WIDTH, _HEIGHT, _LEFT, _GAP = 420, 150, 46, 60  # pixels of a panel, its margin and the space between two
_BINS = 24
_ALL, _KEPT = "#c9ccd4", "#2f6f9f"


def picture(spread: Sequence[float], idle: Sequence[float], kept: Sequence[bool], most: float) -> str:
    """An SVG of two histograms over the candidates, all of them in grey and the kept ones in blue.

    Args (one value per candidate):
        spread  coefficient of variation of the lengths of its responses
        idle    share of the slots' time that its group wastes, decoded until the longest is done
        kept    whether it is trained on
        most    the largest spread that is kept, marked by a line where it lies within the picture
    """
    first = _panel("length spread within a group (deviation / mean)", spread, kept, _LEFT, most)
    second = _panel("idle share of a group's slots", idle, kept, 2 * _LEFT + _WIDTH + _GAP, None)
    width, height = 2 * (_LEFT + _WIDTH) + 2 * _GAP, _HEIGHT + 110
    counts = f"Prompt selection: {len(kept):,} candidates (grey), {sum(kept):,} kept (blue)"
    return sheet(width, height, [text(_LEFT, 24, counts, "bold"), *first, *second])


def _panel(title: str, values: Sequence[float], kept: Sequence[bool], left: int, mark: float | None) -> list[str]:
    top = 60
    end = max(max(values, default=0.0), 1e-9)
    chosen = [value for value, stays in zip(values, kept, strict=True) if stays]
    every, some = (np.histogram(part, _BINS, (0.0, end))[0] for part in (values, chosen))
    scale = _HEIGHT / max(int(every.max()), 1)
    bar = _WIDTH / _BINS
    parts = [text(left, top - 10, title)]
    for counts, colour in ((every, _ALL), (some, _KEPT)):
        for place, count in enumerate(counts):
            x, y = left + place * bar, top + _HEIGHT - count * scale
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{bar - 1:.1f}" height="{count * scale:.1f}" fill="{colour}"/>'
            )
    if mark is not None and mark <= end:
        x = left + mark / end * _WIDTH
        parts.append(f'<path d="M{x:.1f} {top}v{_HEIGHT}" stroke="#b03030" stroke-dasharray="4 3"/>')
        parts.append(text(x + 4, top + 12, f"kept up to {mark:g}", "small"))
    parts.append(f'<path d="M{left} {top + _HEIGHT}h{_WIDTH}" stroke="#222"/>')
    parts.append(text(left, top + _HEIGHT + 16, "0", "small"))
    parts.append(text(left + _WIDTH - 24, top + _HEIGHT + 16, f"{end:.2f}", "small"))
    parts.append(text(left - 36, top + 10, f"{int(every.max()):,}", "small"))
    means = f"mean {np.mean(values):.3f} before, {np.mean(chosen):.3f} after" if chosen else "none kept"
    parts.append(text(left, top + _HEIGHT + 36, means))
    return parts
