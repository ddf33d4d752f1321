r"""Judge: a second opinion, from a language model, on what the rules reject or cannot judge.

The recipe checks answers with rules first, and what those reject is looked at again (paper, section 2.3). The judge
sees the problem, its gold answer and the answer found in the rollout, never the rollout itself: that is cheap, and
the text that may try to talk to the judge is at most 2,000 characters on one line.

    rules           judge         right                    reason
    ─────────────   ───────────   ──────────────────────   ────────────────────────────────────
    None            SAME          True                     judged equal
    None            DIFFERENT     False                    judged different
    None            else          None                     judge undecided, rules: timed out
    False           SAME          as `trust` says          rules: different, judge: equal
    False           DIFFERENT     False                    different
    False           else          False                    judge undecided, rules: different

In each of these rows the verifier is `<the rules'>+judge:<model>@<8 digits of the prompt's hash>`.
"""

from __future__ import annotations

import functools
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from algorist import addresses
from algorist.errors import RecordError, explain_full_disk
from algorist.journal import progress
from algorist.records import Problem, Verdict, content_id
from algorist.verify.equal import LONGEST_ANSWER
from algorist.verify.extract import split_thoughts

CACHE = "judge.jsonl"  # in the folder of a run: what the judge said, outlives the verdicts that are made with it
RULES = "rules"  # in the folder of verdicts that a judge has seen: what the rules had said
LONGEST_STATEMENT = 8_000  # characters of a problem that the judge is shown
KEPT_WORDS = 4_000  # characters, from the end, that are kept of what the judge said
TEMPERATURE, SEED = 0.0, 0  # how a judge is asked, always: the same question has the same answer

JUDGED_EQUAL = "judged equal"
JUDGED_DIFFERENT = "judged different"
UNDECIDED = "judge undecided"
CONFLICT = "rules: different, judge: equal"

Ask = Callable[[str], str]  # one prompt → what the judge says; called from many threads

_SENT = ("undecided", "rejected")
_TRUSTED = ("rules", "judge")
_MARK = "+judge:"
_REJECTED = ("different", "answer unreadable")  # the rules' reasons where an answer was found and is no equal one
_PLACES = re.compile(r"\{(problem|reference|candidate)\}")
# A space more changes no mathematics, but it breaks our own tags, and every <|im_end|>, </s>, [INST] or ◁think▷ that a
# server's tokenizer would take for the end of our message.
_TAGS = re.compile(r"[<◁](?=\S)|\[(?=/?[A-Za-z])")
_VERDICT_WORD = re.compile(r"(v)(erdict)", re.IGNORECASE)
_OPENS = r"[\s*_#>`]*verdict[\s*_]*:"
_LINE = re.compile(_OPENS, re.IGNORECASE | re.ASCII)
_VERDICT = re.compile(rf"{_OPENS}[\s*_`]*(same|different|unsure)[\s*_`.]*", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True)
class Settings:
    """[judge]"""

    url: str = ""  # of an OpenAI-compatible server, up to and including /v1; empty: there is no judge
    model: str = ""  # as the server knows it; goes into the verdicts
    concurrency: int = 32  # requests in flight
    max_tokens: int = 2_048  # of an answer; a judge that thinks first needs more
    of: tuple[str, ...] = _SENT  # which verdicts it sees: those the rules could not judge, those they rejected
    trust: str = "rules"  # whose word is kept where the rules say different and the judge says equal: rules or judge

    def __post_init__(self) -> None:
        if self.url:
            addresses.check(self.url, key_place="OPENAI_API_KEY")
        if self.url and not self.model:
            raise ValueError("model is empty. Write the name under which the server at url knows it.")
        if self.concurrency < 1 or self.max_tokens < 1:
            raise ValueError("concurrency and max_tokens must be at least 1.")
        if not self.of or not set(self.of) <= set(_SENT):
            raise ValueError(f'of = {list(self.of)} was found, "undecided", "rejected" or both were expected.')
        if self.trust not in _TRUSTED:
            raise ValueError(f'trust = "{self.trust}" was found, "rules" or "judge" was expected.')


@dataclass(frozen=True)
class Question:
    """What the judge is asked about; rollouts that gave the same answer to a problem share one."""

    statement: str
    gold: str
    extracted: str

    def id(self, settings: Settings) -> str:
        """The name of its answer in the cache: another model, prompt or limit makes it another question."""
        asked = (settings.model, prompt_hash(), settings.max_tokens, TEMPERATURE, SEED)
        return content_id("judge", *asked, self.statement, self.gold, self.extracted)


@functools.cache
def prompt() -> str:
    """The prompt, with places for {problem}, {reference} and {candidate}: judge_prompt.txt beside this file."""
    return Path(__file__).with_name("judge_prompt.txt").read_text(encoding="utf-8")


