"""Examining a stage: what `algorist run` does before its first step, and what `algorist check` prints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from algorist import store
from algorist.doctor import cases, findings
from algorist.doctor.cases import Case, FirstStep
from algorist.doctor.findings import Finding
from algorist.errors import RunError
from algorist.model import chat as chats
from algorist.model.chat import Chat, load_tokenizer
from algorist.model.policy import Policy
from algorist.recipe import Recipe
from algorist.records import Problem
from algorist.stage import Run, Stage
from algorist.stages import chosen
from algorist.toy import words
from algorist.trace import harmless

NOTHING = "nothing to look at yet: run `algorist gather` first"
_HEAD, _TAIL = 40, 30  # tokens of a document that are shown


@dataclass(frozen=True)
class Report:
    """What was found in the first step of a stage."""

    title: str
    line: str  # all of it in a line, where nothing refuses
    findings: tuple[Finding, ...]
    document: str  # the beginning and the end of one, what is trained in brackets

    @property
    def refused(self) -> tuple[str, ...]:
        """The messages of what refuses."""
        return tuple(found.said for found in self.findings if found.ok is False)

    def __str__(self) -> str:
        """A small table, and the document."""
        states = {True: "ok", False: "refused", None: "-"}
        rows = [f"  {found.what:10} {states[found.ok]:8} {found.said}" for found in self.findings]
        return "\n".join([self.title, *rows, f"  {self.document}"])


def before_first_step(run: Run, say: Callable[[str], object]) -> None:
    """Examine a stage that is about to take its first step, and say in a line what was seen; one that goes on is not
    examined again.

    Raises RunError where something is wrong.
    """
    if not (run.folder / "checkpoint").exists() and not any(run.folder.glob("step-*")):
        say(examine(run, None if _samples(run) else _opened(run)).line)


def examine(run: Run, policy: Policy | None) -> Report:
    """The report of a stage that has its data.

    Args:
        policy  that the stage starts from; where there is none, whether documents leak is not looked at

    Raises RunError where something is wrong: the first message of the report.
    """
    found = look(run, policy)
    if found.refused:
        raise RunError(found.refused[0])
    return found


def look(run: Run, policy: Policy | None) -> Report:
    """The report of a stage that has its data, whatever it says."""
    if _samples(run):
        return _of_prompts(run, cases.of_prompts(run))
    step = cases.of_stage(run)
    if step is None:
        raise RunError(
            f"{run.data}: nothing is left to learn from. Loosen [{run.stage.name}] or give it more problems."
        )
    name = run.stage.name
    return _of_documents((name, f"[{name}] sequence_length"), step, run, policy)


def reports(recipe: Recipe, root: Path) -> Iterator[Report]:
    """The report of every stage of a run that has its data, and one of a sample for those that have none yet.

    Nothing is written, and nothing is downloaded for it but a tokenizer that is not there. Yields nothing where there
    is no rollout to make a sample of.
    """
    parent, fresh = root / "base" / "checkpoint", list[Stage]()
    for stage in chosen(recipe):
        if parent.exists() and (root / stage.name / "data" / store.MANIFEST).exists():
            run = _run(recipe, root, stage, str(parent))
            try:
                yield look(run, None if _samples(run) else _opened(run))
            except RunError as error:  # the stage itself refuses its data, as a stale reference
                yield Report(f"{stage.name}: cannot be laid out", "", (Finding("data", str(error), False),), "")
        else:
            fresh.append(stage)
        own = root / stage.name / "checkpoint"
        parent = own if own.exists() else parent
    told, where = cases.at_hand(recipe, root) if fresh else ([], "")
    if told:
        run = _run(recipe, root, fresh[0], str(parent) if parent.exists() else recipe.of("model", chats.Settings).base)
        names = ", ".join(stage.name for stage in fresh)
        named = (f"{names} (no data yet: a sample, of {where})", "sequence_length")
        policy = _opened(run) if parent.exists() else None
        yield _of_documents(named, cases.made(told, where, run.chat), run, policy)


def _of_documents(named: tuple[str, str], step: FirstStep, run: Run, policy: Policy | None) -> Report:
    """`named` says whose step it is, and which key bounds the length of its documents."""
    (name, lower), chat, parent = named, run.chat, run.parent
    found = [
        findings.trained(step),
        findings.bos(step, chat),
        findings.prompt(step, chat),
        findings.end(step, chat, parent),
        findings.thought(step, chat),
        findings.ids(step, chat, parent, lower),
    ]
    if found[-1].ok:  # what the model does not know it cannot be asked about
        found.append(findings.documents(step, policy, parent))
    seen, ended = len(step.cases), sum(case.told.ended for case in step.cases)
    count = f"{seen} of {step.documents:,} documents" if seen < step.documents else f"{seen} documents"
    share = f"{100 * step.trained / step.tokens:.0f} % of {step.tokens:,} tokens trained"
    mark = chat.tokenizer.decode([chat.end])
    ends = f"each ends in {mark}" if ended == seen else f"{ended} end in {mark}, the others were cut off"
    leaks = ", none leaks" if policy is not None else ""
    title = f"{name}: {step.documents:,} documents, {step.tokens:,} tokens in its first step; {seen} looked at"
    line = f"{name}: examined: {count}, {share}, {ends}{leaks}"
    return Report(title, line, tuple(found), _marked(step.cases[0], chat))


def _of_prompts(run: Run, step: FirstStep) -> Report:
    """Of a stage that samples: what it asks, and where it stops."""
    found = (
        findings.bos(step, run.chat),
        findings.end(step, run.chat, run.parent),
        findings.ids(step, run.chat, run.parent, f"[{run.stage.name}] max_tokens"),
    )
    name, stops = run.stage.name, " or ".join(run.chat.tokenizer.convert_ids_to_tokens(sorted(run.chat.stops)))
    line = f"{name}: examined: {len(step.cases)} prompts, responses stop at {stops}"
    return Report(f"{name}: {len(step.cases)} prompts looked at", line, found, _marked(step.cases[0], run.chat))


def _samples(run: Run) -> bool:
    """Whether a stage makes its documents on the way, from problems."""
    return store.manifest(run.data).kind == Problem.__name__


def _run(recipe: Recipe, root: Path, stage: Stage, source: str) -> Run:
    """A stage as training opens it."""
    model = recipe.of("model", chats.Settings)
    tokenizer = words.tokenizer() if source == "toy" else load_tokenizer(source)
    chat = Chat.of(tokenizer, model.prompt, system=model.system)
    return Run(recipe, root, stage, source, chat, model.precision, model.weights, model.attention)


def _opened(run: Run) -> Policy:
    return run.opened()


def _marked(case: Case, chat: Chat) -> str:
    """The beginning and the end of a document as `algorist show` prints it, tokens with weight in brackets."""
    both = list(zip(case.tokens.tolist(), case.weights.tolist(), strict=True))
    parts = [both] if len(both) <= _HEAD + _TAIL else [both[:_HEAD], both[-_TAIL:]]
    pieces = [[(harmless(chat.tokenizer.decode([token])), weight) for token, weight in part] for part in parts]
    return " … ".join("".join(f"[{piece}]" if weight else piece for piece, weight in part) for part in pieces)
