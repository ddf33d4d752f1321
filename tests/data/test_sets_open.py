"""The sets as others see them: `datasets` opens the shards, and TRL's trainers learn from them as they are."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest

datasets = pytest.importorskip("datasets")
pytest.importorskip("trl")

from transformers import Qwen2Config, Qwen2ForCausalLM  # noqa: E402

from algorist.data import sets  # noqa: E402
from algorist.data.curate import Dpo, Sft  # noqa: E402
from algorist.numerics.address import rng  # noqa: E402
from algorist.toy import teacher, words  # noqa: E402
from algorist.toy import world as toy  # noqa: E402
from algorist.verify.extract import extract  # noqa: E402
from curation import draw, told, write_run  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
COLUMNS = {"midtrain": ["messages"], "sft": ["messages"], "dpo": ["prompt", "chosen", "rejected"], "rlvr": ["prompt"]}
RULES: dict[str, Any] = {"sft": Sft(levels=()), "dpo": Dpo(levels=(), max_auc=1.0)}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All four sets of a made-up world, two shards each."""
    folder = tmp_path_factory.mktemp("open")
    problems, found = toy.problems(1, "train", 60, range(1, 7)), []
    for problem in problems:
        for index in range(6):
            text, finish = teacher.respond(
                problem.statement, rng("t", problem.id, index), teacher.Habits(slip=0.2), 100
            )
            answer = extract(text).answer
            more = {"extracted": answer, "finish": finish, "tokens": len(text.split())}
            found.append(told(problem, answer == problem.answer, text, index, **more))
    write_run(folder, problems, found, shards=2)
    for name in sets.SETS:
        draw(folder, name, RULES.get(name))
    return folder


def opened(root: Path, name: str) -> Any:
    files = str(root / "sets" / name / "*.parquet")
    return datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(root / "cache"))


def trainer(kind: str, folder: Path, rows: Any, more: dict[str, Any] | None = None, **settings: Any) -> Any:
    """One of TRL's trainers on a tiny model, built as its users build it."""
    tokenizer = words.tokenizer()
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import trl

        args = getattr(trl, f"{kind}Config")(
            output_dir=str(folder),
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            max_steps=2,
            per_device_train_batch_size=4,
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            **settings,
        )
        model = Qwen2ForCausalLM(config)
        # A model that was never saved has no name under which the trainer could load its reference.
        more = {"ref_model": copy.deepcopy(model)} if kind == "DPO" else more or {}
        return getattr(trl, f"{kind}Trainer")(
            model=model, args=args, train_dataset=rows, processing_class=tokenizer, **more
        )


def losses(made: Any) -> list[float]:
    made.train()
    return [entry["loss"] for entry in made.state.log_history if "loss" in entry]


@pytest.mark.parametrize("name", sets.SETS)
def test_datasets_opens_a_set_with_the_usual_columns(root: Path, name: str) -> None:
    rows = opened(root, name)
    assert len(rows) > 20 and set(COLUMNS[name]) <= set(rows.column_names)
    for column in COLUMNS[name]:
        turn = rows[0][column][0]
        assert set(turn) == {"role", "content"} and turn["role"] in ("user", "assistant") and turn["content"]
    if name == "rlvr":
        assert rows[0]["answer"]


def test_a_folder_opens_by_its_card(root: Path) -> None:
    rows = datasets.load_dataset(str(root / "sets" / "sft"), split="train", cache_dir=str(root / "cache"))
    assert len(rows) == len(opened(root, "sft"))


@pytest.mark.parametrize("name", ["midtrain", "sft"])
def test_trl_fine_tunes_on_examples(root: Path, tmp_path: Path, name: str) -> None:
    assert len(losses(trainer("SFT", tmp_path, opened(root, name), max_length=256))) == 2


def test_trl_optimises_preferences(root: Path, tmp_path: Path) -> None:
    first, _ = losses(trainer("DPO", tmp_path, opened(root, "dpo"), max_length=256))
    assert first == pytest.approx(0.6931, abs=1e-3)


def test_trl_reinforces_on_questions(root: Path, tmp_path: Path) -> None:
    asked: list[tuple[str, str]] = []

    def reward(prompts: Any, completions: Any, answer: list[str], **_: Any) -> list[float]:
        asked.extend((prompt[0]["content"], gold) for prompt, gold in zip(prompts, answer, strict=True))
        return [float(index % 2) for index in range(len(completions))]

    rows = opened(root, "rlvr")
    made = trainer("GRPO", tmp_path, rows, {"reward_funcs": reward}, num_generations=2, max_completion_length=4)
    assert len(losses(made)) == 2
    golds = {row["prompt"][0]["content"]: row["answer"] for row in rows}
    assert asked and all(golds[prompt] == gold for prompt, gold in asked)
