"""The data engine's tasks: from the sources of a recipe to the four sets that the stages learn from.

    benchmarks ─┬─────────────┐
    sources ────┴→ problems ──┼→ rollouts ─┬→ verdicts ─┬→ profiles ─┬→ sets/midtrain, sft, dpo, rlvr
                              └────────────┴→ measures ─┴────────────┘

Shard k of each of them is of the same problems, and is made from shard k of those before it. No torch here.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from algorist import store
from algorist.data import clean, labels, measures, profiles, readers, repetition, sets, sources, teacher, verdicts
from algorist.data.curate import Settings as Curate
from algorist.data.shards import Engine, Job, build, made_from, over
from algorist.errors import RunError
from algorist.generate import answers
from algorist.model import chat
from algorist.recipe import Recipe
from algorist.records import Measure, Problem, Profile, Rollout
from algorist.task import SUPERSEDED, Context, Task, dropped
from algorist.toy import world
from algorist.verify import judge
from algorist.verify import pool as verify
from algorist.verify.conventions import Conventions
from algorist.verify.pool import Pool

NOT_READ = ("evaluate", "base", *sets.SETS)  # sections of a recipe that only training and scoring read
_STORY = ("toy.fewest_steps", "toy.most_steps", "toy.distractors")


def sections() -> dict[str, tuple[Any, ...]]:
    """Which settings each section of a recipe fills that the data engine reads."""
    return {
        "model": (chat.Settings,),
        "toy": (world.Settings,),
        "data": (sources.Settings,),
        "teacher": (teacher.Settings,),
        "verify": (verify.Settings, Conventions),
        "judge": (judge.Settings,),
        "repetition": (repetition.Settings,),
        "labels": (labels.Settings,),
        "curate": (Curate,),
    }


def tasks(recipe: Recipe) -> list[Task]:
    """The data engine's tasks, each after those that it needs."""
    data, curate = recipe.of("data", sources.Settings), recipe.of("curate", Curate)
    asked = tuple(path for name in data.benchmarks.values() if name != sources.TOY for path in readers.files_of(name))
    held_out = ("seed", "data.benchmarks", "data.columns", "toy.held_out", *_STORY)
    told = ("data.problems", "data.sources", "data.columns", "data.refuse", "toy.problems", *_STORY)
    asking: teacher.Settings = recipe.of("teacher", teacher.Settings)
    counted = ("model.base", "data.ngram", "repetition")
    words = chat.tokenizer_files(recipe.of("model", chat.Settings).base)
    judged = ("verify",) if asking.cap > asking.samples else ()
    found = [
        Task("benchmarks", (), held_out, _benchmarks, asked),
        Task("sources", (), ("seed", "verify", *told), _sources, sources.files_of(data)),
        Task("problems", ("benchmarks", "sources"), ("data.ngram", "data.fuzzy", "data.near"), _problems),
        Task("rollouts", ("sources", "problems"), ("seed", "teacher", *judged), _rollouts),
        Task("verdicts", ("problems", "rollouts"), ("verify", "judge"), _verdicts),
        Task("measures", ("benchmarks", "problems", "rollouts"), counted, _measures, words),
        Task("profiles", ("problems", "rollouts", "verdicts"), ("labels",), _profiles),
    ]
    for name in sets.wanted(recipe):
        rules = (f"curate.{name}", *(["curate.midtrain"] if name == "sft" else []))  # stage 2 chooses among stage 1's
        needs = tuple(sets.needs(name, curate))
        found.append(Task(f"sets/{name}", needs, ("seed", "model.prompt", *rules), partial(_set, name)))
    return found


def _engine(context: Context) -> Engine:
    data: sources.Settings = context.of("data", sources.Settings)
    return Engine(data.engine, data.workers)


def _asked(context: Context) -> clean.Asked:
    data: sources.Settings = context.of("data", sources.Settings)
    return clean.Asked.of(context.root, list(data.benchmarks), data.ngram, data.fuzzy)


def _build(context: Context, task: str, function: Callable[..., object], jobs: list[Job]) -> None:
    if count := build(task, function, jobs, _engine(context), context.older(task)):
        context.say(f"{task}: {count:,} of {len(jobs):,} shards taken over from {context.root / SUPERSEDED}")


def _benchmarks(context: Context) -> None:
    settings, toy = context.of("data", sources.Settings), context.of("toy", world.Settings)
    for name, made in sources.write_benchmarks(context.root / "benchmarks", settings, toy, context.recipe.seed).items():
        context.say(f"benchmarks: {name}: {made.rows:,}{dropped(made)}")


