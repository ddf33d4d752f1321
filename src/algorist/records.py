"""What flows through the house: Problem → Rollout → Verdict → Sample or Pair → Checkpoint → Score.

On the way stand what is measured (Measure of a rollout, Profile of a problem) and the curated sets in words that other
trainers read (Example, Preference, Question), of which the token ids of Sample and Pair are made.

Each record carries the ids of what it came from, so that a number in the report can be followed back to the
texts that made it. Ids are content hashes: the same content has the same id on every machine, and nothing is
numbered by the order in which it happened to arrive.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

CARD = "checkpoint.json"  # the file of a saved policy that holds its Checkpoint
LEVELS = ("elementary", "middle", "high school", "college", "graduate")


def content_id(*parts: object) -> str:
    """16 hexadecimal digits that depend on every part, their types and their order."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def normalised(statement: str) -> str:
    """The statement in lower case with runs of white space folded: what makes two statements the same problem."""
    return re.sub(r"\s+", " ", statement).strip().lower()


@dataclass(frozen=True)
class Problem:
    """A question with the answer its source gives."""

    id: str  # content_id of the normalised statement
    statement: str
    answer: str  # gold, as the source wrote it
    kind: str = ""  # number, expression, choice; empty when the source does not say
    domain: str = ""
    level: str = ""  # one of LEVELS, or empty
    source: str = ""  # the file or data set it was read from, as the recipe names it
    row: int = -1  # of that source, counted from 0; -1 when it was made, not read
    licence: str = ""  # as the source states it

    @classmethod
    def of(cls, statement: str, answer: str, **labels: Any) -> Problem:
        """A problem whose id is computed from its statement."""
        return cls(content_id("problem", normalised(statement)), statement, answer, **labels)


@dataclass(frozen=True)
class Part:
    """A stretch of a response that one policy said at one temperature."""

    tokens: int  # how many
    temperature: float
    version: int  # of the policy: optimizer steps that it had taken


@dataclass(frozen=True)
class Rollout:
    """One response to one problem, with everything needed to know where it came from."""

    id: str
    problem_id: str
    text: str
    sampler: str  # model name or checkpoint id
    index: int = 0  # which of the problem's samples this is
    seed: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 0  # the limit it was sampled under, 0 when unknown
    finish: str = "stop"  # "stop": ended by itself; "length": cut at max_tokens; "unfinished": to be gone on with
    num_tokens: int = 0  # of the response, in the sampler's own tokens; 0 when unknown
    tokens: tuple[int, ...] | None = None  # response ids, where the engine gives them
    logprobs: tuple[float, ...] | None = None  # of `tokens`, at the temperature that each was sampled at
    parts: tuple[Part, ...] = ()  # in RL: who said which of `tokens`; more than one where a rollout was carried over
    prompt: str = ""  # hash of the words around the problem that a teacher was asked in
    prompt_tokens: int = 0  # of the question, as the server counted them; 0 when unknown
    source: str = ""  # of a trace that came with a data set: which one
    row: int = -1  # of that source, counted from 0
    label: bool | None = None  # what the source says of its answer, where it says anything

    @classmethod
    def of(cls, problem_id: str, text: str, sampler: str, *, index: int = 0, seed: int = 0, **rest: object) -> Rollout:
        """A rollout whose id is computed from problem, sampler, prompt, sampling settings and sample index."""
        sampling = [rest.get(key) for key in ("temperature", "top_p", "max_tokens")]
        asked = [rest["prompt"]] if rest.get("prompt") else []
        identity = content_id("rollout", problem_id, sampler, sampling, seed, index, *asked)
        return cls(identity, problem_id, text, sampler, index, seed, **rest)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Verdict:
    """Whether a rollout's answer equals the gold one. `right` is None when that could not be judged."""

    rollout_id: str
    right: bool | None
    reason: str  # equal, different, no answer, cut off, gold unreadable, …: docs/verify.md lists them all
    extracted: str  # the answer found in the text, empty when none was
    verifier: str  # name and version of what decided


