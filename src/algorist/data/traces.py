"""Traces: the responses that a data set brings along become Rollout records of the problem in their row.

Layouts that are known, each recognised row by row:

    generations                          a list of responses to one problem, with lists of labels (OpenR1-Math)
    completion, response, output, …      one response, with model, sample, correct, … in columns of their own
    prompt and completion                texts, or lists of messages
    reasoning and solution apart         deepseek_reasoning, deepseek_solution (OpenThoughts); reasoning_content
    messages, conversations              role and content, or from and value (Bespoke-Stratos, OpenThoughts, ShareGPT)

Markers of thoughts other than <think> are rewritten, so that all samples show the model one way to think: what stands
between <|begin_of_thought|> and <|end_of_thought|> comes to stand in <think>, and the solution, bare, behind it.
A response whose thought never ends, and whose source does not say how it ended, was cut: its finish is "length".
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from algorist.data.columns import Columns, Row, role_of, spoken, text_of, value_in
from algorist.errors import RecordError
from algorist.records import Rollout

EMPTY = "empty response"
NOT_TEXT = "the response is not text"
TURNS = "a conversation of several questions"
SAME = "same rollout twice"
AGAIN = "same text again"
NO_GOLD = "no gold answer"

COLUMNS: Columns = {
    "problem_id": ("problem_id",),
    "generations": ("generations",),
    "text": ("completion", "response", "generated_solution", "deepseek_solution", "text", "output"),
    "reasoning": ("deepseek_reasoning", "reasoning_content", "reasoning"),
    "messages": ("messages", "conversations", "conversation"),
    "sampler": ("model", "sampler", "generation_model", "generator"),
    "index": ("sample", "index"),
    "label": ("correct", "label", "is_correct", "correctness_math_verify", "correctness_llama"),
    "finish": ("finish", "finish_reason", "finish_reasons"),
    "complete": ("is_reasoning_complete",),
    "seed": ("seed",),
    "temperature": ("temperature",),
    "top_p": ("top_p",),
    "max_tokens": ("max_tokens",),
}
_UNKNOWN = {"seed": 0, "temperature": 1.0, "top_p": 1.0, "max_tokens": 0}
_UNNUMBERED = -1  # the index of a trace until `settled` gives it one
_REST = tuple(  # what `Rollout.of` takes by name
    item.name
    for item in dataclasses.fields(Rollout)
    if item.name not in ("id", "problem_id", "text", "sampler", "index", "seed")
)
_THOUGHT = re.compile(r"\s*<\|(begin|end)_of_(thought|solution)\|>\s*")
_MARKS = {
    ("begin", "thought"): "<think>\n",
    ("end", "thought"): "\n</think>\n\n",
    ("begin", "solution"): "",
    ("end", "solution"): "",
}


@dataclass(frozen=True)
class Told:
    """The question and the responses that a row holds in whatever layout."""

    statement: str | None  # where it is in a conversation; None where a column has it
    texts: tuple[Any, ...]  # the responses, as they stand there
    refused: str = ""  # why the row cannot be used


def told(row: Row, columns: Columns) -> Told:
    """What a row tells: which layout it has is seen from its columns."""
    statement = value_in(row, columns["statement"])
    several = value_in(row, columns["generations"])
    if isinstance(several, list | tuple):
        return Told(None, tuple(several))
    turns = value_in(row, columns["messages"])
    conversation = _conversation(turns) if _is_conversation(turns) else None
    text = value_in(row, columns["text"])
    if text is not None and (statement is not None or value_in(row, columns["problem_id"])):
        if _is_conversation(text):
            text = "".join(_said(turn) for turn in text if role_of(turn) == "assistant")
        return Told(None, (_with_reasoning(value_in(row, columns["reasoning"]), text),))
    if conversation is None:
        return Told(None, ())
    if statement is not None and isinstance(spoken(statement), str):
        return Told(None, conversation.texts, conversation.refused)
    return conversation


def rollouts(
    where: str, number: int, row: Row, columns: Columns, texts: Sequence[Any]
) -> tuple[list[Rollout], list[str]]:
    """(the responses of a row as rollouts of no problem yet, why the others were left out).

    Raises RecordError where a column that should hold a number holds something else.
    """
    found, left_out = [], []
    sampler = text_of(value_in(row, columns["sampler"])) or where
    settings = {name: _numeric(where, number, row, columns[name], type(unknown)) for name, unknown in _UNKNOWN.items()}
    settings = {name: _UNKNOWN[name] if value is None else value for name, value in settings.items()}
    stated = _numeric(where, number, row, columns["index"], int)
    several = value_in(row, columns["generations"]) is not None
    for place, raw in enumerate(texts):
        text = text_of(raw)
        if text is None or not text.strip():
            left_out.append(NOT_TEXT if text is None else EMPTY)
            continue
        index = place if several else _UNNUMBERED if stated is None else stated
        rollout = Rollout.of(
            "",
            text,
            sampler,
            index=index,
            source=where,
            row=number,
            label=_label(row, columns["label"], place if several else None),
            finish=_finish(row, columns, place if several else None, text),
            **settings,
        )
        found.append(rollout)
    return found, left_out


def think(text: str) -> str:
    r"""A response with the markers of Sky-T1 and OpenThoughts rewritten as <think>; every other one as it is.

    >>> think("<|begin_of_thought|>\n\na\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\nb\n<|end_of_solution|>")
    '<think>\na\n</think>\n\nb'
    """
    if "_of_thought|>" not in text and "_of_solution|>" not in text:
        return text
    return _THOUGHT.sub(lambda mark: _MARKS[mark[1], mark[2]], text).strip()


def adapted(rollout: Rollout, sampler: str, thinking: bool) -> Rollout:
    """A rollout by another name, where the source's stands for its sampler's, and with `think` applied if asked."""
    named = sampler if sampler and rollout.sampler == rollout.source else rollout.sampler
    return dataclasses.replace(rollout, sampler=named, text=think(rollout.text) if thinking else rollout.text)


def on(problem_id: str, rollout: Rollout, index: int | None = None) -> Rollout:
    """The rollout as one of a problem, with that index."""
    index = rollout.index if index is None else index
    rest = {name: getattr(rollout, name) for name in _REST}
    return Rollout.of(problem_id, rollout.text, rollout.sampler, index=index, seed=rollout.seed, **rest)


def settled(places: Mapping[str, int], found: Iterable[Rollout]) -> tuple[list[Rollout], list[tuple[Rollout, str]]]:
    """(rollouts ordered by the place of their problem, then index; (rollout, what is said of it) of repeats).

    Samples without a number are numbered as they come; where two different texts claim the same number, the later one
    takes the next free one. The same text with the same number is one rollout (SAME, left out); the same text with
    another number is another sample (AGAIN, kept). Settling what is settled already changes nothing.
    """
    kept: dict[str, Rollout] = {}
    repeats = []
    following: dict[tuple[str, str], int] = {}
    texts: set[tuple[str, str]] = set()
    for given in found:
        key = (given.problem_id, given.sampler)
        index = following.get(key, 0) if given.index == _UNNUMBERED else given.index
        rollout = numbered(given if index == given.index else on(given.problem_id, given, index), kept)
        if rollout.id in kept:
            repeats.append((given, SAME))
            continue
        following[key] = max(following.get(key, 0), rollout.index + 1)
        kept[rollout.id] = rollout
        if (given.problem_id, given.text) in texts:
            repeats.append((rollout, AGAIN))
        texts.add((given.problem_id, given.text))
    return sorted(kept.values(), key=lambda one: (places[one.problem_id], one.index)), repeats


def numbered(rollout: Rollout, taken: Mapping[str, Rollout]) -> Rollout:
    """The rollout, moved to the next free sample number where another text has its own; the same text stays put."""
    while rollout.id in taken and taken[rollout.id].text != rollout.text:
        rollout = on(rollout.problem_id, rollout, rollout.index + 1)
    return rollout


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(turn, dict) for turn in value)


def _conversation(turns: Sequence[Row]) -> Told:
    """The question and the response of a conversation; a system message is the sampler's and left behind."""
    asked = [_said(turn) for turn in turns if role_of(turn) == "user"]
    texts = tuple(_said(turn) for turn in turns if role_of(turn) == "assistant")
    if len(asked) > 1 or len(texts) > 1:
        return Told(asked[0], (), TURNS)
    return Told(asked[0] if asked else "", texts)


