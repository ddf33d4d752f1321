"""What a gather did, in numbers: what each step dropped and why, and how our verdicts compare with others' labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

SOURCE_WIDTH = 60  # characters of a source's name that are shown


@dataclass(frozen=True)
class Step:
    """One narrowing of the funnel: `entered` is `left` plus everything dropped."""

    name: str
    entered: int
    dropped: Mapping[str, int]  # reason → how many
    left: int

    @classmethod
    def of(cls, name: str, dropped: Mapping[str, int], left: int) -> Step:
        """A step whose `entered` follows from the rest; reasons that dropped nothing are left out."""
        return cls(name, left + sum(dropped.values()), {reason: n for reason, n in dropped.items() if n}, left)


@dataclass(frozen=True)
class Agreement:
    """Our verdicts beside the labels of one source; the last four counts add up to `labelled`."""

    source: str
    rollouts: int
    labelled: int
    agree: int
    right_here: int  # we say right, the label says wrong
    wrong_here: int  # we say wrong, the label says right
    unjudged: int


@dataclass(frozen=True)
class Funnel:
    """What went in, what was dropped where and why, and what came out."""

    steps: tuple[Step, ...]
    benchmarks: tuple[str, ...]  # what the problems were compared with
    samples: int
    pairs: int
    rejected: Mapping[str, int]  # verdict reason of the wrong side → pairs
    agreement: tuple[Agreement, ...]


def funnel_text(funnel: Funnel) -> str:
    """The funnel and the agreement table as plain text, ready to print."""
    lines = _columns([("step", "in", "dropped", "out")], *(_step_rows(step) for step in funnel.steps))
    if not funnel.benchmarks:
        lines += ["", "Compared with no benchmark: samples.jsonl and pairs.jsonl may hold test questions."]
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(funnel.rejected.items()))
    lines += ["", f"samples {funnel.samples:,}"]
    lines += [f"pairs   {funnel.pairs:,}" + (f" (rejected side: {reasons})" if reasons else "")]
    if any(row.labelled for row in funnel.agreement):
        header = (
            "our verdicts and the labels of",
            "labelled",
            "agree",
            "share",
            "only we: right",
            "only we: wrong",
            "unjudged",
        )
        rows = [_agreement_row(row) for row in (*funnel.agreement, _sum(funnel.agreement))]
        lines += ["", *_columns([header], rows)]
    return "\n".join(lines) + "\n"


def _step_rows(step: Step) -> list[tuple[str, ...]]:
    lost = step.entered - step.left
    rows: list[tuple[str, ...]] = [(step.name, f"{step.entered:,}", f"{lost:,}" if lost else "", f"{step.left:,}")]
    ordered = sorted(step.dropped.items(), key=lambda item: (-item[1], item[0]))
    return rows + [(f"    {reason}", "", f"{count:,}", "") for reason, count in ordered]


def _agreement_row(row: Agreement) -> tuple[str, ...]:
    name = row.source if len(row.source) <= SOURCE_WIDTH else row.source[: SOURCE_WIDTH - 1] + "…"
    judged = row.labelled - row.unjudged
    share = f"{100 * row.agree / judged:.1f} %" if judged else "–"
    counts = (f"{count:,}" for count in (row.right_here, row.wrong_here, row.unjudged))
    return name, f"{row.labelled:,}", f"{row.agree:,}", share, *counts


def _sum(rows: Sequence[Agreement]) -> Agreement:
    names = ("rollouts", "labelled", "agree", "right_here", "wrong_here", "unjudged")
    return Agreement("all together", *(sum(getattr(row, name) for row in rows) for name in names))


def _columns(*blocks: Iterable[tuple[str, ...]]) -> list[str]:
    """Rows as lines: the first column to the left, the others to the right, each as wide as its widest cell."""
    rows = [row for block in blocks for row in block]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return [lines[0], "-" * (sum(widths) + 2 * (len(widths) - 1)), *lines[1:]]