@dataclass(frozen=True)
class Defect:
    """What is wrong with a row: why it became no problem or rollout, or, after "noted: ", what it has all the same."""

    source: str
    row: int  # counted from 0
    reason: str
    problem_id: str  # of its statement, empty where it has none
    text: str  # how the row begins


@dataclass(frozen=True)
class Measure:
    """What can be counted on a rollout without asking anybody."""

    rollout_id: str
    problem_id: str
    num_tokens: int  # of the response, in the tokens of the model to be trained, its end of turn not counted
    repetition: str  # "", or what is wrong: loop, repeats, languages (data/repetition.py)
    leak: str  # "", or the benchmark that the text quotes
    tokens: tuple[int, ...]  # response ids without the end of turn: tokenised once, here


@dataclass(frozen=True)
class Profile:
    """What is known of a problem once its rollouts are judged."""

    problem_id: str
    domain: str
    level: str  # one of LEVELS, or empty
    labelled_by: str  # "source", or the model and the hash of the prompt; empty where nobody did
    right: int  # rollouts
    wrong: int
    unjudged: int
    pass_rate: float | None  # right / (right + wrong): the problem's difficulty; None where nothing was judged


@dataclass(frozen=True)
class Message:
    """One turn of a conversation, with the names that other trainers read."""

    role: str  # "user" or "assistant"
    content: str


@dataclass(frozen=True)
class Example:
    """A right rollout as a conversation: a row of the sets of stages 1 and 2."""

    id: str
    problem_id: str
    rollout_id: str
    messages: tuple[Message, ...]
    num_tokens: int  # of the response
    pass_rate: float | None
    domain: str
    level: str
    source: str
    licence: str


@dataclass(frozen=True)
class Preference:
    """A right and a wrong rollout of one problem as conversations: a row of the set of stage 3."""

    id: str
    problem_id: str
    chosen_id: str  # rollout ids
    rejected_id: str
    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    chosen_tokens: int
    rejected_tokens: int
    rejected_reason: str  # of the wrong one's verdict
    pass_rate: float | None
    domain: str
    level: str
    source: str
    licence: str


@dataclass(frozen=True)
class Question:
    """A problem that stage 4 may sample: a row of its set."""

    id: str
    problem_id: str
    prompt: tuple[Message, ...]
    answer: str  # gold
    pass_rate: float | None
    domain: str
    level: str
    source: str
    licence: str


@dataclass(frozen=True)
class Sample:
    """A prompt and one verified-right response: what stages 1 and 2 learn from. Its token ids stand in a file beside
    its shard (tokens.py): prompt, response and end of turn, rendered by model/chat.py."""

    id: str  # depends on the token ids too
    problem_id: str
    rollout_id: str
    num_tokens: int
    prompt_len: int  # how many of them belong to the prompt


@dataclass(frozen=True)
class Pair:
    """A right and a wrong response to one problem: what stage 3 learns from. The token ids of both stand in a file
    beside its shard: prompt, response and, where the response ended by itself, the end of turn."""

    id: str  # depends on the token ids too
    problem_id: str
    chosen_id: str  # rollout ids
    rejected_id: str
    num_chosen: int  # tokens, those of the prompt among them
    num_rejected: int
    prompt_len: int
    chosen_ref_logprob: float | None = None  # summed over the response, under the reference policy
    rejected_ref_logprob: float | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A saved policy and what it was made from."""

    id: str  # hash of the weight files
    stage: str
    step: int
    parents: tuple[str, ...] = ()  # checkpoint and data-set ids
    tokens: int = 0  # trained on in this stage
    seconds: float = 0.0  # spent in this stage's loop


@dataclass(frozen=True)
class Score:
    """One number of the report. Shares lie in [0, 1]; `change` is against the stage before, paired by problem."""

    stage: str
    checkpoint_id: str
    benchmark: str
    metric: str
    value: float
    low: float
    high: float
    change: float | None
    change_low: float | None
    change_high: float | None
    problems: int
    samples: int  # per problem
    mean_len: float  # response tokens
    ended: float  # share of responses that ended by themselves
    no_answer: float  # share in which no answer was found
    unjudged: float  # share that could not be judged; counted as not right
    tokens: int  # trained on in this stage
    seconds: float  # training, this stage
