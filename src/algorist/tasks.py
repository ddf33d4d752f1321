"""The tasks of a recipe: each makes one folder of the run, from the sections it reads and the tasks before it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from algorist import store
from algorist.data import decontaminate, sources, teacher, verdicts
from algorist.errors import RecipeError, RunError
from algorist.evals import evaluate
from algorist.generate.rollouts import Speaker
from algorist.model import checkpoints
from algorist.model.chat import Chat, load_tokenizer
from algorist.model.policy import Policy
from algorist.recipe import Recipe
from algorist.records import Checkpoint, Problem, Verdict
from algorist.stage import Run, Stage
from algorist.stages import STAGES, base
from algorist.toy import base as toy_base
from algorist.toy import world
from algorist.train import train
from algorist.verify import judge
from algorist.verify import pool as verify
from algorist.verify.conventions import Conventions
from algorist.verify.pool import Pool

_STORY = ("toy.fewest_steps", "toy.most_steps", "toy.distractors")


@dataclass(frozen=True)
class Context:
    """What every task is given."""

    recipe: Recipe
    root: Path
    say: Callable[[str], object]

    def of(self, section: str, kind: type[Any]) -> Any:
        """Settings of a section."""
        return self.recipe.of(section, kind)


@dataclass(frozen=True)
class Task:
    """One folder of the run: what it depends on, and how it is made."""

    name: str  # also the folder's, below the run's
    needs: tuple[str, ...]  # tasks before it
    reads: tuple[str, ...]  # sections of the recipe, or single keys as "section.key"
    make: Callable[[Context], None] = field(compare=False)
    files: tuple[Path, ...] = ()  # that it reads from outside of the run


def sections() -> dict[str, tuple[Any, ...]]:
    """Which settings each section of a recipe fills."""
    known: dict[str, tuple[Any, ...]] = {
        "model": (checkpoints.Settings,),
        "toy": (world.Settings,),
        "data": (sources.Settings,),
        "teacher": (teacher.Settings,),
        "verify": (verify.Settings, Conventions),
        "judge": (judge.Settings,),
        "evaluate": (evaluate.Settings,),
    }
    return known | {stage.name: (stage.settings, stage.training) for stage in (base.STAGE, *STAGES)}


def tasks(recipe: Recipe) -> list[Task]:
    """The recipe's tasks, each after those that it needs."""
    toy_model = recipe.of("model", checkpoints.Settings).base == "toy"
    data, evaluation = recipe.of("data", sources.Settings), recipe.of("evaluate", evaluate.Settings)
    if unknown := sorted(set(evaluation.samples) - set(data.benchmarks)):
        known = ", ".join(data.benchmarks)
        raise RecipeError(f"{recipe.path}: [evaluate] samples.{unknown[0]} is of no benchmark. Known here: {known}.")
    asked, told = _files(data.benchmarks.values()), _files(data.problems)
    held_out = ("seed", "data.benchmarks", "data.columns", "toy.held_out", *_STORY)
    found = [
        Task("benchmarks", (), held_out, _benchmarks, asked),
        Task("problems", ("benchmarks",), ("seed", "data", "toy.problems", *_STORY), _problems, told),
        Task("rollouts", ("problems",), ("seed", "teacher"), _rollouts),
        Task("verdicts", ("rollouts",), ("verify", "judge"), _verdicts),
    ]
    before = "base"
    if toy_model:
        found.append(Task("base", ("benchmarks",), ("seed", "model", "base", "data.ngram"), _base))
    else:  # looked at first: what is missing shows before the teacher is asked
        found.insert(0, Task("base", (), ("model",), _base))
    found.append(_scores_task("base"))
    for stage in STAGES:
        needs = ("problems", "verdicts", before)
        reads = ("seed", "model", stage.name, *stage.reads)
        found.append(Task(stage.name, needs, reads, partial(_stage, stage, f"{before}/checkpoint")))
        found.append(_scores_task(stage.name))
        before = stage.name
    return found


def _files(named: Iterable[str]) -> tuple[Path, ...]:
    return tuple(Path(name) for name in named if name != sources.TOY)


def _benchmarks(context: Context) -> None:
    settings, toy = context.of("data", sources.Settings), context.of("toy", world.Settings)
    for name, made in sources.write_benchmarks(context.root / "benchmarks", settings, toy, context.recipe.seed).items():
        context.say(f"benchmarks: {name}: {made.rows:,}{_dropped(made)}")


def _problems(context: Context) -> None:
    settings = context.of("data", sources.Settings)
    benchmarks = sources.read_questions(context.root / "benchmarks", list(settings.benchmarks))
    toy = context.of("toy", world.Settings)
    made = sources.write_problems(context.root / "problems", settings, toy, benchmarks, context.recipe.seed)
    context.say(f"problems: {made.rows:,}{_dropped(made)}")


