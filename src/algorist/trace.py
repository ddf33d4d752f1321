"""Why is this here? One id followed back to the row of the source it came from, and forward to what trained on it.

    source row ← Problem ← Rollout ← Verdict, Measure ← Example, Preference, Question ← Sample, Pair ← checkpoint

Only the columns that hold ids are read of every shard, so that a run of millions of rollouts answers too.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from algorist import records, store
from algorist.errors import RecordError, RunError
from algorist.records import CARD, Verdict

# In the order of the way, and of what is said.
KINDS: tuple[type[Any], ...] = (
    records.Defect,
    records.Problem,
    records.Profile,
    records.Rollout,
    records.Measure,
    records.Verdict,
    records.Example,
    records.Preference,
    records.Question,
    records.Sample,
    records.Pair,
)
_NAMING = ("problem_id", "rollout_id", "chosen_id", "rejected_id")
_SHOWN = 100  # characters of a text
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Found:
    """A record, and the data set of the run that holds it."""

    place: str  # folder inside the run
    record: Any


def runs(folder: Path) -> list[Path]:
    """The runs in a folder, the latest changed first. Raises RecordError where there is none."""
    found = [path.parent for path in folder.glob("*/recipe.toml")]
    if not found:
        raise RecordError(f"{folder}: holds no run. Name one with --run.")
    return sorted(found, key=lambda path: -path.stat().st_mtime)


def tell(roots: Sequence[Path], identity: str, say: Callable[[str], object]) -> None:
    """Say the way of an id through the first run that knows it: back to the source, forward to the checkpoints.

    Args:
        identity  of a problem, rollout, example, preference, question, sample, pair, checkpoint or data set, or how
                  it begins

    Raises:
        RecordError where no run knows it, or where it begins the ids of several records; RunError for another folder.
    """
    for root in roots:
        if not (root / "recipe.toml").exists():
            raise RunError(f"{root}: is no run (there is no recipe.toml). Name the folder that algorist run wrote.")
        if told := [*_way(root, identity), *_made_from(root, identity)]:
            say(f"{root}")
            for line in told:
                say(harmless(line))
            return
    places = ", ".join(map(str, roots))
    raise RecordError(f"{places}: no record has the id {identity}. `algorist show {roots[0]} problems` lists some.")


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


def harmless(text: str) -> str:
    """Text without the control characters with which it could rewrite what a terminal shows: responses are hostile."""
    return _CONTROLS.sub("\ufffd", text.replace("\r\n", "\n"))


def _way(root: Path, identity: str) -> Iterator[str]:
    """A line for each record on the way of a record's id, both ways."""
    shards = list(_shards(root))
    own = list(_matching(shards, lambda table: _own(table, identity)))
    if not own:
        return
    ids = {_id(found.record) for found in own}
    if len(ids) > 1:
        raise RecordError(
            f"{root}: {identity} begins {len(ids):,} ids ({', '.join(sorted(ids)[:5])}, …). Name more of it."
        )
    ancestors = _ancestors(shards, own)
    descendants = _descendants(shards, own)
    everything = {(found.place, found.record): found for found in (*ancestors, *own, *descendants)}
    found_ids = {_id(found.record) for found in everything.values()}
    told = [*everything.values(), *_beside(shards, found_ids, set(everything))]
    for kind in KINDS:
        for found in told:
            if type(found.record) is kind:
                mark = "→" if _id(found.record) in ids else " "
                yield f"{mark} {found.place:22} {_line(found.record)}"
    yield from _learned(root, {found.place.split("/")[0] for found in told if found.place.endswith("/data")})


def _shards(root: Path) -> Iterator[tuple[str, type[Any], Path]]:
    """(data set, kind, shard) of everything stored, the data sets that RLVR still adds to included."""
    kinds = {kind.__name__: kind for kind in KINDS}
    for place, manifest in data_sets(root):
        if manifest.kind in kinds:
            yield from ((place, kinds[manifest.kind], root / place / shard) for shard in manifest.shards)
    for place, kind in (("rlvr/rollouts", records.Rollout), ("rlvr/verdicts", records.Verdict)):
        yield from ((place, kind, shard) for shard in sorted((root / place).glob("[0-9]*.parquet")))


