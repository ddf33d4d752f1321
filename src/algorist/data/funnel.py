"""What became of what: problems, rollouts, right ones, kept ones, and why the others were left out, in numbers.

Everything is read from the manifests and shards of a run, so the funnel can be drawn at any time, of half a run too.
`write` leaves it in the run's folder as funnel.txt, funnel.json and, as a picture, funnel.svg.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from algorist import store
from algorist.data import sets, sources
from algorist.data.picture import picture

SOURCE_WIDTH = 60  # characters of a source's name that are shown
_THING = {"Example": "examples", "Question": "questions"}


@dataclass(frozen=True)
class Step:
    """One narrowing of the funnel: `entered` is `left` plus everything dropped."""

    name: str
    lane: str  # what is counted: problems, rollouts, or what a set holds
    entered: int
    dropped: Mapping[str, int]  # reason → how many
    left: int

    @classmethod
    def of(cls, name: str, lane: str, dropped: Mapping[str, int], left: int) -> Step:
        """A step whose `entered` follows from the rest; reasons that dropped nothing are left out."""
        reasons = {reason: n for reason, n in sorted(dropped.items(), key=lambda item: (-item[1], item[0])) if n}
        return cls(name, lane, left + sum(reasons.values()), reasons, left)


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
    agreement: tuple[Agreement, ...]


def write(root: Path) -> Funnel:
    """Make the funnel of a run and write it to the run's folder."""
    found = collect(root)
    store.write_json(root / "funnel.json", asdict(found))
    store.write_text(root / "funnel.txt", funnel_text(found))
    store.write_text(root / "funnel.svg", picture([(s.name, s.lane, s.dropped, s.left) for s in found.steps]))
    return found


def text_of(root: Path) -> str:
    """The funnel of a run as it stands now, ready to print."""
    return funnel_text(collect(root))


def collect(root: Path) -> Funnel:
    """The funnel of what a run has made so far."""
    steps = [*_problem_steps(root), *_rollout_steps(root), *_set_steps(root)]
    return Funnel(tuple(steps), tuple(_agreement(root)))


def funnel_text(funnel: Funnel) -> str:
    """The funnel and the agreement table as plain text, ready to print."""
    lines: list[str] = []
    for lane in dict.fromkeys(step.lane for step in funnel.steps):
        steps = [step for step in funnel.steps if step.lane == lane]
        lines += [*_columns([(lane, "in", "left out", "kept")], *(_step_rows(step) for step in steps)), ""]
    if any(row.labelled for row in funnel.agreement):
        counts = ("labelled", "agree", "share", "only we: right", "only we: wrong", "unjudged")
        header = ("our verdicts and the labels of", *counts)
        rows = [_agreement_row(row) for row in (*funnel.agreement, _sum(funnel.agreement))]
        lines += [*_columns([header], rows), ""]
    return "\n".join(lines)


def _problem_steps(root: Path) -> Iterator[Step]:
    if (root / "sources" / sources.COUNTS).exists():
        counts = sources.read_counts(root / "sources")
        found = sum((count.refused for count in counts), Counter[str]())
        found["another response to a problem of the same source"] = sum(count.repeats for count in counts)
        found["responses without a gold answer, kept where another row has one"] = sum(one.goldless for one in counts)
        yield Step.of("rows read from the sources", "problems", found, sum(count.problems for count in counts))
    if made := _manifest(root / "problems"):
        yield Step.of("once each, in no benchmark", "problems", made.dropped, made.rows)
    if made := _manifest(root / "profiles"):
        found = Counter[str]()
        for shard in made.shards:
            for row in store.read_columns(root / "profiles" / shard, ("right", "wrong")).to_pylist():
                if row["right"]:
                    found["with a right rollout"] += 1
                else:
                    found["no right rollout" if row["wrong"] else "no rollout that could be judged"] += 1
        left = found.pop("with a right rollout", 0)
        yield Step.of("with a right rollout", "problems", found, left)


def _rollout_steps(root: Path) -> Iterator[Step]:
    if (made := _manifest(root / "sources" / "traces")) and made.rows:
        yield Step.of("traces read from the sources", "rollouts", made.dropped, made.rows)
    if made := _manifest(root / "rollouts"):
        yield Step.of("of these problems, the teacher's included", "rollouts", made.dropped, made.rows)
    if made := _manifest(root / "verdicts"):
        found = Counter[str]()
        right = 0
        for shard in made.shards:
            table = store.read_columns(root / "verdicts" / shard, ("right", "reason"))
            for row in table.group_by(["right", "reason"]).aggregate([([], "count_all")]).to_pylist():
                if row["right"]:
                    right += row["count_all"]
                else:
                    unjudged = "" if row["right"] is False else "could not be judged: "
                    found[f"{unjudged}{row['reason']}"] += row["count_all"]
        yield Step.of("judged right", "rollouts", found, right)


def _set_steps(root: Path) -> Iterator[Step]:
    for name in sets.SETS:
        if made := _manifest(root / sets.FOLDER / name):
            lane = f"set of {name}"
            if name == "dpo":  # what is left out are rollouts, and a preference is two of them
                yield Step.of(f"rollouts in {made.rows:,} preferences", lane, made.dropped, 2 * made.rows)
            else:
                yield Step.of(f"{_THING[made.kind]} chosen", lane, made.dropped, made.rows)
            if data := _manifest(root / name / "data"):
                yield Step.of("in the tokens of the model", lane, data.dropped, data.rows)


def _manifest(folder: Path) -> store.Manifest | None:
    return store.manifest(folder) if (folder / store.MANIFEST).exists() else None


def _agreement(root: Path) -> Iterator[Agreement]:
    """One row per source of traces that says something of their answers, in alphabetical order."""
    made, said = _manifest(root / "verdicts"), _manifest(root / "rollouts")
    if not made or not said or made.shards != said.shards:
        return
    counts: dict[str, Counter[str]] = {}
    for shard in said.shards:
        rollouts = store.read_columns(root / "rollouts" / shard, ("source", "label")).to_pylist()
        verdicts = store.read_columns(root / "verdicts" / shard, ("right",)).to_pylist()
        for rollout, verdict in zip(rollouts, verdicts, strict=True):
            if not rollout["source"]:
                continue
            row = counts.setdefault(rollout["source"], Counter())
            row["rollouts"] += 1
            row[_opinion(rollout["label"], verdict["right"])] += 1
            row["labelled"] += rollout["label"] is not None
    names = ("rollouts", "labelled", "agree", "right_here", "wrong_here", "unjudged")
    yield from (Agreement(source, *(row[name] for name in names)) for source, row in sorted(counts.items()))


def _opinion(label: bool | None, right: bool | None) -> str:
    if label is None:
        return "unlabelled"
    if right is None:
        return "unjudged"
    if right == label:
        return "agree"
    return "right_here" if right else "wrong_here"


def _step_rows(step: Step) -> list[tuple[str, ...]]:
    lost = step.entered - step.left
    rows: list[tuple[str, ...]] = [(step.name, f"{step.entered:,}", f"{lost:,}" if lost else "", f"{step.left:,}")]
    return rows + [(f"    {reason}", "", f"{count:,}", "") for reason, count in step.dropped.items()]


def _agreement_row(row: Agreement) -> tuple[str, ...]:
    name = row.source if len(row.source) <= SOURCE_WIDTH else "…" + row.source[1 - SOURCE_WIDTH :]  # a path ends apart
    seen = row.labelled - row.unjudged
    share = f"{100 * row.agree / seen:.1f} %" if seen else "–"
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