def prompt_hash() -> str:
    """8 hexadecimal digits that change with the prompt."""
    return content_id("judge prompt", prompt())[:8]


def question(problem_statement: str, gold: str, extracted: str) -> str:
    """The prompt for one pair of answers; no text in it can close a tag, end our message or look like a verdict.

    Answers are put on one line and cut to LONGEST_ANSWER characters, the problem to LONGEST_STATEMENT.
    """
    texts = {
        "problem": harmless(problem_statement[:LONGEST_STATEMENT]),
        "reference": harmless(" ".join(gold[:LONGEST_ANSWER].split())),
        "candidate": harmless(" ".join(extracted[:LONGEST_ANSWER].split())),
    }
    # In one pass: a problem that holds the text {candidate} keeps it.
    return _PLACES.sub(lambda place: texts[place[1]], prompt())


def harmless(text: str, words: re.Pattern[str] = _VERDICT_WORD) -> str:
    """The text with nothing invisible in it, and nothing that reads as a tag, a control token or a model's own answer.

    Args:
        words  those that open the line of an answer, in two groups: a dot is put between them
    """
    visible = "".join(letter if letter.isprintable() or letter == "\n" else " " for letter in text)
    return words.sub(r"\1.\2", _TAGS.sub(r"\g<0> ", visible))


def read_verdict(text: str) -> bool | None:
    """What the last line `VERDICT: …` outside thoughts says: True for SAME, False for DIFFERENT, None for all else.

    Takes time linear in the text. Bold and lower case are read; a last such line that names no one verdict is None.
    """
    lines = [line for line in _spoken(text).splitlines() if _LINE.match(line)]
    found = _VERDICT.fullmatch(lines[-1]) if lines else None
    return {"same": True, "different": False}.get(found[1].lower()) if found else None


def second_opinion(
    verdicts: Sequence[Verdict], problems: Mapping[str, Problem], settings: Settings, cache: Path, ask: Ask
) -> list[Verdict]:
    """The rules' verdicts in their order, with the judge's word on those that `settings.of` sends to it.

    An answer is never sent that is empty or was cut, nor one to a problem without a gold answer, nor a verdict that
    has the judge's word already. Each question is asked once, `settings.concurrency` at a time, and its answer is
    kept in `cache` as it arrives: what was asked before a kill is not asked again. One process may use a cache at a
    time. Without a url nothing changes.

    Args:
        problems: rollout id → the problem it responds to.
        cache: a file of JSON lines, made where it is missing.
        ask: one prompt → the judge's text, at TEMPERATURE, with SEED and `settings.max_tokens`; safe in threads.

    Raises:
        RecordError where a rollout has no problem, or the cache holds a line that is no answer; RunError where the
        disk is full; and whatever `ask` raises. What was answered before is kept.
    """
    if not settings.url:
        return list(verdicts)
    questions = [_question_of(verdict, problems, settings) for verdict in verdicts]
    ids = [asked.id(settings) if asked else "" for asked in questions]
    said = answers(cache, set(ids))
    missing = {name: asked for name, asked in zip(ids, questions, strict=True) if asked and name not in said}
    if missing:
        said |= _ask_all(missing, settings, cache, ask)
    return [
        _settled(verdict, read_verdict(said[name]), settings) if name else verdict
        for verdict, name in zip(verdicts, ids, strict=True)
    ]


