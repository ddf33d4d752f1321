"""The records of a run as a person reads them: problems, rollouts, pairs, a training batch, the funnel.

Everything shown is read from the run's folder; a batch is built by the generator that training uses. Where stdout is
no terminal there are no colours, and words and brackets say the same. Responses are hostile text: control characters,
with which a text could rewrite what the terminal shows, are replaced.
"""

from __future__ import annotations

import difflib
import itertools
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from rich.console import Console
from rich.table import Table
from rich.text import Text

from algorist import journal, store, trace
from algorist.errors import RecipeError, RecordError, RunError
from algorist.recipe import Recipe
from algorist.records import Pair, Preference, Problem, Rollout, Sample, Verdict

if TYPE_CHECKING:
    from algorist.stage import Run, Step

Item = TypeVar("Item")
_COLOURS = {True: "green", False: "red", None: "yellow"}


@dataclass(frozen=True)
class Look:
    """What to look at, and how much of it."""

    root: Path  # of a run
    recipe: Recipe
    tasks: Sequence[tuple[str, str]] = ()  # (task, its state)
    id: str = ""  # of a record, or how it begins
    count: int | None = None  # of what is shown; each view has its own
    stage: str = "sft"  # whose batch
    step: int | None = None  # which of its steps: the first unless given, of rlvr the last
    out: Console = field(default_factory=lambda: Console() if sys.stdout.isatty() else Console(width=120))

    def say(self, text: str | Text = "", style: str = "") -> None:
        """Print a line, never wrapped by us and never read as markup."""
        line = text if isinstance(text, Text) else Text(trace.harmless(text))
        self.out.print(line, style=style or None, soft_wrap=True, highlight=False)


def show(look: Look, what: str = "") -> None:
    """Print one view of a run to stdout: a key of VIEWS, or an overview.

    Raises:
        RecipeError where there is no such view or stage, RecordError where no record has the id, RunError where the
        thing to be shown is not made yet.
    """
    if what and what not in VIEWS:
        raise RecipeError(f"show {what}: there is no such view. {_nearest(what, VIEWS)}")
    if look.id and what in ("batch", "funnel"):
        raise RecipeError(f"show {what} --id: this view takes no id. `algorist why {look.id}` follows it everywhere.")
    if what:
        VIEWS[what](look)
    elif look.id:
        raise RecipeError(f"show --id {look.id}: of which view? `algorist why {look.id}` follows it everywhere.")
    else:
        _overview(look)


def _overview(look: Look) -> None:
    """Tasks and their state, the funnel, the table where there is one, and what else can be shown."""
    look.say(f"{look.root}: recipe {look.recipe.name}, seed {look.recipe.seed}", "bold")
    for task, state in look.tasks:
        look.say(f"  {task:20} {state}", "" if state == "done" else "dim")
    look.say()
    _funnel(look)
    report = look.root / "report.md"
    if report.exists():
        look.say("\n" + report.read_text(encoding="utf-8").rstrip())
    look.say(f"\nMore: algorist show {look.root} {'|'.join(VIEWS)}; algorist why ID --run {look.root}")


def _problems(look: Look) -> None:
    """A few problems with level, answer, and how many of their rollouts are right, wrong and not judged."""
    problems = _all_problems(look)
    chosen = _chosen(look, list(problems.values()), lambda problem: [problem.id], 5)
    tallies: dict[str, Counter[bool | None]] = defaultdict(Counter)
    if _made(look.root / "verdicts"):
        verdicts = _verdicts(look)
        for rollout in store.read(look.root / "rollouts", Rollout):
            if rollout.id in verdicts:  # they may be of older rollouts, until the run goes on
                tallies[rollout.problem_id][verdicts[rollout.id].right] += 1
    for problem in chosen:
        labels = ", ".join(label for label in (problem.level, problem.domain, problem.kind, problem.source) if label)
        look.say(f"problem {problem.id}  ({labels})", "bold")
        look.say(f"  {problem.statement}")
        look.say(f"  answer: {problem.answer}")
        tally = tallies[problem.id]
        look.say(f"  rollouts: {tally[True]:,} right, {tally[False]:,} wrong, {tally[None]:,} not judged")
    look.say(f"{len(chosen):,} of {len(problems):,} problems; --count shows more", "dim")


