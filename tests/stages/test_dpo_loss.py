"""The loss of stage 3 with each of its options, on a tiny model: against the twin, in pieces, and at its start."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from algorist.model.batches import Document, cut_lengths
from algorist.model.policy import Policy
from algorist.stages import dpo
from model.tiny import VOCABULARY, alone, as_transformers_runs_it, assert_close, build, gradient, policy
from oracles import losses as twins

PROMPTS, CHOSEN, REJECTED = [3, 5, 2, 4, 6], [6, 2, 9, 4, 1], [4, 9, 2, 7, 12]  # tokens
OPTIONS = [
    {"loss": loss, "label_smoothing": smoothing, "length_normalised": normalised, "nll_weight": nll}
    for loss, smoothing, normalised, nll in itertools.product(
        ("sigmoid", "apo_zero"), (0.0, 0.2), (False, True), (0.0, 0.7)
    )
    if loss == "sigmoid" or not smoothing
]


def name_of(options: dict[str, Any]) -> str:
    return " ".join(str(value) for value in options.values())


def drawn() -> list[Document]:
    """Chosen and rejected responses in turn, of random tokens and of lengths from one token to twelve."""
    rng = np.random.default_rng(5)
    documents = []
    for prompt, *responses in zip(PROMPTS, CHOSEN, REJECTED, strict=True):
        asked = rng.integers(2, VOCABULARY, size=prompt).tolist()
        for length in responses:
            documents.append(Document.of(asked + rng.integers(2, VOCABULARY, size=length).tolist(), prompt))
    return documents


def token_logprobs(model: Any, documents: list[Document]) -> list[list[float]]:
    """Of each response's tokens, by a plain forward over that text alone."""
    with torch.no_grad():
        return [
            [float(x) for x, weight in zip(alone(model, list(one.tokens)), one.weights, strict=True) if weight]
            for one in documents
        ]


def paired(responses: list[list[float]]) -> list[tuple[list[float], list[float]]]:
    return list(zip(responses[0::2], responses[1::2], strict=True))


def taken(
    policy: Policy, before: list[list[float]], settings: dpo.Settings, tokens_per_batch: int = 1000
) -> tuple[float, dict[str, float]]:
    """Loss and metrics of one optimizer step, in micro-batches; the gradient stays on the policy."""
    documents, sums = drawn(), np.array([sum(one) for one in before], dtype=np.float32).reshape(-1, 2)
    lengths = [len(a.tokens) + len(b.tokens) for a, b in zip(documents[0::2], documents[1::2], strict=True)]
    value, metrics = 0.0, Counter[str]()
    for part in cut_lengths(lengths, tokens_per_batch):
        both = [documents[2 * pair + side] for pair in part for side in (0, 1)]
        found = dpo.loss(policy, dpo.lay_out_pairs(both, sums[part], total=len(lengths)), settings)
        found.value.backward()
        value += found.value.item()
        metrics.update({name: metric.item() for name, metric in found.metrics.items()})
    return value, dict(metrics)


@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
def test_every_option_equals_the_twin(options: dict[str, Any]) -> None:
    trained = policy("Qwen3", seed=1)
    now = token_logprobs(as_transformers_runs_it(trained), drawn())
    before = token_logprobs(build("Qwen3", seed=2), drawn())
    value, _ = taken(trained, before, dpo.Settings(beta=0.3, **options))
    expected = twins.preference_objective(paired(now), paired(before), beta=0.3, **options)
    assert value == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
def test_micro_batches_change_neither_loss_nor_metrics_nor_gradient(options: dict[str, Any]) -> None:
    trained, settings = policy("Llama", seed=1), dpo.Settings(beta=0.3, **options)
    before = token_logprobs(build("Llama", seed=2), drawn())
    value, metrics = taken(trained, before, settings)
    slopes = gradient(trained)
    for tokens_per_batch in (1, 40):
        value_of_parts, metrics_of_parts = taken(trained, before, settings, tokens_per_batch)
        assert value_of_parts == pytest.approx(value, rel=1e-5)
        assert metrics_of_parts == pytest.approx(metrics, rel=1e-5, abs=1e-6)
        assert_close(gradient(trained), slopes)


def test_metrics_are_means_over_pairs_of_what_the_tokens_say() -> None:
    trained = policy("Llama", seed=1)
    now = token_logprobs(as_transformers_runs_it(trained), drawn())
    before = token_logprobs(build("Llama", seed=2), drawn())
    _, metrics = taken(trained, before, dpo.Settings(beta=0.3, nll_weight=0.5))
    changes = np.array([sum(a) - sum(b) for a, b in zip(now, before, strict=True)]).reshape(-1, 2)
    means = np.array([np.mean(one) for one in now]).reshape(-1, 2)
    expected = {
        "loss": np.mean(np.log1p(np.exp(-0.3 * (changes[:, 0] - changes[:, 1])))),  # the preference alone
        "margin": 0.3 * np.mean(changes[:, 0] - changes[:, 1]),
        "ranked": np.mean(changes[:, 0] > changes[:, 1]),
        "chosen_change": np.mean(changes[:, 0]),
        "rejected_change": np.mean(changes[:, 1]),
        "chosen_change_per_token": np.mean(changes[:, 0] / CHOSEN),
        "chosen_logprob": np.mean(means[:, 0]),
        "rejected_logprob": np.mean(means[:, 1]),
    }
    assert metrics == pytest.approx(expected, rel=2e-5, abs=1e-5)
    assert 0 < metrics["ranked"] < 1