def _sources(context: Context) -> None:
    settings, toy = context.of("data", sources.Settings), context.of("toy", world.Settings)
    with Pool.of(context.recipe) as pool:
        counts = sources.write_sources(context.root / "sources", settings, toy, context.recipe.seed, pool)
    context.say(sources.counts_text(counts))


def _problems(context: Context) -> None:
    near = context.of("data", sources.Settings).near
    made, found = clean.write(context.root, _asked(context), near, _engine(context), context.older("problems"))
    context.say(f"problems: {made.rows:,}{dropped(made)}")
    if found.others:
        context.say(
            f"problems: {found.others:,} are near another with other numbers or another answer; all of them stay"
        )


def _rollouts(context: Context) -> None:
    """Ask the teacher for what the log lacks, then read every shard's rollouts from the log and the traces."""
    root, settings = context.root, context.of("teacher", teacher.Settings)
    measures.load(context.of("model", chat.Settings).base)  # a wrong name shows before the teacher has cost anything
    log, seed = root / answers.FILE, context.recipe.seed
    told = store.manifest(root / "problems")
    problems = [root / "problems" / shard for shard in told.shards]
    traces = [root / "sources" / "traces" / shard for shard in told.shards]
    with Pool.of(context.recipe) as pool:
        usage = teacher.ask(problems, log, settings, seed=seed, judge=_judge(problems, pool), traces=traces)
    context.say(f"rollouts: {_spent(usage, settings)}" if settings.urls else "rollouts: no teacher is asked")
    if usage.found:
        with answers.reading(log) as known:
            paid = known.spent()
            context.say(f"rollouts: the log holds {len(known):,} samples, for {paid[0]:,} + {paid[1]:,} tokens in all")
    arguments = [
        (shard, own, root / "rollouts" / shard.name, log, settings, seed)
        for shard, own in zip(problems, traces, strict=True)
    ]
    for _ in over(write_rollouts, arguments, _engine(context)):
        pass
    parents = [told.id, store.manifest(root / "sources" / "traces").id]
    made = store.finish(root / "rollouts", Rollout, parents=parents, shards=told.shards)
    context.say(f"rollouts: {made.rows:,} to {told.rows:,} problems{dropped(made)}")


def write_rollouts(problems: Path, traces: Path, out: Path, log: Path, settings: teacher.Settings, seed: int) -> None:
    """Write a shard of rollouts: what the log has of its problems, and the traces that came with them."""
    brought = store.read_shard(traces, Rollout)
    found = teacher.rollouts_of(problems, log, settings, seed=seed, traces=brought)
    known = set(store.read_columns(problems, ("id",))["id"].to_pylist())
    traced = {trace.problem_id for trace in brought}
    said = Counter(rollout.problem_id for rollout in found if not rollout.source)
    asked = [own for own in known if settings.ask_traced or own not in traced] if settings.urls else []
    dropped = {
        "its problem was left out": sum(trace.problem_id not in known for trace in brought),
        "the teacher gave no answer": sum(max(settings.samples - said[own], 0) for own in asked),
    }
    store.write_shard(out.parent, int(out.stem), Rollout, found, dropped=dropped)


def _spent(usage: teacher.Usage, settings: teacher.Settings) -> str:
    """What asking the teacher came to, in one line."""
    parts = [f"{usage.samples:,} samples of {settings.model}, {usage.found:,} were in the log before"]
    if usage.completion_tokens:
        parts.append(f"{usage.prompt_tokens:,} + {usage.completion_tokens:,} tokens")
    if usage.cost:
        parts.append(f"cost {usage.cost:,.2f}")
    if usage.asked_again:
        parts.append(f"{usage.asked_again:,} problems asked again")
    parts += [f"{count:,} questions without an answer: {reason}" for reason, count in usage.refused.items()]
    if usage.words:
        parts.append(f"the server said: {usage.words}")
    failed = [f"{failures:,} of {address}" for address, _, failures in usage.servers if failures]
    if failed:
        parts.append(f"failed requests, asked again: {', '.join(failed)}")
    return "; ".join(parts)


