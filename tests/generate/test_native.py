"""The embedded sampler: what transformers generates, with the trainer's log-probabilities, whatever runs beside it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from algorist.errors import RunError
from algorist.generate import native, rollouts
from algorist.generate.batching import Batching, How, Tally
from algorist.generate.drawing import draw
from algorist.generate.sampling import Request, Response, Sampling
from algorist.generate.steps import Steps, room
from algorist.model import lora, recompute
from algorist.model.batches import Document, lay_out
from algorist.model.cache import Decode, Kept, Pages
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


def shares(logits: torch.Tensor, count: int = 20_000, **sampling: Any) -> torch.Tensor:
    """(V,) how often each token is drawn, over uniform numbers that cover [0, 1) evenly."""
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    tokens, _ = draw(logits.expand(count, -1), uniform, Sampling(**sampling))
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
    tokens, logprobs = draw(logits, torch.full((50,), 0.3, dtype=torch.float64), Sampling(0.7, 0.5))
    expected = torch.log_softmax(logits / 0.7, dim=1).gather(1, tokens[:, None])[:, 0]
    assert torch.allclose(logprobs.float(), expected, atol=1e-6)


def test_a_greedy_draw_is_the_likeliest_token_at_temperature_one() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    tokens, logprobs = draw(logits, torch.tensor([0.99], dtype=torch.float64), Sampling(0.0))
    assert tokens.tolist() == [1]
    assert logprobs.tolist() == pytest.approx([float(torch.log_softmax(logits, 1)[0, 1])])


def test_the_largest_uniform_number_draws_a_possible_token() -> None:
    largest = torch.tensor([1.0 - 2.0**-53], dtype=torch.float64)
    logits = torch.tensor([[0.0, 0.0, -torch.inf]])
    for top_p in (1.0, 0.9):
        assert draw(logits, largest, Sampling(1.0, top_p))[0].tolist() == [1]


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


def drawn(policy: Policy, asked: list[Request], sampling: Sampling, **how: Any) -> tuple[list[Response], Tally]:
    """Responses of a sampler with a cache of its own size, and what it counted."""
    slots, tally = how.pop("num_slots", 128), Tally()
    return native.sample(policy, asked, sampling, end_ids=END, num_slots=slots, how=How(**how, tally=tally)), tally


def assert_alike(given: list[Response], expected: list[Response]) -> None:
    """Equal tokens, and log-probabilities up to rounding."""
    for one, other in zip(given, expected, strict=True):
        assert one.tokens == other.tokens and one.finish == other.finish
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_what_was_begun_before_goes_on_as_if_undisturbed(kind: str) -> None:
    policy, sampling = tiny.policy(kind), Sampling(1.0, 0.95, 40)
    asked = requests(12, seed=4)
    whole = native.sample(policy, asked, sampling, end_ids=END)
    cuts = [i * 3 % max(1, len(r.tokens)) for i, r in enumerate(whole)]
    begun = [
        replace(q, said=r.tokens[:cut], logprobs=r.logprobs[:cut]) for q, r, cut in zip(asked, whole, cuts, strict=True)
    ]
    assert_alike(native.sample(policy, begun, sampling, end_ids=END), whole)


def test_a_request_that_is_finished_comes_back_at_once() -> None:
    policy, sampling = tiny.policy(), Sampling(1.0, 1.0, 3)
    asked = [
        Request((5, 6), 1, (7, 8, 9), (-1.0, -2.0, -3.0)),
        Request((5, 6), 2, (7, tiny.END), (-1.0, -2.0)),
        Request((5, 6), 3, (7,), (-1.0,), max_tokens=1),
    ]
    given, tally = drawn(policy, asked, sampling)
    assert [r.finish for r in given] == ["length", "stop", "length"]
    assert [(r.tokens, r.logprobs) for r in given] == [(q.said, q.logprobs) for q in asked]
    assert tally.prefilled == tally.decoded == 0


def test_a_request_may_have_a_length_of_its_own() -> None:
    asked = [replace(request, max_tokens=i % 7) for i, request in enumerate(requests(20))]
    given = native.sample(tiny.policy(), asked, Sampling(1.0, 1.0, 9), end_ids=())
    assert [len(r.tokens) for r in given] == [i % 7 or 9 for i in range(20)]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_cache_that_is_full_changes_nothing_and_is_never_exceeded(precision: str) -> None:
    policy, sampling = tiny.policy("Phi3", precision=precision), Sampling(1.0, 1.0, 80)
    asked = requests(10, seed=6)
    expected, roomy = drawn(policy, asked, sampling, num_slots=6)
    given, tally = drawn(policy, asked, sampling, num_slots=6, cache_tokens=4 * 32)
    assert tally.preempted > 0 and tally.most <= 4 * 32 < roomy.most and roomy.preempted == 0
    if precision == "float32":
        assert_alike(given, expected)
    else:  # a text read again is rounded elsewhere
        sampled = torch.tensor([x for response in given for x in response.logprobs])
        assert float((sampled - logprobs_of(policy, asked, given, 1.0)).abs().mean()) < 0.1


def test_a_cache_without_room_for_the_longest_sequence_is_refused() -> None:
    with pytest.raises(RunError) as error:
        drawn(tiny.policy(), [Request((5,) * 10, 1)], Sampling(1.0, 1.0, 100), cache_tokens=128)
    assert str(error.value) == (
        "The sampler's cache has room for 128 tokens, and a sequence of 128 with one page beside it may come. "
        "Lower max_tokens, or leave more memory free."
    )


def test_samples_of_a_prompt_share_its_prefill_and_its_full_pages_though_they_start_apart() -> None:
    policy, sampling = tiny.policy("Qwen2"), Sampling(1.0, 1.0, 6)
    prompt = tuple(np.random.default_rng(0).integers(2, tiny.VOCABULARY, 70).tolist())
    asked = [Request(prompt, key("shared", i)) for i in range(9)]
    given, tally = drawn(policy, asked, sampling, num_slots=3)
    assert tally.prefilled == 70
    assert tally.most == (2 + 1 + 3) * 32  # two full pages once, the last of the prompt, and one for each
    assert_alike(given, [native.sample(policy, [one], sampling, end_ids=END)[0] for one in asked])
    sampled = torch.tensor([x for response in given for x in response.logprobs])
    assert float((sampled - logprobs_of(policy, asked, given, 1.0)).abs().max()) < 2e-4


def test_texts_that_wait_give_way_to_those_that_are_decoded() -> None:
    policy, sampling = tiny.policy(), Sampling(1.0, 1.0, 40)
    asked = [Request((3 + i % 6,) * 33, key("waits", i)) for i in range(18)]  # each prompt comes back after five others
    expected, roomy = drawn(policy, asked, sampling, num_slots=2)
    given, tally = drawn(policy, asked, sampling, num_slots=2, cache_tokens=6 * 32)
    assert 6 * 33 <= roomy.prefilled < tally.prefilled and tally.most <= 6 * 32
    assert_alike(given, expected)


@pytest.mark.parametrize("wanted", [1, 5, 29])
def test_once_there_is_enough_the_rest_come_as_they_stand(wanted: int) -> None:
    policy, sampling = tiny.policy("Phi3").train(), Sampling(1.0, 1.0, 60)
    asked = requests(30, seed=7)
    whole = native.sample(policy, asked, sampling, end_ids=[tiny.END, 7, 11], num_slots=8)
    finished: list[int] = []

    def enough() -> bool:
        return len(finished) >= wanted

    given: dict[int, Response] = {}
    for index, response in native.stream(
        policy, asked, sampling, end_ids=[tiny.END, 7, 11], num_slots=8, enough=enough
    ):
        given[index] = response
        assert not torch.is_inference_mode_enabled()
        if response.finish != "unfinished":
            finished.append(index)
    assert sorted(given) == list(range(30)) and wanted <= len(finished) < 30
    assert policy.training
    for index, response in given.items():
        assert response.tokens == whole[index].tokens[: len(response.tokens)]
        assert len(response.tokens) == len(response.logprobs)
        assert (response == whole[index]) == (index in finished)
    left = [replace(q, said=given[i].tokens, logprobs=given[i].logprobs) for i, q in enumerate(asked)]
    assert_alike(native.sample(policy, left, sampling, end_ids=[tiny.END, 7, 11]), whole)


def test_a_stream_that_is_closed_early_leaves_the_policy_as_it_was() -> None:
    policy = tiny.policy("Llama", precision="bfloat16").train()
    before = {name: parameter for name, parameter in policy.named_parameters()}
    answers = native.stream(policy, requests(5), Sampling(1.0, 1.0, 9), end_ids=END)
    next(answers)
    assert all(parameter is before[name] for name, parameter in policy.named_parameters())
    answers.close()
    assert policy.training
    assert all(parameter is before[name] for name, parameter in policy.named_parameters())


def test_giving_up_in_the_middle_leaves_the_policy_as_it_was() -> None:
    policy = tiny.policy().train()

    def give_up(_: int) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError):
        native.sample(policy, requests(5), Sampling(1.0, 1.0, 9), end_ids=END, progress=give_up)
    assert policy.training


def test_matrices_in_bfloat16_give_the_trainers_numbers() -> None:
    """A prompt's first log-probability is that of the policy, bit for bit: cast once or at each product."""
    policy = tiny.policy("Phi3", precision="bfloat16")
    pages = Pages(Kept.of(policy.model, policy.precision), 8, policy.device)
    text = [5, 9, 2, 30]
    with torch.inference_mode():
        states = Steps(policy, pages).prefill([text], [pages.take(1)])
        expected = policy.hidden(lay_out([Document.of(text, 1)]))[-1:]
    assert torch.equal(states, expected)


