"""From files to material: import problems and rollouts, clean them, judge every rollout, keep what can be learned from.

    problem files ─┐                            ┌→ problems/ ─────────────────┬→ samples.jsonl, pairs.jsonl
                   ├→ once each → in a benchmark?                             │
    rollout files ─┤                            └→ set-aside/ ─┐              │
                   └→ rollouts/ ──────────────── judged ───────┴→ verdicts/ ──┘

Rollouts on benchmark problems are judged like all others, because that is where labelled rollouts are found and
where our verdicts can be compared with another grader's. Their problems go to set-aside/, and neither sample nor pair
is made of them. Judging is the long part: verdicts are saved every thousand, and the same command goes on from there.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from algorist import store
from algorist.data.decontaminate import decontaminate, write_report
from algorist.data.dedup import unique
from algorist.data.funnel import Agreement, Funnel, Step, funnel_text
from algorist.data.problems import content_hash, import_problems, read_benchmark
from algorist.data.rollouts import Imported, numbered, read_rollouts
from algorist.errors import RecipeError, RunError
from algorist.records import Problem, Rollout, Verdict
from algorist.verify.equal import verifier
from algorist.verify.pool import Pool

VERDICTS_PER_SHARD = 1_000


@dataclass(frozen=True)
class Settings:
    """How to gather; a change of any of these makes another data set."""

    ngram: int = 13  # words shared with a benchmark problem that make a problem unfit for training
    pairs_per_problem: int = 4  # at most
    seconds: float = 1.0  # for one verdict, before it is given up as "timed out"
    problem_columns: Mapping[str, str] = field(default_factory=dict)  # our name → the files' name
    rollout_columns: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.ngram < 1 or self.pairs_per_problem < 0 or self.seconds <= 0:
            raise RecipeError(
                f"gather: ngram {self.ngram}, pairs_per_problem {self.pairs_per_problem} and seconds {self.seconds} "
                "cannot be used. Give at least 1 word, 0 pairs and more than 0 seconds."
            )


def gather(
    problem_files: Sequence[Path],
    rollout_files: Sequence[Path],
    out: Path,
    *,
    against: Sequence[Path] = (),
    settings: Settings | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Funnel:
    """Fill the folder `out` with clean problems, judged rollouts, samples and pairs, and return what became of what.

    `against` names the evaluation files; without one, no report is written and nothing may be trained on the
    result. `progress` is called with (verdicts done, verdicts in all). Writes the data sets problems/, set-aside/,
    rollouts/ and verdicts/, samples.jsonl and pairs.jsonl in the messages form that other trainers read,
    decontamination.json, funnel.json and funnel.txt. Interrupted, the same call goes on at the next thousand verdicts.

    Raises RecipeError for missing files, RecordError for files that cannot be read, RunError where `out` holds a
    gather of something else or the disk is full.
    """
    settings = settings or Settings()
    parents = _open(out, problem_files, rollout_files, against, settings)
    steps: list[Step] = []
    problems, rollouts, labels, sources = _import(problem_files, rollout_files, settings, steps)
    benchmarks = {_name(path, against): read_benchmark(path, settings.problem_columns) for path in against}
    clean, report = decontaminate(problems, benchmarks, settings.ngram)
    if against:
        hits = Counter(f"in {name}" for name in {hit.problem_id: hit.benchmark for hit in report.hits}.values())
        steps.append(Step.of("problems found in no benchmark", hits, len(clean)))
        write_report(out, report)

    trainable = {problem.id: problem for problem in clean}
    aside = [problem for problem in problems if problem.id not in trainable]
    made = [
        store.write(out / "problems", Problem, clean, parents=parents, dropped=_dropped(steps, "problem")),
        store.write(out / "set-aside", Problem, aside, parents=parents),
        store.write(out / "rollouts", Rollout, rollouts, parents=parents, dropped=_dropped(steps, "rollout")),
    ]
    golds = {problem.id: problem.answer for problem in problems}
    verdicts = _judge(out / "verdicts", rollouts, golds, settings.seconds, progress)
    store.finish(out / "verdicts", Verdict, parents=[manifest.id for manifest in made])

    judged = list(zip(rollouts, verdicts, strict=True))
    samples = _samples(judged, trainable, steps)
    pairs = _pairs(judged, trainable, settings.pairs_per_problem, steps)
    _write_lines(out / "samples.jsonl", (_sample_line(trainable[right.problem_id], right) for right in samples))
    _write_lines(out / "pairs.jsonl", (_pair_line(trainable[pair[0].problem_id], *pair) for pair in pairs))
    rejected = dict(Counter(verdict.reason for _, _, verdict in pairs))
    agreement = _agreement(judged, labels, sources)
    funnel = Funnel(tuple(steps), tuple(benchmarks), len(samples), len(pairs), rejected, agreement)
    store.write_json(out / "funnel.json", asdict(funnel))
    store.write_text(out / "funnel.txt", funnel_text(funnel))
    return funnel


def _open(
    out: Path, problem_files: Sequence[Path], rollout_files: Sequence[Path], against: Sequence[Path], settings: Settings
) -> list[str]:
    """Claim the folder for these inputs, or find it claimed by the same ones; return the ids of the input files."""
    files = {"problems": problem_files, "rollouts": rollout_files, "against": against}
    inputs = {
        **{role: [[path.name, content_hash(path)] for path in paths] for role, paths in files.items()},
        "settings": asdict(settings),
        "verifier": verifier(),
    }
    path = out / "gather.json"
    if path.exists():
        changed = [role for role, value in store.read_json(path).items() if inputs.get(role) != value]
        if changed:
            raise RunError(
                f"{out}: holds a gather of other inputs (changed: {', '.join(changed)}). "
                "Name another folder, or delete this one to start again."
            )
    elif any((out / name).exists() for name in ("problems", "set-aside", "rollouts", "verdicts")):
        raise RunError(f"{out}: holds data sets that no gather made (there is no gather.json). Name another folder.")
    store.write_json(path, inputs)
    return [content_hash(path) for path in (*problem_files, *rollout_files)]


def _import(
    problem_files: Sequence[Path], rollout_files: Sequence[Path], settings: Settings, steps: list[Step]
) -> tuple[list[Problem], list[Rollout], dict[str, bool], dict[str, str]]:
    """Every problem once, every rollout of such a problem, and the labels and sources by rollout id."""
    found: list[Problem] = []
    refused: set[str] = set()
    for path in problem_files:
        reading = import_problems(path, settings.problem_columns)
        steps.append(Step.of(f"problems in {path.name}", reading.drops, len(reading.problems)))
        found += reading.problems
        refused |= reading.refused
    refused -= {problem.id for problem in found}
    listed = list(found)
    files = []
    for path in rollout_files:
        imported = read_rollouts(path, listed, settings.rollout_columns)
        files.append((path, imported))
        sound = [problem for problem in imported.problems if problem.id not in refused]
        drops = {"left out of its problem file": len(imported.problems) - len(sound)}
        steps.append(Step.of(f"problems inside {path.name}", drops, len(sound)))
        found += sound
    problems, drops = unique(found)
    steps.append(Step.of("problems, all files together", drops, len(problems)))
    known = {problem.id for problem in problems}
    rollouts: dict[str, Rollout] = {}
    labels: dict[str, bool] = {}
    sources: dict[str, str] = {}
    for path, imported in files:
        steps.append(Step.of(f"rollouts in {path.name}", imported.drops, len(imported.rollouts)))
        _join(imported, known, rollouts, labels, sources)
    entered = sum(len(imported.rollouts) for _, imported in files)
    orphans = sum(rollout.problem_id not in known for _, imported in files for rollout in imported.rollouts)
    drops = {"its problem was left out": orphans, "same rollout twice": entered - orphans - len(rollouts)}
    steps.append(Step.of("rollouts of these problems", drops, len(rollouts)))
    return problems, list(rollouts.values()), labels, sources


def _join(
    imported: Imported,
    known: set[str],
    rollouts: dict[str, Rollout],
    labels: dict[str, bool],
    sources: dict[str, str],
) -> None:
    """Add the rollouts of known problems, with label and source, to those of the files before."""
    for original in imported.rollouts:
        if original.problem_id not in known:
            continue
        rollout = numbered(original, rollouts)
        rollouts.setdefault(rollout.id, rollout)
        sources.setdefault(rollout.id, imported.sources[original.id])
        if original.id in imported.labels:
            labels.setdefault(rollout.id, imported.labels[original.id])


def _judge(
    folder: Path,
    rollouts: Sequence[Rollout],
    golds: Mapping[str, str],
    seconds: float,
    progress: Callable[[int, int], None] | None,
) -> list[Verdict]:
    """One verdict for each rollout, in order; shards that an interrupted call finished are read, not made again."""
    verdicts: list[Verdict] = []
    with Pool(seconds=seconds) as pool:
        for index, start in enumerate(range(0, len(rollouts), VERDICTS_PER_SHARD)):
            part = rollouts[start : start + VERDICTS_PER_SHARD]
            path = folder / f"{index:05d}.parquet"
            shard = store.read_shard(path, Verdict) if path.exists() else []
            if [verdict.rollout_id for verdict in shard] != [rollout.id for rollout in part]:
                shard = pool.verdicts(part, golds)
                store.write_shard(folder, index, Verdict, shard)
            verdicts += shard
            if progress:
                progress(len(verdicts), len(rollouts))
    return verdicts


def _samples(
    judged: Iterable[tuple[Rollout, Verdict]], trainable: Mapping[str, Problem], steps: list[Step]
) -> list[Rollout]:
    """The right rollouts to learn from: they ended by themselves, and their problem is in no benchmark."""
    drops: Counter[str] = Counter()
    right, kept = [], []
    for rollout, verdict in judged:
        if verdict.right:
            right.append(rollout)
        else:
            drops[verdict.reason if verdict.right is False else f"could not be judged: {verdict.reason}"] += 1
    steps.append(Step.of("rollouts judged right", drops, len(right)))
    drops = Counter()
    for rollout in right:
        if rollout.problem_id not in trainable:
            drops["on a benchmark problem: judged only, never trained on"] += 1
        elif rollout.finish == "length":
            drops["right, but cut off before the end"] += 1
        else:
            kept.append(rollout)
    steps.append(Step.of("rollouts that became samples", drops, len(kept)))
    return kept


def _pairs(
    judged: Iterable[tuple[Rollout, Verdict]], trainable: Mapping[str, Problem], limit: int, steps: list[Step]
) -> list[tuple[Rollout, Rollout, Verdict]]:
    """(right, wrong, the wrong one's verdict), each rollout at most once, in the order of rollout ids."""
    right: dict[str, list[Rollout]] = {}
    wrong: dict[str, list[tuple[Rollout, Verdict]]] = {}
    drops: Counter[str] = Counter()
    seen = set()
    for rollout, verdict in sorted(judged, key=lambda pair: pair[0].id):
        seen.add(rollout.problem_id)
        if verdict.right and rollout.finish != "length":
            right.setdefault(rollout.problem_id, []).append(rollout)
        elif verdict.right is False:
            wrong.setdefault(rollout.problem_id, []).append((rollout, verdict))
    pairs: list[tuple[Rollout, Rollout, Verdict]] = []
    mixed = 0
    for problem_id in sorted(seen):
        if problem_id not in trainable:
            drops["a benchmark problem: judged only, never trained on"] += 1
        elif problem_id not in right or problem_id not in wrong:
            drops["no wrong rollout" if problem_id in right else "no right rollout"] += 1
        else:
            mixed += 1
            both = list(zip(right[problem_id], wrong[problem_id], strict=False))[:limit]
            pairs += [(chosen, rejected, verdict) for chosen, (rejected, verdict) in both]
    steps.append(Step.of("problems with rollouts that gave pairs", drops, mixed))
    return pairs


def _agreement(
    judged: Iterable[tuple[Rollout, Verdict]], labels: Mapping[str, bool], sources: Mapping[str, str]
) -> tuple[Agreement, ...]:
    """One row per source, in alphabetical order."""
    counts: dict[str, Counter[str]] = {}
    for rollout, verdict in judged:
        row = counts.setdefault(sources[rollout.id], Counter())
        row["rollouts"] += 1
        label = labels.get(rollout.id)
        if label is None:
            continue
        row["labelled"] += 1
        if verdict.right is None:
            row["unjudged"] += 1
        elif verdict.right == label:
            row["agree"] += 1
        else:
            row["right_here" if verdict.right else "wrong_here"] += 1
    names = ("rollouts", "labelled", "agree", "right_here", "wrong_here", "unjudged")
    return tuple(Agreement(source, *(row[name] for name in names)) for source, row in sorted(counts.items()))


def _sample_line(problem: Problem, right: Rollout) -> dict[str, object]:
    asked, answered = _message("user", problem.statement), _message("assistant", right.text)
    return {"problem_id": problem.id, "rollout_id": right.id, "messages": [asked, answered]}


def _pair_line(problem: Problem, right: Rollout, wrong: Rollout, verdict: Verdict) -> dict[str, object]:
    return {
        "problem_id": problem.id,
        "chosen_id": right.id,
        "rejected_id": wrong.id,
        "rejected_reason": verdict.reason,
        "prompt": [_message("user", problem.statement)],
        "chosen": [_message("assistant", right.text)],
        "rejected": [_message("assistant", wrong.text)],
    }


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _write_lines(path: Path, rows: Iterable[dict[str, object]]) -> None:
    with store.replacing(path) as draft, draft.open("w", encoding="utf-8") as lines:
        for row in rows:
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")


def _dropped(steps: Iterable[Step], what: str) -> Counter[str]:
    """Everything dropped so far on the way of problems or of rollouts, by reason."""
    total: Counter[str] = Counter()
    for step in steps:
        if step.name.startswith(what):
            total.update(step.dropped)
    return total


def _name(path: Path, paths: Sequence[Path]) -> str:
    """What a benchmark file is called: its stem, or its path where another file has the same stem."""
    return path.stem if [other.stem for other in paths].count(path.stem) == 1 else str(path)
