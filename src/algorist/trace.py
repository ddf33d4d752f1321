"""Why is this here? One record's id followed through every record of a folder that mentions it.

Problem → rollouts → verdicts → samples and pairs → the checkpoints that learned from them → their scores.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from algorist import store
from algorist.errors import RecordError
from algorist.records import Pair, Problem, Rollout, Sample, Verdict

_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (Problem, Rollout, Verdict, Sample, Pair)}
_REFERENCES = ("problem_id", "rollout_id", "chosen_id", "rejected_id")
_SHOWN = 100  # characters of a response

Placed = tuple[str, Any]  # (folder inside the run, record)


def tell(root: Path, identity: str, say: Callable[[str], object]) -> None:
    """Say a line for each record that has this id, names it, or is named by one that does.

    Args:
        identity  of a problem, rollout, sample or pair, or how it begins

    Raises:
        RecordError where no record of the folder has or names it.
    """
    everything = list(_everything(root))
    found = _related(everything, identity)
    written = [line for name in ("samples.jsonl", "pairs.jsonl") for line in _mentions(root / name, identity)]
    if not found and not written:
        some = f"`algorist show {root} problems` lists some"
        raise RecordError(f"{root}: no record has or names the id {identity}. {some}.")
    verdicts = {record.rollout_id: record for _, record in found if isinstance(record, Verdict)}
    for kind in _KINDS.values():
        for place, record in found:
            if type(record) is kind and kind is not Verdict:
                say(f"{place:24} {_line(record, verdicts)}")
    for line in written:
        say(line)
    for stage in dict.fromkeys(place.split("/")[0] for place, _ in found if place.endswith("/data")):
        for line in _outcome(root, stage):
            say(line)


def data_sets(root: Path) -> Iterator[tuple[str, store.Manifest]]:
    """(folder inside the run, manifest) of every finished data set, the earliest made first."""
    paths = [path for path in root.rglob(store.MANIFEST) if "superseded" not in path.relative_to(root).parts]
    for path in sorted(paths, key=lambda path: (path.stat().st_mtime_ns, str(path))):
        yield str(path.parent.relative_to(root)), store.manifest(path.parent)


def judged(verdict: Verdict | None) -> str:
    """`right (equal), answer: 5`."""
    if verdict is None:
        return "no verdict stored"
    word = {True: "right", False: "wrong", None: "not judged"}[verdict.right]
    return f"{word} ({verdict.reason}), answer: {verdict.extracted or 'none found'}"


def lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, row) of a file of JSON lines, none where there is no file."""
    if path.exists():
        with path.open(encoding="utf-8") as rows:
            yield from ((number, json.loads(row)) for number, row in enumerate(rows, 1))


def _everything(root: Path) -> Iterator[Placed]:
    for place, manifest in data_sets(root):
        for record in store.read(root / place, _KINDS[manifest.kind]):
            yield place, record
    # What RLVR samples grows by a shard for each generation and never becomes a finished data set.
    for place, kind in (("rlvr/rollouts", Rollout), ("rlvr/verdicts", Verdict)):
        for shard in sorted((root / place).glob("[0-9]*.parquet")):
            for record in store.read_shard(shard, kind):
                yield place, record


def _related(everything: Iterable[Placed], identity: str) -> list[Placed]:
    """Records that have or name the id, what these are made from, and the verdicts on all rollouts among them."""
    everything = list(everything)
    wanted = [any(own.startswith(identity) for own in _ids(record)) for _, record in everything]
    while True:
        kept = [record for (_, record), keep in zip(everything, wanted, strict=True) if keep]
        named = {own for record in kept for own in _ids(record)}
        spoken = {record.id for record in kept if isinstance(record, Rollout)}
        more = [
            keep or (record.rollout_id in spoken if isinstance(record, Verdict) else record.id in named)
            for (_, record), keep in zip(everything, wanted, strict=True)
        ]
        if more == wanted:
            return [placed for placed, keep in zip(everything, wanted, strict=True) if keep]
        wanted = more


def _ids(record: Any) -> list[str]:
    return [value for name in ("id", *_REFERENCES) if (value := getattr(record, name, ""))]


def _line(record: Any, verdicts: dict[str, Verdict]) -> str:
    if isinstance(record, Problem):
        return f"problem {record.id}, {record.level or 'no level'}, answer {record.answer}: {_short(record.statement)}"
    if isinstance(record, Rollout):
        verdict = judged(verdicts.get(record.id))
        return f"rollout {record.id} of {record.sampler}, {verdict}: {_short(record.text)}"
    if isinstance(record, Sample):
        return f"sample {record.id}, {len(record.tokens)} tokens, of rollout {record.rollout_id or 'none'}"
    return f"pair {record.id}, chosen rollout {record.chosen_id}, rejected rollout {record.rejected_id}"


def _short(text: str) -> str:
    folded = " ".join(text.split())
    return folded if len(folded) <= _SHOWN else f"{folded[: _SHOWN - 1]}…"


def _mentions(path: Path, identity: str) -> Iterator[str]:
    for number, row in lines(path):
        named = {name: row[name] for name in _REFERENCES if name in row}
        if any(str(own).startswith(identity) for own in named.values()):
            yield f"{path.name}:{number:<14} " + ", ".join(f"{name} {own}" for name, own in named.items())


def _outcome(root: Path, stage: str) -> Iterator[str]:
    """The checkpoint that a stage's data made, and its scores."""
    card = root / stage / "checkpoint" / "checkpoint.json"
    if not card.exists():
        yield f"{stage:24} has made no checkpoint of it yet"
        return
    checkpoint = store.read_json(card)["id"]
    yield f"{stage:24} learned from it: checkpoint {checkpoint}"
    scores = store.read_json(root / "scores.json") if (root / "scores.json").exists() else []
    for score in scores:
        if score["checkpoint_id"] == checkpoint:
            between = f"{100 * score['low']:.1f} to {100 * score['high']:.1f}"
            yield f"{stage:24} scores {100 * score['value']:.1f} % on {score['benchmark']} ({between})"
