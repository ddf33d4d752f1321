"""Measures of rollouts: the ids are those of `Chat.response_ids`, every row in its place, quiet without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from algorist import store
from algorist.data import clean, measures, repetition
from algorist.errors import RecipeError, RecordError
from algorist.model.chat import Chat
from algorist.records import Measure, Problem, Rollout
from algorist.toy import words, world
from algorist.toy.teacher import PHRASES

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
SETTINGS = repetition.Settings()
PROMPT = "{problem}"


def shards(folder: Path, texts: list[str]) -> tuple[Path, Path, list[Rollout]]:
    """(rollouts, problems, what the rollouts are): two problems, the texts in turn."""
    problems = [Problem.of(f"What is {n} + {n}?", str(2 * n)) for n in (3, 4)]
    rollouts = [Rollout.of(problems[n % 2].id, text, "teacher", index=n) for n, text in enumerate(texts)]
    kinds = ((Problem, problems), (Rollout, rollouts))
    paths = [store.write_shard(folder / kind.__name__, 3, kind, records) for kind, records in kinds]
    return paths[1], paths[0], rollouts


def measured(folder: Path, texts: list[str], tokenizer: str = "toy", asked: clean.Asked | None = None) -> list[Measure]:
    rollouts, problems, _ = shards(folder, texts)
    out = folder / "measures" / "00003.parquet"
    measures.measure(rollouts, problems, out, tokenizer, asked, SETTINGS, "made from")
    assert store.facts(out).made_from == "made from"
    return store.read_shard(out, Measure)


def test_rows_are_those_of_the_rollouts(tmp_path: Path) -> None:
    looping = "Tom wins 3. " * 60
    texts = [
        "<think>Tom starts with 4, wins 3, so 4 + 3 = 7.</think> \\boxed{7}",
        "",
        looping,
        "so we设 x 为 4, 因此 7",
    ]
    found = measured(tmp_path, texts)
    chat = Chat.of(words.tokenizer(), PROMPT)
    _, _, rollouts = shards(tmp_path, texts)
    assert [one.rollout_id for one in found] == [one.id for one in rollouts]
    assert [one.problem_id for one in found] == [one.problem_id for one in rollouts]
    assert [one.tokens for one in found] == [chat.response_ids(text, ended=False) for text in texts]
    assert [one.num_tokens for one in found] == [len(one.tokens) for one in found]
    assert [one.repetition for one in found] == ["", "", "loop", "languages"]
    assert {one.leak for one in found} == {""}


def test_no_rollouts_are_no_measures(tmp_path: Path) -> None:
    assert measured(tmp_path, []) == []


def test_a_rollout_without_its_problem_is_an_error(tmp_path: Path) -> None:
    rollouts, problems, _ = shards(tmp_path, ["7", "8"])
    store.write_shard(problems.parent, 3, Problem, store.read_shard(problems, Problem)[:1])
    with pytest.raises(RecordError, match=r"rollout [0-9a-f]{16} answers problem .* which is not in .*00003.parquet"):
        measures.measure(rollouts, problems, tmp_path / "out" / "00003.parquet", "toy", None, SETTINGS, "")


def test_a_model_without_a_tokenizer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="tokenizer"):
        measured(tmp_path, ["7"], tokenizer=str(tmp_path))


def test_quotations_of_a_benchmark_are_named(tmp_path: Path) -> None:
    said = "Every morning Aya goes for a long walk and stops at a coffee shop afterwards for a while"
    for name, statement in (("walks", said), ("toads", "A toad jumps twice")):
        store.write(tmp_path / "benchmarks" / name, Problem, [Problem.of(statement, "7")])
        store.write(tmp_path / "benchmarks" / name / "unscored", Problem, [])
    asked = clean.Asked.of(tmp_path, ("toads", "walks"), 13, 0.75)
    found = measured(
        tmp_path, [f"<think>{said.upper()}, and so", "Aya goes for a walk. A toad jumps twice."], asked=asked
    )
    assert [one.leak for one in found] == ["walks", ""]


def stories(count: int) -> list[str]:
    told = world.problems(1, "train", count, [2, 4])
    return [f"<think>{one.statement}</think> {PHRASES['final'].format(n=one.answer)}" for one in told]


def test_many_texts_at_once_have_the_ids_of_each_alone() -> None:
    chat = Chat.of(words.tokenizer(), PROMPT)
    texts = stories(200) + ["", " ", "<|end|>", "Tom <|user|> wins 12345", "\n\n"]
    together = measures.response_ids(chat.tokenizer, texts)
    assert [tuple(ids.tolist()) for ids in together] == [chat.response_ids(text, ended=False) for text in texts]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not here")
@pytest.mark.parametrize("name", ["phi-3-mini", "v5/qwen2.5-synthetic"])
def test_many_real_texts_at_once_have_the_ids_of_each_alone(
    name: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = SHARED / "chat_templates" / name
    if not (folder / "tokenizer.json").exists():
        pytest.skip("it has no tokenizer.json")
    tokenizer = measures.load(str(folder))
    assert measures.load(str(folder)) is tokenizer
    with open(SHARED / "rollouts_real.jsonl", encoding="utf-8") as lines:
        texts = [json.loads(line)["completion"] for line in lines][3280:5000:9] + [
            "",
            "<|end|><|endoftext|>",
            "因此 🙂",
        ]
    together = measures.response_ids(tokenizer, texts)
    assert not caplog.records and not capfd.readouterr().err  # of texts longer than the model's window
    chat = Chat(tokenizer, PROMPT, 0, frozenset())
    for text, ids in zip(texts, together, strict=True):
        assert tuple(ids.tolist()) == chat.response_ids(text, ended=False)


def test_measuring_with_the_toys_tokenizer_needs_no_torch_and_says_nothing(tmp_path: Path) -> None:
    """In an interpreter without torch, where transformers would say that models are not available."""
    rollouts, problems, _ = shards(tmp_path, ["so 4 + 3 = 7"])
    code = """
import importlib.util, sys
from pathlib import Path
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.split(".")[0] == "torch" else found(name, package)
sys.modules["torch"] = None
from algorist.data import measures, repetition
rollouts, problems, out = map(Path, sys.argv[1:])
measures.measure(rollouts, problems, out, "toy", None, repetition.Settings(), "")
"""
    out = tmp_path / "measures" / "00003.parquet"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, (rollouts, problems, out))], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert store.read_shard(out, Measure)[0].num_tokens == 6
