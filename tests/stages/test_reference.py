"""The reference of stage 3: right numbers, computed once, kept over a kill, refused when they are of another model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from algorist import recipe as recipes
from algorist import store
from algorist.data.curate import Dpo
from algorist.errors import RunError
from algorist.model import checkpoints
from algorist.model.batches import Document
from algorist.model.chat import Chat
from algorist.model.policy import Policy
from algorist.records import CARD, Checkpoint, Pair
from algorist.stage import Run
from algorist.stages import dpo, reference
from algorist.tokens import Corpus
from algorist.toy import base, words
from curation import draw, problem, told, write_run
from model import tiny

RULES = Dpo(levels=(), per_problem=9, max_length_ratio=9.0, balance_lengths=False, max_auc=1.0)
PROBLEMS = 12


def model_of(folder: Path, seed: int = 1) -> Path:
    tokenizer = words.tokenizer()
    shape = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "mlp_size": 16, "context": 128}
    made = Policy(base.model(len(tokenizer), seed, **shape))
    checkpoints.save(folder, made, tokenizer, Checkpoint("", "sft", 3))
    return folder


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a set of pairs in three shards, and the checkpoint of stage 2."""
    root, chance = tmp_path_factory.mktemp("run"), np.random.default_rng(0)
    problems = [problem(number) for number in range(PROBLEMS)]
    rollouts = []
    for one in problems:
        for index, right in enumerate((True, False, True, False)):
            ids = chance.integers(2, 40, int(chance.integers(3, 30))).tolist()
            rollouts.append(told(one, right, f"text {one.id} {index}", index, tokens=ids))
    write_run(root, problems, rollouts, shards=3)
    draw(root, "dpo", RULES)
    model_of(root / "sft" / "checkpoint")
    return root


def run_of(root: Path, *overrides: str) -> Run:
    (root / "recipe.toml").write_text('name = "test"\nseed = 3\n')
    keys = [f"dpo.{key}" for key in ("batch_size=4", *overrides)]
    recipe = recipes.read(root / "recipe.toml", {"dpo": (dpo.Settings, dpo.STAGE.training)}, keys)
    parent = root / "sft" / "checkpoint"
    return Run(recipe, root, dpo.STAGE, str(parent), Chat.of(words.tokenizer(), "{problem}"), "float32")


@pytest.fixture
def run(drawn: Path, tmp_path: Path) -> Run:
    return run_of(shutil.copytree(drawn, tmp_path / "run"))


def test_what_is_stored_is_what_transformers_says_of_each_response_alone(run: Run) -> None:
    made = dpo.curate(run)
    assert made.rows == 2 * PROBLEMS and len(made.shards) == 3
    policy = checkpoints.open_policy(run.parent, precision="float32")
    model = tiny.as_transformers_runs_it(policy)
    corpus, stored = Corpus.open(run.data, Pair), reference.read(run.data)
    expected = [
        float(tiny.alone(model, corpus[place].tolist())[corpus.prompt_lens[place] :].sum().detach())
        for place in range(len(corpus))
    ]
    assert stored.reshape(-1).tolist() == pytest.approx(expected, rel=1e-5) and len(set(expected)) == len(expected)
    pairs = store.read(run.data, Pair)
    assert [one.chosen_ref_logprob for one in pairs] == pytest.approx(stored[:, 0].tolist())
    assert [one.rejected_ref_logprob for one in pairs] == pytest.approx(stored[:, 1].tolist())
    assert all(np.isfinite(stored.reshape(-1)))
    plan, steps = dpo.plan(run), list(dpo.steps(run, policy))
    assert plan.num_steps == len(steps) == 6 and (plan.documents, plan.tokens) == (24, corpus.lengths.sum())


def test_how_documents_are_batched_changes_only_rounding_and_no_batch_is_over_its_budget() -> None:
    policy = tiny.policy()
    documents = tiny.documents(4, [5, 40, 12, 9, 33, 21, 40, 3])
    told: list[int] = []
    with_room = reference.logprobs(policy, documents, 10_000, told.append)
    assert told == [8]
    told.clear()
    cut = reference.logprobs(policy, documents, 45, told.append)
    assert told == [1, 1, 1, 3, 2]  # 40, 40, 33, 21 + 12 + 9, 5 + 3: the longest first
    assert cut.tolist() == pytest.approx(with_room.tolist(), rel=1e-5)
    assert reference.logprobs(policy, [], 45, told.append).shape == (0,)
    weighed = Document.of(documents[1].tokens, 39)
    assert reference.logprobs(policy, [weighed], 45, told.append)[0] != pytest.approx(float(cut[1]))


def made(run: Run) -> dict[str, int]:
    """When each file of the stage's data was written."""
    return {path.name: path.stat().st_mtime_ns for path in sorted(run.data.iterdir())}


