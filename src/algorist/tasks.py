"""The tasks of a whole recipe: the data engine's, the base model, the stages, and the scores of each checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from algorist import pipeline, store
from algorist.data import decontaminate, funnel, sets, sources
from algorist.data import tasks as data
from algorist.doctor import examine
from algorist.errors import RecipeError, RunError
from algorist.evals import evaluate, report
from algorist.generate.rollouts import Speaker
from algorist.model import chat as chats
from algorist.model import checkpoints, devices
from algorist.model.chat import Chat, load_tokenizer
from algorist.model.policy import Policy
from algorist.recipe import Recipe
from algorist.records import Checkpoint
from algorist.stage import Run, Stage
from algorist.stages import STAGES, base, chosen
from algorist.task import Context, Task, dropped
from algorist.toy import base as toy_base
from algorist.toy import words
from algorist.train import train
from algorist.verify.pool import Pool


def sections() -> dict[str, tuple[Any, ...]]:
    """Which settings each section of a recipe fills."""
    return {
        **data.sections(),
        "evaluate": (evaluate.Settings,),
        **{stage.name: (stage.settings, stage.training) for stage in (base.STAGE, *STAGES)},
    }


def tasks(recipe: Recipe) -> list[Task]:
    """The recipe's tasks, each after those that it needs."""
    named, evaluation = recipe.of("data", sources.Settings), recipe.of("evaluate", evaluate.Settings)
    if unknown := sorted(set(evaluation.samples) - set(named.benchmarks)):
        known = ", ".join(named.benchmarks)
        raise RecipeError(f"{recipe.path}: [evaluate] samples.{unknown[0]} is of no benchmark. Known here: {known}.")
    found = data.tasks(recipe)
    before = "base"
    model = recipe.of("model", chats.Settings)
    if model.base == "toy":
        found.append(Task("base", ("benchmarks",), ("seed", "model", "base", "data.ngram", "data.fuzzy"), _base))
    else:  # looked at first: what is missing shows before the teacher is asked
        files = (*chats.tokenizer_files(model.base), Path(model.base) / "config.json")
        found.insert(0, Task("base", (), ("model",), _base, files if Path(model.base).is_dir() else ()))
    found.append(_scores_task("base"))
    for stage in chosen(recipe):
        needs = (f"sets/{stage.name}", before)
        reads = ("seed", "model", stage.name, *stage.reads)
        found.append(Task(stage.name, needs, reads, partial(_stage, stage, f"{before}/checkpoint")))
        found.append(_scores_task(stage.name))
        before = stage.name
    return found


def peak_memory() -> str:
    """One line for the end of a run."""
    return f"most memory used: {devices.peak_memory() / 2**30:.1f} GiB"


def write_report(recipe: Recipe, root: Path) -> str:
    """The table of a finished run, from its stored rollouts, written to its folder.

    Raises:
        RunError where a task is not done.
    """
    if todo := [name for name, found in pipeline.state(recipe, root, tasks(recipe)) if found != "done"]:
        raise RunError(f"{root}: {todo[0]} is not done, so there is no table yet. Run the recipe to its end first.")
    names = ["base", *(stage.name for stage in chosen(recipe))]
    cards = [(name, checkpoints.card(root / name / "checkpoint")) for name in names]
    funnel.write(root)
    found = report.scores(root / "scores", cards, list(recipe.of("data", sources.Settings).benchmarks))
    return report.write(root, recipe.name, found)


def _chat(context: Context, tokenizer: Any) -> Chat:
    model = context.of("model", chats.Settings)
    return Chat.of(tokenizer, model.prompt, system=model.system)


def _base(context: Context) -> None:
    """The toy's base model is trained; any other is only looked at."""
    devices.settle()
    model = context.of("model", chats.Settings)
    folder = context.root / "base"
    if model.base != "toy":
        chat = _chat(context, load_tokenizer(model.base))
        policy = checkpoints.open_policy(model.base, precision=model.precision, rope=model.rope)
        checkpoints.save(folder / "checkpoint", policy, chat.tokenizer, Checkpoint("", "base", 0))
        return
    chat = _chat(context, words.tokenizer())
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
    devices.settle()
    if stage is not base.STAGE:  # which leaves out of its own made-up text what the benchmarks ask
        _require_sets(context)
        benchmarks = list(context.of("data", sources.Settings).benchmarks)
        found = sources.read_questions(context.root / "benchmarks", benchmarks)
        for data_set in ("problems", "measures"):  # statements, and texts of rollouts
            decontaminate.require_report(context.root / data_set, found)
    source = context.root / parent
    model = context.of("model", chats.Settings)
    chat = _chat(context, load_tokenizer(str(source)))
    held = (model.precision, model.weights, model.attention)
    this = Run(context.recipe, context.root, stage, str(source), chat, *held)
    if not (this.data / store.MANIFEST).exists():
        made = stage.curate(this)
        context.say(f"{stage.name}: learns from {made.rows:,} {made.kind.lower()}s{dropped(made)}")
    plan = stage.plan(this)
    if plan.num_steps < 1:
        raise RunError(f"{this.data}: nothing is left to learn from. Loosen [{stage.name}] or give it more problems.")
    context.say(f"{stage.name}: {plan.num_steps:,} steps, {plan.documents:,} documents, {plan.tokens:,} tokens")
    if stage is not base.STAGE:  # whose texts are no responses
        examine.before_first_step(this, context.say)
    train(this, context.say)


def _require_sets(context: Context) -> None:
    """That every stage has something to learn from shows before the first of them is trained for hours."""
    for stage in chosen(context.recipe):
        folder = context.root / sets.FOLDER / stage.name
        made = store.manifest(folder)
        if not made.rows:
            unmeasured = "; rlvr.unmeasured = true keeps problems without rollouts" * ("no rollouts" in made.dropped)
            raise RunError(
                f"{folder}: is empty{dropped(made)}, so {stage.name} would learn nothing. Loosen [curate] {stage.name}"
                f"{unmeasured}; or leave {stage.name} out of `stages`."
            )


def _scores_task(stage: str) -> Task:
    reads = ("seed", "model", "evaluate", "verify")
    return Task(f"scores/{stage}", ("benchmarks", stage), reads, partial(_scores, stage))


def _scores(stage: str, context: Context) -> None:
    devices.settle()
    settings = context.of("evaluate", evaluate.Settings)
    names = list(context.of("data", sources.Settings).benchmarks)
    benchmarks = sources.read_benchmarks(context.root / "benchmarks", names)
    statements = [problem.statement for problems in benchmarks.values() for problem in problems]
    speaker = _speaker(stage, context, settings, statements)
    with Pool.of(context.recipe) as pool:
        for name, problems in benchmarks.items():
            place = context.root / "scores" / stage / name
            evaluate.evaluate(speaker, problems, place, settings, seed=context.recipe.seed, pool=pool)


def _speaker(stage: str, context: Context, settings: evaluate.Settings, statements: Sequence[str]) -> Speaker:
    """Who answers for the checkpoint of a stage; behind a server, the policy is held no longer than this lasts."""
    checkpoint = context.root / stage / "checkpoint"
    model = context.of("model", chats.Settings)
    policy = checkpoints.open_policy(
        checkpoint, precision=model.precision, weights=model.weights, attention=model.attention
    )
    chat = _chat(context, load_tokenizer(str(checkpoint)))
    engine = evaluate.engine(settings, policy, chat, statements, checkpoint=checkpoint, say=context.say)
    return Speaker(engine, chat, stage)
