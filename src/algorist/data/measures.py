"""What can be counted on rollouts without asking anybody: length, repetition, quotations of a benchmark, token ids.

The ids are made once, here, with the tokenizer of the model that will be trained, and by the same rule as everywhere
(model/chat.py: a response is tokenised apart from its prompt). Later stages read them and tokenise no response again.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from algorist import store
from algorist.data import repetition
from algorist.errors import RecordError
from algorist.model.chat import opening, unopened
from algorist.records import Measure, Problem, Rollout

if TYPE_CHECKING:
    from algorist.data.clean import Asked

TOY = "toy"  # the tokenizer of the toy world
_TOGETHER = 64  # texts that are tokenised in one call

Ids = NDArray[np.int32]


def measure(
    rollouts: Path,
    problems: Path,
    out: Path,
    tokenizer: str,
    asked: Asked | None,
    settings: repetition.Settings,
    made_from: str,
) -> None:
    """Write the measures of a shard of rollouts, row for row.

    Args:
        rollouts   the shard
        problems   the shard of the problems that they respond to
        out        the shard to be written, of Measure records
        tokenizer  of the model to be trained: a folder, a hub name, or "toy"
        asked      the benchmarks of the run, that a response may quote; None: no leak is looked for
        settings   when a text loops, repeats itself or mixes languages
        made_from  for the footer of the shard

    Raises RecordError for a rollout whose problem is not there, RecipeError where no tokenizer is.
    """
    statements = {problem.id: problem.statement for problem in store.read_shard(problems, Problem)}
    found = store.read_shard(rollouts, Rollout)
    texts = [rollout.text for rollout in found]
    ids = response_ids(load(tokenizer), texts)
    leaks = _leaks(asked, texts)
    records = []
    for rollout, tokens, leak in zip(found, ids, leaks, strict=True):
        if rollout.problem_id not in statements:
            raise RecordError(
                f"{rollouts}: rollout {rollout.id} answers problem {rollout.problem_id}, which is not in {problems}. "
                "Delete the folder of the rollouts to make them again."
            )
        flag = repetition.flag(rollout.text, statements[rollout.problem_id], settings)
        # An array until it is written: as a tuple of Python's integers a shard of long chains would not fit in memory.
        row = cast("tuple[int, ...]", tokens)
        records.append(Measure(rollout.id, rollout.problem_id, len(tokens), flag, leak, row))
    store.write_shard(out.parent, int(out.stem), Measure, records, made_from=made_from)


def response_ids(tokenizer: Any, texts: Sequence[str]) -> list[Ids]:
    """Token ids of each response without an end of turn: those of `Chat.response_ids(text, ended=False)`, many at once.

    Args:
        tokenizer  of transformers
    """
    found: list[Ids] = []
    begun = opening(tokenizer)
    for start in range(0, len(texts), _TOGETHER):
        part = [unopened(text, begun) for text in texts[start : start + _TOGETHER]]
        said = tokenizer(
            part, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
        )
        found += [np.asarray(ids, np.int32) for ids in said.input_ids]
    return found


@functools.cache
def load(source: str) -> Any:
    """The tokenizer of a model, loaded once in a process. Raises RecipeError where there is none."""
    # Shards are measured side by side in processes of their own: threads of the tokenizer would only get in their way.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that there is no torch, which is not needed
    if source == TOY:
        from algorist.toy.words import tokenizer

        return tokenizer()
    from algorist.model.chat import load_tokenizer

    return load_tokenizer(source)


def _leaks(asked: Asked | None, texts: Sequence[str]) -> list[str]:
    """The benchmark that each text quotes, "" where it quotes none."""
    if asked is None:
        return [""] * len(texts)
    from algorist.data.leaks import quotes

    return quotes(asked.index(), texts)