@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
def test_where_policy_and_reference_are_the_same(options: dict[str, Any]) -> None:
    """What the journal of any run must begin with: log 2, or 1 for APO-zero, and nothing changed."""
    trained = policy("Llama", seed=1)
    before = token_logprobs(as_transformers_runs_it(trained), drawn())
    _, metrics = taken(trained, before, dpo.Settings(**options))
    assert metrics["loss"] == pytest.approx({"sigmoid": math.log(2), "apo_zero": 1.0}[options["loss"]], rel=1e-5)
    for name in ("margin", "chosen_change", "rejected_change", "chosen_change_per_token"):
        assert metrics[name] == pytest.approx(0.0, abs=2e-5)


def steps_of(*values: tuple[float | None, float | None]) -> list[dict[str, float | None]]:
    """What a journal holds of steps with these chosen_logprob and chosen_change_per_token."""
    return [
        {"step": i, "loss": 0.3, "chosen_logprob": a, "chosen_change_per_token": b} for i, (a, b) in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("keys", "entries", "heard"),
    [
        ({}, [], False),
        ({}, steps_of((-0.2, 0.0)), False),
        ({}, steps_of((-0.2, 0.05)), False),  # more likely
        ({}, steps_of((-0.1, -0.1)), False),  # no share of nothing
        ({}, steps_of(*[(-0.208, -0.008)] * 10), False),  # 4 %
        ({}, steps_of(*[(-0.212, -0.012)] * 10), True),  # 6 %
        ({}, steps_of(*[(-2.08, -0.08)] * 10), False),  # the same two where a token costs two nats
        ({}, steps_of(*[(-2.12, -0.12)] * 10), True),
        ({}, steps_of(*[(-0.2, 0.0)] * 9, (-0.3, -0.1)), False),  # one bad batch among ten: 4.8 %
        ({}, steps_of(*[(-0.2, 0.0)] * 8, *[(-0.3, -0.1)] * 2), True),
        ({"max_chosen_fall": 0.2}, steps_of(*[(-0.212, -0.012)] * 10), False),
        ({"max_chosen_fall": 0.0}, steps_of(*[(-9.0, -8.0)] * 10), False),
        ({}, steps_of((None, -3.0), (-0.212, None)), False),  # what was not finite is null in a journal
        ({}, [{"step": 0, "loss": 0.3}], False),  # a journal from before there was this metric
    ],
)
def test_when_the_alarm_is_heard(keys: dict[str, Any], entries: list[dict[str, float | None]], heard: bool) -> None:
    assert bool(dpo.alarm(dpo.Settings(**keys), entries)) == heard


def test_what_the_alarm_says() -> None:
    entries = steps_of(*[(-0.28, -0.08)] * 10)  # 40 %
    found = "chosen responses became less likely: a token costs over 40% more nats than under the reference "
    why = "(max_chosen_fall = 0.05). Right answers are unlearned with the wrong ones: lower learning_rate"
    remedy = ', take loss = "apo_zero" or raise nll_weight.'
    assert dpo.alarm(dpo.Settings(), entries) == found + why + remedy
    assert dpo.alarm(dpo.Settings(loss="apo_zero"), entries) == found + why + " or raise nll_weight."
    assert dpo.STAGE.alarm is dpo.alarm


def test_the_alarm_says_something_new_at_each_doubling_alone() -> None:
    """A long decline in small steps, as the loop shows it: the last ten entries, which may be tensors."""
    heard = []
    journal = steps_of(*[(-0.2 - 0.001 * step, -0.001 * step) for step in range(200)])
    for end in range(1, len(journal) + 1):
        latest = [{name: torch.tensor(value) for name, value in entry.items()} for entry in journal[:end][-10:]]
        heard.append(dpo.alarm(dpo.Settings(), latest))
    told = [text for text, before in zip(heard, ["", *heard], strict=False) if text and text != before]
    assert [text.split(" over ")[1].split(" more")[0] for text in told] == ["5%", "10%", "20%", "40%", "80%"]
    assert heard.index(told[0]) == 15  # mean of steps 6 to 15: 10.5 thousandths of a nat upon 0.2


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"beta": 0.0}, "epochs must be at least 1, sequence_length at least 2 and beta above 0."),
        ({"label_smoothing": 0.5}, "label_smoothing = 0.5: a share from 0 to below 0.5 was expected."),
        ({"label_smoothing": -0.1}, "label_smoothing = -0.1: a share from 0 to below 0.5 was expected."),
        (
            {"label_smoothing": 0.1, "loss": "apo_zero"},
            'label_smoothing goes with loss = "sigmoid" only. Leave it out, or take another loss.',
        ),
        ({"nll_weight": -1.0}, "nll_weight and max_chosen_fall must be at least 0."),
        ({"max_chosen_fall": -0.1}, "nll_weight and max_chosen_fall must be at least 0."),
    ],
)
def test_settings_that_cannot_be(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        dpo.Settings(**keys)
    assert str(error.value) == message
