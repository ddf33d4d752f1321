"""Write docs/ablation.md and docs/ablation.svg from the results of bench/ablation.py.

    python docs/make_ablation.py OUT/results.jsonl

Intervals are 95 %: of a final accuracy by resampling seeds and, within them, problems; of a curve by Student's t over
seeds. What an arm gains is paired with "plain" by seed and problem.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from algorist.data.picture import sheet, text

HERE = Path(__file__).resolve().parent
NAMES = {
    "plain": "plain GRPO",
    "length": "1 uniform lengths",
    "balance": "2 rebalancing",
    "annealing": "3 annealing",
    "all": "all three",
    "dapo": "DAPO",
}
COLOURS = ("#7f7f7f", "#d98c2f", "#2f6f9f", "#8f5fa0", "#b03030", "#3f8f5f")
T_95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}
Rows = list[dict[str, Any]]


def resampled(shares: list[np.ndarray], draws: int = 4_000) -> tuple[float, float, float]:
    """(mean, low, high) of seeds' shares per problem: seeds are drawn, then problems within each."""
    draw = np.random.default_rng(0)
    table = np.stack(shares)
    count, problems = table.shape
    seeds = draw.integers(count, size=(draws, count))
    means = [table[row][:, draw.integers(problems, size=problems)].mean() for row in seeds]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(table.mean()), float(low), float(high)


def of_generations(rows: Rows, name: str, last: int | None = None) -> float:
    """The mean of a journal's number over an arm's generations, the last few where asked."""
    values = [
        entry[name] for row in rows for entry in row["generations"][-(last or 10**9) :] if entry.get(name) is not None
    ]
    return statistics.fmean(values) if values else float("nan")


def spread_of_norms(rows: Rows) -> float:
    """Coefficient of variation of the gradient norm within a run, the mean over seeds."""
    found = []
    for row in rows:
        norms = [entry["grad_norm"] for entry in row["generations"] if entry["grad_norm"]]
        found.append(statistics.pstdev(norms) / statistics.fmean(norms))
    return statistics.fmean(found)


