"""The problem that the tour follows through a run, chosen by rule, and what docs/make_tour.py looks up about it."""

from __future__ import annotations

import io
import itertools
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from rich.console import Console

from algorist import journal, recipe, show, store, tasks, trace
from algorist.errors import RunError
from algorist.model import chat
from algorist.numerics.address import rng
from algorist.numerics.groups import select
from algorist.records import Pair, Problem, Rollout, Sample, Verdict
from algorist.stage import Run
from algorist.stages import midtrain, rlvr
from algorist.tokens import Corpus

STAGES = ("base", "midtrain", "sft", "dpo", "rlvr")
WIDTH = 120  # characters of a line
ALIKE, SHOWN = 4, 3  # more lines than ALIKE of one kind and place are cut to SHOWN
Item = TypeVar("Item")


@dataclass(frozen=True)
class Group:
    """What the policy said to the problem in generation 0, in the order in which it said it."""

    said: tuple[tuple[Rollout, Verdict], ...]
    learned: frozenset[str]  # ids of the rollouts that were learned from


@dataclass(frozen=True)
class Tour:
    """A run, and the problem that is followed through it."""

    root: Path
    name: str  # of the run's folder, as the page writes it
    recipe: recipe.Recipe
    problem: Problem
    pair: Pair
    sample: Sample  # of the pair's chosen rollout
    row: int  # of it, among the samples of stage 1
    group: Group
    candidates: int  # problems in every set that generation 0 learned from

    def read(self, place: str, kind: type[Item]) -> list[Item]:
        """All records of a data set of the run."""
        return store.read(self.root / place, kind)

    def own(self, place: str, kind: type[Item]) -> list[Item]:
        """Those of the problem."""
        return [one for one in self.read(place, kind) if cast(Any, one).problem_id == self.problem.id]

    def of(self, section: str, kind: type[Item]) -> Item:
        """A section of the recipe."""
        return self.recipe.of(section, kind)

    def made(self, place: str) -> store.Manifest:
        """The manifest of a data set of the run."""
        return store.manifest(self.root / place)


def choose(root: Path) -> Tour:
    """The problem to follow. One with these properties:

    - generation 0 of stage 4 learned from right and wrong responses to it;
    - it has a pair in stage 3;
    - the right rollout of that pair is a sample of stages 1 and 2.

    Of several, one that stage 4 asked again comes first, then the one that it asked least often, then the pair with the
    smallest id. Raises RunError where the run is not finished or no problem is left.
    """
    if not (root / "report.md").exists():
        raise RunError(f"{root}: is no finished run (there is no report.md). Run the recipe to its end first.")
    said = recipe.read(root / "recipe.toml", tasks.sections())
    groups = generation(root, said)
    second = {sample.rollout_id: sample.problem_id for sample in store.read(root / "sft" / "data", Sample)}
    samples = store.read(root / "midtrain" / "data", Sample)
    usable = {one.rollout_id: row for row, one in enumerate(samples) if one.rollout_id in second}
    pairs = store.read(root / "dpo" / "data", Pair)
    asked = {problem for problem, group in groups.items() if group.learned}
    in_both = [pair for pair in pairs if pair.chosen_id in usable]
    left = [pair for pair in in_both if pair.problem_id in asked]
    if not left:
        raise RunError(
            f"{root}: no problem goes through every stage. Of {len(pairs):,} pairs {len(in_both):,} prefer a rollout "
            "that stages 1 and 2 learned from, and generation 0 of stage 4 learned from none of their problems. "
            "Take a larger recipe."
        )
    size = said.of("rlvr", rlvr.Settings).group_size
    sampled = {problem: len(group.said) for problem, group in groups.items()}
    order = sorted(left, key=lambda pair: (sampled[pair.problem_id] == size, sampled[pair.problem_id], pair.id))
    pair, problems = order[0], {problem.id: problem for problem in store.read(root / "problems", Problem)}
    row, group = usable[pair.chosen_id], groups[pair.problem_id]
    count = len({*second.values()} & {pair.problem_id for pair in pairs} & asked)
    return Tour(root, f"runs/{said.name}", said, problems[pair.problem_id], pair, samples[row], row, group, count)