def disagreements(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Those on which rules and judge contradict each other, whichever was trusted: for people to look at."""
    return [verdict for verdict in verdicts if verdict.reason == CONFLICT]


def contested(verdict: Verdict) -> bool:
    """Wrong by the rules alone: the judge, though asked, did not say so too. Nothing to teach as wrong."""
    return verdict.right is False and (verdict.reason == CONFLICT or verdict.reason.startswith(UNDECIDED))


def saw(verdict: Verdict) -> bool:
    """Whether a judge was asked about this verdict."""
    return _MARK in verdict.verifier


def tally(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """How many verdicts the judge saw ("asked"), and what it said: equal, different, undecided; and conflicts."""
    seen = [verdict for verdict in verdicts if saw(verdict)]
    counts: Counter[str] = Counter({"asked": len(seen), "equal": 0, "different": 0, "undecided": 0, "conflicts": 0})
    for verdict in seen:
        same = verdict.reason in (JUDGED_EQUAL, CONFLICT)
        counts["undecided" if verdict.reason.startswith(UNDECIDED) else "equal" if same else "different"] += 1
        counts["conflicts"] += verdict.reason == CONFLICT
    return dict(counts)


def answers(cache: Path, wanted: Collection[str] | None = None) -> dict[str, str]:
    """Question id → the judge's own words outside thoughts. A last line that a kill has cut is left out.

    Args:
        wanted: the questions whose answers are held in memory; all unless given.

    Raises RecordError where any other line is no answer.
    """
    found: dict[str, str] = {}
    if not cache.exists():
        return found
    with cache.open("rb") as lines:
        _read_answers(cache, lines, wanted, found)
    return found


def _read_answers(cache: Path, lines: Iterable[bytes], wanted: Collection[str] | None, found: dict[str, str]) -> None:
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n"):
            return
        try:
            entry = json.loads(line)
            name, words = entry["id"], entry["said"]
            if not isinstance(name, str) or not isinstance(words, str):
                raise TypeError
        except (ValueError, TypeError, KeyError):
            raise RecordError(
                f"{cache}:{number}: not an answer of the judge (a JSON object with id and said). Delete this line."
            ) from None
        if wanted is None or name in wanted:
            found[name] = words


def _question_of(verdict: Verdict, problems: Mapping[str, Problem], settings: Settings) -> Question | None:
    """What to ask about a verdict, None where the judge does not see it."""
    undecided = verdict.right is None and "undecided" in settings.of
    rejected = verdict.right is False and verdict.reason.startswith(_REJECTED) and "rejected" in settings.of
    if not (undecided or rejected) or not verdict.extracted.strip() or saw(verdict):
        return None
    problem = problems.get(verdict.rollout_id)
    if problem is None:
        raise RecordError(
            f"rollout {verdict.rollout_id}: its problem is not here, and the judge needs it. "
            "Judge verdicts together with the rollouts and problems they belong to."
        )
    if not problem.answer.strip() or len(problem.answer) > LONGEST_ANSWER:
        return None  # nothing to compare with, or only a part of it
    return Question(problem.statement, problem.answer, verdict.extracted)


def _ask_all(missing: Mapping[str, Question], settings: Settings, cache: Path, ask: Ask) -> dict[str, str]:
    """Ask every question that is not in the cache yet, and keep each answer as it arrives."""
    with (
        _appending(cache) as keep,
        progress("judge", len(missing)) as advance,
        ThreadPoolExecutor(min(settings.concurrency, len(missing))) as threads,
    ):

        def answer(name: str, asked: Question) -> tuple[str, str]:
            words = ask(question(asked.statement, asked.gold, asked.extracted))
            # Thoughts go before the cut: half a thought that lost its opening tag would read as speech.
            words = _cut(_spoken(words))
            keep({"id": name, "gold": asked.gold, "extracted": asked.extracted, "said": words})
            advance()
            return name, words

        waiting = [threads.submit(answer, name, asked) for name, asked in missing.items()]
        try:
            return dict(done.result() for done in as_completed(waiting))
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)  # those in flight still end, and are kept
            raise


def _spoken(text: str) -> str:
    """What stands outside thoughts; of what was spoken already, all."""
    return "\n".join(split_thoughts(text)[0])


def _cut(words: str) -> str:
    """The last KEPT_WORDS characters; the mark keeps the rest of a line from reading as a whole one."""
    return words if len(words) <= KEPT_WORDS else f"…{words[-KEPT_WORDS:]}"


@contextmanager
def _appending(cache: Path) -> Iterator[Callable[[Mapping[str, str]], None]]:
    """Yields `keep(entry)`, which appends one line and may be called from several threads."""
    lock = threading.Lock()
    with explain_full_disk(cache):
        cache.parent.mkdir(parents=True, exist_ok=True)
        file = open(cache, "a+b")  # noqa: SIM115 - closed below, where a full disk may refuse a second time
    try:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)  # a last line without an end was cut by a kill

        def keep(entry: Mapping[str, str]) -> None:
            line = json.dumps(entry).encode() + b"\n"
            with lock, explain_full_disk(cache):
                file.write(line)
                file.flush()

        yield keep
    finally:
        with suppress(OSError):  # each line was flushed; what a full disk refused is refused again here
            file.close()


def _settled(verdict: Verdict, same: bool | None, settings: Settings) -> Verdict:
    """The rules' verdict with the judge's word: the table at the top of this file."""
    verifier = f"{verdict.verifier}{_MARK}{settings.model}@{prompt_hash()}"
    right, reason = verdict.right, verdict.reason
    if same is None:
        reason = f"{UNDECIDED}, rules: {verdict.reason}"
    elif right is None:
        right, reason = same, JUDGED_EQUAL if same else JUDGED_DIFFERENT
    elif same:
        right, reason = settings.trust == "judge", CONFLICT
    return replace(verdict, right=right, reason=reason, verifier=verifier)