def table(arms: dict[str, Rows]) -> str:
    columns = (
        "arm",
        "accuracy",
        "95 % interval",
        "over plain",
        "95 % interval",
        "grad norm, spread",
        "length spread",
        "entropy, end",
        "wasted",
        "train - eval",
        "generations",
    )
    head = f"| {' | '.join(columns)} |"
    lines = [head, "|---|---:|---|---:|---|---:|---:|---:|---:|---:|---:|"]
    plain = {row["seed"]: np.array(row["shares"]) for row in arms.get("plain", [])}
    for arm, rows in arms.items():
        value, low, high = resampled([np.array(row["shares"]) for row in rows])
        paired = [np.array(row["shares"]) - plain[row["seed"]] for row in rows if row["seed"] in plain]
        gain, least, most = resampled(paired) if paired and arm != "plain" else (0.0, 0.0, 0.0)
        against = f"{100 * gain:+.1f} | {100 * least:+.1f} to {100 * most:+.1f}" if arm != "plain" else " | "
        gap = of_generations(rows, "accuracy", 3) - value
        cells = [
            f"{100 * value:.1f} %",
            f"{100 * low:.1f} to {100 * high:.1f}",
            against,
            f"{spread_of_norms(rows):.2f}",
            f"{of_generations(rows, 'length_spread'):.3f}",
            f"{of_generations(rows, 'entropy', 3):.3f}",
            f"{100 * of_generations(rows, 'wasted'):.0f} %",
            f"{100 * gap:+.1f}",
            f"{statistics.fmean(row['steps'] for row in rows):.0f}",
        ]
        lines.append(f"| {NAMES[arm]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def way(arms: dict[str, Rows]) -> str:
    """What the figure draws, in numbers."""
    lines = []
    for arm, rows in arms.items():
        taken = [round(point["generation"]) for point in rows[0]["curve"]]
        points = zip(taken, curve(rows), strict=True)
        said = "; ".join(f"{count}: {tokens:,.0f}, {100 * value:.1f} %" for count, (tokens, value, _) in points)
        lines.append(f"- {NAMES[arm]}: {said}")
    return "\n".join(lines)


def curve(rows: Rows) -> list[tuple[float, float, float]]:
    """(tokens, mean accuracy, half of the interval) at each point of the way."""
    points = list(zip(*(row["curve"] for row in rows), strict=False))
    found = []
    for at in points:
        values = [one["accuracy"] for one in at]
        half = T_95[len(values) - 1] * statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
        found.append((statistics.fmean(one["tokens"] for one in at), statistics.fmean(values), half))
    return found


def figure(arms: dict[str, Rows]) -> str:
    left, top, width, height = 60, 40, 620, 300
    curves = {arm: curve(rows) for arm, rows in arms.items()}
    longest = max(tokens for points in curves.values() for tokens, _, _ in points)
    low = min(value - half for points in curves.values() for _, value, half in points)
    high = max(value + half for points in curves.values() for _, value, half in points)

    def place(tokens: float, value: float) -> str:
        return f"{left + tokens / longest * width:.1f},{top + (high - value) / (high - low) * height:.1f}"

    parts = [text(left, 24, "held-out accuracy by tokens sampled, bands 95 % over seeds", "bold")]
    for share in np.linspace(low, high, 5):
        y = top + (high - share) / (high - low) * height
        parts.append(f'<path d="M{left} {y:.1f}h{width}" stroke="#e4e4e8"/>')
        parts.append(text(left - 46, y + 4, f"{100 * share:.1f} %", "small"))
    for points, colour in zip(curves.values(), COLOURS, strict=False):
        above = [place(tokens, value + half) for tokens, value, half in points]
        below = [place(tokens, value - half) for tokens, value, half in reversed(points)]
        parts.append(f'<polygon points="{" ".join(above + below)}" fill="{colour}" opacity="0.10"/>')
        line = " ".join(place(tokens, value) for tokens, value, _ in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
    for row, (arm, colour) in enumerate(zip(arms, COLOURS, strict=False)):
        y = top + 16 + 20 * row
        parts.append(f'<path d="M{left + width + 16} {y - 4}h22" stroke="{colour}" stroke-width="3"/>')
        parts.append(text(left + width + 44, y, NAMES[arm]))
    parts.append(text(left, top + height + 18, "0", "small"))
    parts.append(text(left + width - 40, top + height + 18, f"{longest:,.0f}", "small"))
    return sheet(left + width + 200, top + height + 34, parts)


def main() -> None:
    found: dict[str, Rows] = defaultdict(list)
    for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found[row["arm"]].append(row)
    arms = {arm: sorted(found[arm], key=lambda row: row["seed"]) for arm in NAMES if arm in found}
    (HERE / "ablation.svg").write_text(figure(arms), encoding="utf-8")
    rows = [row for some in arms.values() for row in some]
    start = statistics.fmean(row["curve"][0]["accuracy"] for row in rows)
    sampled = [row["sampled_tokens"] for row in rows]
    seeds = len(next(iter(arms.values())))
    page = f"""# The three remedies, one by one

Made by `python docs/make_ablation.py` from `python bench/ablation.py runs/tiny runs/ablation`: the made-up world, one
checkpoint of stage 3 ({100 * start:.1f} % of 200 held-out problems at the start), {seeds} seeds of stage 4 each,
about {statistics.median(sampled):,.0f} sampled tokens each ({min(sampled):,} to {max(sampled):,}). What holds here is
said in [stage 4](stages/4.md); a world of 0.8M parameters proves mechanisms, not the paper's scores.

{table(arms)}

Accuracy: 500 held-out problems, 2 samples each at temperature 0.6; curves: 200 of them, 1 sample each on the way. Over
plain: paired by seed and problem. Grad norm, spread: deviation over mean within a run. Length spread: within the groups
sampled. Entropy and train - eval (accuracy of what is sampled in training less the held-out one, in points; prompts
differ by arm): over the last three generations. Wasted: rollouts not learned from.

On the way, on the 200: generations taken, tokens sampled, accuracy.

{way(arms)}

![learning curves](ablation.svg)
"""
    (HERE / "ablation.md").write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
