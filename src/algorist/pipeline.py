"""The recipe as a list of tasks: what is done is skipped, what is half done goes on, what changed is done again.

A task's fingerprint covers the recipe sections that it reads and the fingerprints of the tasks before it. A folder
whose stored fingerprint is another one was made by an older recipe: it moves to `superseded/`, where it can be
looked at, compared, and found again when the recipe goes back.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from algorist import recipe as recipes
from algorist import store
from algorist.data import decontaminate, sources, teacher
from algorist.errors import RunError
from algorist.evals import evaluate, report
from algorist.journal import progress
from algorist.model import checkpoints, devices
from algorist.model.chat import Chat, load_tokenizer
from algorist.recipe import Recipe
from algorist.records import Checkpoint, Problem, Rollout, Verdict, content_id
from algorist.stage import Run, Stage
from algorist.stages import STAGES, base
from algorist.toy import base as toy_base
from algorist.toy import world
from algorist.train import train
from algorist.verify.pool import Pool

FORMAT = 1  # raised when a run folder of an older version cannot be gone on with
_MARK = "task.json"


@dataclass(frozen=True)
class Model:
    """[model]"""

    base: str = "toy"  # a local folder, a hub name, or "toy": a small model made in the run
    prompt: str = "Please reason step by step, and put your final answer within \\boxed{{}}. {problem}"
    precision: str = "float32"  # of matrix products: "float32" or "bfloat16"; weights are always float32

    def __post_init__(self) -> None:
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f'precision is "{self.precision}", "float32" or "bfloat16" was expected.')


@dataclass(frozen=True)
class Verify:
    """[verify]"""

    seconds: float = 1.0  # for one verdict; then the worker is killed and the answer counts as not judged


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
    sections: tuple[str, ...]  # of the recipe
    make: Callable[[Context], None] = field(compare=False)


def sections() -> dict[str, tuple[Any, ...]]:
    """Which settings each section of a recipe fills."""
    known: dict[str, tuple[Any, ...]] = {
        "model": (Model,),
        "toy": (world.Settings,),
        "data": (sources.Settings,),
        "teacher": (teacher.Settings,),
        "verify": (Verify,),
        "evaluate": (evaluate.Settings,),
    }
    return known | {stage.name: (stage.settings, stage.training) for stage in (base.STAGE, *STAGES)}


def tasks(recipe: Recipe) -> list[Task]:
    """The recipe's tasks, each after those that it needs."""
    toy_model = recipe.of("model", Model).base == "toy"
    found = [
        Task("benchmarks", (), ("seed", "data", "toy"), _benchmarks),
        Task("problems", ("benchmarks",), ("seed", "data", "toy"), _problems),
        Task("rollouts", ("problems",), ("seed", "teacher"), _rollouts),
        Task("verdicts", ("rollouts",), ("verify",), _verdicts),
    ]
    before = "base"
    found.append(Task("base", (), ("seed", "model", "base", *base.STAGE.reads) if toy_model else ("model",), _base))
    found.append(_scores_task("base"))
    for stage in STAGES:
        needs = ("problems", "verdicts", before)
        found.append(Task(stage.name, needs, ("seed", "model", stage.name, *stage.reads), _stage_task(stage, before)))
        found.append(_scores_task(stage.name))
        before = stage.name
    return found


def fingerprints(recipe: Recipe) -> dict[str, str]:
    """Task name → what its folder must have been made from."""
    found: dict[str, str] = {}
    for task in tasks(recipe):
        own = recipe.fingerprint(*task.sections)
        found[task.name] = content_id(FORMAT, task.name, own, [found[need] for need in task.needs])
    return found


def run(recipe: Recipe, root: Path, say: Callable[[str], object] = print, until: str | None = None) -> str | None:
    """Do every task that is not done, print what happens through `say`, and return the report.

    Args:
        until  stop after this task; then there is no report, and None is returned

    Raises:
        RunError where the folder holds a run of another recipe, or another process works in it.
    """
    todo = tasks(recipe)
    if until is not None and until not in [task.name for task in todo]:
        raise RunError(f"--until {until}: there is no such task. Known here: {', '.join(t.name for t in todo)}.")
    devices.settle()
    with _alone(root):
        _open_folder(recipe, root, say)
        wanted = fingerprints(recipe)
        for task in todo:
            _do(task, wanted[task.name], Context(recipe, root, say))
            if task.name == until:
                return None
        return write_report(recipe, root)