def _rollouts(look: Look) -> None:
    """One problem's rollouts with verdict, reason and the answer found: --id names the problem or a rollout."""
    problems, rollouts = _all_problems(look), _read(look, "rollouts", Rollout)
    if not rollouts:
        raise RunError(f"{look.root}: the data set of rollouts is empty. Name a [teacher] url, or sources with traces.")
    verdicts = _verdicts(look)
    found = _chosen(look, rollouts, lambda rollout: [rollout.id, rollout.problem_id], len(rollouts), limited=False)
    problem = problems[found[0].problem_id]
    own = [rollout for rollout in found if rollout.problem_id == problem.id]
    look.say(f"problem {problem.id}  answer: {problem.answer}", "bold")
    look.say(f"  {problem.statement}")
    shown = own[: look.count or 8]
    for rollout in shown:
        verdict = verdicts.get(rollout.id)
        colour = _COLOURS[verdict.right] if verdict else ""
        cut = ", cut at max_tokens" if rollout.finish == "length" else ""
        look.say(f"\nrollout {rollout.id} of {rollout.sampler}, {trace.judged(verdict)}{cut}", f"bold {colour}".strip())
        look.say(rollout.text, colour)
    look.say(f"\n{len(shown):,} of {len(own):,} rollouts of this problem; --count shows more", "dim")


def _pair(look: Look) -> None:
    """A chosen and a rejected response side by side, with what the reference thinks of them."""
    pairs = _all_pairs(look)
    if not pairs:
        raise RunError(f"{look.root}: holds no pair. A pair needs a right and a wrong rollout of one problem.")
    problems = _all_problems(look)
    rollouts = {rollout.id: rollout for rollout in store.read(look.root / "rollouts", Rollout)}
    verdicts = _verdicts(look)
    for pair in _chosen(look, pairs, lambda pair: [pair.id, pair.problem_id, pair.chosen_id, pair.rejected_id], 1):
        problem = problems[pair.problem_id]
        look.say(f"pair {pair.id}, problem {problem.id}, answer: {problem.answer}", "bold")
        look.say(f"  {problem.statement}")
        table = Table("chosen", "rejected", expand=True)
        sides = [(pair.chosen_id, pair.chosen_ref_logprob), (pair.rejected_id, pair.rejected_ref_logprob)]
        heads = [f"rollout {own}\n{trace.judged(verdicts.get(own))}\n{_reference(logprob)}" for own, logprob in sides]
        table.add_row(*(Text(trace.harmless(head)) for head in heads), end_section=True)
        texts = [trace.harmless(rollouts[own].text) for own, _ in sides]
        table.add_row(Text(texts[0], "green"), Text(texts[1], "red"))
        look.out.print(table)
    look.say(f"pairs: {len(pairs):,}; --count shows more", "dim")


def _reference(logprob: float | None) -> str:
    return "no reference yet" if logprob is None else f"reference log-probability {logprob:.3f}"


def _batch(look: Look) -> None:
    """A training step as the model sees it, token by token; of rlvr, the rollouts of a generation."""
    run = _stage_run(look, look.recipe)
    if run.stage.name == "rlvr":
        return _generation(look, run)
    # The steps of these stages are laid out from stored records alone: no policy is asked, and none is loaded.
    step = next(run.stage.steps(run, cast(Any, None)), None)
    if step is None:
        last = run.stage.plan(run).num_steps - 1
        raise RunError(f"{run.folder}: has no step {look.step}. Name one from 0 to {last} with --step.")
    documents = list(_documents(step))
    trained, tokens = (sum(column) for column in zip(*((_trained(w), len(w)) for _, w in documents), strict=True))
    laid_out = f"{len(documents):,} documents, micro-batches: {len(step.batches):,}"
    share = f"{tokens:,} tokens, {trained:,} of them trained ({100 * trained / tokens:.1f} %)"
    look.say(f"{run.stage.name}, step {run.start}: {laid_out}, {share}", "bold")
    marks = "bold green: trained, dim: only read" if look.out.is_terminal else "[trained], only read"
    look.say(f"{marks}; one token after another, documents never see each other")
    shown = documents[: look.count or 2]
    named = zip(_names(run, len(shown)), shown, strict=True)
    for place, (name, (ids, weights)) in enumerate(named, 1):
        counts = f"{len(ids):,} tokens, {_trained(weights):,} trained"
        look.say(f"\n── document {place}: {name}, {counts} ──", "bold cyan")
        look.say(_coloured(look, run, ids, weights))
    look.say(f"\n{len(shown):,} of {len(documents):,} documents; --count shows more", "dim")