def generation(root: Path, said: recipe.Recipe) -> dict[str, Group]:
    """The groups of generation 0 by problem; which responses were learned from is drawn again, as the stage drew it."""
    settings = said.of("rlvr", rlvr.Settings)
    rollouts = store.read_shard(root / "rlvr" / "rollouts" / "00000.parquet", Rollout)
    verdicts = store.read_shard(root / "rlvr" / "verdicts" / "00000.parquet", Verdict)
    found: dict[str, list[tuple[Rollout, Verdict]]] = defaultdict(list)
    for rollout, verdict in zip(rollouts, verdicts, strict=True):
        found[rollout.problem_id].append((rollout, verdict))
    groups = {}
    for problem, group in found.items():
        judged = [(rollout, verdict.right) for rollout, verdict in group if verdict.right is not None]
        generator = rng(said.seed, "rlvr", "balance", 0, problem)
        limits = {"balance": settings.balance, "max_accuracy": settings.max_prompt_accuracy}
        kept = select([right for _, right in judged], generator, **cast(Any, limits)).kept
        groups[problem] = Group(tuple(group), frozenset(judged[place][0].id for place in kept))
    count, told = sum(len(group.learned) for group in groups.values()), first_step(root)["learned_from"]
    if count != told:
        raise RunError(
            f"{root}: generation 0 learned from {told} responses, {count} are found. Use the code of the run."
        )
    return groups


def first_step(root: Path) -> dict[str, Any]:
    """The journal's line of the first generation."""
    return next(entry for entry in journal.read(root / "rlvr") if "learned_from" in entry)


def place(tour: Tour) -> tuple[int, int]:
    """(step, document) of mid-training in which the sample is learned from first, the document counted from 1."""
    settings, parent = tour.of("model", chat.Settings), str(tour.root / "base" / "checkpoint")
    words = chat.Chat.of(chat.load_tokenizer(parent), settings.prompt, system=settings.system)
    run = Run(tour.recipe, tour.root, midtrain.STAGE, parent, words, settings.precision)
    for index, drawn in enumerate(midtrain.drawn(run, Corpus.open(run.data, Sample).lengths)):
        if tour.row in (documents := drawn.tolist()):
            return index, documents.index(tour.row) + 1
    raise RunError(f"{tour.root}: sample {tour.sample.id} is in no step of mid-training. Use the code of the run.")


def batch(tour: Tour, step: int, document: int) -> str:
    """What `show batch` prints of one document of a step, the others cut."""
    out = Console(file=io.StringIO(), width=WIDTH, force_terminal=False, color_system=None)
    look = show.Look(tour.root, tour.recipe, count=document, stage="midtrain", step=step, out=out)
    show.show(look, "batch")
    above, *parts = cast(io.StringIO, out.file).getvalue().rstrip().split("\n\n")
    return "\n\n".join([above, *["…"] * (document > 1), parts[document - 1], "…"])


def moved(tour: Tour, benchmark: str) -> tuple[Problem, dict[str, float], dict[str, str], str]:
    """A held-out problem, its share of right samples and first sample by stage, and why it was chosen.

    The one of the same source that gained most from the first checkpoint to the last and fell in no stage; of several
    the one with the most different shares, then the smallest id. Where none gained, the smallest id of all.
    """
    shares: dict[str, dict[str, float]] = defaultdict(dict)
    samples: dict[str, dict[str, str]] = defaultdict(dict)
    for stage in STAGES:
        verdicts = {one.rollout_id: one for one in tour.read(f"scores/{stage}/{benchmark}/verdicts", Verdict)}
        right: dict[str, list[bool]] = defaultdict(list)
        for rollout in tour.read(f"scores/{stage}/{benchmark}/rollouts", Rollout):
            right[rollout.problem_id].append(verdicts[rollout.id].right is True)
            if rollout.index == 0:
                samples[rollout.problem_id][stage] = rollout.text
        for problem, found in right.items():
            shares[problem][stage] = sum(found) / len(found)
    held_out = sorted(tour.read(f"benchmarks/{benchmark}", Problem), key=lambda problem: problem.id)
    risen = {
        problem.id: (values[-1] - values[0], len(set(values)))
        for problem in held_out
        if (values := list(shares[problem.id].values())) == sorted(values) and values[-1] > values[0]
    }
    alike = [problem for problem in held_out if problem.source == tour.problem.source and problem.id in risen]
    if not alike:
        one, why = held_out[0], "chosen by its id, since the stages moved none with as many steps as ours"
    else:
        one = max(reversed(alike), key=lambda problem: risen[problem.id])
        why = "with as many steps as ours, and chosen because the stages moved it most"
    return one, shares[one.id], samples[one.id], why


def story(tour: Tour) -> tuple[list[str], list[int]]:
    """What `why` prints of the problem, many lines of one kind and place cut to a few; and who asked it in stage 4."""
    told: list[str] = []
    trace.tell([tour.root], tour.problem.id, told.append)
    lines = [tour.name]
    for (where, _), alike in itertools.groupby(told[1:], key=lambda line: tuple(line[2:].split()[:2])):
        group = list(alike)
        few = group if len(group) <= ALIKE else [*group[:SHOWN], f"  … {len(group) - SHOWN} more of {where}"]
        lines += few
    asked = {int(found[1]) for line in told if (found := re.search(r" rollout \w+ of rlvr/(\d+), ", line))}
    return lines, sorted(asked)
