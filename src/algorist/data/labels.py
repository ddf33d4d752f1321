"""Labels of problems: field and schooling, from the source or from a language model.

What a source says is free, and its words are mapped to ours (`domain_of`). The model is asked about the statement
alone, at temperature 0, once per problem: its answers lie in a log that outlives the data sets (generate/answers.py),
so that a killed run asks for nothing twice. A reply that names no label of ours leaves it empty and is counted; none is
ever guessed.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from algorist import addresses, store
from algorist.data.problems import level_of
from algorist.generate import answers, fleet, server
from algorist.generate.answers import Answer, Answers, Ask, Refused
from algorist.generate.endpoints import Endpoint
from algorist.generate.sampling import Sampling
from algorist.journal import progress
from algorist.records import LEVELS, Problem, content_id, normalised
from algorist.verify.extract import split_thoughts
from algorist.verify.judge import harmless

LOG = "labels.sqlite"  # in the folder of a run
DOMAINS = (
    "arithmetic",
    "algebra",
    "precalculus",
    "calculus",
    "linear algebra",
    "geometry",
    "number theory",
    "combinatorics",
    "probability",
    "statistics",
    "logic",
    "other",
)
LONGEST_STATEMENT = 8_000  # characters of a problem that the model is shown
BY_SOURCE = "source"  # what `labelled_by` says of labels that came with the problem

# What data sets call fields, beside our names; a longer name wins over one that it holds.
_DOMAINS = {
    "prealgebra": "arithmetic",
    "pre algebra": "arithmetic",
    "word problem": "arithmetic",
    "gsm8k": "arithmetic",
    "intermediate algebra": "algebra",
    "inequalit": "algebra",
    "polynomial": "algebra",
    "functional equation": "algebra",
    "sequence": "algebra",
    "arithmetic se": "algebra",  # sequence, series
    "geometric se": "algebra",
    "equation": "algebra",
    "abstract algebra": "other",
    "group theory": "other",
    "topology": "other",
    "pre calculus": "precalculus",
    "trigonomet": "precalculus",
    "complex number": "precalculus",
    "analysis": "calculus",
    "integra": "calculus",
    "derivative": "calculus",
    "differential": "calculus",
    "limits": "calculus",
    "matri": "linear algebra",
    "determinant": "linear algebra",
    "vector space": "linear algebra",
    "counting and probability": "combinatorics",
    "counting": "combinatorics",
    "combinator": "combinatorics",
    "permutation": "combinatorics",
    "graph theory": "combinatorics",
    "discrete math": "combinatorics",
    "triangle": "geometry",
    "circle": "geometry",
    "geometr": "geometry",
    "number theor": "number theory",
    "divisib": "number theory",
    "prime": "number theory",
    "modular": "number theory",
    "diophantine": "number theory",
    "probabilit": "probability",
    "statistic": "statistics",
    "puzzle": "logic",
}
_NAMES = {**{name: name for name in DOMAINS if name != "other"}, **_DOMAINS}

_OURS = re.compile(r"\b(d|l)(omain|evel)(?=[\s*_`]*:)", re.IGNORECASE)
_LINE = re.compile(r"[\s*_#>`-]*(domain|level)[\s*_`]*:([^\n]*)", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True)
class Settings:
    """[labels]"""

    url: str | tuple[str, ...] = ""  # of one server or several, up to and including /v1; empty: nobody is asked
    model: str = ""  # as the servers know it; goes into the profiles
    of: Literal["missing", "all"] = "missing"  # problems whose source names no field or no level of ours, or every one
    concurrency: int = 256  # requests in flight, over all servers
    max_tokens: int = 1_024  # of an answer; a model that thinks first needs more
    key_env: str = server.KEY  # name of the environment variable that holds the servers' key, if they want one

    def __post_init__(self) -> None:
        if self.urls and not self.model:
            raise ValueError("model is empty. Write the name under which the server at url knows it.")
        if self.concurrency < 1 or self.max_tokens < 1:
            raise ValueError("concurrency and max_tokens must be at least 1.")
        if not self.key_env.isidentifier():  # not shown: it may be the key itself
            raise ValueError("key_env is no name of an environment variable. A key does not belong in a recipe.")
        for url in self.urls:
            addresses.check(url)

    @property
    def urls(self) -> tuple[str, ...]:
        """The servers, none where nobody is to be asked."""
        return self.url if isinstance(self.url, tuple) else (self.url,) if self.url else ()


@dataclass(frozen=True)
class Label:
    """Field and level of a problem, each empty where nobody said one of ours."""

    domain: str  # one of DOMAINS, or what the source calls it, or empty
    level: str  # one of LEVELS, or empty
    by: str  # "source", or model@hash of the prompt where the model said at least one of the two; empty: nobody


@dataclass(frozen=True)
class Tally:
    """What one call of `ask` came to."""

    problems: int = 0  # looked at
    found: int = 0  # whose answer was in the log before
    asked: int = 0  # answered in this call
    unreadable: int = 0  # of those, with a reply that lacks a label of ours
    refused: int = 0  # without an answer
    words: str = ""  # of a server, on one of them


@functools.cache
def prompt() -> str:
    """The prompt, with a place for {problem}: label_prompt.txt beside this file."""
    return Path(__file__).with_name("label_prompt.txt").read_text(encoding="utf-8")


def prompt_hash() -> str:
    """8 hexadecimal digits that change with the prompt."""
    return content_id("label prompt", prompt())[:8]


def question(statement: str) -> str:
    """The prompt for one problem; nothing in its text can close a tag, end our message or look like a label's line."""
    return prompt().replace("{problem}", harmless(statement[:LONGEST_STATEMENT], _OURS))


