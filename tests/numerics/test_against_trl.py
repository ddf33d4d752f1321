"""DPO and GRPO losses and gradients against TRL's own trainers: same model, same ids, same old and reference policies.

TRL pads, we lay documents end to end; TRL divides, we carry weights. What comes out must be the same numbers.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

from algorist.model.batches import Document, GroupBatch, lay_out  # noqa: E402
from algorist.model.policy import Policy, document_sums  # noqa: E402
from algorist.records import Pair  # noqa: E402
from algorist.stages import dpo, rlvr  # noqa: E402
from algorist.toy import words  # noqa: E402
from model.tiny import VOCABULARY, assert_close, build, gradient  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
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


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_dpo(tmp_path: Path, beta: float) -> None:
    rng = np.random.default_rng(0)
    prompts = [ids(rng, n) for n in PROMPT_LENS]
    chosen = [ids(rng, n) for n in RESPONSE_LENS]
    rejected = [ids(rng, n) for n in reversed(RESPONSE_LENS)]
    model, reference = build(seed=1), build(seed=2)
    policy, ours_ref = Policy(copy.deepcopy(model)), Policy(copy.deepcopy(reference))

    rows = [{"prompt": "1", "chosen": "2", "rejected": "3"}] * 4
    more = {"ref_model": reference}
    trainer = trainer_of("DPO", model, tmp_path, rows, more, beta=beta, max_length=None, per_device_train_batch_size=4)
    both = zip(prompts * 2, chosen + rejected, strict=True)
    tokens, mask = padded([prompt + response for prompt, response in both])
    trained = mask.clone()
    for place, prompt in enumerate(prompts * 2):
        trained[place, : len(prompt)] = 0
    trainer.model.train()
    inputs = {"input_ids": tokens, "attention_mask": mask, "completion_mask": trained}
    theirs = trainer.compute_loss(trainer.model, inputs)
    theirs.backward()

    pairs = [
        Pair(str(i), "", "", "", tuple(p + c), tuple(p + r), len(p))
        for i, (p, c, r) in enumerate(zip(prompts, chosen, rejected, strict=True))
    ]
    layout = dpo.lay_out_pairs(pairs, total=len(pairs)).rows
    with torch.no_grad():
        sums = document_sums(ours_ref.logprobs(layout), layout).tolist()
    pairs = [
        replace(pair, chosen_ref_logprob=sums[2 * i], rejected_ref_logprob=sums[2 * i + 1])
        for i, pair in enumerate(pairs)
    ]
    ours = dpo.loss(policy, dpo.lay_out_pairs(pairs, total=len(pairs)), dpo.Settings(beta=beta))
    ours.value.backward()
    assert float(ours.value) == pytest.approx(float(theirs), rel=1e-5)
    assert float(ours.metrics["margin"]) == pytest.approx(trainer._metrics["train"]["rewards/margins"][-1], rel=1e-4)
    assert float(ours.metrics["ranked"]) == pytest.approx(trainer._metrics["train"]["rewards/accuracies"][-1])
    expected = gradients(trainer.model)
    for name, found in gradients(policy.model).items():
        assert_close(found, expected.pop(name), 5e-5)
    assert not expected


@pytest.mark.parametrize(("temperature", "clip_high"), [(1.0, 0.2), (0.7, 0.28)])
def test_grpo(tmp_path: Path, temperature: float, clip_high: float) -> None:
    rng = np.random.default_rng(3)
    prompts, responses = [ids(rng, n) for n in PROMPT_LENS], [ids(rng, n) for n in RESPONSE_LENS]
    advantages = [1.0, -1.0, 3.0, -1 / 3]
    model = build(seed=1)
    policy = Policy(copy.deepcopy(model))

    settings = {"beta": 0.0, "loss_type": "grpo", "epsilon": 0.2, "epsilon_high": clip_high, "temperature": temperature}
    trainer = trainer_of(
        "GRPO",
        model,
        tmp_path,
        [{"prompt": "1"}] * 4,
        {"reward_funcs": lambda completions, **_: [0.0] * len(completions)},
        **settings,
        num_generations=4,
        per_device_train_batch_size=4,
        max_completion_length=16,
    )
    documents = [
        Document.of(prompt + response, len(prompt), 1.0 / len(response))
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    rows = lay_out(documents, total=len(documents))
    spoken = rows.weights > 0
    # An old policy far enough away that both bounds of the ratio are met.
    with torch.no_grad():
        now = policy.logprobs(rows, temperature=temperature)
    old = (now + torch.from_numpy(rng.normal(scale=0.4, size=len(now))).float()) * spoken
    per_token = torch.tensor(advantages)[rows.document()] * spoken
    nothing = torch.zeros_like(old)
    batch = GroupBatch(rows, old, per_token, nothing, nothing, temperature)
    ours = rlvr.loss(policy, batch, rlvr.Settings(clip_high=clip_high))
    ours.value.backward()

    prompt_ids, prompt_mask = padded(prompts, left=True)
    response_ids, response_mask = padded(responses)
    old_rows = torch.zeros(response_mask.shape)
    old_rows[response_mask.bool()] = old[spoken]
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    theirs = trainer.compute_loss(
        trainer.model,
        {
            "prompt_ids": prompt_ids,
            "prompt_mask": prompt_mask,
            "completion_ids": response_ids,
            "completion_mask": response_mask,
            "advantages": torch.tensor(advantages),
            "old_per_token_logps": old_rows,
        },
    )
    theirs.backward()
    assert float(ours.value) == pytest.approx(float(theirs), rel=1e-5)
    assert 0.1 < float(ours.metrics["clipped"]) < 0.9
    expected = gradients(trainer.model)
    for name, found in gradients(policy.model).items():
        assert_close(found, expected.pop(name), 5e-5)
    assert not expected
    assert gradient(policy).abs().max() > 0