def _matching(
    shards: Iterable[tuple[str, type[Any], Path]], wanted: Callable[[pa.Table], pa.Array | None]
) -> Iterator[Found]:
    """The records of the rows for which `wanted`, given the columns that hold ids, says so."""
    for place, kind, path in shards:
        present = [field.name for field in fields(kind) if field.name in ("id", *_NAMING)]
        mask = wanted(store.read_columns(path, present))
        if mask is None or not pc.any(mask).as_py():
            continue
        rows = pq.read_table(path).filter(mask)
        yield from (Found(place, record) for record in store.from_table(rows, kind, path))


def _own(table: pa.Table, identity: str) -> pa.Array | None:
    """Rows that have the id themselves; a row without one is found by what it names."""
    name = "id" if "id" in table.column_names else None
    return pc.starts_with(table[name], identity) if name else None


def _naming(table: pa.Table, ids: set[str], columns: Sequence[str]) -> pa.Array | None:
    masks = [pc.is_in(table[name], pa.array(sorted(ids))) for name in columns if name in table.column_names]
    if not masks:
        return None
    mask = masks[0]
    for other in masks[1:]:
        mask = pc.or_(mask, other)
    return mask


def _ancestors(shards: Sequence[tuple[str, type[Any], Path]], found: Sequence[Found]) -> list[Found]:
    """What the records were made from: the rollouts they name, then the problems."""
    named = {value for one in found for name in _NAMING if (value := getattr(one.record, name, ""))}
    missing = named - {_id(one.record) for one in found}
    if not missing:
        return []
    first = (records.Problem, records.Rollout)
    above = list(_matching((s for s in shards if s[1] in first), lambda table: _naming(table, missing, ("id",))))
    return above + _ancestors(shards, [one for one in above if isinstance(one.record, records.Rollout)])


def _descendants(shards: Sequence[tuple[str, type[Any], Path]], found: Sequence[Found]) -> list[Found]:
    """What was made from the records: of a problem its rollouts and all that names it, of a rollout what names it."""
    ids = {_id(one.record) for one in found}
    later = [shard for shard in shards if shard[1] not in (records.Problem, records.Defect)]
    made = list(_matching(later, lambda table: _naming(table, ids, _NAMING)))
    for one in found:  # no token ids name the row of a set: they name the same rollouts or problem, in its own stage
        if one.place.startswith("sets/"):
            own = [shard for shard in shards if shard[0] == f"{one.place.removeprefix('sets/')}/data"]
            made += _matching(own, functools.partial(_same_way, one.record))
    return made


def _same_way(record: Any, table: pa.Table) -> pa.Array | None:
    """Rows of a stage's data that were made of the same rollouts, or of the same problem, as a row of its set."""
    names = [name for name in ("rollout_id", "chosen_id", "rejected_id") if name in table.column_names]
    if not names:
        return pc.equal(table["id"], record.problem_id)
    masks = [pc.equal(table[name], getattr(record, name)) for name in names]
    return functools.reduce(pc.and_, masks)


def _beside(
    shards: Sequence[tuple[str, type[Any], Path]], ids: set[str], known: set[tuple[str, Any]]
) -> Iterator[Found]:
    """What is said of the records without an id of its own: verdicts, measures, profiles, why one was left out."""
    for kind, column in (
        (records.Verdict, "rollout_id"),
        (records.Measure, "rollout_id"),
        (records.Profile, "problem_id"),
        (records.Defect, "problem_id"),
    ):
        chosen = [shard for shard in shards if shard[1] is kind]
        for found in _matching(chosen, lambda table, column=column: _naming(table, ids, (column,))):  # type: ignore[misc]
            if (found.place, found.record) not in known:
                yield found


def _id(record: Any) -> str:
    return getattr(record, "id", "") or getattr(record, "rollout_id", "") or record.problem_id


