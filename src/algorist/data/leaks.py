"""What of a benchmark stands in training data: three tests of problems, one of rollouts, each hit with its proof.

- "words": `ngram` consecutive words in common. Found by anchors, compared word by word: no leak of that length is
  missed and nothing else is reported. The 13 words: Brown et al. 2020, appendix C; Phi-4's report has them too.
  Words that three benchmark problems and more share are a form of speech ("m/n, where m and n are relatively prime
  positive integers. Find m + n."): a run of nothing else is no hit, unless the statement has nothing else.
- "short": a statement of fewer than `ngram` words that is the same as a whole, operators included, so that a short sum
  meets itself and no other.
- "fuzzy": light paraphrase. Shingles of three words or operators are compared, exactly, through an inverted index.
  A problem is a hit at a Jaccard similarity of `fuzzy`; and a fifth below it, or where that share of a benchmark
  statement is found inside a longer problem, if the benchmark statement has numbers and all are there too: otherwise it
  is most likely another problem from the same template.

A rollout is asked for "words" alone. Statements of fewer than `ngram` words cannot be told from ordinary talk in it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from algorist.records import Problem, Rollout, content_id

if TYPE_CHECKING:
    from algorist.numerics.overlap import Postings
    from algorist.numerics.runs import Sought
    from algorist.numerics.shingles import Rows

FUZZY = 0.75  # the default: 15 false hits in MATH's training set (7,500) against MATH-500, none in GSM8K's
_SHINGLE = 3  # words or operators
_SAME_NUMBERS = 0.8  # of `fuzzy` is enough where the numbers are the benchmark's
_FEWEST = 15  # shingles of a benchmark statement whose share inside a longer text says anything
_WORDS_SHOWN = 60
_COMMON = 3  # benchmark problems that share a run of words, from which on it is a form of speech
_BATCH = 1 << 24  # characters hashed at a time


@dataclass(frozen=True)
class Hit:
    """One problem or rollout that meets one benchmark problem."""

    problem_id: str
    benchmark: str
    benchmark_problem_id: str
    words: str  # "words": the first run they share; "short": the statement; "fuzzy": how the problem begins
    test: str = "words"  # words, short or fuzzy
    score: float = 0.0  # words shared; of "fuzzy" the similarity or share
    rollout_id: str = ""  # empty where the problem itself is meant


@dataclass(frozen=True)
class Index:
    """Benchmarks made ready to be looked for; some 100 bytes a word, cheap to send to another process."""

    benchmarks: Mapping[str, str]  # name → benchmark_id
    ngram: int
    fuzzy: float
    owners: tuple[tuple[str, str], ...]  # (benchmark, problem id) of each statement
    statements: tuple[str, ...]
    words: Sought
    common: NDArray[
        np.bool_
    ]  # of each word's place in `words`: whether the n-gram that begins there is a form of speech
    short: Mapping[int, tuple[int, ...]]  # hash of a short statement → statements
    shingles: Postings

    @classmethod
    def of(cls, benchmarks: Mapping[str, Sequence[Problem]], ngram: int = 13, fuzzy: float = FUZZY) -> Index:
        """The index of all problems of some benchmarks.

        Args:
            benchmarks  name → problems
            ngram       consecutive words in common that make a hit
            fuzzy       Jaccard similarity that makes a hit; 0 leaves the second test out
        """
        from algorist.numerics import overlap, runs, shingles, words

        assert ngram > 0 and 0 <= fuzzy <= 1, "an n-gram holds at least one word; a similarity lies in [0, 1]"
        asked = [(name, problem) for name, problems in benchmarks.items() for problem in problems]
        statements = tuple(problem.statement for _, problem in asked)
        plain, (signs, _) = words.words(statements), words.symbols(statements)
        short: dict[int, tuple[int, ...]] = {}
        for place, whole in _short(plain, signs, ngram):
            short[whole] = (*short.get(whole, ()), place)
        return cls(
            {name: benchmark_id(problems) for name, problems in benchmarks.items()},
            ngram,
            fuzzy,
            tuple((name, problem.id) for name, problem in asked),
            statements,
            runs.sought(plain, ngram),
            _forms(plain, ngram, [problem.id for _, problem in asked]),
            short,
            overlap.postings(shingles.sets(signs, _SHINGLE)),
        )


def benchmark_id(problems: Sequence[Problem]) -> str:
    """An id of the questions of a benchmark, whatever their order; changes when one is added, lost or reworded."""
    return content_id("benchmark", sorted({problem.id for problem in problems}))


def hits(index: Index, problems: Sequence[Problem]) -> list[Hit]:
    """One hit for each pair of a problem and a benchmark problem that meet, by the first test that fires."""
    from algorist.numerics import runs, words

    texts = [problem.statement for problem in problems]
    plain, (signs, _) = words.words(texts), words.symbols(texts)
    met: dict[tuple[int, int], Hit] = {}
    for place, at, known, there, length in runs.shared(index.words, plain).tolist():
        if (place, known) in met or not _telling(index, known, there, length):
            continue
        if run := _run(texts[place], at, index.statements[known], there, length):
            met[place, known] = _hit(index, known, problems[place].id, run, "words")
    for place, whole in _short(plain, signs, index.ngram):
        for known in index.short.get(whole, ()):
            spelled = words.spell(texts[place], operators=True)
            if spelled == words.spell(index.statements[known], operators=True):
                met[place, known] = _hit(index, known, problems[place].id, spelled, "short")
    if index.fuzzy:
        for place, known, score in _alike(index, texts, signs):
            if (place, known) not in met:
                said = words.spell(texts[place])[:_WORDS_SHOWN]
                met[place, known] = _hit(index, known, problems[place].id, said, "fuzzy", score)
    return [met[pair] for pair in sorted(met)]


def quotes(index: Index, texts: Sequence[str]) -> list[str]:
    """The benchmark that each text shares `ngram` consecutive words with, "" for none."""
    found = dict.fromkeys(range(len(texts)), "")
    for place, known, _ in _quoted(index, texts):
        found[place] = found[place] or index.owners[known][0]
    return list(found.values())


def rollout_hits(index: Index, rollouts: Sequence[Rollout]) -> list[Hit]:
    """As `quotes`, with the first benchmark problem and the words that each rollout quotes."""
    met: dict[int, Hit] = {}
    for place, known, run in _quoted(index, [rollout.text for rollout in rollouts]):
        one = rollouts[place]
        met.setdefault(place, replace(_hit(index, known, one.problem_id, run, "words"), rollout_id=one.id))
    return list(met.values())


def _hit(index: Index, known: int, problem_id: str, said: list[str], test: str, score: float | None = None) -> Hit:
    benchmark, asked = index.owners[known]
    return Hit(problem_id, benchmark, asked, " ".join(said), test, round(len(said) if score is None else score, 4))


def _quoted(index: Index, texts: Sequence[str]) -> Iterator[tuple[int, int, list[str]]]:
    """(place, statement, shared words) of the texts that quote one."""
    from algorist.numerics import runs, words

    start = 0
    while start < len(texts):
        end, size = start, 0
        while end < len(texts) and (size < _BATCH or end == start):
            size += len(texts[end])
            end += 1
        found = runs.shared(index.words, words.words(texts[start:end]))
        quoting: set[int] = set()
        for place, at, known, there, length in found.tolist():
            if place in quoting or not _telling(index, known, there, length):
                continue
            if run := _run(texts[start + place], at, index.statements[known], there, length):
                quoting.add(place)
                yield start + place, known, run
        start = end


def _forms(plain: Rows, ngram: int, ids: Sequence[str]) -> NDArray[np.bool_]:
    """Which n-grams of the statements several problems have, by the place of their first word."""
    from algorist.numerics import shingles

    grams = shingles.grams(plain, ngram)
    common = np.zeros(len(plain.values), np.bool_)
    _, numbers = np.unique(np.array(ids, object).astype(str), return_inverse=True)
    owners = np.repeat(numbers, np.diff(grams.starts)).astype(np.uint64)
    different = np.unique(np.stack([grams.values.astype(np.uint64), owners], axis=1), axis=0)[:, 0]
    hashes, times = np.unique(different, return_counts=True)
    often = hashes[times >= _COMMON]
    for row in range(len(plain)):
        own = np.isin(grams[row].astype(np.uint64), often)
        if len(own) and not np.all(own):
            common[plain.starts[row] : plain.starts[row] + len(own)] = own
    return common


def _telling(index: Index, known: int, there: int, length: int) -> bool:
    """Whether a run of a benchmark statement's words is more than forms of speech."""
    begin = int(index.words.rows.starts[known]) + there
    return not bool(np.all(index.common[begin : begin + length - index.ngram + 1]))


