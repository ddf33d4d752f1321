"""vLLM in process: what it is told and how it is read everywhere; what it says where it is installed.

The second half is run by `python bench/vllm_cpu.py` in an environment of its own, and skipped where vllm is missing.
"""

from __future__ import annotations

import importlib.util
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from algorist.errors import RunError
from algorist.generate import native
from algorist.generate import vllm as engines
from algorist.generate.sampling import Request, Response, Sampling
from algorist.generate.vllm import Vllm
from algorist.model import longrope, lora
from algorist.model.policy import Policy
from algorist.toy import base
from model import tiny

INSTALLED = importlib.util.find_spec("vllm") is not None
END = 1


@dataclass
class Script:
    """An engine of vLLM's shape that says the tokens 10, 11, …; request i ends with END as its token number i + 2."""

    places: dict[str, int] = field(default_factory=dict)  # running request → tokens said
    asked: dict[str, tuple[list[int], dict[str, Any]]] = field(default_factory=dict)
    aborted: list[str] = field(default_factory=list)
    reason: str = "stop"

    def add(self, name: str, prompt: list[int], asked: dict[str, Any]) -> None:
        self.places[name] = 0
        self.asked[name] = prompt, asked

    def has_unfinished_requests(self) -> bool:
        return bool(self.places)

    def step(self) -> list[Any]:
        said = []
        for name, place in list(self.places.items()):
            last = place == int(name) + 1
            token = END if last else 10 + place
            logprobs = [{token: SimpleNamespace(logprob=-0.5 - place)}]
            one = SimpleNamespace(token_ids=[token], logprobs=logprobs, finish_reason=self.reason if last else None)
            said.append(SimpleNamespace(request_id=name, outputs=[one]))
            self.places[name] += 1
            if last:
                del self.places[name]
        return said

    def abort_request(self, names: list[str]) -> None:
        self.aborted += names
        for name in names:
            self.places.pop(name, None)


def scripted(script: Script) -> Vllm:
    return Vllm(script, script.add, (END,), context=40, can_sleep=False)


def requests(count: int) -> list[Request]:
    return [Request((5, 6, 7), key) for key in range(count)]


def test_responses_come_as_they_finish():
    found = list(scripted(Script()).stream(requests(2), Sampling(1.0, 1.0, 8)))
    assert found == [
        (0, Response((10, END), (-0.5, -1.5), "stop")),
        (1, Response((10, 11, END), (-0.5, -1.5, -2.5), "stop")),
    ]


def test_a_cut_response_says_so():
    ((_, response),) = scripted(Script(reason="length")).stream(requests(1), Sampling(1.0, 1.0, 8))
    assert response.finish == "length"


def test_enough_gives_the_rest_as_it_stands():
    script, heard = Script(), []
    for index, response in scripted(script).stream(requests(3), Sampling(1.0, 1.0, 8), enough=lambda: len(heard) == 1):
        heard.append((index, response.finish, response.tokens))
    assert heard == [(0, "stop", (10, END)), (1, "unfinished", (10, 11)), (2, "unfinished", (10, 11))]
    assert script.aborted == ["1", "2"] and not script.places


def test_a_consumer_that_stops_listening_leaves_nothing_running():
    script = Script()
    stream = scripted(script).stream(requests(3), Sampling(1.0, 1.0, 8))
    next(iter(stream))
    stream.close()  # type: ignore[attr-defined]
    assert script.aborted == ["1", "2"]


def test_a_response_goes_on_where_it_was_left():
    script = Script()
    left = Request((5, 6, 7), 9, said=(20, 21), logprobs=(-1.0, -2.0))
    ((_, response),) = scripted(script).stream([left], Sampling(0.7, 1.0, 8))
    assert response == Response((20, 21, 10, END), (-1.0, -2.0, -0.5, -1.5), "stop")
    prompt, asked = script.asked["0"]
    assert prompt == [5, 6, 7, 20, 21] and asked["max_tokens"] == 6


@pytest.mark.parametrize(("said", "finish"), [((20, END), "stop"), ((20, 21, 22), "length")])
def test_a_finished_response_is_not_asked_again(said, finish):
    script = Script()
    done = Request((5, 6, 7), 9, said=said, logprobs=(-1.0,) * len(said))
    assert list(scripted(script).stream([done], Sampling(1.0, 1.0, 3))) == [(0, Response(said, done.logprobs, finish))]
    assert not script.asked


