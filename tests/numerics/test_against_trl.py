"""DPO and GRPO losses and gradients against TRL's own trainers: same model, same ids, same old and reference policies.

TRL pads, we lay documents end to end; TRL divides, we carry weights. What comes out must be the same numbers.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

from algorist.model.batches import Document, GroupBatch, lay_out  # noqa: E402
from algorist.model.policy import Policy, document_sums  # noqa: E402
from algorist.stages import dpo, rlvr  # noqa: E402
from algorist.stages.learning import Objective  # noqa: E402
from model.tiny import assert_close, build, gradient  # noqa: E402
from numerics.peers import PROMPT_LENS, RESPONSE_LENS, gradients, grpo_trainer, ids, padded, trainer_of  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

ONE_BY_ONE = [[0], [1], [2], [3]]
DPO_CASES = [
    # Ours, TRL's, and how the four pairs are dealt to TRL: one by one where its loss looks across pairs.
    ({"beta": 0.1}, {"loss_type": ["sigmoid"]}, [[0, 1, 2, 3]]),
    ({"beta": 1.0}, {"loss_type": ["sigmoid"]}, [[0, 1, 2, 3]]),
    ({"beta": 0.1, "loss": "apo_zero"}, {"loss_type": ["apo_zero"]}, [[0, 1, 2, 3]]),
    ({"beta": 5.0, "length_normalised": True}, {"loss_type": ["sigmoid_norm"]}, [[0, 1, 2, 3]]),
    # TRL's label_smoothing is not read by its "sigmoid" and means another loss in its "robust". Its "aot" sorts the
    # margins of a batch and smooths as Mitchell does: with one pair nothing is sorted.
    ({"beta": 0.5, "label_smoothing": 0.2}, {"loss_type": ["aot"], "label_smoothing": 0.2}, ONE_BY_ONE),
    # TRL's "sft" is the mean over all chosen tokens of a batch; ours, as the paper's, over each response first.
    ({"beta": 0.1, "nll_weight": 0.5}, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}, ONE_BY_ONE),
    (
        {"beta": 2.0, "nll_weight": 2.0, "length_normalised": True},
        {"loss_type": ["sigmoid_norm", "sft"], "loss_weights": [1.0, 2.0]},
        ONE_BY_ONE,
    ),
]


@pytest.mark.parametrize(("keys", "theirs", "dealt"), DPO_CASES)
def test_dpo(tmp_path: Path, keys: dict[str, Any], theirs: dict[str, Any], dealt: list[list[int]]) -> None:
    rng = np.random.default_rng(0)
    prompts = [ids(rng, n) for n in PROMPT_LENS]
    chosen = [p + ids(rng, n) for p, n in zip(prompts, RESPONSE_LENS, strict=True)]
    rejected = [p + ids(rng, n) for p, n in zip(prompts, reversed(RESPONSE_LENS), strict=True)]
    model, reference = build(seed=1), build(seed=2)
    policy, ours_ref = Policy(copy.deepcopy(model)), Policy(copy.deepcopy(reference))

    rows = [{"prompt": "1", "chosen": "2", "rejected": "3"}] * 4
    settings = {"beta": keys["beta"], "max_length": None, "per_device_train_batch_size": 4, **theirs}
    trainer = trainer_of("DPO", model, tmp_path, rows, {"ref_model": reference}, **settings)
    trainer.model.train()
    expected_loss = 0.0
    for part in dealt:
        tokens, mask = padded([chosen[i] for i in part] + [rejected[i] for i in part])
        trained = mask.clone()
        for place, i in enumerate(part * 2):
            trained[place, : len(prompts[i])] = 0
        inputs = {"input_ids": tokens, "attention_mask": mask, "completion_mask": trained}
        share = trainer.compute_loss(trainer.model, inputs) * len(part) / 4
        share.backward()
        expected_loss += share.item()
    logged = {name: float(np.mean(values)) for name, values in trainer._metrics["train"].items()}

    both = [one for pair in zip(chosen, rejected, strict=True) for one in pair]
    documents = [Document.of(one, len(prompts[i // 2])) for i, one in enumerate(both)]
    layout = lay_out(documents)
    with torch.no_grad():
        sums = document_sums(ours_ref.logprobs(layout), layout).reshape(-1, 2).numpy()
    ours = dpo.loss(policy, dpo.lay_out_pairs(documents, sums, total=4), dpo.Settings(**keys))
    ours.value.backward()
    metrics = {name: float(value) for name, value in ours.metrics.items()}
    assert ours.value.item() == pytest.approx(expected_loss, rel=1e-5)
    assert keys["beta"] * metrics["chosen_change"] == pytest.approx(logged["rewards/chosen"], rel=1e-4)
    assert keys["beta"] * metrics["rejected_change"] == pytest.approx(logged["rewards/rejected"], rel=1e-4)
    if not keys.get("length_normalised"):  # TRL's margins stay those of whole responses
        assert metrics["margin"] == pytest.approx(logged["rewards/margins"], rel=1e-4)
        assert metrics["ranked"] == pytest.approx(logged["rewards/accuracies"])
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
    trainer = grpo_trainer(model, tmp_path, **settings, max_completion_length=16)
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
    at = torch.full_like(old, temperature, dtype=torch.float64)
    batch = GroupBatch(rows, old, old, torch.zeros_like(spoken), per_token, nothing, nothing, nothing, at)
    ours = rlvr.loss(policy, batch, rlvr.Settings(objective=Objective(clip_high=clip_high)))
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
