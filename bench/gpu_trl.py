"""The training rows of bench/gpu.py, by TRL's trainers, on the same tokens, rows and optimizer steps."""

from __future__ import annotations

import tempfile
import warnings
from typing import Any

import gpu_work as work
import numpy as np
import torch
from gpu_kernels import now
from gpu_training import BETA, RATE, build, memory_used, precision
from gpu_work import Ids, Say, Size, Step

# Its settings. "again": gradient checkpointing; "cached": log-probabilities of the reference are computed beforehand.
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "midtrain16k": {
        "TRL bfd, flex": {"attention": "flex_attention", "again": True},
        "TRL bfd, sdpa": {"attention": "sdpa", "again": True},
        "TRL bfd, flex, Liger": {"attention": "flex_attention", "again": True, "liger": True},
        "TRL bfd, flex, no recompute": {"attention": "flex_attention", "again": False},
        "TRL bfd, sdpa, no recompute": {"attention": "sdpa", "again": False},
    },
    "sft20k": {
        "TRL batch 2, sdpa": {"attention": "sdpa", "again": True, "batch": 2},
        "TRL batch 1, sdpa": {"attention": "sdpa", "again": True},
        "TRL padding-free 2, flex": {"attention": "flex_attention", "again": True, "batch": 2, "padding_free": True},
        "TRL batch 1, sdpa, no recompute": {"attention": "sdpa", "again": False},
    },
    "dpo16k": {
        "TRL cached, sdpa": {"attention": "sdpa", "again": True, "cached": True},
        "TRL, sdpa": {"attention": "sdpa", "again": True},
        "TRL cached, flex": {"attention": "flex_attention", "again": True, "cached": True},
        "TRL cached, sdpa, no recompute": {"attention": "sdpa", "again": False, "cached": True},
    },
}


def theirs(row: str, who: str, size: Size, device: torch.device, until: float, say: Say) -> None:
    """Every optimizer step of a row."""
    how = SETTINGS[row][who]
    if how["attention"] == "flex_attention" and device.type == "cpu":
        raise RuntimeError("FlexAttention has no backward on a CPU")
    import transformers
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    warnings.filterwarnings("ignore")
    steps = work.steps(row, size)
    shared = _arguments(how, steps, device)
    model, tokenizer = build(size, device, how["attention"]), _tokenizer(size)
    if row == "dpo16k":
        cached = how.get("cached", False)
        config: Any = DPOConfig(**shared, beta=BETA, precompute_ref_log_probs=cached)
        second = None if cached else build(size, device, how["attention"])
        data = _pairs(steps)
        trainer: Any = DPOTrainer(model, second, config, train_dataset=data, processing_class=tokenizer)
    else:
        packed = row == "midtrain16k"
        shared["dataset_kwargs"] = {"skip_prepare_dataset": True}
        shared["max_length"] = size.row if packed else None
        config = SFTConfig(**shared, packing=packed, padding_free=how.get("padding_free", False))
        data = _rows(steps, packed)
        trainer = SFTTrainer(model, args=config, train_dataset=data, processing_class=tokenizer)
    data = trainer.train_dataset
    trainer._get_train_sampler = lambda *_, **__: torch.utils.data.SequentialSampler(data)
    trainer.remove_callback(transformers.PrinterCallback)

    def tell(turn: int, seconds: float, loss: float) -> None:
        checks = {"loss": loss} | _reference(data, turn, len(steps[turn].pairs))
        facts = {"padding": _padding(row, how, steps[turn]), **memory_used(device)}
        say({**work.line(steps[turn], turn, seconds, size), "who": who, **checks, **facts})

    trainer.add_callback(_clock(transformers.TrainerCallback, device, until, tell))
    trainer.train()


def _arguments(how: dict[str, Any], steps: list[Step], device: torch.device) -> dict[str, Any]:
    """What its configurations share."""
    batch = how.get("batch", 1)
    return {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": len(steps[0].rows) // batch,
        "max_steps": len(steps),
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "adam_beta2": 0.95,
        "optim": "adamw_torch_fused",
        "max_grad_norm": 1.0,
        "max_length": None,
        "bf16": precision(device) == "bfloat16",
        "gradient_checkpointing": how["again"],
        "use_liger_kernel": how.get("liger", False),
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": device.type == "cpu",
        "dataloader_pin_memory": False,
    }


def _clock(base: type, device: torch.device, until: float, tell: Any) -> Any:
    """A callback that times whole optimizer steps, and stops before one for which no time is left."""

    class Clock(base):  # type: ignore[misc]
        begun = seconds = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.begun = now(device)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.seconds = now(device) - self.begun
            control.should_training_stop |= work.left(until) < self.seconds

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in logs:
                tell(state.global_step - 1, self.seconds, logs["loss"])

    return Clock()


def _tokenizer(size: Size) -> Any:
    """Words that are the names of ids: the trainers for pairs take texts."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: i for i, word in enumerate(["[PAD]", "[EOS]", *(f"w{i}" for i in range(2, size.vocabulary))])}
    fast = Tokenizer(models.WordLevel(words, unk_token="[PAD]"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="[PAD]", eos_token="[EOS]")


def _rows(steps: list[Step], packed: bool) -> Any:
    """Rows as the plan has them; the lengths of their documents stand beside them where they are packed."""
    from datasets import Dataset

    rows = [row for step in steps for row in step.rows]
    ids = [np.concatenate(row).tolist() for row in rows]
    lengths = {"seq_lengths": [[len(document) for document in row] for row in rows]} if packed else {}
    return Dataset.from_dict({"input_ids": ids, "labels": ids, **lengths})


def _pairs(steps: list[Step]) -> Any:
    """Pairs as texts; the end of a response is left to the trainer, which adds it."""
    from datasets import Dataset

    def text(ids: Ids) -> str:
        return "".join(f"w{i} " for i in ids if i != 1)

    pairs = [pair for step in steps for pair in step.pairs]
    return Dataset.from_list([{name: text(ids) for name, ids in vars(pair).items()} for pair in pairs])


def _reference(data: Any, turn: int, pairs: int) -> dict[str, float]:
    """The mean log-probability of a step's responses under the reference, where the trainer has cached them."""
    if not pairs or "ref_chosen_logps" not in data.column_names:
        return {}
    part = data[turn * pairs : (turn + 1) * pairs]
    return {"reference": float(np.mean([part["ref_chosen_logps"], part["ref_rejected_logps"]]))}


def _padding(row: str, how: dict[str, Any], step: Step) -> float:
    """The share of the tokens computed that fills rows up."""
    if row == "midtrain16k" or how.get("padding_free"):
        return 0.0
    held, lengths = how.get("batch", 1) * len(step.rows[0]), step.lengths
    groups = [lengths[at : at + held] for at in range(0, len(lengths), held)]
    return 1 - sum(lengths) / sum(len(group) * max(group) for group in groups)