def test_what_one_request_is_told():
    fresh = engines.parameters(Request((5,), 9), Sampling(0.6, 0.9, 30), (4, END))
    seed = fresh.pop("seed")
    assert fresh == {
        "temperature": 0.6,
        "top_p": 0.9,
        "max_tokens": 30,
        "stop_token_ids": [END, 4],
        "ignore_eos": True,
        "logprobs": 0,
        "detokenize": False,
        "stream_interval": 16,
    }
    others = [Request((5,), 10), Request((5,), 9, said=(7,), logprobs=(-1.0,))]
    seeds = {engines.parameters(one, Sampling(0.6, 0.9, 30), (END,))["seed"] for one in others}
    assert len({seed, *seeds}) == 3 and 0 <= seed < 2**63
    assert "seed" not in engines.parameters(Request((5,), 9), Sampling(0.0), (END,))


def test_a_prompt_that_leaves_no_room():
    with pytest.raises(RunError) as told:
        list(scripted(Script()).stream(requests(1), Sampling(1.0, 1.0, 38)))
    assert str(told.value) == (
        "A prompt of 3 tokens with a response of up to 38 does not fit into the 40 tokens that vLLM was opened for. "
        "Drop such prompts or raise the limit."
    )


def test_a_response_that_vllm_gives_up():
    with pytest.raises(RunError) as told:
        list(scripted(Script(reason="error")).stream(requests(1), Sampling(1.0, 1.0, 8)))
    assert str(told.value) == (
        "vLLM gave a response up after 2 tokens (error). Its log says why; mend that and run the same command again."
    )


@pytest.mark.skipif(INSTALLED, reason="vllm is installed")
def test_without_vllm():
    with pytest.raises(RunError) as told:
        engines.open_engine(tiny.policy(), end_ids=[END], context=64)
    assert str(told.value) == (
        "[rlvr] engine.kind = \"vllm\": vllm is not installed. Install the extra with pip install '.[vllm]', or "
        'take kind = "native".'
    )


def test_tensors_that_an_engine_holds_are_compared_by_name_and_shape():
    class Worker:
        model = torch.nn.ModuleDict({"norm": torch.nn.Linear(3, 1), "fused": torch.nn.Linear(3, 2)})

        def get_model(self):
            return self.model

    given = {name: tensor.detach().clone() for name, tensor in Worker.model.named_parameters()}
    given["fused.weight"] = torch.zeros(9, 3)
    given["elsewhere"] = torch.zeros(1)
    assert engines.held(Worker(), given) == (3, [])
    assert engines.held(Worker(), {name: tensor.double() for name, tensor in given.items()}) == (3, [])
    given["norm.bias"] += 1e-3
    assert engines.held(Worker(), given) == (3, ["norm.bias"])
    assert engines.held(Worker(), {}) == (0, [])


def test_a_request_may_have_a_limit_of_its_own():
    sampling = Sampling(1.0, 1.0, 20)
    assert engines.parameters(Request((1, 2), 7, (3,), (0.0,), 5), sampling, {9})["max_tokens"] == 4
    assert Request((1, 2), 7, (3, 4), (0.0, 0.0), 2).over(sampling, {9}) == "length"
    engines.fits([Request((1, 2), 7, max_tokens=5)], sampling, 7)


def test_both_names_of_tied_weights_are_handed_over_without_a_copy():
    policy = Policy(tiny.build("Llama", tied=True))
    found = dict(engines.weights(policy))
    head, embedding = found["lm_head.weight"], found["model.embed_tokens.weight"]
    assert head.data_ptr() == embedding.data_ptr() == policy.model.get_input_embeddings().weight.data_ptr()
    assert len(found) == len(list(policy.model.parameters())) + 1


def test_adapters_are_handed_over_merged():
    pytest.importorskip("peft")
    policy = tiny.policy()
    plain = dict(engines.weights(policy))
    lora.attach(policy.model, rank=2, alpha=4.0, targets=("o_proj",), address=(1,))
    with torch.no_grad():
        for tensor in lora.tensors(policy.model).values():
            tensor.add_(0.1)
    found = dict(engines.weights(policy))
    assert found.keys() == plain.keys()
    changed = {name.rpartition(".layers.")[2] for name in found if not torch.equal(found[name], plain[name])}
    assert changed == {"0.self_attn.o_proj.weight", "1.self_attn.o_proj.weight"}