def state(recipe: Recipe, root: Path) -> list[tuple[str, str]]:
    """(task, "done", "begun", "to do" or "made by another recipe") of every task."""
    wanted = fingerprints(recipe)
    return [(task.name, _state(root / task.name, wanted[task.name])) for task in tasks(recipe)]


def _state(folder: Path, fingerprint: str) -> str:
    if not (folder / _MARK).exists():
        return "to do"
    mark = store.read_json(folder / _MARK)
    if mark["fingerprint"] != fingerprint:
        return "made by another recipe"
    return "done" if mark["done"] else "begun"


def _do(task: Task, fingerprint: str, context: Context) -> None:
    folder = context.root / task.name
    found = _state(folder, fingerprint)
    if found == "made by another recipe":
        _set_aside(context.root, task.name, store.read_json(folder / _MARK)["fingerprint"])
        found = "to do"
    if found == "to do":
        folder = _bring_back(context.root, task.name, fingerprint)
        found = _state(folder, fingerprint)
    if found == "done":
        context.say(f"{task.name}: done before, skipped")
        return
    started = time.monotonic()
    if found == "to do":
        store.write_json(folder / _MARK, {"fingerprint": fingerprint, "done": False})
    with store.explain_full_disk(folder):
        task.make(context)
        store.write_json(folder / _MARK, {"fingerprint": fingerprint, "done": True})
    context.say(f"{task.name}: done in {time.monotonic() - started:.0f} s")


def _set_aside(root: Path, name: str, fingerprint: str) -> None:
    place = root / "superseded" / f"{name.replace('/', '-')}-{fingerprint}"
    place.parent.mkdir(exist_ok=True)
    os.replace(root / name, place)


def _bring_back(root: Path, name: str, fingerprint: str) -> Path:
    place = root / "superseded" / f"{name.replace('/', '-')}-{fingerprint}"
    if place.exists():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(place, root / name)
    return root / name


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Hold the run folder for this process."""
    with store.explain_full_disk(root):
        root.mkdir(parents=True, exist_ok=True)
        lock = open(root / ".lock", "a")  # noqa: SIM115  held for as long as the run
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"{root}: another algorist works in this folder. Wait for it, or name another --out.") from None
        yield


def _open_folder(recipe: Recipe, root: Path, say: Callable[[str], object]) -> None:
    """Refuse a folder of another recipe, say what changed in this one, and write the resolved recipe."""
    path = root / "recipe.toml"
    if path.exists():
        old = tomllib.loads(path.read_text(encoding="utf-8"))
        if old["name"] != recipe.name:
            raise RunError(
                f'{root}: holds a run of the recipe "{old["name"]}", not of "{recipe.name}". '
                "Name another folder with --out, or delete this one."
            )
        for line in recipes.differences(old, recipe.resolved()):
            say(f"changed: {line}")
        again = [name for name, found in state(recipe, root) if found == "made by another recipe"]
        if again:
            say(f"made again: {', '.join(again)}; what was there moves to {root / 'superseded'}")
    elif any(entry.name != ".lock" for entry in root.iterdir()):
        raise RunError(f"{root}: is not empty and holds no recipe.toml, so it is no run. Name another folder with --out.")
    store.write_text(path, recipe.dumps())


def _benchmarks(context: Context) -> None:
    settings, toy = context.of("data", sources.Settings), context.of("toy", world.Settings)
    sources.write_benchmarks(context.root / "benchmarks", settings, toy, context.recipe.seed)


def _problems(context: Context) -> None:
    settings = context.of("data", sources.Settings)
    benchmarks = sources.read_benchmarks(context.root / "benchmarks", list(settings.benchmarks))
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
    golds = {problem.id: problem.answer for problem in store.read(context.root / "problems", Problem)}
    source, target = context.root / "rollouts", context.root / "verdicts"
    manifest = store.manifest(source)
    with Pool(seconds=context.of("verify", Verify).seconds) as pool, progress("verify", manifest.rows) as advance:
        for index, shard in enumerate(manifest.shards):
            rollouts = store.read_shard(source / shard, Rollout)
            if not (target / f"{index:05d}.parquet").exists():
                store.write_shard(target, index, Verdict, pool.verdicts(rollouts, golds))
            advance(len(rollouts))
    store.finish(target, Verdict, parents=[manifest.id])
    verdicts = store.read(target, Verdict)
    counts = {right: sum(verdict.right is right for verdict in verdicts) for right in (True, False, None)}
    context.say(f"verdicts: {counts[True]:,} right, {counts[False]:,} wrong, {counts[None]:,} not judged")


def _chat(context: Context, tokenizer: Any) -> Chat:
    return Chat.of(tokenizer, context.of("model", Model).prompt)


def _base(context: Context) -> None:
    """The toy's base model is trained; any other is only looked at, so that what is missing shows at once."""
    model = context.of("model", Model)
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
        policy = checkpoints.Policy(fresh)
        checkpoints.save(folder / "start", policy, chat.tokenizer, Checkpoint("", "base", 0))
    _train(context, base.STAGE, folder / "start", chat)