def test_a_shard_that_a_kill_left_finished_is_not_computed_again(run: Run) -> None:
    dpo.curate(run)
    before, contents = made(run), {path.name: path.read_bytes() for path in run.data.iterdir()}
    # as a kill between the token ids of the last shard and the shard itself leaves it
    for name in ("00002.parquet", reference.FILE, store.MANIFEST):
        (run.data / name).unlink()
    (run.data / "00001.ids").write_bytes(b"")  # and one that the disk has lost
    dpo.curate(run)
    after = made(run)
    assert {path.name: path.read_bytes() for path in run.data.iterdir()} == contents
    kept = {name for name in before if after[name] == before[name]}
    assert kept == {"00000.ids", "00000.parquet"}

    (run.data / store.MANIFEST).unlink()
    (Path(run.parent) / "model.safetensors").unlink()  # where nothing is missing, no model is opened
    dpo.curate(run)
    assert made(run)["00001.parquet"] == after["00001.parquet"]


@pytest.mark.parametrize(
    "other",
    [
        lambda run: replace(run, precision="bfloat16"),
        lambda run: replace(run, weights="bfloat16"),
        lambda run: run_of(run.root, "sequence_length=20"),
        lambda run: run_of(run.root, "tokens_per_batch=50"),
        lambda run: replace(run, parent=str(model_of(run.root / "other", seed=2))),
    ],
    ids=["precision", "weights", "sequence_length", "tokens_per_batch", "parent"],
)
def test_what_another_run_left_half_done_is_computed_again(run: Run, other: Callable[[Run], Run]) -> None:
    dpo.curate(run)
    before = made(run)
    (run.data / store.MANIFEST).unlink()
    dpo.curate(other(run))
    assert not {name for name, when in made(run).items() if before[name] == when}


def test_pairs_that_do_not_fit_are_counted(run: Run) -> None:
    whole = dpo.curate(run)
    longest = int(Corpus.open(run.data, Pair).lengths.max())
    shorter = run_of(run.root, f"sequence_length={longest - 1}")
    (run.data / store.MANIFEST).unlink()
    cut = dpo.curate(shorter)
    assert 0 < cut.dropped["longer than sequence_length"] == whole.rows - cut.rows
    assert int(Corpus.open(run.data, Pair).lengths.max()) < longest


def edited(path: Path, **keys: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def test_a_stale_reference_is_refused(run: Run) -> None:
    def refused(now: Run) -> str:
        for use in (dpo.plan, lambda one: next(dpo.steps(one, None))):  # type: ignore[arg-type]
            with pytest.raises(RunError) as error:
                use(now)  # type: ignore[operator]
        return str(error.value)

    dpo.curate(run)
    dpo.plan(run)
    path, parent = run.data / reference.FILE, Path(run.parent)
    key = json.loads(path.read_text())
    said = f"{path}: the reference log-probabilities are of "
    again = f"Delete the folder {run.data} and run the same command again: they are computed anew."
    assert refused(replace(run, precision="bfloat16")) == (f"{said}precision float32, now it is bfloat16. {again}")
    assert refused(replace(run, weights="bfloat16")) == f"{said}weights float32, now it is bfloat16. {again}"
    card = (parent / CARD).read_text()
    edited(parent / CARD, id="0123456789abcdef")
    assert refused(run) == f"{said}model {key['model']}, now it is 0123456789abcdef. {again}"
    (parent / CARD).write_text(card)

    chat = Chat.of(words.tokenizer(), "Now: {problem}")
    now = reference.key(replace(run, chat=chat))
    assert refused(replace(run, chat=chat)) == (
        f"{said}chat template {key['chat template']}, now it is {now['chat template']}. {again}"
    )
    tokenizer = words.tokenizer()
    tokenizer.chat_template = "{# another #}" + tokenizer.chat_template
    tokenizer.add_tokens(["another"])
    now = reference.key(replace(run, chat=Chat.of(tokenizer, "{problem}")))
    assert refused(replace(run, chat=Chat.of(tokenizer, "{problem}"))) == (
        f"{said}tokenizer {key['tokenizer']}, now it is {now['tokenizer']}; of chat template "
        f"{key['chat template']}, now it is {now['chat template']}. {again}"
    )
    config = (parent / "config.json").read_text()
    edited(parent / "config.json", rms_norm_eps=0.5)
    assert refused(run) == f"{said}config {key['config']}, now it is {reference.key(run)['config']}. {again}"
    (parent / "config.json").write_text(config)
    edited(parent / "config.json", transformers_version="9.9")
    dpo.plan(run)
    path.unlink()
    assert refused(run) == (f"{path}: is missing, so nothing says what the reference log-probabilities are of. {again}")
