"""Steps from documents on disk: the same as from memory, from any step on, and no other document is read for them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from algorist import recipe as recipes
from algorist import store, tokens
from algorist.model import checkpoints
from algorist.model.chat import Chat
from algorist.model.policy import Policy
from algorist.numerics.address import rng
from algorist.numerics.packing import pack
from algorist.records import Checkpoint, Pair, Sample
from algorist.stage import Run, Step
from algorist.stages import dpo, midtrain, order, reference, sft
from algorist.toy import base, words
from reading import bytes_read, counted

COUNT, BATCH, BUDGET = 23, 4, 90
NO_POLICY = cast(Policy, None)  # these stages lay out steps from records alone


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = words.tokenizer()
    shape = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "mlp_size": 16, "context": 64}
    folder = tmp_path_factory.mktemp("parent") / "checkpoint"
    checkpoints.save(folder, Policy(base.model(len(tokenizer), 1, **shape)), tokenizer, Checkpoint("", "before", 3))
    return folder


def run_of(folder: Path, parent: Path, stage: Any, *overrides: str) -> Run:
    """A run of one stage, without data."""
    folder.mkdir(exist_ok=True)
    (folder / "recipe.toml").write_text('name = "test"\nseed = 3\n')
    sections = {stage.name: (stage.settings, stage.training)}
    keys = [f"batch_size={BATCH}", f"tokens_per_batch={BUDGET}", "sequence_length=64", "epochs=3", *overrides]
    recipe = recipes.read(folder / "recipe.toml", sections, [f"{stage.name}.{key}" for key in keys])
    return Run(recipe, folder, stage, str(parent), Chat.of(words.tokenizer(), "{problem}"), "float32")


def written(run: Run, scale: int = 1) -> list[tuple[list[int], int]]:
    """The data of a stage in shards of five records; (token ids, prompt_len) of each document."""
    draw = np.random.default_rng(1)
    pairs = run.stage.name == "dpo"
    sequences, prompts = [], []
    for _ in range(COUNT):
        prompts += [int(draw.integers(1, 6))] * (2 if pairs else 1)
        for _ in range(2 if pairs else 1):
            sequences.append(draw.integers(0, 2**31, scale * int(draw.integers(7, 64))).astype(np.int32))
    sizes = [len(ids) for ids in sequences]
    if pairs:
        records: list[Any] = [
            Pair(f"{i}", "p", "c", "r", *sizes[2 * i : 2 * i + 2], prompts[2 * i], -1.5 * i, -2.25 * i)
            for i in range(COUNT)
        ]
        store.write_json(run.data / reference.FILE, reference.key(run))
    else:
        records = [Sample(f"{i}", "p", "r", sizes[i], prompts[i]) for i in range(COUNT)]
    tokens.write(run.data, Pair if pairs else Sample, records, sequences, shard_rows=5)
    return [(ids.tolist(), prompt) for ids, prompt in zip(sequences, prompts, strict=True)]


def drawn(run: Run, sizes: Sequence[int]) -> Iterator[list[list[int]]]:
    """The records of each step, cut into micro-batches: loops over lists, every epoch from its beginning."""
    name = "pairs" if run.stage.name == "dpo" else "rows"
    rows = [[i] for i in range(len(sizes))]
    if name == "rows" and run.settings.packing:
        rows = [row.tolist() for row in pack(sizes, run.settings.sequence_length)]
    for epoch in range(run.settings.epochs):
        places = rng(run.seed, run.stage.name, name, epoch).permutation(len(rows)).tolist()
        while places:
            step, places = places[:BATCH], places[BATCH:]
            batches: list[list[int]] = []
            for one in [i for row in step for i in rows[row]]:
                if not batches or sum(sizes[i] for i in batches[-1]) + sizes[one] > BUDGET:
                    batches.append([])
                batches[-1].append(one)
            yield batches


def documents(batch: Any) -> list[tuple[list[int], int]]:
    """(token ids, how many have no weight) of each document of a micro-batch."""
    rows = getattr(batch, "rows", batch)
    found = []
    for start, end in itertools.pairwise(rows.bounds):
        assert rows.positions[start:end].tolist() == list(range(end - start))
        found.append((rows.tokens[start:end].tolist(), int((rows.weights[start:end] == 0).sum())))
    return found


CASES = [(midtrain, "true"), (midtrain, "false"), (sft, "false"), (dpo, "")]


@pytest.mark.parametrize(("stage", "packing"), CASES, ids=["midtrain", "midtrain unpacked", "sft", "dpo"])
def test_steps_are_those_of_loops_over_everything_in_memory(
    tmp_path: Path, parent: Path, stage: Any, packing: str
) -> None:
    run = run_of(tmp_path, parent, stage.STAGE, *([f"packing={packing}"] if packing else []))
    data = written(run)
    sides = 2 if stage is dpo else 1
    sizes = [sum(len(ids) for ids, _ in data[i * sides : (i + 1) * sides]) for i in range(COUNT)]
    expected, found = list(drawn(run, sizes)), list(stage.steps(run, NO_POLICY))
    plan = stage.plan(run)
    assert (plan.num_steps, plan.documents, plan.tokens) == (len(expected), COUNT, sum(sizes)) == (
        len(found), COUNT, sum(sizes))  # fmt: skip
    assert plan.longest == max(sizes)
    for step, batches in zip(found, expected, strict=True):
        for batch, places in zip(step.batches, batches, strict=True):
            assert documents(batch) == [data[place * sides + side] for place in places for side in range(sides)]
            if stage is dpo:
                assert batch.ref_chosen.tolist() == [-1.5 * place for place in places]
                assert batch.ref_rejected.tolist() == [-2.25 * place for place in places]
        assert step.facts == {"tokens": sum(sizes[place] for places in batches for place in places)}


def numbers(step: Step) -> list[Any]:
    """Every number of a step."""
    found: list[Any] = [dict(step.facts)]
    for batch in cast(Any, step.batches):
        for part in (batch, getattr(batch, "rows", batch)):
            found += [one.tolist() if isinstance(one, torch.Tensor) else one for one in vars(part).values()
                      if isinstance(one, torch.Tensor | tuple)]  # fmt: skip
    return found


@pytest.mark.parametrize(("stage", "packing"), CASES, ids=["midtrain", "midtrain unpacked", "sft", "dpo"])
def test_from_any_step_on_the_steps_are_the_same(tmp_path: Path, parent: Path, stage: Any, packing: str) -> None:
    run = run_of(tmp_path, parent, stage.STAGE, *([f"packing={packing}"] if packing else []))
    written(run)
    straight = [numbers(step) for step in stage.steps(run, NO_POLICY)]
    for start in range(len(straight) + 1):
        assert [numbers(step) for step in stage.steps(replace(run, start=start), NO_POLICY)] == straight[start:]


def test_every_epoch_reads_everything_once_in_an_order_of_its_own(tmp_path: Path, parent: Path) -> None:
    run = run_of(tmp_path, parent, midtrain.STAGE)
    found = list(order.steps(run, "rows", 10))
    assert [len(step) for step in found] == [4, 4, 2] * 3 and order.num_steps(run, 10) == 9
    epochs = [np.concatenate(found[at : at + 3]).tolist() for at in (0, 3, 6)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 3
    assert epochs[0] != epochs[1] != epochs[2]
    assert list(order.steps(run, "rows", 0)) == [] and order.num_steps(run, 0) == 0


@counted
@pytest.mark.parametrize("stage", [midtrain, dpo], ids=["midtrain", "dpo"])
def test_a_resumed_run_reads_the_documents_of_its_steps_and_no_others(tmp_path: Path, parent: Path, stage: Any) -> None:
    run = run_of(tmp_path, parent, stage.STAGE, "sequence_length=64_000")
    written(run, scale=1000)
    last = replace(run, start=stage.plan(run).num_steps - 1)
    list(stage.steps(last, NO_POLICY))  # what is imported on the way is read before
    before = bytes_read()
    (step,) = stage.steps(last, NO_POLICY)
    read, own = bytes_read() - before, 4 * int(step.facts["tokens"])
    whole = sum(path.stat().st_size for path in run.data.glob("*.ids"))
    about = sum(path.stat().st_size for path in run.data.glob("*.parquet"))
    assert own <= read < own + 3 * about + 100_000 < whole / 2
