"""The policy loss as DAPO and Dr. GRPO weigh it, its dual clip and the penalty of a reference, against TRL's trainer.

What differs between the algorithms is weights only: TRL's `loss_type` on one side, what each token's weight is on the
other. Loss and gradients of every parameter must be the same numbers.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("trl")
pytest.importorskip("datasets")

from algorist.model.batches import Document, lay_out  # noqa: E402
from algorist.model.policy import Policy  # noqa: E402
from algorist.numerics.divergence import kl_penalty  # noqa: E402
from algorist.numerics.losses import clipped_policy_loss  # noqa: E402
from model.tiny import assert_close, build  # noqa: E402
from numerics.peers import PROMPT_LENS, RESPONSE_LENS, gradients, grpo_trainer, ids, padded  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
MAX_TOKENS = 16
TOTAL, COUNT = sum(RESPONSE_LENS), len(RESPONSE_LENS)
WEIGHTS = {
    "grpo": [1 / (COUNT * length) for length in RESPONSE_LENS],
    "dapo": [1 / TOTAL] * COUNT,
    "dr_grpo": [1 / (COUNT * MAX_TOKENS)] * COUNT,
}
CASES: list[dict[str, Any]] = [
    {"loss_type": "dapo", "epsilon_high": 0.28},
    {"loss_type": "dr_grpo", "epsilon_high": 0.2},
    {"loss_type": "dapo", "epsilon_high": 0.28, "delta": 1.5},
    {"loss_type": "grpo", "epsilon_high": 0.2, "beta": 0.3, "use_bias_correction_kl": False},
    {"loss_type": "dr_grpo", "epsilon_high": 0.2, "beta": 0.3, "use_bias_correction_kl": True},
]


@pytest.mark.parametrize("settings", CASES, ids=lambda case: "-".join(str(value) for value in case.values()))
def test_policy_loss(tmp_path: Path, settings: dict[str, Any]) -> None:
    rng = np.random.default_rng(3)
    prompts, responses = [ids(rng, n) for n in PROMPT_LENS], [ids(rng, n) for n in RESPONSE_LENS]
    advantages = [1.0, -1.0, 3.0, -1 / 3]
    model = build(seed=1)
    policy = Policy(copy.deepcopy(model))
    how = {"epsilon": 0.2, "temperature": 0.7, **settings, "beta": 0.0}
    trainer = grpo_trainer(model, tmp_path, **how, steps_per_generation=1, max_completion_length=MAX_TOKENS)
    documents = [
        Document.of(prompt + response, len(prompt), weight)
        for prompt, response, weight in zip(prompts, responses, WEIGHTS[settings["loss_type"]], strict=True)
    ]
    rows = lay_out(documents, total=1)
    spoken = rows.weights > 0
    now = policy.logprobs(rows, temperature=0.7)
    # Old and reference policies far enough away that every bound is met.
    old, reference = (
        (now.detach() + torch.from_numpy(rng.normal(scale=0.5, size=len(now))).float()) * spoken for _ in range(2)
    )
    ours = clipped_policy_loss(
        now,
        old,
        torch.tensor(advantages)[rows.document()] * spoken,
        rows.weights,
        clip_high=settings["epsilon_high"],
        dual_clip=settings.get("delta", math.inf),
    )
    past = old if settings.get("use_bias_correction_kl") else None
    penalty = kl_penalty(now, reference, rows.weights, estimator="k3", old_logprobs=past)
    value = ours.value + settings.get("beta", 0.0) * penalty.value
    value.backward()

    prompt_ids, prompt_mask = padded(prompts, left=True)
    response_ids, response_mask = padded(responses)
    old_rows, reference_rows = torch.zeros(2, *response_mask.shape)
    old_rows[response_mask.bool()], reference_rows[response_mask.bool()] = old[spoken], reference[spoken]
    trainer.model.train()
    trainer.beta = settings.get("beta", 0.0)  # its constructor would look for the reference on a hub
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
            "ref_per_token_logps": reference_rows,
            "num_items_in_batch": torch.tensor(TOTAL),
        },
    )
    theirs.backward()
    assert value.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert 0 < float(ours.metrics["clipped"]) < float(rows.weights.sum())
    expected = gradients(trainer.model)
    for name, found in gradients(policy.model).items():
        assert_close(found, expected.pop(name), 5e-5)
    assert not expected
