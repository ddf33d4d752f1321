"""What is sound in the first step of a stage and what is not: each finding says what was seen.

A finding that refuses is a whole message: where, what was found, what was expected, what to do. What is looked at here
ruins a model without a word: the loss falls as ever, and the model then never stops, does not think, or has learned to
look at its neighbours in the row.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from algorist import store
from algorist.doctor.cases import Case, FirstStep
from algorist.model import longrope, selfcheck
from algorist.model.batches import Document, lay_out
from algorist.model.chat import Chat, unopened
from algorist.model.policy import Policy
from algorist.records import CARD
from algorist.trace import harmless

THOUGHTS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("[THINK]", "[/THINK]"),
)
_SUM = 1e-4  # how far from 1 the weights of a step may sum
_LEAK = 1e-4  # nats that another document's text may move a log-probability by
# Nats a token, in the mean, between a document packed and alone: rounding in products of other shapes.
_ROUNDING = {torch.float32: 0.01, torch.bfloat16: 0.05}
_CUTS = (640, 512, 384, 512)  # tokens of the documents that are packed for it: 2,048 in all, of unlike lengths
_PART = 12  # tokens of a prompt that are shown
_DAY = re.compile(r"\d{1,2} [A-Z][a-z]+ \d{4}")  # as the templates of Llama 3 and SmolLM3 write it


@dataclass(frozen=True)
class Finding:
    """What was looked at and what was seen."""

    what: str
    said: str  # what was seen; of one that refuses, the message
    ok: bool | None = True  # False refuses, None was not looked at


def trained(step: FirstStep) -> Finding:
    """Something is trained, all of every response is, and the weights carry the normalisation that they promise."""
    again = f"Delete the folder {step.where} to make it again."
    if not step.trained:
        return _refusal(
            "trained",
            f"{step.where}: none of the {step.tokens:,} tokens of the first step has weight, so nothing would be "
            f"learned; weight was expected on every token of a response. {again}",
        )
    if not abs(step.weight - 1) <= _SUM:  # NaN is not 1
        return _refusal(
            "trained",
            f"{step.where}: the weights of the first step sum to {step.weight:.4g}, 1 was expected: every loss and "
            "gradient would be scaled by it. Divide them by their sum where the stage lays out a step.",
        )
    masked = [case for case in step.cases if not case.weights[case.start : -1].all()]
    if masked:
        count = sum(int((case.weights[case.start : -1] == 0).sum()) for case in masked)
        return _refusal(
            "trained",
            f"{step.where}: {count:,} tokens inside of {_some(masked, step.cases, 'responses')} have no weight, so a "
            f"part of what was said would be read and not learned. {again}",
        )
    share = f"{100 * step.trained / step.tokens:.1f} % of {step.tokens:,} tokens"
    return Finding("trained", f"{share}, all of every response; the weights of the step sum to {step.weight:.6g}")


def bos(step: FirstStep, chat: Chat) -> Finding:
    """One BOS at most, at the start of a document and nowhere inside of it."""
    mark = chat.tokenizer.bos_token_id
    if mark is None:
        return Finding("bos", "the tokenizer has none")
    name = _name(chat, mark)
    if doubled := [case for case in step.cases if (case.tokens[:2] == mark).sum() == 2]:
        return _refusal(
            "bos",
            f"{step.where}: {_some(doubled, step.cases)} begin with two BOS tokens ({name}), one at most was expected. "
            "Let the chat template alone write it, and delete the folder to make it again.",
        )
    if inside := [case for case in step.cases if mark != chat.end and (case.tokens[1:-1] == mark).any()]:
        return _refusal(
            "bos",
            f"{step.where}: a BOS token ({name}) stands inside of {_some(inside, step.cases)}, at the start alone was "
            "expected. Take it out of the source.",
        )
    first = sum(bool(case.tokens[0] == mark) for case in step.cases)
    return Finding("bos", f"{first} of {len(step.cases)} documents begin with {name}, none has it inside")


def prompt(step: FirstStep, chat: Chat) -> Finding:
    """Training sees the prompts that the sampler is asked with, id by id; the day that a template writes may differ."""
    pairs = [(case, chat.prompt_ids(case.told.statement)) for case in step.cases]
    differ = [(case, wanted) for case, wanted in pairs if tuple(case.tokens[: case.start].tolist()) != wanted]
    other = [
        (case, wanted) for case, wanted in differ if _undated(chat, case.tokens[: case.start]) != _undated(chat, wanted)
    ]
    if not other:
        dated = f", but for the day that the chat template writes into {len(differ)}" if differ else ""
        return Finding("prompt", f"{len(pairs)} of {len(pairs)} are what the sampler is asked, id by id{dated}")
    case, wanted = other[0]
    own = case.tokens[: case.start].tolist()
    both = enumerate(itertools.zip_longest(own, wanted))
    place = next(at for at, (one, two) in both if one != two)
    found, expected = (chat.tokenizer.decode(ids[place : place + _PART]) for ids in (own, wanted))
    return _refusal(
        "prompt",
        f"{step.where}: the prompts of {_some([case for case, _ in other], step.cases)} are not what the sampler is "
        f'asked: from token {place} on one says "{harmless(found)}", "{harmless(expected)}" was expected. '
        "Delete the folder to make it again.",
    )


def end(step: FirstStep, chat: Chat, parent: str) -> Finding:
    """What ended by itself ends in the end of turn, once and with weight, and whoever samples stops there.

    Args:
        parent  of the stage; where it is no checkpoint of ours its configs are passed over, as ours name the end
    """
    name, ends = _name(chat, chat.end), _ends(parent)
    for who, ids in {"the sampler": chat.stops, **ends}.items():
        if chat.end not in ids:
            others = ", ".join(_name(chat, one) for one in sorted(ids))
            return _refusal(
                "end",
                f"{who}: stops at {others}, not at {name}, in which every response is trained to end: what is sampled "
                f"would go on behind it. Add {chat.end} to eos_token_id there.",
            )
    ended = [case for case in step.cases if case.told.ended]
    again = f"Delete the folder {step.where} to make it again."
    if other := [case for case in ended if case.tokens[-1] != chat.end]:
        found = ", ".join(sorted({_name(chat, int(case.tokens[-1])) for case in other[:3]}))
        return _refusal(
            "end",
            f"{step.where}: {_some(other, ended)} do not end in {name}, the end of turn of the chat template, but in "
            f"{found}, so the model would not learn to stop. {again}",
        )
    if mute := [case for case in ended if not case.weights[-1]]:
        return _refusal(
            "end",
            f"{step.where}: the end of turn {name} has no weight in {_some(mute, ended)}, so the model would not learn "
            f"to stop; weight was expected in each. {again}",
        )
    if early := [case for case in ended if chat.end in case.response[:-1]]:
        return _refusal(
            "end",
            f"{step.where}: the end of turn {name} stands inside of {_some(early, ended, 'responses')}, at their end "
            "alone was expected. Take it out of the source.",
        )
    counts = f"{len(ended)} of {len(step.cases)} documents end in it, with weight; " if ended else ""
    servers = f", and servers do ({', '.join(Path(who).name for who in ends)})" if ends else ""
    return Finding("end", f"{name} ({chat.end}): {counts}sampling stops at it{servers}")


def thought(step: FirstStep, chat: Chat) -> Finding:
    """A document holds the whole text of its rollout, the thought with it."""
    if lost := [case for case in step.cases if not _whole(case, chat)]:
        said, text = _texts(lost[0], chat)
        inside = _inside(chat.opening + text).strip()
        stripped = inside and inside not in said
        what = "the thinking text was stripped from" if stripped else "not all that the rollouts say stands in"
        return _refusal(
            "thought",
            f"{step.where}: {what} {_some(lost, step.cases)}: of {len(text):,} characters that were said {len(said):,} "
            "are left there. Delete the folder to make it again.",
        )
    ended = [case for case in step.cases if case.told.ended]
    if chat.opening and ended and not any("</think>" in case.told.text for case in ended):
        return _refusal(
            "thought",
            f"{step.where}: the chat template opens a thought ({chat.opening.strip()}) that none of {len(ended)} "
            "responses closes: the thinking text was stripped before they came here. Ask a teacher that gives its "
            "thoughts, or name a source that has them.",
        )
    thoughts = [inside for case in step.cases if (inside := _inside(chat.opening + _texts(case, chat)[1]))]
    among = sum(len(case.response) for case in step.cases)
    tokens = sum(len(chat.response_ids(inside, ended=False)) for inside in thoughts)
    counts = f"{len(thoughts)} of {len(step.cases)} responses think, in {tokens:,} of {among:,} tokens"
    exact = sum(said == text for said, text in (_texts(case, chat) for case in step.cases))
    rest = ", the others what the tokenizer knows of it" if exact < len(step.cases) else ""
    return Finding("thought", f"{counts}; {exact} of {len(step.cases)} are their rollout's text to the letter{rest}")


def ids(step: FirstStep, chat: Chat, parent: str, lower: str) -> Finding:
    """Token ids lie in the vocabulary of the model; positions count from 0 and are among those that it knows.

    Args:
        lower  the key of the recipe that bounds the length of a document
    """
    file = Path(parent) / "config.json"
    config = store.read_json(file) if file.exists() else {}
    size = config.get("text_config", config).get("vocab_size", len(chat.tokenizer))
    most = longrope.positions(config) or step.longest
    found = np.concatenate([case.tokens for case in step.cases])
    lowest, highest = int(found.min()), int(found.max())
    if lowest < 0 or highest >= size:
        return _refusal(
            "ids",
            f"{step.where}: token {lowest if lowest < 0 else highest:,} is none of the {size:,} that the model knows. "
            "Name a model with its own tokenizer, and delete the folder to make it again.",
        )
    if astray := [case for case in step.cases if (case.positions != np.arange(len(case.tokens))).any()]:
        return _refusal(
            "ids",
            f"{step.where}: positions do not count up from 0 in {_some(astray, step.cases)}. Lay out the step with "
            "lay_out of model/batches.py.",
        )
    if step.longest > most:
        return _refusal(
            "ids",
            f"{step.where}: a document comes to {step.longest:,} tokens, and the model knows {most:,} positions. "
            f"Lower {lower}.",
        )
    return Finding("ids", f"{lowest:,} to {highest:,} of {size:,}; positions 0 to {step.longest - 1:,} of {most:,}")


@torch.no_grad()
def documents(step: FirstStep, policy: Policy | None, parent: str) -> Finding:
    """The log-probabilities of a document do not depend on what else stands in its row.

    A few documents are packed. Then one gets other tokens, and the others must stay where they were; then each stands
    alone, and must be what it was in the row but for rounding.
    """
    if policy is None:
        return Finding("documents", "whether they leak is looked at once there is a checkpoint", None)
    texts = [torch.from_numpy(case.tokens[:cut]) for case, cut in zip(step.cases, _CUTS, strict=False)]
    texts = texts if len(texts) > 1 else [*texts, texts[0].flip(0)]
    middle = (len(texts) - 1) // 2  # so that there is one behind it, and with three one before it too
    others = [*texts]
    others[middle] = (texts[middle] + 1) % policy.model.config.get_text_config().vocab_size
    packed, after = _scored(policy, texts), _scored(policy, others)
    gaps = [float((one - two).abs().max()) for one, two in zip(packed, after, strict=True)]
    moved = max(gap for place, gap in enumerate(gaps) if place != middle)
    family = f"Take a model of another family; known to be exact: {selfcheck.EXACT}."
    if not moved <= _LEAK:  # NaN did not stay where it was
        return _refusal(
            "documents",
            f"{parent}: a document leaks: other tokens in one document of a row moved the log-probabilities of another "
            f"by {moved:.2g} nats, 0 was expected. {family}",
        )
    means = [float((_scored(policy, [text])[0] - row).abs().mean()) for text, row in zip(texts, packed, strict=True)]
    if not max(means) <= _ROUNDING[policy.precision]:
        return _refusal(
            "documents",
            f"{parent}: log-probabilities of a document in a row with others are {max(means):.2g} nats a token from "
            f"those of it alone, at most {_ROUNDING[policy.precision]} was expected. {family}",
        )
    row = f"{len(texts)} in a row of {sum(map(len, texts)):,} tokens"
    return Finding(
        "documents", f"{row}: other tokens in one move the others by {moved:.1g} nats; alone {max(means):.1g} a token"
    )


def _scored(policy: Policy, texts: Sequence[Tensor]) -> list[Tensor]:
    """(n,) log-probabilities of each document, all of them in one row."""
    batch = lay_out([Document.of(text.numpy(), prompt_len=1) for text in texts])
    logprobs = policy.logprobs(batch.to(policy.device)).cpu()
    return [logprobs[start:stop] for start, stop in itertools.pairwise(batch.bounds)]


def _whole(case: Case, chat: Chat) -> bool:
    """Whether a response is the text of its rollout, up to what the tokenizer cannot give back."""
    said, text = _texts(case, chat)
    if said == text:
        return True
    marked = all(mark in said for pair in THOUGHTS for mark in pair if mark in text)
    return marked and case.response == chat.response_ids(case.told.text, ended=case.response[-1:] == (chat.end,))


def _undated(chat: Chat, ids: Any) -> str:
    return _DAY.sub("", chat.tokenizer.decode(ids))


def _texts(case: Case, chat: Chat) -> tuple[str, str]:
    """What stands in a document and what was said, both behind what the prompt has said already."""
    return chat.text(case.response).removeprefix(chat.opening), unopened(case.told.text, chat.opening)


def _inside(text: str) -> str:
    """What stands between the marks of a thought, to the end where it is never closed; "" without one."""
    for begin, finish in THOUGHTS:
        if begin in text:
            return text[text.index(begin) + len(begin) :].split(finish)[0]
    return ""


def _ends(parent: str) -> Mapping[str, frozenset[int]]:
    """Which ids a checkpoint of ours names as its ends, by the file in which servers read them."""
    for path in (Path(parent) / "generation_config.json", Path(parent) / "config.json"):
        named: Any = store.read_json(path).get("eos_token_id") if path.exists() else None
        if named is not None and (Path(parent) / CARD).exists():
            return {str(path): frozenset(named if isinstance(named, list) else [named])}
    return {}


def _some(cases: Sequence[Case], among: Sequence[Case], what: str = "documents") -> str:
    """`3 of 12 documents (such as that of rollout 0f3a…)`."""
    known = f" (such as that of rollout {cases[0].told.rollout_id})" if cases[0].told.rollout_id else ""
    return f"{len(cases)} of {len(among)} {what}{known}"


def _name(chat: Chat, token: int) -> str:
    return harmless(chat.tokenizer.decode([token]))


def _refusal(what: str, message: str) -> Finding:
    return Finding(what, message, False)