@pytest.mark.parametrize(("kind", "precision"), [("Phi3", "float32"), ("Qwen3", "float32"), ("Llama", "bfloat16")])
def test_compiled_steps_are_one_graph_for_all_numbers_of_rows_and_caches(kind: str, precision: str) -> None:
    """By the compiler's front end alone, which decides what is compiled anew; its C++ would take a minute."""
    torch.compiler.reset()
    policy, fused = tiny.policy(kind, precision=precision), tiny.policy(kind, precision=precision)
    fused.fuse(backend="eager")
    graphs = []
    for count in (5, 17, 1):  # first all end together, then one by one, so that steps with one row come then
        asked = [replace(one, max_tokens=40 + i * (count > 5)) for i, one in enumerate(requests(count, seed=count))]
        expected, found = (
            native.sample(one, asked, Sampling(1.0, 1.0, 20), end_ids=(), num_slots=count) for one in (policy, fused)
        )
        assert [one.tokens for one in found] == [one.tokens for one in expected]
        apart = [
            abs(a - b)
            for x, y in zip(found, expected, strict=True)
            for a, b in zip(x.logprobs, y.logprobs, strict=True)
        ]
        assert max(apart) < (1e-5 if precision == "float32" else 0.05)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0 and set(graphs) == {graphs[0]}