def _trained(weights: Sequence[float]) -> int:
    return sum(weight != 0 for weight in weights)


def _stage_run(look: Look, recipe: Recipe) -> Run:
    """The stage as training opens it, at the step to be shown."""
    from algorist.model.chat import Chat, load_tokenizer
    from algorist.stage import Run
    from algorist.stages import base, chosen

    stages = {stage.name: stage for stage in (base.STAGE, *chosen(recipe))}
    if look.stage not in stages:
        raise RecipeError(f"--stage {look.stage}: there is no such stage. {_nearest(look.stage, stages)}")
    before = {after: name for name, after in itertools.pairwise(stages)}
    stage = stages[look.stage]
    parent = look.root / before[stage.name] / "checkpoint" if stage.name in before else look.root / "base" / "start"
    if not _made(look.root / stage.name / "data"):
        raise RunError(f"{look.root}: the stage {stage.name} has no data yet. Run the recipe until {stage.name} first.")
    model = recipe.resolved()["model"]
    chat = Chat.of(load_tokenizer(str(parent)), model["prompt"], system=model["system"])
    return Run(recipe, look.root, stage, str(parent), chat, model["precision"], start=look.step or 0)


def _documents(step: Step) -> Iterator[tuple[list[int], list[float]]]:
    """(token ids, weights) of every document of a step."""
    for batch in step.batches:
        rows: Any = getattr(batch, "rows", batch)
        for start, end in itertools.pairwise(rows.bounds):
            yield rows.tokens[start:end].tolist(), rows.weights[start:end].tolist()


def _names(run: Run, count: int) -> list[str]:
    """What the first `count` documents of the step that `run` begins at are: they stand in the order of the draw."""
    from algorist.stages import dpo, midtrain
    from algorist.tokens import Corpus

    if run.stage.name != "dpo":
        places = next(midtrain.drawn(run, Corpus.open(run.data, Sample).lengths))[:count].tolist()
        samples = store.take(run.data, Sample, places)
        return [f"sample {s.id}, problem {s.problem_id}, rollout {s.rollout_id or 'none'}" for s in samples]
    drawn = next(dpo.drawn(run, store.manifest(run.data).rows))[:count].tolist()
    names = []
    for pair in store.take(run.data, Pair, drawn):
        names.append(f"chosen of pair {pair.id}, {_reference(pair.chosen_ref_logprob)}")
        names.append(f"rejected of pair {pair.id}, {_reference(pair.rejected_ref_logprob)}")
    return names[:count]


def _coloured(look: Look, run: Run, ids: Sequence[int], weights: Sequence[float]) -> Text:
    """The tokens of a document, marked by weight; two shades make the borders between trained tokens visible."""
    text = Text()
    for place, (token, weight) in enumerate(zip(ids, weights, strict=True)):
        piece = trace.harmless(run.chat.tokenizer.decode([token], skip_special_tokens=False))
        if not look.out.is_terminal:
            text.append(f"[{piece}]" if weight else piece)
        elif token == run.chat.end:
            text.append(piece, "reverse green" if weight else "reverse dim")
        else:
            text.append(piece, ("bold green", "bold bright_green")[place % 2] if weight else "dim")
    return text