def _stage_task(stage: Stage, before: str) -> Callable[[Context], None]:
    def make(context: Context) -> None:
        names = list(context.of("data", sources.Settings).benchmarks)
        benchmarks = sources.read_benchmarks(context.root / "benchmarks", names)
        decontaminate.require_report(context.root / "problems", benchmarks)
        parent = context.root / before / "checkpoint"
        _train(context, stage, parent, _chat(context, load_tokenizer(str(parent))))

    return make


def _train(context: Context, stage: Stage, parent: Path, chat: Chat) -> None:
    model = context.of("model", Model)
    this = Run(context.recipe, context.root, stage, str(parent), chat, model.precision)
    if not (this.data / store.MANIFEST).exists():
        made = stage.curate(this)
        context.say(f"{stage.name}: learns from {made.rows:,} {made.kind.lower()}s{_dropped(made)}")
    plan = stage.plan(this)
    if plan.num_steps < 1:
        raise RunError(f"{this.data}: nothing is left to learn from. Loosen [{stage.name}] or give it more problems.")
    context.say(f"{stage.name}: {plan.num_steps:,} steps, {plan.documents:,} documents, {plan.tokens:,} tokens")
    train(this, context.say)


def _scores_task(stage: str) -> Task:
    def make(context: Context) -> None:
        checkpoint = context.root / stage / "checkpoint"
        model = context.of("model", Model)
        policy = checkpoints.open_policy(checkpoint, precision=model.precision)
        chat = _chat(context, load_tokenizer(str(checkpoint)))
        settings = context.of("evaluate", evaluate.Settings)
        names = list(context.of("data", sources.Settings).benchmarks)
        for name, problems in sources.read_benchmarks(context.root / "benchmarks", names).items():
            place = context.root / "scores" / stage / name
            evaluate.evaluate(policy, chat, problems, place, settings, seed=context.recipe.seed, stage=stage)

    return Task(f"scores/{stage}", ("benchmarks", stage), ("seed", "model", "evaluate", "verify"), make)


def write_report(recipe: Recipe, root: Path) -> str:
    """The table of a finished run from its stored rollouts, written to its folder. Raises RunError for one unfinished."""
    if todo := [name for name, found in state(recipe, root) if found != "done"]:
        raise RunError(f"{root}: {todo[0]} is not done, so there is no table yet. Run the recipe to its end first.")
    cards = [(name, checkpoints.card(root / name / "checkpoint")) for name in ("base", *(s.name for s in STAGES))]
    found = report.scores(root / "scores", cards, list(recipe.of("data", sources.Settings).benchmarks))
    return report.write(root, recipe.name, found)


def _dropped(made: store.Manifest) -> str:
    reasons = [f"{count:,} {reason}" for reason, count in made.dropped.items() if count]
    return f" (left out: {', '.join(reasons)})" if reasons else ""