def read_reply(text: str) -> tuple[str, str]:
    """(domain, level) of a reply: what its last line DOMAIN: … and its last line LEVEL: … outside thoughts name.

    Each is "" where there is no such line, or it names no label that we know. Takes time linear in the text.

    >>> read_reply("It counts. **Domain:** Combinatorics\\nLEVEL: High School.")
    ('', 'high school')
    >>> read_reply("DOMAIN: Number Theory\\nLEVEL: hard")
    ('number theory', '')
    """
    said = {"domain": "", "level": ""}
    for part in split_thoughts(text)[0]:
        for line in part.splitlines():
            if match := _LINE.match(line):
                said[match[1].lower()] = match[2].strip(" \t*_`.\"'").lower().replace("-", " ")
    return said["domain"] if said["domain"] in DOMAINS else "", level_of(said["level"])


def domain_of(text: str) -> str:
    """Which of DOMAINS a source means by its name of a field; "" where it is empty or not known.

    A path ("Mathematics -> Algebra -> Prealgebra") counts from its end.

    >>> [domain_of(text) for text in ("Counting & Probability", "Mathematics -> Algebra -> Prealgebra", "chess")]
    ['combinatorics', 'arithmetic', '']
    """
    names = [
        re.sub(r"[^a-z0-9]+", " ", part.lower().replace("&", " and ")).strip()
        for part in reversed(re.split(r"->|→|[/:;,>|]", text))
    ]
    for name in names:
        held = [known for known in _NAMES if f" {known}" in f" {name}"]
        if held:
            return _NAMES[max(held, key=len)]
    return "other" if "other" in names else ""


def wants(problem: Problem, settings: Settings) -> bool:
    """Whether the model is asked about a problem."""
    missing = domain_of(problem.domain) == "" or problem.level not in LEVELS
    return bool(settings.urls) and (settings.of == "all" or missing)


def ask(problem_shards: Sequence[Path], log: Path, settings: Settings) -> Tally:
    """Ask the model about every problem that wants a label and has no answer in the log.

    Args:
        problem_shards  of Problem records; one is in memory at a time
        log             the file of answers, made where it is missing

    Raises RunError where the servers refuse or are gone for longer than the client's patience. What was answered before
    is kept.
    """
    if not settings.urls:
        return Tally()
    counts: Counter[str] = Counter()
    words, shown = "", 0
    endpoints = [Endpoint(url, settings.key_env) for url in settings.urls]
    terms = fleet.Terms(settings.model, _sampling(settings), concurrency=settings.concurrency, section="labels")
    total = sum(store.facts(path).rows for path in problem_shards)
    with answers.writing(log) as known, progress("labels", total) as advance:

        def tick() -> None:
            nonlocal shown
            advance(counts.total() - shown)
            shown = counts.total()

        for got in fleet.ask(_missing(problem_shards, settings, known, counts), endpoints, terms, known, tick):
            if isinstance(got, Refused):
                known.refuse([got])
                counts["refused"] += 1
                words = got.words
            else:
                counts["unreadable" if "" in read_reply(got.text) else "asked"] += 1
    return Tally(
        total, counts["found"], counts["asked"] + counts["unreadable"], counts["unreadable"], counts["refused"], words
    )


def labelled(problems: Iterable[Problem], settings: Settings, log: Path) -> dict[str, Label]:
    """Problem id → its label, by the source and by what the log says where the settings ask for it.

    Without a model, or where the log has no readable answer, what the source says is left, in its own words where they
    are not ours. Raises RecordError where a model was to be asked and there is no log.
    """
    if not settings.urls:
        return {problem.id: _label(problem, "", settings) for problem in problems}
    with answers.reading(log) as known:
        return {problem.id: _label(problem, _said(problem, settings, known), settings) for problem in problems}


def digest(problems: Iterable[Problem], settings: Settings, log: Path) -> str:
    """A hash of the labels of a shard: what is made from it need not be made again while they stay."""
    found = labelled(problems, settings, log)
    return content_id("labels", [(name, label.domain, label.level, label.by) for name, label in found.items()])


def _missing(shards: Sequence[Path], settings: Settings, known: Answers, counts: Counter[str]) -> Iterator[Ask]:
    """What has to be asked, as there is room for it; what has not is counted."""
    for path in shards:
        for problem in store.read_shard(path, Problem):
            if not wants(problem, settings):
                counts["passed over"] += 1
                continue
            wanted = _ask(problem, settings)
            lacking = known.missing(wanted)
            if not lacking:
                counts["refused" if known.refusal(wanted.key) else "found"] += 1
            yield from lacking


def _sampling(settings: Settings) -> Sampling:
    return Sampling(0.0, 1.0, settings.max_tokens)


def _ask(problem: Problem, settings: Settings) -> Ask:
    """The question about a problem; its key changes with everything that shapes the answer."""
    content = question(problem.statement)
    return Ask(content_id("label", settings.model, settings.max_tokens, content), content)


def _said(problem: Problem, settings: Settings, known: Answers) -> str:
    """What the model said about a problem, "" where it was not asked."""
    found: list[Answer] = known.read(_ask(problem, settings).key) if wants(problem, settings) else []
    return found[0].text if found else ""


def _label(problem: Problem, said: str, settings: Settings) -> Label:
    own = domain_of(problem.domain), problem.level if problem.level in LEVELS else ""
    told = read_reply(said) if said else ("", "")
    first, second = (told, own) if settings.of == "all" else (own, told)
    domain, level = first[0] or second[0], first[1] or second[1]
    by_model = (domain, level) != own or (settings.of == "all" and any(told))
    by = f"{settings.model}@{prompt_hash()}" if by_model else BY_SOURCE if any(own) or problem.domain else ""
    return Label(domain or normalised(problem.domain), level, by)