def _line(record: Any) -> str:
    """One record in one line."""
    match record:
        case records.Defect():
            return f"left out ({record.reason}): row {record.row} of {record.source}: {_short(record.text)}"
        case records.Problem():
            row = f"row {record.row} of {record.source}" if record.row >= 0 else record.source
            return f"problem {record.id}, {row}, answer {record.answer}: {_short(record.statement)}"
        case records.Profile():
            rate = "not measured" if record.pass_rate is None else f"{record.right} of {record.right + record.wrong}"
            labels = f"{record.domain or 'no domain'}, {record.level or 'no level'}"
            return f"profile of {record.problem_id}: {labels}, pass rate {rate}"
        case records.Rollout():
            row = f", row {record.row} of {record.source}" if record.row >= 0 else f", sample {record.index}"
            return f"rollout {record.id} of {record.sampler}{row}: {_short(record.text)}"
        case records.Measure():
            marks = [f"repetition: {record.repetition}"] * bool(record.repetition)
            marks += [f"quotes {record.leak}"] * bool(record.leak)
            return f"measure of {record.rollout_id}: {', '.join([f'{record.num_tokens:,} tokens', *marks])}"
        case records.Verdict():
            return f"verdict on {record.rollout_id}: {judged(record)}, by {record.verifier}"
        case records.Example():
            return f"example {record.id} of rollout {record.rollout_id}"
        case records.Sample():
            return f"sample {record.id}, {record.num_tokens:,} tokens, of rollout {record.rollout_id or 'none'}"
        case records.Question():
            return f"question {record.id} of problem {record.problem_id}"
    kind = type(record).__name__.lower()
    return f"{kind} {record.id}: rollout {record.chosen_id} chosen, {record.rejected_id} rejected"


def _short(text: str) -> str:
    folded = " ".join(text.split())
    return folded if len(folded) <= _SHOWN else f"{folded[: _SHOWN - 1]}…"


def _cards(root: Path) -> list[tuple[str, dict[str, Any]]]:
    """(stage, card) of every checkpoint, each after its parents."""
    found = [(path.parts[-3], store.read_json(path)) for path in root.glob(f"*/checkpoint/{CARD}")]
    ordered: list[tuple[str, dict[str, Any]]] = []
    while found:
        waiting = {card["id"] for _, card in found}
        ready = [one for one in found if not waiting & set(one[1]["parents"]) - {one[1]["id"]}] or found
        ordered += ready
        found = [one for one in found if one not in ready]
    return ordered


def _learned(root: Path, stages: set[str]) -> Iterator[str]:
    """The checkpoints that trained on a record, those that descend from them, and their scores."""
    scores = store.read_json(root / "scores.json") if (root / "scores.json").exists() else []
    cards = _cards(root)
    trained = {card["id"] for stage, card in cards if stage in stages}
    later: set[str] = set()
    for stage, card in cards:
        if card["id"] not in trained and not (trained | later) & set(card["parents"]):
            continue
        later.add(card["id"])
        how = "trained on it" if card["id"] in trained else "descends from that"
        said = [
            f"{100 * score['value']:.1f} % on {score['benchmark']}"
            for score in scores
            if score["checkpoint_id"] == card["id"]
        ]
        yield f"  {stage:22} checkpoint {card['id']} {how}{': ' if said else ''}{', '.join(said)}"
    for stage in sorted(stages - {stage for stage, _ in cards}):
        yield f"  {stage:22} has made no checkpoint of it yet"


def _made_from(root: Path, identity: str) -> Iterator[str]:
    """What a checkpoint or a data set was made from, back to the first."""
    names = {manifest.id: (place, manifest.parents) for place, manifest in data_sets(root)}
    names |= {card["id"]: (f"{stage}/checkpoint", tuple(card["parents"])) for stage, card in _cards(root)}
    waiting = [own for own in names if own.startswith(identity)]
    told: set[str] = set()
    while waiting:
        own = waiting.pop(0)
        if own in told or own not in names:
            continue
        told.add(own)
        place, parents = names[own]
        known = [f"{names[parent][0] if parent in names else 'outside'} {parent}" for parent in parents]
        origin = f" from {', '.join(known)}" if known else ""
        yield f"{'→' if own.startswith(identity) else ' '} {place:22} {own}{origin}"
        waiting += parents