def _rollouts(context: Context) -> None:
    problems = store.read(context.root / "problems", Problem)
    settings = context.of("teacher", teacher.Settings)
    parents = [store.manifest(context.root / "problems").id]
    made = teacher.ask(problems, context.root / "rollouts", settings, seed=context.recipe.seed, parents=parents)
    context.say(f"rollouts: {made.rows:,} of {settings.model} to {len(problems):,} problems")


def _verdicts(context: Context) -> None:
    """The teacher's rollouts only: the judge has no say in scores and in the rewards of RLVR."""
    problems = store.read(context.root / "problems", Problem)
    target, settings = context.root / "verdicts", context.of("judge", judge.Settings)
    with Pool.of(context.recipe) as pool:
        verdicts.write(context.root / "rollouts", target, problems, pool, settings, context.root / judge.CACHE)
    found = store.read(target, Verdict)
    counts = {right: sum(verdict.right is right for verdict in found) for right in (True, False, None)}
    if settings.url:
        said = judge.tally(found)
        opinions = f"{said['equal']:,} equal, {said['different']:,} different, {said['undecided']:,} undecided"
        asked = f"verdicts: {settings.model} was asked about {said['asked']:,}: {opinions}"
        look = f" (algorist show {context.root} --disagreements)" if said["conflicts"] else ""
        context.say(f"{asked}; {said['conflicts']:,} disagreements with the rules{look}")
    context.say(f"verdicts: {counts[True]:,} right, {counts[False]:,} wrong, {counts[None]:,} not judged")


def _chat(context: Context, tokenizer: Any) -> Chat:
    return Chat.of(tokenizer, context.of("model", checkpoints.Settings).prompt)


def _base(context: Context) -> None:
    """The toy's base model is trained; any other is only looked at."""
    model = context.of("model", checkpoints.Settings)
    folder = context.root / "base"
    if model.base != "toy":
        chat = _chat(context, load_tokenizer(model.base))
        policy = checkpoints.open_policy(model.base, precision=model.precision)
        checkpoints.save(folder / "checkpoint", policy, chat.tokenizer, Checkpoint("", "base", 0))
        return
    chat = _chat(context, toy_base.tokenizer())
    shape = context.of("base", base.Settings)
    if not (folder / "start").exists():
        fresh = toy_base.model(
            len(chat.tokenizer),
            context.recipe.seed,
            hidden_size=shape.hidden_size,
            num_layers=shape.num_layers,
            num_heads=shape.num_heads,
            mlp_size=shape.mlp_size,
            context=shape.context,
        )
        policy = Policy(fresh)
        checkpoints.save(folder / "start", policy, chat.tokenizer, Checkpoint("", "base", 0))
    _stage(base.STAGE, "base/start", context)


def _stage(stage: Stage, parent: str, context: Context) -> None:
    """Curate, plan and train one stage on from the checkpoint of the task `parent`."""
    if stage is not base.STAGE:  # which leaves out of its own made-up text what the benchmarks ask
        benchmarks = list(context.of("data", sources.Settings).benchmarks)
        found = sources.read_questions(context.root / "benchmarks", benchmarks)
        decontaminate.require_report(context.root / "problems", found)
    source = context.root / parent
    model = context.of("model", checkpoints.Settings)
    chat = _chat(context, load_tokenizer(str(source)))
    this = Run(context.recipe, context.root, stage, str(source), chat, model.precision)
    if not (this.data / store.MANIFEST).exists():
        made = stage.curate(this)
        context.say(f"{stage.name}: learns from {made.rows:,} {made.kind.lower()}s{_dropped(made)}")
    plan = stage.plan(this)
    if plan.num_steps < 1:
        raise RunError(f"{this.data}: nothing is left to learn from. Loosen [{stage.name}] or give it more problems.")
    context.say(f"{stage.name}: {plan.num_steps:,} steps, {plan.documents:,} documents, {plan.tokens:,} tokens")
    train(this, context.say)


def _scores_task(stage: str) -> Task:
    reads = ("seed", "model", "evaluate", "verify")
    return Task(f"scores/{stage}", ("benchmarks", stage), reads, partial(_scores, stage))


def _scores(stage: str, context: Context) -> None:
    checkpoint = context.root / stage / "checkpoint"
    settings = context.of("evaluate", evaluate.Settings)
    policy = checkpoints.open_policy(checkpoint, precision=context.of("model", checkpoints.Settings).precision)
    speaker = Speaker(policy, _chat(context, load_tokenizer(str(checkpoint))), stage, settings.num_slots)
    names = list(context.of("data", sources.Settings).benchmarks)
    with Pool.of(context.recipe) as pool:
        for name, problems in sources.read_benchmarks(context.root / "benchmarks", names).items():
            place = context.root / "scores" / stage / name
            evaluate.evaluate(speaker, problems, place, settings, seed=context.recipe.seed, pool=pool)


def _dropped(made: store.Manifest) -> str:
    reasons = [f"{count:,} {reason}" for reason, count in made.dropped.items() if count]
    return f" (left out: {', '.join(reasons)})" if reasons else ""
