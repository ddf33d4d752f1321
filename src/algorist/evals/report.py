"""The ablation table: what each stage gave, with 95 % intervals, paired with the stage before on the same problems."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from algorist import store
from algorist.numerics.estimates import mean_interval, paired_change
from algorist.records import Checkpoint, Rollout, Score, Verdict

_HEAD = ("stage", "accuracy", "95 % interval", "change", "95 % interval", "length", "ends", "tokens", "seconds")
_NOTE = (
    "Accuracy is the share of right answers over all samples; the change is against the stage before, paired by "
    "problem; length is the mean of response tokens, ends the share of responses that end by themselves, tokens and "
    "seconds are this stage's training."
)


def scores(folder: Path, checkpoints: Sequence[tuple[str, Checkpoint]], benchmarks: Sequence[str]) -> list[Score]:
    """One Score for each benchmark and stage, from `<folder>/<stage>/<benchmark>/{rollouts,verdicts}`.

    Args:
        checkpoints  (stage, its checkpoint) in the order of the recipe: each stage is compared with the one before
    """
    found = []
    for benchmark in benchmarks:
        before: dict[str, float] | None = None
        for stage, checkpoint in checkpoints:
            place = folder / stage / benchmark
            rollouts, verdicts = store.read(place / "rollouts", Rollout), store.read(place / "verdicts", Verdict)
            score, before = _score(stage, checkpoint, benchmark, rollouts, verdicts, before)
            found.append(score)
    return found


def _score(
    stage: str,
    checkpoint: Checkpoint,
    benchmark: str,
    rollouts: Sequence[Rollout],
    verdicts: Sequence[Verdict],
    before: dict[str, float] | None,
) -> tuple[Score, dict[str, float]]:
    """The score, and the share of right samples of each problem for the next stage to be paired with."""
    right = {verdict.rollout_id: verdict.right for verdict in verdicts}
    samples: dict[str, list[bool]] = defaultdict(list)
    for rollout in rollouts:
        samples[rollout.problem_id].append(right[rollout.id] is True)
    shares = {problem_id: sum(rights) / len(rights) for problem_id, rights in samples.items()}
    value, low, high = mean_interval(list(shares.values()))
    change: tuple[float | None, ...] = (None, None, None)
    if before is not None:
        change = paired_change([before[problem_id] for problem_id in shares], list(shares.values()))
    count = len(rollouts)
    score = Score(
        stage=stage,
        checkpoint_id=checkpoint.id,
        benchmark=benchmark,
        metric="accuracy",
        value=value,
        low=low,
        high=high,
        change=change[0],
        change_low=change[1],
        change_high=change[2],
        problems=len(shares),
        samples=count // len(shares),
        mean_len=sum(rollout.num_tokens for rollout in rollouts) / count,
        ended=sum(rollout.finish == "stop" for rollout in rollouts) / count,
        no_answer=sum(not verdict.extracted for verdict in verdicts) / count,
        unjudged=sum(verdict.right is None for verdict in verdicts) / count,
        tokens=checkpoint.tokens,
        seconds=checkpoint.seconds,
    )
    return score, shares


def table(found: Sequence[Score]) -> str:
    """The scores as Markdown, one table a benchmark, in the shape of the paper's."""
    parts = []
    for benchmark in dict.fromkeys(score.benchmark for score in found):
        rows = [score for score in found if score.benchmark == benchmark]
        problems, samples = rows[0].problems, rows[0].samples
        cells = [_HEAD, *(_row(score) for score in rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(_HEAD))]
        lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
        lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        parts.append(f"**{benchmark}**: {problems} problems, {samples} samples each\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def write(folder: Path, name: str, found: Sequence[Score]) -> str:
    """Write `report.md` and `scores.json` to the run folder; returns the report's text."""
    text = f"# {name}\n\n{table(found)}\n\n{_NOTE}\n"
    store.write_text(folder / "report.md", text)
    store.write_json(folder / "scores.json", [asdict(score) for score in found])
    return text


def _row(score: Score) -> tuple[str, ...]:
    change, between = "", ""
    if score.change is not None and score.change_low is not None and score.change_high is not None:
        change = f"{100 * score.change:+.1f}"
        between = f"{100 * score.change_low:+.1f} to {100 * score.change_high:+.1f}"
    return (
        score.stage,
        f"{100 * score.value:.1f} %",
        f"{100 * score.low:.1f} to {100 * score.high:.1f}",
        change,
        between,
        f"{score.mean_len:.0f}",
        f"{100 * score.ended:.1f} %",
        f"{score.tokens:,}",
        f"{score.seconds:.0f}",
    )