def _generation(look: Look, run: Run) -> None:
    """What the policy said in one generation, its verdicts, and the sign of its advantage where it was learned from."""
    from algorist.stages.groups import group as selected

    shards = sorted((look.root / "rlvr" / "rollouts").glob("[0-9]*.parquet"))
    if not shards or (look.step or 0) >= len(shards):
        so_far = f"rlvr has sampled {len(shards)} generations so far"
        raise RunError(f"{look.root}: {so_far}. Run it further, or name another --step.")
    shard = shards[-1 if look.step is None else look.step]
    problems, rollouts = _all_problems(look), store.read_shard(shard, Rollout)
    verdicts = store.read_shard(look.root / "rlvr" / "verdicts" / shard.name, Verdict)
    groups: dict[str, list[tuple[Rollout, Verdict]]] = defaultdict(list)
    for rollout, verdict in zip(rollouts, verdicts, strict=True):
        groups[rollout.problem_id].append((rollout, verdict))
    facts = [entry for entry in journal.read(look.root / "rlvr") if "learned_from" in entry]
    learned = f", learned from {facts[int(shard.stem)]['learned_from']:,}" if int(shard.stem) < len(facts) else ""
    look.say(f"rlvr, generation {int(shard.stem)}: {len(groups)} prompts, {len(rollouts):,} rollouts{learned}", "bold")
    look.say("+ right: pushed up where it is learned from; - wrong: pushed down")
    judged = {own: [(one, v.right) for one, v in group if v.right is not None] for own, group in groups.items()}
    fates = {own: selected(run, int(shard.stem), problems[own], found).selection for own, found in judged.items()}
    order = sorted(groups, key=lambda own: not fates[own].kept)  # what was learned from first
    for problem_id in order[: look.count or 2]:
        problem, group = problems[problem_id], groups[problem_id]
        right = sum(verdict.right is True for _, verdict in group)
        fate = "" if fates[problem_id].kept else f", dropped: {fates[problem_id].reason}"
        look.say(f"\nproblem {problem.id}, answer: {problem.answer}, {right} of {len(group)} right{fate}", "bold cyan")
        look.say(f"  {problem.statement}")
        for rollout, verdict in sorted(group, key=lambda judged: not judged[1].right)[: max(2 * right, 4)]:
            sign = {True: "+", False: "-", None: "?"}[verdict.right]
            look.say(f"  {sign} {rollout.text}  ({trace.judged(verdict)})", _COLOURS[verdict.right])


def _funnel(look: Look) -> None:
    """Every data set: rows, what was left out on the way and why, and what it was made from."""
    from algorist.data import funnel

    if text := funnel.text_of(look.root).rstrip():
        look.say(f"{text}\n")
    found = list(trace.data_sets(look.root))
    if not found:
        raise RunError(f"{look.root}: no data set is finished yet. Run the recipe first.")
    names = {manifest.id: place for place, manifest in reversed(found)}
    for card in look.root.glob("*/checkpoint/checkpoint.json"):
        names[store.read_json(card)["id"]] = f"{card.parts[-3]}/checkpoint"
    for place, made in found:
        parents = ", ".join(names.get(parent, parent) for parent in made.parents)
        look.say(f"{place:28} {made.rows:>9,} {made.kind.lower()}s  {made.id}{f'  from {parents}' if parents else ''}")
        for reason, count in sorted(made.dropped.items(), key=lambda item: (-item[1], item[0])):
            look.say(f"{'':28} {count:>9,} left out: {reason}", "dim")


def _all_problems(look: Look) -> dict[str, Problem]:
    return {problem.id: problem for problem in _read(look, "problems", Problem)}


def _all_pairs(look: Look) -> list[Pair]:
    """Pairs of stage 3; before it has any, those of its set, without token ids."""
    if _made(look.root / "dpo" / "data"):
        return store.read(look.root / "dpo" / "data", Pair)
    rows = _read(look, "sets/dpo", Preference)
    return [Pair(row.id, row.problem_id, row.chosen_id, row.rejected_id, 0, 0, 0) for row in rows]


def _verdicts(look: Look) -> Mapping[str, Verdict]:
    return {verdict.rollout_id: verdict for verdict in _read(look, "verdicts", Verdict)}


def _read(look: Look, name: str, kind: type[Item]) -> list[Item]:
    if not _made(look.root / name):
        task = name.removesuffix("/data")
        raise RunError(f"{look.root}: has no {name} yet. Run the command that made the folder until {task} is done.")
    return store.read(look.root / name, kind)


def _made(folder: Path) -> bool:
    return (folder / store.MANIFEST).exists()


def _chosen(
    look: Look, records: list[Item], ids: Callable[[Item], list[str]], count: int, *, limited: bool = True
) -> list[Item]:
    """The records that --id names, or the first ones."""
    found = [record for record in records if not look.id or any(own.startswith(look.id) for own in ids(record))]
    if not found and records:
        everywhere = f"`algorist why {look.id} --run {look.root}` looks everywhere"
        raise RecordError(f"{look.root}: no record of this view has the id {look.id}. {everywhere}.")
    return found[: look.count or count] if limited else found


def _nearest(word: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(word.lower(), known, n=1)
    return f"Did you mean {near[0]}?" if near else f"Known here: {', '.join(known)}."


VIEWS: dict[str, Callable[[Look], None]] = {
    "problems": _problems,
    "rollouts": _rollouts,
    "pair": _pair,
    "batch": _batch,
    "funnel": _funnel,
}
