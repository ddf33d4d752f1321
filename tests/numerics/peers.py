"""TRL's trainers for tests that compare with them: built as its users build them, on the tests' tiny model."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from algorist.toy import words
from model.tiny import VOCABULARY

pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

PROMPT_LENS, RESPONSE_LENS = [3, 5, 2, 4], [6, 2, 9, 4]


def ids(rng: np.random.Generator, count: int) -> list[int]:
    return [int(token) for token in rng.integers(2, VOCABULARY, size=count)]


def padded(rows: list[list[int]], *, left: bool = False) -> tuple[Tensor, Tensor]:
    """(ids, mask) of ragged rows, both (B, longest)."""
    longest = max(map(len, rows))
    fill = [[0] * (longest - len(one)) for one in rows]
    full = [gap + one if left else one + gap for one, gap in zip(rows, fill, strict=True)]
    ones = [[1] * len(one) for one in rows]
    mask = [gap + one if left else one + gap for one, gap in zip(ones, fill, strict=True)]
    return torch.tensor(full), torch.tensor(mask)


def gradients(model: Any) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def grpo_trainer(model: Any, folder: Path, **settings: Any) -> Any:
    """TRL's GRPO trainer for one group, with the lengths of RESPONSE_LENS; nothing is sampled."""
    count = len(RESPONSE_LENS)
    return trainer_of(
        "GRPO",
        model,
        folder,
        [{"prompt": "1"}] * count,
        {"reward_funcs": lambda completions, **_: [0.0] * len(completions)},
        **settings,
        num_generations=count,
        per_device_train_batch_size=count,
    )


def trainer_of(kind: str, model: Any, folder: Path, rows: list[dict[str, str]], more: Any, **settings: Any) -> Any:
    """One of TRL's trainers, built as its users build it; only its loss is called."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import trl

        args = getattr(trl, f"{kind}Config")(
            output_dir=str(folder), report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False, **settings
        )
        return getattr(trl, f"{kind}Trainer")(
            model=model,
            args=args,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=words.tokenizer(),
            **more,
        )
