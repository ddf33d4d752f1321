"""GRPO steps by TRL's GRPOTrainer, on the work of bench/grpo_steps.py.

The trainer is used as its users use it. Its hooks tell when a step begins and ends, its methods that generate, judge
and prepare are timed from outside, and lengths are imposed where transformers is asked for them.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from grpo_steps import CLIP, GROUP, RATE, Clock, Tell, Turn, Work, gradient, right, text, tokenizer, waiting


def theirs(work: Work, model: Any, how: dict[str, Any], tell: Tell, *, bf16: bool) -> None:
    """Each turn by TRL's GRPOTrainer on a model of transformers.

    Args:
        how   "batch": completions of one forward and backward; "generate": "dynamic", "static" or "cb", transformers'
              continuous batching, with its keys in "batching"; "more": other keys of GRPOConfig
        bf16  products in bfloat16
    """
    import transformers
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    warnings.filterwarnings("ignore")
    cb, device = how["generate"] == "cb", next(model.parameters()).device
    count = len(work.turns[0].lengths)
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=how["batch"],
        gradient_accumulation_steps=count // how["batch"],
        num_generations=GROUP,
        max_completion_length=work.longest,
        max_steps=len(work.turns),
        temperature=work.temperature,
        top_p=work.top_p,
        beta=0.0,
        loss_type={"response": "grpo", "token": "dapo"}[work.average],
        learning_rate=RATE,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        adam_beta2=0.95,
        max_grad_norm=CLIP,
        bf16=bf16,
        gradient_checkpointing=how.get("again", False),
        shuffle_dataset=False,
        cache_implementation="static" if how["generate"] == "static" else None,
        use_transformers_continuous_batching=cb,
        transformers_continuous_batching_config=how.get("batching") if cb else None,
        generation_kwargs={"eos_token_id": -1} if cb else None,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=False,
        **how.get("more", {}),
    )
    rows = [{"prompt": text(prompt)} for turn in work.turns for prompt in turn.prompts]
    state = _State(work, tell, Clock(wait=waiting(device)))
    trainer: Any = GRPOTrainer(
        model,
        lambda completion_ids, **_: [1.0 if right(ids) else -1.0 for ids in completion_ids],
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(work.vocabulary),
        rollout_func=state.given if work.turns[0].given else None,
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.add_callback(_steps(transformers.TrainerCallback, trainer, state))
    for name, phase in (
        ("_generate_single_turn", "generate"),
        ("_calculate_rewards", "verify"),
        ("_generate_and_score_completions", "prepare"),
    ):
        setattr(trainer, name, state.timed(getattr(trainer, name), phase))
    with _imposed(transformers.ContinuousBatchingManager, model, state):
        trainer.train()


@dataclass
class _State:
    """What the trainer's hooks know."""

    work: Work
    tell: Tell
    clock: Clock
    index: int = 0  # of the turn
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def turn(self) -> Turn:
        """The one that is going on."""
        return self.work.turns[self.index]

    def timed(self, call: Any, phase: str) -> Any:
        """The same call, counted as a phase."""

        def run(*args: Any, **keys: Any) -> Any:
            with self.clock.phase(phase):
                return call(*args, **keys)

        return run

    def given(self, prompts: list[str], trainer: Any) -> dict[str, Any]:
        """TRL's `rollout_func`: the responses of this turn."""
        ids = trainer.processing_class(prompts)["input_ids"]
        return {"prompt_ids": ids, "completion_ids": [list(one) for one in self.turn.given], "logprobs": None}


def _steps(base: type, trainer: Any, state: _State) -> Any:
    """A callback that tells of each optimizer step; the first, of given responses, once."""

    class Steps(base):  # type: ignore[misc]
        whole: Any = None

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.whole = state.clock.phase("train")
            self.whole.__enter__()

        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            if state.turn.given and state.work.gradients:
                state.facts["gradient"] = gradient(trainer.model, 0.0)

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.whole.__exit__(None, None, None)

        def on_log(self, args: Any, at: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" not in logs:
                return
            norm = float(logs["grad_norm"])
            facts = state.facts | {"loss": logs["loss"], "norm": norm}
            facts["tokens"] = round(logs["completions/mean_length"] * len(state.turn.lengths))
            if "gradient" in facts:
                facts["gradient"] = {name: one * max(1.0, norm / CLIP) for name, one in facts["gradient"].items()}
            going = state.tell(state.index, state.clock.taken(), facts)
            state.facts = {}
            state.index += 1
            trainer.rollout_func = None  # from now on it generates
            control.should_training_stop |= not going

    return Steps()


def ending(lengths: Sequence[int]) -> Any:
    """A processor of transformers' logits: the end token at the length of each response, and nowhere else."""
    import torch

    ends, said = torch.tensor(lengths), 0

    def processor(ids: Any, scores: Any) -> Any:
        nonlocal said
        said += 1
        scores[:, 1] = -torch.inf
        over = (ends == said).nonzero()[:, 0]
        if len(over):
            over = over.to(scores.device)
            scores[over] = -torch.inf
            scores[over, 1] = 0.0
        return scores

    return processor


@contextmanager
def _imposed(manager: Any, model: Any, state: _State) -> Iterator[None]:
    """Lengths for `generate` and for continuous batching."""
    plain = model.generate

    def generate(*args: Any, **keys: Any) -> Any:
        return plain(*args, logits_processor=[ending(state.turn.lengths)], **keys)

    def add_requests(self: Any, inputs: Any, max_new_tokens: Any = None, **_: Any) -> list[str]:
        pairs = zip(inputs, state.turn.lengths, strict=True)
        return [self.add_request(list(ids), max_new_tokens=n, eos_token_id=-1) for ids, n in pairs]

    before = manager.add_requests
    model.generate, manager.add_requests = generate, add_requests
    try:
        yield
    finally:
        manager.add_requests = before
        del model.generate