def test_a_copy_of_a_compiled_policy_has_weights_of_its_own() -> None:
    torch.compiler.reset()
    policy, asked = tiny.policy("Phi3"), requests(6)
    recompute.apply(policy.model, "full")
    policy.fuse(backend="eager")
    expected = native.sample(tiny.policy("Phi3"), asked, Sampling(0.0, 1.0, 9), end_ids=END)
    copy = rollouts.copied(policy)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(0.5)
    assert [one.tokens for one in native.sample(copy, asked, Sampling(0.0, 1.0, 9), end_ids=END)] == [
        one.tokens for one in expected
    ]
    assert not copy.fused


def test_steps_that_cannot_be_compiled_are_taken_uncompiled_and_said() -> None:
    torch.compiler.reset()
    policy, asked = tiny.policy("Phi3"), requests(6)
    expected = native.sample(policy, asked, Sampling(0.0, 1.0, 9), end_ids=END)
    policy.fused = "no such backend"
    with pytest.warns(UserWarning, match="goes on uncompiled, more slowly: .*no such backend"):
        found = native.sample(policy, asked, Sampling(0.0, 1.0, 9), end_ids=END)
    assert found == expected


@pytest.mark.parametrize("sampling", [Sampling(0.0), Sampling(1.0), Sampling(1.0, 0.9)])
def test_logits_that_are_no_numbers_are_an_error_that_names_the_cause(sampling: Sampling) -> None:
    policy = tiny.policy("Phi3")
    with torch.no_grad():
        policy.model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(RunError, match="logits are no numbers: its weights have grown too far. Lower learning_rate"):
        native.sample(policy, requests(3), replace(sampling, max_tokens=4), end_ids=END)


def test_adapters_sample_as_they_train() -> None:
    pytest.importorskip("peft")
    model = tiny.build("Llama")
    lora.attach(model, rank=2, alpha=4.0, targets=(), address=(1,))
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(3))
    policy, asked = Policy(model), requests(10)
    given = native.sample(policy, asked, Sampling(1.0, 1.0, 20), end_ids=END)
    sampled = torch.tensor([x for response in given for x in response.logprobs])
    assert float((sampled - logprobs_of(policy, asked, given, 1.0)).abs().max()) < 2e-4