def test_the_config_has_one_set_of_rotary_factors(tmp_path):
    policy = Policy(longroped())
    engines.write_config(tmp_path, policy)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["architectures"] == ["Phi3ForCausalLM"]
    rope = written["rope_parameters"]
    assert rope["short_factor"] == rope["long_factor"] == written["rope_scaling"]["short_factor"] == [4.0] * 24
    assert policy.model.config.architectures is None  # the policy's own stays as it was


def toy(**more: Any) -> Any:
    """A Phi-3 whose heads have 64 dimensions, as vLLM's attention on a CPU wants them."""
    shape = {"hidden_size": 128, "num_layers": 2, "num_heads": 2, "mlp_size": 256, "context": 256}
    return peaked(base.model(100, 7, **{**shape, **more}))


def peaked(model: Any) -> Any:
    """The same model with distributions that are far from flat."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3)
    return model.eval()


def longroped() -> Any:
    """A Phi-3 that switched its factors at 32 tokens, settled on the long ones."""
    config = toy().config
    factors = {"short_factor": [1.0] * 24, "long_factor": [4.0] * 24}
    rope = {"rope_type": "longrope", "rope_theta": 10_000.0, "partial_rotary_factor": 0.75, **factors}
    config.original_max_position_embeddings = 32
    config.rope_parameters = {**rope, "original_max_position_embeddings": 32}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = peaked(type(toy())(config))
    assert longrope.settle(model, "long")
    return model


real = pytest.mark.skipif(not INSTALLED, reason="vllm is not installed")
quiet = pytest.mark.filterwarnings("default")


def ragged(count: int) -> list[Request]:
    chooser = random.Random(7)
    lengths = [chooser.randrange(3, 71) for _ in range(count)]
    return [Request(tuple(chooser.randrange(5, 100) for _ in range(length)), key) for key, length in enumerate(lengths)]


@pytest.fixture(scope="module")
def opened() -> Iterator[tuple[Vllm, Policy]]:
    policy = Policy(toy())
    yield engines.open_engine(policy, end_ids=[3], context=256, memory=0.05, num_sequences=16), policy


def said(engine: Vllm, asked: list[Request], sampling: Sampling) -> list[Response]:
    found = dict(engine.stream(asked, sampling))
    return [found[index] for index in range(len(asked))]


def native_logprobs(policy: Policy, request: Request, tokens: tuple[int, ...], temperature: float) -> torch.Tensor:
    return tiny.alone(tiny.as_transformers_runs_it(policy), request.prompt + tokens, temperature)[-len(tokens) :]


@real
@quiet
def test_greedy_tokens_are_those_of_the_native_engine(opened):
    engine, policy = opened
    ours = native.sample(policy, ragged(16), Sampling(0.0, 1.0, 40), end_ids=[3])
    for theirs, own in zip(said(engine, ragged(16), Sampling(0.0, 1.0, 40)), ours, strict=True):
        assert (theirs.tokens, theirs.finish) == (own.tokens, own.finish)
        assert theirs.logprobs == pytest.approx(own.logprobs, abs=1e-4)


@real
@quiet
def test_logprobs_are_those_at_the_sampling_temperature(opened):
    engine, policy = opened
    for request, response in zip(ragged(4), said(engine, ragged(4), Sampling(0.7, 1.0, 20)), strict=True):
        expected = native_logprobs(policy, request, response.tokens, 0.7)
        assert response.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


@real
@quiet
def test_top_p_raises_logprobs_by_no_more_than_is_said(opened):
    engine, policy = opened
    gaps = []
    for request, response in zip(ragged(4), said(engine, ragged(4), Sampling(1.0, 0.8, 20)), strict=True):
        expected = native_logprobs(policy, request, response.tokens, 1.0)
        gaps += [found - right for found, right in zip(response.logprobs, expected.tolist(), strict=True)]
    assert min(gaps) > -1e-4 and 0.01 < max(gaps) <= -torch.log(torch.tensor(0.8)) + 1e-4


@real
@quiet
def test_the_same_requests_give_the_same_responses(opened):
    engine, _ = opened
    sampling = Sampling(1.0, 1.0, 30)
    together = said(engine, ragged(8), sampling)
    assert said(engine, ragged(8), sampling) == together
    alone = [said(engine, [request], sampling)[0] for request in ragged(8)]
    assert [response.tokens for response in alone] == [response.tokens for response in together]
    other = [replace(request, key=request.key + 100) for request in ragged(8)]
    assert all(a.tokens != b.tokens for a, b in zip(said(engine, other, sampling), together, strict=True))


@real
@quiet
def test_enough_ends_the_work_and_the_rest_can_go_on(opened):
    engine, policy = opened
    asked, sampling = ragged(8), Sampling(0.0, 1.0, 120)
    whole = native.sample(policy, asked, sampling, end_ids=[3])
    heard: list[int] = []
    found = {}
    for index, response in engine.stream(asked, sampling, enough=lambda: len(heard) == 3):
        heard.append(index)
        found[index] = response
    assert not engine.engine.has_unfinished_requests()
    left = [index for index in heard if found[index].finish == "unfinished"]
    assert 1 <= len(left) <= 5 and heard[-len(left) :] == left
    assert all(found[index].tokens == whole[index].tokens for index in heard[: -len(left)])
    assert all(0 < len(found[index].tokens) < len(whole[index].tokens) for index in left)
    going = [replace(asked[i], said=found[i].tokens, logprobs=found[i].logprobs) for i in left]
    for index, response in zip(left, said(engine, going, sampling), strict=True):
        assert response.tokens == whole[index].tokens
        assert response.logprobs == pytest.approx(whole[index].logprobs, abs=1e-4)


@real
@quiet
def test_new_weights_are_used_and_nothing_of_the_old_ones(opened):
    engine, policy = opened
    shared = tuple(range(5, 100)) * 2  # vLLM keeps whole blocks of keys and values, of 128 tokens on a CPU
    asked = [replace(request, prompt=shared[:140] + request.prompt) for request in ragged(16)]
    sampling = Sampling(0.0, 1.0, 40)
    before = said(engine, asked, sampling)
    kept = {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(0.2 * parameter.std() * torch.randn(parameter.shape, generator=torch.manual_seed(3)))
    try:
        engine.hand_over(policy)
        engine.rest()
        after = said(engine, asked, sampling)
        own = native.sample(policy, asked, sampling, end_ids=[3])
        assert [one.tokens for one in after] == [one.tokens for one in own]
        assert sum(a.tokens != b.tokens for a, b in zip(before, after, strict=True)) >= 12
    finally:
        policy.model.load_state_dict(kept)
        engine.hand_over(policy)
    assert said(engine, asked, sampling) == before


@real
@quiet
@pytest.mark.parametrize("kind", ["longrope", "Llama", "Qwen2", "Qwen3"])
def test_other_models(kind):
    shape = {"hidden_size": 128, "num_attention_heads": 2, "max_position_embeddings": 256, "head_dim": 64}
    shape = shape if kind != "Qwen2" else {name: value for name, value in shape.items() if name != "head_dim"}
    policy = Policy(longroped() if kind == "longrope" else tiny.build(kind, **shape, initializer_range=0.1))
    top = policy.model.config.vocab_size
    asked = [replace(request, prompt=tuple(token % top for token in request.prompt)) for request in ragged(8)]
    engine = engines.open_engine(policy, end_ids=[3], context=120, memory=0.1, num_sequences=8)
    own = native.sample(policy, asked, Sampling(0.0, 1.0, 40), end_ids=[3])
    for theirs, ours in zip(said(engine, asked, Sampling(0.0, 1.0, 40)), own, strict=True):
        assert theirs.tokens == ours.tokens
        assert theirs.logprobs == pytest.approx(ours.logprobs, abs=2e-4)


@real
@quiet
def test_a_context_that_does_not_fit_into_memory():
    with pytest.raises(RunError, match=r"^vLLM cannot be opened \(.*[^.]\)\. Mend that, or take the native engine\.$"):
        engines.open_engine(Policy(toy(context=8192)), end_ids=[3], context=8192, memory=1e-4)
