"""The embedded sampler: what transformers generates, with the trainer's log-probabilities, whatever runs beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from algorist.generate import native
from algorist.generate.sampling import Request, Response, Sampling
from algorist.model.batches import Document, lay_out
from algorist.model.policy import Policy
from algorist.numerics.address import key
from model import tiny

END = (tiny.END,)


def requests(count: int, seed: int = 0) -> list[Request]:
    """Ragged prompts, some of them asked for several times."""
    rng = np.random.default_rng(seed)
    prompts = [tuple(rng.integers(2, tiny.VOCABULARY, size=int(rng.integers(1, 15))).tolist()) for _ in range(count)]
    return [Request(prompts[i // 2 * 2 if i % 3 else i], key(seed, i)) for i in range(count)]


def logprobs_of(policy: Policy, asked: list[Request], given: list[Response], temperature: float) -> torch.Tensor:
    documents = [Document.of(q.prompt + r.tokens, len(q.prompt)) for q, r in zip(asked, given, strict=True)]
    row = lay_out(documents)
    with torch.no_grad():
        return policy.logprobs(row, temperature=temperature)[row.weights > 0]


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_greedy_equals_generate(kind: str) -> None:
    policy = tiny.policy(kind, seed=5)
    reference = tiny.as_transformers_runs_it(policy)
    asked = requests(14)
    stops = list(range(1, 9))  # so many that random weights end some responses early; others run to the limit
    given = native.sample(policy, asked, Sampling(0.0, 1.0, 20), end_ids=stops, num_slots=20)
    for request, response in zip(asked, given, strict=True):
        expected = reference.generate(
            torch.tensor([request.prompt]),
            attention_mask=torch.ones(1, len(request.prompt), dtype=torch.int64),
            do_sample=False,
            max_new_tokens=20,
            eos_token_id=stops,
            pad_token_id=0,
        )[0, len(request.prompt) :].tolist()
        assert list(response.tokens) == expected
    assert {response.finish for response in given} == {"stop", "length"}


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_logprobs_equal_the_trainers(kind: str, temperature: float) -> None:
    policy = tiny.policy(kind)
    asked = requests(40)
    given = native.sample(policy, asked, Sampling(temperature, 1.0, 24), end_ids=END, num_slots=24)
    sampled = torch.tensor([x for response in given for x in response.logprobs])
    expected = logprobs_of(policy, asked, given, temperature)
    assert float((sampled - expected).abs().max()) < 2e-4
    assert float(expected.std()) > 0.3


@pytest.mark.parametrize("num_slots", [1, 3, 17, 33, 200])
def test_the_same_request_gives_the_same_response_whatever_runs_beside_it(num_slots: int) -> None:
    policy = tiny.policy("Phi3")
    sampling = Sampling(1.0, 0.95, 16)
    asked = requests(40, seed=1)
    expected = [native.sample(policy, [request], sampling, end_ids=END)[0] for request in asked]
    order = np.random.default_rng(num_slots).permutation(len(asked)).tolist()
    given = native.sample(policy, [asked[i] for i in order], sampling, end_ids=END, num_slots=num_slots)
    for place, response in zip(order, given, strict=True):
        assert response.tokens == expected[place].tokens and response.finish == expected[place].finish
        assert response.logprobs == pytest.approx(expected[place].logprobs, abs=1e-4)


def test_more_requests_than_slots_move_between_slots_and_stay_themselves() -> None:
    """Responses of very different lengths leave holes; who moves into one must take its whole cache along."""
    policy = tiny.policy("Qwen3")
    asked = requests(60, seed=2)
    stops = [tiny.END, 7, 11, 23]
    finished: list[int] = []
    given = native.sample(policy, asked, Sampling(1.0, 1.0, 30), end_ids=stops, num_slots=18, progress=finished.append)
    assert sum(finished) == 60
    lengths = [len(response.tokens) for response in given]
    assert min(lengths) < 4 and max(lengths) == 30, "lengths too alike: nothing would have to move"
    sampled = torch.tensor([x for response in given for x in response.logprobs])
    assert float((sampled - logprobs_of(policy, asked, given, 1.0)).abs().max()) < 2e-4


def test_one_prompt_with_many_keys_gives_different_responses() -> None:
    policy = tiny.policy("Llama")
    asked = [Request((5, 6, 7), key("samples", i)) for i in range(20)]
    given = native.sample(policy, asked, Sampling(1.0, 1.0, 8), end_ids=END)
    assert len({response.tokens for response in given}) > 15
    again = native.sample(policy, asked, Sampling(1.0, 1.0, 8), end_ids=END)
    assert given == again


def test_finish_and_max_tokens() -> None:
    policy = tiny.policy("Llama")
    asked = requests(30, seed=3)
    for max_tokens in (1, 9):
        for response in native.sample(policy, asked, Sampling(1.0, 1.0, max_tokens), end_ids=[tiny.END, 7, 11]):
            ended = response.tokens[-1] in (tiny.END, 7, 11)
            assert response.finish == ("stop" if ended else "length")
            assert len(response.tokens) == len(response.logprobs) <= max_tokens
            assert ended or len(response.tokens) == max_tokens
            assert not set(response.tokens[:-1]) & {tiny.END, 7, 11}


def test_nothing_asked_nothing_given_and_the_mode_is_left_alone() -> None:
    policy = tiny.policy()
    assert native.sample(policy, [], Sampling(), end_ids=END) == []
    for training in (True, False):
        policy.train(training)
        native.sample(policy, requests(2), Sampling(1.0, 1.0, 2), end_ids=END)
        assert policy.training is training


def test_bfloat16_samples() -> None:
    policy = tiny.policy("Phi3", precision="bfloat16")
    asked = requests(20)
    given = native.sample(policy, asked, Sampling(1.0, 1.0, 12), end_ids=END, num_slots=17)
    sampled = torch.tensor([x for response in given for x in response.logprobs])
    gap = (sampled - logprobs_of(policy, asked, given, 1.0)).abs()
    assert float(gap.mean()) < 0.1


def shares(logits: torch.Tensor, **sampling: Any) -> torch.Tensor:
    """(V,) how often each token is drawn, over uniform numbers that cover [0, 1) evenly."""
    count = 20_000
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    tokens, _ = native.draw(logits.expand(count, -1), uniform, Sampling(**sampling))
    return torch.bincount(tokens, minlength=logits.shape[1]) / count


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5, 1e-6])
def test_tokens_are_drawn_by_their_share_of_the_nucleus(temperature: float, top_p: float) -> None:
    logits = torch.from_numpy(np.random.default_rng(4).normal(size=(1, 12)) * 2).float()
    weights = [float(x) for x in (logits[0].double() / temperature).exp()]
    total, held = sum(weights), 0.0
    expected = [0.0] * 12
    for token in sorted(range(12), key=lambda i: -weights[i]):
        if held < top_p * total:  # the nucleus is the fewest likeliest tokens that hold the share
            expected[token] = weights[token]
        held += weights[token]
    found = shares(logits, temperature=temperature, top_p=top_p)
    assert found.tolist() == pytest.approx([x / sum(expected) for x in expected], abs=2e-4)


def test_logprobs_of_a_draw_are_those_before_top_p() -> None:
    logits = torch.from_numpy(np.random.default_rng(5).normal(size=(50, 12))).float()
    tokens, logprobs = native.draw(logits, torch.full((50,), 0.3, dtype=torch.float64), Sampling(0.7, 0.5))
    expected = torch.log_softmax(logits / 0.7, dim=1).gather(1, tokens[:, None])[:, 0]
    assert torch.allclose(logprobs, expected, atol=1e-6)


def test_a_greedy_draw_is_the_likeliest_token_at_temperature_one() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    tokens, logprobs = native.draw(logits, torch.tensor([0.99], dtype=torch.float64), Sampling(0.0))
    assert tokens.tolist() == [1]
    assert logprobs.tolist() == pytest.approx([float(torch.log_softmax(logits, 1)[0, 1])])


def test_the_largest_uniform_number_draws_a_possible_token() -> None:
    largest = torch.tensor([1.0 - 2.0**-53], dtype=torch.float64)
    logits = torch.tensor([[0.0, 0.0, -torch.inf]])
    for top_p in (1.0, 0.9):
        assert native.draw(logits, largest, Sampling(1.0, top_p))[0].tolist() == [1]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"temperature": -0.1}, "temperature = -0.1 is negative, 0 or more was expected"),
        ({"top_p": 0.0}, "top_p = 0.0 does not lie in (0, 1]"),
        ({"top_p": 1.1}, "top_p = 1.1 does not lie in (0, 1]"),
        ({"max_tokens": 0}, "max_tokens = 0 leaves no room for a response"),
    ],
)
def test_sampling_refuses_what_cannot_be(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        Sampling(**keys)
    assert str(error.value) == message