def test_a_large_vocabulary_is_drawn_from_in_blocks() -> None:
    """By vocabulary: shares of words in the first, a middle and the last, incomplete block."""
    weights = torch.full((1, 5_000), 1e-9)
    weights[0, [3, 2_600, 4_998, 4_999]] = torch.tensor([0.1, 0.2, 0.3, 0.4])
    found = shares(weights.log(), 2_000)
    assert found[[3, 2_600, 4_998, 4_999]].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=1e-3)
    flat = torch.zeros(1, 5_000)
    assert float(shares(flat, 5_000).max()) <= 2 / 5_000
    assert shares(flat, 5_000, top_p=0.5).count_nonzero() == 2_500  # more likely words than are sorted at first


@pytest.mark.parametrize("other", [2.0, 3.0])
def test_rotary_factors_that_were_settled_are_not_looked_up_by_length(other: float) -> None:
    """One set of LongRoPE's factors is lent as fixed ones, with the same numbers; two sets stay with the model."""
    config = tiny.build("Phi3").config
    half = config.hidden_size // config.num_attention_heads // 2
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 32}
    factors = {"short_factor": [2.0] * half, "long_factor": [other] * half}
    policy = Policy(tiny.build("Phi3", max_position_embeddings=256, rope_parameters={**rope, **factors}))
    rotary = policy.model.model.rotary_emb
    steps = Steps(policy, Pages(Kept.of(policy.model, policy.precision), 4, policy.device))
    with steps._borrowed():
        assert rotary.rope_type == ("default" if other == 2.0 else "longrope")
    assert rotary.rope_type == "longrope"
    if other == 2.0:
        asked = [Request((5, 6, 7), key("rope", i)) for i in range(3)]
        given = native.sample(policy, asked, Sampling(1.0, 1.0, 50), end_ids=())
        sampled = torch.tensor([x for response in given for x in response.logprobs])
        assert float((sampled - logprobs_of(policy, asked, given, 1.0)).abs().max()) < 2e-4


def test_a_cache_holds_all_that_may_come_where_memory_does_and_steps_by_powers_of_two_where_not() -> None:
    """How much is free decides nothing as long as all fits; else only its highest bit does."""
    policy, sampling = tiny.policy(), Sampling(1.0, 1.0, 40)
    kept = Kept.of(policy.model, policy.precision)
    found = room(kept, policy.device)
    assert any(found == 2**power // kept.bytes for power in range(60))
    pages = Batching(policy, requests(9), sampling, frozenset(END), num_slots=4, how=How()).pages
    assert pages.total == 4 * 2 + 4 * 1 + 2 * 4  # two pages for each of four texts, their prompts', and two to spare


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pages_are_attended_where_they_stand(dtype: torch.dtype) -> None:
    """The kernel of numerics/paged.py, and the copies that other types take, beside plain attention."""
    generator = torch.Generator().manual_seed(2)
    pages = Pages(Kept(1, 2, 12, dtype), 20, torch.device("cpu"))
    for cache in (pages.keys[0], pages.values[0]):
        cache.copy_(torch.randn(cache.shape, generator=generator))
    table = (1 + torch.randperm(20, generator=generator)).int().view(5, 4)
    used = torch.tensor([1, 31, 32, 33, 128], dtype=torch.int32)
    query = torch.randn(5, 6, 12, generator=generator)
    layout = Decode(pages, used.expand(2, -1), table, used, 4)
    found = layout.attend(0, query, 0.3)
    copied = layout._gathered(query.to(dtype), pages.keys[0], pages.values[0], 0.3)
    for row in range(5):
        k, v = (cache[0][table[row].long()].flatten(0, 1)[: used[row]].float() for cache in (pages.keys, pages.values))
        for head in range(6):
            scores = (k[:, head // 3] @ query[row, head] * 0.3).softmax(0)
            tiny.assert_close(found[row, head], scores @ v[:, head // 3], 1e-5)
            tiny.assert_close(
                copied[row, head].float(), scores @ v[:, head // 3], 1e-5 if dtype == torch.float32 else 2e-2
            )


def test_a_copy_for_another_kind_of_device_takes_the_path_that_runs_everywhere() -> None:
    policy = tiny.policy("Llama")
    policy.path = "varlen"
    paths = [rollouts.copied(policy, device).path for device in ("", "cpu", "meta")]
    assert paths == ["varlen", "varlen", "grouped"]