def _said(turn: Row) -> str:
    content = turn.get("content", turn.get("value"))
    thought = turn.get("reasoning_content") or turn.get("thinking")
    return str(_with_reasoning(thought, text_of(content) or ""))


def _with_reasoning(reasoning: Any, text: Any) -> Any:
    """A response whose thought is kept apart from it, as one text; every other one as it is."""
    thought = text_of(reasoning)
    if not thought or not thought.strip() or not isinstance(text, str) or "<think>" in text:
        return text
    return f"<think>\n{thought.strip()}\n</think>\n\n{text.strip()}"


def _label(row: Row, columns: Iterable[str], place: int | None) -> bool | None:
    """True or False for what means that; None where the source has no clear opinion."""
    for column in columns:
        value = value_in(row, (column,))
        if place is not None:
            value = value[place] if isinstance(value, list | tuple) and place < len(value) else None
        said = {"true": True, "1": True, "false": False, "0": False}.get(str(value).strip().lower())
        if said is not None:
            return said
    return None


def _finish(row: Row, columns: Columns, place: int | None, text: str) -> str:
    """ "length" where the source says that a response was cut, or its thought never ends; else "stop"."""
    said, complete = value_in(row, columns["finish"]), value_in(row, columns["complete"])
    if place is not None:
        said, complete = (
            value[place] if isinstance(value, list | tuple) and place < len(value) else None
            for value in (said, complete)
        )
    if text_of(said):
        return "length" if text_of(said) == "length" else "stop"
    begun = max(text.rfind("<think>"), text.rfind("<|begin_of_thought|>"))
    ended = max(text.rfind("</think>"), text.rfind("<|end_of_thought|>"))
    return "length" if complete is False or begun > ended else "stop"


def _numeric(where: str, number: int, row: Row, columns: Iterable[str], kind: type) -> Any:
    """A numeric cell, None where it is absent. Raises RecordError for what is no such number."""
    found = [(column, value_in(row, (column,))) for column in columns]
    column, value = next(((name, value) for name, value in found if value is not None), ("", None))
    if value is None or value == "":
        return None
    try:
        if kind(value) == float(value):
            return kind(value)
    except (TypeError, ValueError, OverflowError):
        pass
    expected = "a whole number" if kind is int else "a number"
    raise RecordError(f"{where}: {column} of row {number} is {value!r:.40}, {expected} was expected. Mend the row.")
