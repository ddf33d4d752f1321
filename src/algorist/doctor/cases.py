"""What the doctor looks at: documents as a stage learns from them, each beside the rollout that it was made of.

A stage that has data is asked for its first step, as training asks for it. Where there is no data yet, a few documents
are made as the stages make them: of right rollouts of the run, else of what the recipe names and is at hand, which are
the traces of local files and the teacher of the toy world.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from algorist import store
from algorist.data import columns, problems, readers, sources, teacher, traces
from algorist.data.candidates import cells, frame, statements
from algorist.errors import RecordError
from algorist.model.batches import Document, PairBatch, token_mean
from algorist.model.chat import Chat
from algorist.numerics.address import rng
from algorist.recipe import Recipe
from algorist.records import Pair, Problem, Sample
from algorist.stage import Run, Step
from algorist.stages import dpo, midtrain
from algorist.tokens import Corpus
from algorist.toy import teacher as toy_teacher
from algorist.toy import world

MOST = 16  # documents of a step that are decoded: what goes wrong here goes wrong in every document
_FEW = 4  # documents that are made where there are none


@dataclass(frozen=True)
class Told:
    """What a document is made of."""

    statement: str  # of the problem
    text: str  # of the rollout, "" where nothing was said yet
    ended: bool  # False where it was cut off
    rollout_id: str


@dataclass(frozen=True)
class Case:
    """A document as training sees it."""

    told: Told
    tokens: NDArray[np.int64]  # (n,)
    weights: NDArray[np.float32]  # (n,)
    positions: NDArray[np.int64]  # (n,)
    start: int  # of the response: as many tokens belong to the prompt

    @property
    def response(self) -> tuple[int, ...]:
        """Token ids of the response, with what ended it."""
        return tuple(self.tokens[self.start :].tolist())


@dataclass(frozen=True)
class FirstStep:
    """The first optimizer step of a stage: all of it in numbers, some of its documents in full."""

    where: str  # it was made from, as messages name it
    cases: tuple[Case, ...]  # the first MOST documents
    documents: int
    tokens: int
    trained: int  # tokens with weight
    weight: float  # the sum of what is promised to sum to 1: weights of tokens, in stage 3 of pairs
    longest: int  # tokens of the longest document


def of_stage(run: Run) -> FirstStep | None:
    """The first step of a stage that learns from stored documents; None where it has no step.

    Raises RecordError where the data, or a rollout that it was made of, is not there.
    """
    run = replace(run, start=0)
    # The steps of these stages are laid out from stored records alone: no policy is asked.
    step = next(run.stage.steps(run, cast(Any, None)), None)
    if step is None:
        return None
    corpus = Corpus.open(run.data, Pair if store.manifest(run.data).kind == Pair.__name__ else Sample)
    drawn = _drawn(run, corpus)
    shards: dict[str, list[str]] = {}
    for place, rollout_id in drawn:
        shards.setdefault(_shard(corpus, place), []).append(rollout_id)
    told = {key: one for shard, ids in shards.items() for key, one in _told(run.root, shard, ids).items()}
    laid_out = {found[0].tobytes(): found for found in _documents(step)}
    cases = [
        Case(told[rollout_id], *laid_out[corpus[place].astype(np.int64).tobytes()], int(corpus.prompt_lens[place]))
        for place, rollout_id in drawn
    ]
    return _summed(str(run.data), step, cases)


def of_prompts(run: Run) -> FirstStep:
    """What a stage that samples begins from: prompts alone. With a response they come to `longest` tokens at most."""
    asked = itertools.islice(store.stream(run.data, Problem), MOST)
    found = []
    for problem in asked:
        ids = np.array(run.chat.prompt_ids(problem.statement), np.int64)
        told = Told(problem.statement, "", False, "")
        found.append(Case(told, ids, np.zeros(len(ids), np.float32), np.arange(len(ids)), len(ids)))
    longest = max(len(case.tokens) for case in found) + run.settings.max_tokens
    return FirstStep(str(run.data), tuple(found), len(found), sum(len(one.tokens) for one in found), 0, 1.0, longest)


def at_hand(recipe: Recipe, root: Path) -> tuple[list[Told], str]:
    """(a few responses that can be had without a server or a download, where they are from); none where there are none.

    Right ones of the run, else the first that the recipe's sources bring along, else what the teacher of the toy says.
    """
    if told := _right(root):
        return told, str(root / "rollouts")
    brought = (one for one in _of_sources(recipe) if one.ended)
    return list(itertools.islice(brought, _FEW)), str(recipe.path)


def made(told: Sequence[Told], where: str, chat: Chat) -> FirstStep:
    """A step of a few documents, made as the stages make them."""
    parts = [(chat.prompt_ids(one.statement), chat.response_ids(one.text, ended=one.ended)) for one in told]
    documents = [Document.of(prompt + response, len(prompt)) for prompt, response in parts]
    step = Step(tuple(token_mean(documents, sys.maxsize)))
    found = zip(told, _documents(step), parts, strict=True)
    return _summed(where, step, [Case(one, *laid_out, len(prompt)) for one, laid_out, (prompt, _) in found])


def _summed(where: str, step: Step, cases: Sequence[Case]) -> FirstStep:
    sizes = [(len(tokens), int((weights > 0).sum())) for tokens, weights, _ in _documents(step)]
    weight = sum(float(cast(Any, batch).weights.double().sum()) for batch in step.batches)
    lengths, trained = zip(*sizes, strict=True)
    return FirstStep(where, tuple(cases), len(sizes), sum(lengths), sum(trained), weight, max(lengths))


def _documents(step: Step) -> Iterator[tuple[Any, Any, Any]]:
    """(token ids, weights, positions) of every document of a step."""
    for batch in step.batches:
        rows = batch.rows if isinstance(batch, PairBatch) else cast(Any, batch)
        columns = [column.cpu().numpy() for column in (rows.tokens, rows.weights, rows.positions)]
        for start, end in itertools.pairwise(rows.bounds):
            tokens, weights, positions = (column[start:end] for column in columns)
            yield tokens, weights, positions


def _drawn(run: Run, corpus: Corpus) -> list[tuple[int, str]]:
    """(document of the corpus, rollout id) of the first documents of the first step."""
    if store.manifest(run.data).kind == Pair.__name__:
        pairs = next(dpo.drawn(run, len(corpus) // 2))[: MOST // 2].tolist()
        both = zip(pairs, store.take(run.data, Pair, pairs), strict=True)
        return [side for at, pair in both for side in ((2 * at, pair.chosen_id), (2 * at + 1, pair.rejected_id))]
    places = next(midtrain.drawn(run, corpus.lengths))[:MOST].tolist()
    samples = store.take(run.data, Sample, places)
    return [(place, sample.rollout_id) for place, sample in zip(places, samples, strict=True)]


def _shard(corpus: Corpus, place: int) -> str:
    file = corpus.files[int(np.searchsorted(corpus.firsts, place, side="right")) - 1]
    return file.with_suffix(".parquet").name


def _told(root: Path, shard: str, ids: Collection[str]) -> dict[str, Told]:
    """rollout id → what was said, of one shard of the rollouts of a run. Raises RecordError where one is missing."""
    path = root / "rollouts" / shard
    found = frame(path, ("id", "problem_id", "finish")).with_row_index("row").filter(pl.col("id").is_in([*ids]))
    if lacking := set(ids) - set(found["id"]):
        raise RecordError(
            f"{path}: holds no rollout {min(lacking)}, of which a document of the stage was made. "
            "Delete the folder of the stage's data to make it again."
        )
    texts = {row: text.as_py() for row, text in cells(path, "text", found["row"])}
    asked = statements(root / "problems" / shard, set(found["problem_id"]))
    return {
        key: Told(asked[problem_id].statement, texts[row], finish == "stop", key)
        for row, key, problem_id, finish in found.rows()
    }


def _right(root: Path) -> list[Told]:
    """The first rollouts of a run that were verified right, finished or not as the verdicts are."""
    for path in sorted((root / "verdicts").glob("[0-9]*.parquet")):
        right = frame(path, ("rollout_id", "right")).filter(pl.col("right"))["rollout_id"].head(_FEW).to_list()
        if right:
            return list(_told(root, path.name, right).values())
    return []


def _of_sources(recipe: Recipe) -> Iterator[Told]:
    """What the first rows of each local source bring along, and what the toy's teacher says."""
    settings = recipe.of("data", sources.Settings)
    for name, source in settings.named().items():
        if source.path == sources.TOY and recipe.of("teacher", teacher.Settings).url == toy_teacher.URL:
            yield from _toys(recipe)
        elif source.path != sources.TOY and source.traces and readers.is_local(source.path):
            head, _ = columns.peeked(readers.read_rows(source.path))
            chosen = columns.columns_of(source.path, head, sources.GUESSES, source.columns, settings.columns)
            for number, row in enumerate(head):
                yield from _traced(problems.Manner(name, chosen), source, number, row)


def _traced(manner: problems.Manner, source: sources.Source, number: int, row: columns.Row) -> Iterator[Told]:
    """The traces of one row of a source."""
    said = traces.told(row, manner.columns)
    problem = problems.read_problem(row, number, manner, said.statement).problem
    if problem.statement and not said.refused:
        for trace in traces.rollouts(manner.source, number, row, manner.columns, said.texts)[0]:
            trace = traces.adapted(trace, source.sampler, source.thoughts == "think")
            yield Told(problem.statement, trace.text, trace.finish == "stop", trace.id)


def _toys(recipe: Recipe) -> Iterator[Told]:
    """What the scripted teacher says of the first problems of the toy world."""
    toy, asked = recipe.of("toy", world.Settings), recipe.of("teacher", teacher.Settings)
    steps = range(toy.fewest_steps, toy.most_steps + 1)
    for problem in world.problems(recipe.seed, "train", min(_FEW, toy.problems), steps, toy.distractors):
        draw = rng("doctor", recipe.seed, problem.id)
        text, finish = toy_teacher.respond(problem.statement, draw, toy_teacher.Habits(), asked.max_tokens)
        yield Told(problem.statement, text, finish == "stop", "")
