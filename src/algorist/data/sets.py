"""The four sets, each made in three phases over the shards of a run: propose, choose, write; then described.

The caller holds a few numbers per candidate; texts stay with the workers, a shard at a time. Which engine runs the
shards, how many there are and in which order they are done changes nothing in what is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

from algorist import store
from algorist.data import balance, cards, curate, leakage, pairs
from algorist.data.candidates import Choice, Proposal, Shards
from algorist.data.curate import Settings
from algorist.data.shards import Engine, Job, build, made_from, over
from algorist.errors import RecipeError, RecordError
from algorist.recipe import Recipe
from algorist.records import Example, Preference, Question, content_id

Name = Literal["midtrain", "sft", "dpo", "rlvr"]
SETS: tuple[Name, ...] = ("midtrain", "sft", "dpo", "rlvr")
KIND: dict[Name, type] = {"midtrain": Example, "sft": Example, "dpo": Preference, "rlvr": Question}
FOLDER = "sets"  # of a run
DRAWN_FROM = ("problems", "profiles", "rollouts", "verdicts", "measures")  # whose shards belong together
LEAKAGE = "leakage.json"  # beside the pairs: what their form tells


def wanted(recipe: Recipe) -> list[Name]:
    """The sets that the stages of a recipe learn from or leave out; raises RecipeError for a stage that is unknown."""
    if recipe.stages is None:
        return list(SETS)
    if unknown := [name for name in recipe.stages if name not in SETS]:
        raise RecipeError(f'{recipe.path}: stages has "{unknown[0]}". Known here: {", ".join(SETS)}.')
    if len(set(recipe.stages)) < len(recipe.stages):
        raise RecipeError(f"{recipe.path}: stages names one twice. A run has one folder for each.")
    left_out = recipe.of("curate", Settings).rlvr.disjoint_from if "rlvr" in recipe.stages else ()
    return [name for name in SETS if name in recipe.stages or name in left_out]


def needs(name: Name, settings: Settings) -> list[str]:
    """The data sets of a run that a set is made from, as folders of the run."""
    if name != "rlvr":
        return list(DRAWN_FROM)
    return ["problems", "profiles", *(f"{FOLDER}/{other}" for other in settings.rlvr.disjoint_from)]


def make(
    name: Name, root: Path, settings: Settings, seed: int, prompt: str, engine: Engine, older: Sequence[Path] = ()
) -> store.Manifest:
    """Make one set of a run, `<root>/sets/<name>`, from the finished data sets that `needs` lists.

    Shards that are there already and were made from the same are kept. Beside the shards stand README.md and card.json,
    for pairs leakage.json too.

    Args:
        prompt  the words around a problem, with {problem} where it goes: [model] prompt
        older   folders of earlier runs of the same task, whose shards may serve again

    Raises:
        RecordError where the data sets' shards do not belong together; RunError where the form of pairs tells which one
        is right (the shards stay, but they are no data set yet); and what the engine raises.
    """
    folder = root / FOLDER / name
    (folder / store.MANIFEST).unlink(missing_ok=True)
    names = _shards(root, name, settings)
    shards = [Shards.of(root, shard) for shard in names]
    proposals = _propose(name, root, names, settings, seed, engine)
    choices = _choose(name, proposals, settings)
    function = {Example: curate.write_examples, Preference: pairs.write, Question: curate.write_questions}[KIND[name]]
    jobs = []
    for shard, part, choice in zip(names, shards, choices, strict=True):
        lines = content_id(choice.table.to_pydict(), choice.dropped)
        origin = made_from(function, prompt, lines, *(store.facts(path).content for path in _read(name, part)))
        jobs.append(Job(folder / shard, (part, folder / shard, choice, prompt, origin), origin))
    build(f"sets/{name}", function, jobs, engine, older)
    told = _leakage(folder, shards, seed, engine, settings.dpo.max_auc) if name == "dpo" else []
    parents = {part: store.manifest(root / part).id for part in needs(name, settings)}
    manifest = store.finish(folder, KIND[name], parents=parents.values())
    rules = {part: asdict(getattr(settings, part)) for part in (("midtrain", "sft") if name == "sft" else (name,))}
    cards.write(folder, name, manifest, parents=parents, settings=rules, told=told)
    return manifest


def _propose(
    name: Name, root: Path, names: Sequence[str], settings: Settings, seed: int, engine: Engine
) -> list[Proposal]:
    """What each shard proposes, in the order of the shards."""
    functions: dict[Name, Callable[..., Proposal]] = {
        "midtrain": curate.propose_midtrain,
        "sft": curate.propose_sft,
        "dpo": pairs.propose,
        "rlvr": curate.propose_rlvr,
    }
    arguments: list[tuple[Any, ...]] = [(Shards.of(root, shard), settings, seed) for shard in names]
    if name == "rlvr":
        others = settings.rlvr.disjoint_from
        arguments = [
            (*some, {other: root / FOLDER / other / shard for other in others})
            for some, shard in zip(arguments, names, strict=True)
        ]
    found = dict(over(functions[name], arguments, engine))
    return [found[place] for place in range(len(names))]


def _choose(name: Name, proposals: Sequence[Proposal], settings: Settings) -> list[Choice]:
    """What of each shard enters the set."""
    if not proposals:
        return []
    choose: dict[Name, Callable[[Sequence[Proposal]], list[Choice]]] = {
        "midtrain": balance.everything,
        "sft": partial(
            balance.by_level_and_domain,
            size=settings.sft.size,
            level_weights=settings.sft.level_weights,
            domain_power=settings.sft.domain_power,
        ),
        "dpo": partial(balance.pairs, size=settings.dpo.size, even=settings.dpo.balance_lengths),
        "rlvr": partial(balance.drawn, size=settings.rlvr.size),
    }
    return choose[name](proposals)


def _read(name: Name, shards: Shards) -> tuple[Path, ...]:
    """The files whose content a shard of the set is written from."""
    return (shards.problems, shards.profiles) if name == "rlvr" else shards.paths()


def _leakage(
    folder: Path, shards: Sequence[Shards], seed: int, engine: Engine, max_auc: float
) -> list[leakage.Reading]:
    """What the form of the pairs tells; written beside them, and refused where it is too much."""
    arguments = [(folder / part.rollouts.name, part.rollouts) for part in shards]
    tables = dict(over(leakage.features, arguments, engine))
    told = leakage.readings([tables[place] for place in range(len(arguments))], seed)
    leakage.write(folder / LEAKAGE, told, sum(table.num_rows for table in tables.values()))
    leakage.check(told, max_auc, folder)
    return told


def _shards(root: Path, name: Name, settings: Settings) -> tuple[str, ...]:
    """The file names of the shards; raises RecordError where the data sets do not have the same ones."""
    wanted = store.manifest(root / "problems").shards
    for part in needs(name, settings):
        found = store.manifest(root / part).shards
        if found != wanted:
            raise RecordError(
                f"{root / part}: has {len(found)} shards, {len(wanted)} were expected, one for each of problems. "
                "Delete this folder to make it again."
            )
    return wanted