def _run(text: str, at: int, statement: str, there: int, length: int) -> list[str]:
    """The words that two texts share by their hashes, if they do by their letters; else none."""
    from algorist.numerics import words

    run = words.spell(text)[at : at + length]
    return run if run == words.spell(statement)[there : there + length] else []


def _short(plain: Rows, signs: Rows, ngram: int) -> Iterator[tuple[int, int]]:
    """(place, hash of all words and operators) of the texts of fewer than `ngram` words that say anything."""
    from algorist.numerics import shingles

    sizes = np.diff(signs.starts)
    wholes = shingles.grams(signs, int(sizes.max(initial=1)) + 1)  # longer than any: one n-gram of all
    few: NDArray[np.int64] = np.flatnonzero((np.diff(plain.starts) < ngram) & (sizes > 0))
    for place in few.tolist():
        yield place, int(wholes[place][0])


def _alike(index: Index, texts: Sequence[str], signs: Rows) -> Iterator[tuple[int, int, float]]:
    """(place, statement, score) of what the second test fires at."""
    from algorist.numerics import overlap, shingles

    sets = shingles.sets(signs, _SHINGLE)
    found = overlap.overlaps(index.shingles, sets, index.fuzzy * _SAME_NUMBERS, _FEWEST)
    for place, known, both in found.tolist():
        size, other = len(sets[place]), int(index.shingles.sizes[known])
        similarity = both / (size + other - both)
        if similarity >= index.fuzzy:
            yield place, known, similarity
        elif (asked := _numbers(index.statements[known])) and asked <= _numbers(texts[place]):
            yield place, known, max(similarity, both / other if other >= _FEWEST else 0.0)


def _numbers(text: str) -> Counter[str]:
    from algorist.numerics import words

    return Counter(re.findall("[0-9]+", " ".join(words.spell(text))))