def _judge(problems: list[Path], pool: Pool) -> Callable[[list[Rollout]], dict[str, bool | None]]:
    """Which of some rollouts are right, for a teacher that is asked again where none is."""
    golds: dict[str, str] = {}  # of one shard: problems come in the order of their shards, round after round
    coming = itertools.cycle(problems)

    def judge_some(rollouts: list[Rollout]) -> dict[str, bool | None]:
        for _ in problems:
            if all(rollout.problem_id in golds for rollout in rollouts):
                break
            columns = store.read_columns(next(coming), ("id", "answer"))
            golds.clear()
            golds.update(zip(columns["id"].to_pylist(), columns["answer"].to_pylist(), strict=True))
        return {verdict.rollout_id: verdict.right for verdict in pool.verdicts(rollouts, golds)}

    return judge_some


def _verdicts(context: Context) -> None:
    """The teacher's rollouts only: the judge has no say in scores and in the rewards of RLVR."""
    settings: judge.Settings = context.of("judge", judge.Settings)
    limits, conventions = context.of("verify", verify.Settings), context.of("verify", Conventions)
    made = verdicts.write(context.root, limits, conventions, settings, _engine(context), context.older("verdicts"))
    said = verdicts.tally(context.root / "verdicts", made)
    if settings.url:
        opinions = f"{said['equal']:,} equal, {said['different']:,} different, {said['undecided']:,} undecided"
        asked = f"verdicts: {settings.model} was asked about {said['asked']:,}: {opinions}"
        look = f" (algorist show {context.root} --disagreements)" if said["conflicts"] else ""
        context.say(f"{asked}; {said['conflicts']:,} disagreements with the rules{look}")
    context.say(f"verdicts: {said['right']:,} right, {said['wrong']:,} wrong, {said['not judged']:,} not judged")


def _measures(context: Context) -> None:
    root, asked, rules = context.root, _asked(context), context.of("repetition", repetition.Settings)
    tokenizer: str = context.of("model", chat.Settings).base
    told = store.manifest(root / "rollouts")
    jobs = []
    for shard in told.shards:
        paths = root / "rollouts" / shard, root / "problems" / shard
        read = [store.facts(path).content for path in paths]
        flags = repetition.VERSION, asdict(rules)
        origin = made_from(measures.measure, tokenizer, asked.content, asked.ngram, *flags, *read)
        out = root / "measures" / shard
        jobs.append(Job(out, (*paths, out, tokenizer, asked, rules, origin), origin))
    _build(context, "measures", measures.measure, jobs)
    made = store.finish(root / "measures", Measure, parents=[told.id])
    hits = clean.report_rollouts(root, asked).hits
    context.say(f"measures: {made.rows:,} rollouts, {len(hits):,} of them quote a benchmark")


def _profiles(context: Context) -> None:
    root, settings = context.root, context.of("labels", labels.Settings)
    log = root / labels.LOG
    told = [store.manifest(root / name) for name in ("problems", "rollouts", "verdicts")]
    shards = [root / "problems" / shard for shard in told[0].shards]
    if settings.urls:
        told_by = labels.ask(shards, log, settings)
        counts = f"{told_by.asked:,} labels by {settings.model}, {told_by.found:,} were in the log before"
        if told_by.refused and not told_by.asked + told_by.found:
            raise RunError(f"[labels] {settings.model}: nothing was answered ({told_by.words}). Mend [labels].")
        without = f"{told_by.unreadable:,} replies unreadable, {told_by.refused:,} questions refused"
        context.say(f"profiles: {counts}; {without}{f' ({told_by.words})' if told_by.words else ''}")
    jobs = []
    for path in shards:
        paths = tuple(root / name / path.name for name in ("problems", "rollouts", "verdicts"))
        read = [store.facts(one).content for one in paths]
        said = labels.digest(store.read_shard(path, Problem), settings, log)
        origin = made_from(profiles.profile, said, *read)
        out = root / "profiles" / path.name
        jobs.append(Job(out, (*paths, out, log, settings, origin), origin))
    _build(context, "profiles", profiles.profile, jobs)
    made = store.finish(root / "profiles", Profile, parents=[one.id for one in told])
    context.say(f"profiles: {made.rows:,} problems")


def _set(name: sets.Name, context: Context) -> None:
    task = f"sets/{name}"
    prompt: str = context.of("model", chat.Settings).prompt
    rules, seed = context.of("curate", Curate), context.recipe.seed
    made = sets.make(name, context.root, rules, seed, prompt, _engine(context), context.older(task))
    context.say(f"{task}: {made.rows:,} {made.kind.lower()}s{dropped(made)}")
