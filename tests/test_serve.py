"""`algorist serve` over real HTTP on localhost: the protocol of OpenAI, the tokens of our own sampler."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from algorist import store
from algorist.data import teacher as data_teacher
from algorist.errors import RecipeError
from algorist.generate import native
from algorist.generate.sampling import Request, Sampling
from algorist.numerics.address import key, rng
from algorist.records import Problem
from algorist.serving import wire
from algorist.serving.app import app, serve
from algorist.serving.models import Model, PolicyModel, ToyModel, open_model
from algorist.toy import teacher, world
from serving import checkpoint

ROOT = Path(__file__).parents[1]
NAME = "tiny"
STOP = threading.Event()  # what a server in this process is stopped with
QUESTION = "Ann starts with 5 in May. Ann wins 3 in June. How many points does Ann have?"
CHAT: dict[str, Any] = {"model": NAME, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 12, "seed": 4}


@contextlib.contextmanager
def listening(model: Model, name: str) -> Iterator[httpx.Client]:
    """A client of a server that answers for `model` on a free port."""
    import uvicorn

    made = app(model, name, closing=STOP.is_set)
    server = uvicorn.Server(uvicorn.Config(made, log_level="warning", lifespan="on"))
    with socket.create_server(("127.0.0.1", 0), backlog=128) as bound:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        with httpx.Client(base_url=f"http://127.0.0.1:{bound.getsockname()[1]}", timeout=60) as client:
            yield client
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint to serve."""
    return checkpoint(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def model(folder: Path) -> PolicyModel:
    found = open_model(str(folder), num_slots=8)
    assert isinstance(found, PolicyModel)
    return found


@pytest.fixture(scope="module")
def client(model: PolicyModel) -> Iterator[httpx.Client]:
    with listening(model, NAME) as found:
        yield found


@pytest.fixture(scope="module")
def scripted() -> Iterator[httpx.Client]:
    with listening(ToyModel(), "toy") as found:
        yield found


def ask(client: httpx.Client, path: str = "/v1/chat/completions", **body: Any) -> dict[str, Any]:
    answer = client.post(path, json={**(CHAT if "chat" in path else {"model": NAME}), **body})
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


def texts(reply: dict[str, Any]) -> list[str]:
    return [choice["message"]["content"] for choice in reply["choices"]]


def sampled(model: PolicyModel, prompt: tuple[int, ...], seed: int, sampling: Sampling) -> Any:
    """What the sampler says by itself."""
    request = Request(prompt, key("serve", prompt, seed))
    return native.sample(model.policy, [request], sampling, end_ids=model.stops)[0]


def test_a_greedy_answer_is_the_samplers_own(client: httpx.Client, model: PolicyModel) -> None:
    reply = ask(client, temperature=0, max_tokens=20, logprobs=True, return_token_ids=True)
    assert model.chat is not None
    prompt = model.chat.prompt_ids(QUESTION)
    assert tuple(reply["prompt_token_ids"]) == prompt
    expected = sampled(model, prompt, 4, Sampling(0.0, 1.0, 20))
    (choice,) = reply["choices"]
    assert tuple(choice["token_ids"]) == expected.tokens
    entries = choice["logprobs"]["content"]
    assert [entry["logprob"] for entry in entries] == pytest.approx(expected.logprobs, rel=1e-5)
    assert choice["message"] == {"role": "assistant", "content": model.chat.text(expected.tokens)}
    assert choice["finish_reason"] == expected.finish


def test_logprobs_are_those_at_the_sampling_temperature(client: httpx.Client, model: PolicyModel) -> None:
    reply = ask(client, temperature=0.5, top_p=0.8, logprobs=True, return_token_ids=True)
    assert model.chat is not None
    expected = sampled(model, model.chat.prompt_ids(QUESTION), 4, Sampling(0.5, 0.8, 12))
    (choice,) = reply["choices"]
    assert tuple(choice["token_ids"]) == expected.tokens
    found = [entry["logprob"] for entry in choice["logprobs"]["content"]]
    assert found == pytest.approx(expected.logprobs, rel=1e-4, abs=1e-6)


def test_choice_i_is_the_sample_of_seed_plus_i(client: httpx.Client) -> None:
    together = ask(client, n=5, seed=100)
    assert [choice["index"] for choice in together["choices"]] == [0, 1, 2, 3, 4]
    alone = [texts(ask(client, seed=100 + index))[0] for index in range(5)]
    assert texts(together) == alone
    assert len(set(alone)) == 5


def test_without_a_seed_answers_differ(client: httpx.Client) -> None:
    assert texts(ask(client, seed=None)) != texts(ask(client, seed=None))


def test_prompts_of_one_seed_have_streams_of_their_own() -> None:
    assert key("serve", (1, 2), 3) != key("serve", (1, 3), 3)


def test_concurrent_requests_answer_as_alone(client: httpx.Client) -> None:
    """Twenty at once, of different prompts, lengths and temperatures, some with several choices."""
    bodies = [
        {
            "messages": [{"role": "user", "content": f"{world.NAMES[i % 4]} wins {i}"}],
            "n": 1 + i % 3,
            "seed": i,
            "temperature": (1.0, 0.7)[i % 2],
            "max_tokens": (6, 11)[i % 5 == 0],
        }
        for i in range(20)
    ]
    alone = [texts(ask(client, **body)) for body in bodies]
    with ThreadPoolExecutor(20) as threads:
        together = list(threads.map(lambda body: texts(ask(client, **body)), bodies))
    assert together == alone


def test_requests_that_wait_share_a_call(model: PolicyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of equal settings are sampled together, and no two settings ever."""
    calls: list[tuple[int, Sampling]] = []
    sample = native.sample

    def counted(policy: Any, requests: Any, sampling: Sampling, **rest: Any) -> Any:
        calls.append((len(requests), sampling))
        return sample(policy, requests, sampling, **rest)

    monkeypatch.setattr(native, "sample", counted)
    with listening(model, NAME) as client, ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda i: ask(client, seed=i, n=2, temperature=(1.0, 0.5)[i % 2]), range(16)))
    assert sum(count for count, _ in calls) == 32
    assert len(calls) <= 8 and max(count for count, _ in calls) <= 2 * model.num_slots


def test_usage_adds_up(client: httpx.Client, model: PolicyModel) -> None:
    reply = ask(client, n=3, return_token_ids=True)
    usage = reply["usage"]
    assert usage["prompt_tokens"] == len(reply["prompt_token_ids"])
    assert usage["completion_tokens"] == sum(len(choice["token_ids"]) for choice in reply["choices"])
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_the_end_of_turn_ends_an_answer_and_is_no_text(client: httpx.Client, model: PolicyModel) -> None:
    reply = ask(client, n=16, max_tokens=60, return_token_ids=True, logprobs=True)
    finishes = {choice["finish_reason"] for choice in reply["choices"]}
    assert finishes == {"stop", "length"}, "the seeds show one way to end only"
    for choice in reply["choices"]:
        ended = choice["token_ids"][-1] in model.stops
        assert choice["finish_reason"] == ("stop" if ended else "length")
        assert ended or len(choice["token_ids"]) == 60
        assert not choice["message"]["content"].endswith("<|end|>")
        assert len(choice["logprobs"]["content"]) == len(choice["token_ids"])


def test_the_fields_of_a_chat_completion(client: httpx.Client) -> None:
    reply = ask(client, logprobs=True)
    assert set(reply) == {"id", "object", "created", "model", "choices", "usage"}
    assert reply["object"] == "chat.completion" and reply["id"].startswith("chatcmpl-") and reply["model"] == NAME
    assert abs(reply["created"] - time.time()) < 60
    (choice,) = reply["choices"]
    assert set(choice) == {"index", "message", "finish_reason", "logprobs"}
    for entry in choice["logprobs"]["content"]:
        assert set(entry) == {"token", "logprob", "bytes", "top_logprobs"}
        assert bytes(entry["bytes"]).decode() == entry["token"] and entry["logprob"] <= 0
    assert ask(client)["choices"][0]["logprobs"] is None


def test_completions(client: httpx.Client, model: PolicyModel) -> None:
    """Of texts and of token ids; the choices of the first prompt come first."""
    ids = list(model.tokenizer("Ann starts with").input_ids)
    reply = ask(
        client, "/v1/completions", prompt=["Ann starts with", "Bob"], n=2, seed=9, logprobs=1, return_token_ids=True
    )
    assert reply["object"] == "text_completion" and len(reply["choices"]) == 4
    same = ask(client, "/v1/completions", prompt=ids, n=2, seed=9)
    assert [choice["text"] for choice in same["choices"]] == [choice["text"] for choice in reply["choices"][:2]]
    first = reply["choices"][0]
    assert first["prompt_token_ids"] == ids and len(first["token_ids"]) <= 16
    expected = sampled(model, tuple(ids), 9, Sampling(1.0, 1.0, 16))
    assert tuple(first["token_ids"]) == expected.tokens
    assert first["logprobs"]["token_logprobs"] == pytest.approx(expected.logprobs, rel=1e-4, abs=1e-6)
    said = "".join(first["logprobs"]["tokens"])
    for piece, start in zip(first["logprobs"]["tokens"], first["logprobs"]["text_offset"], strict=True):
        assert said[start:].startswith(piece)


def test_a_conversation_is_rendered_by_the_models_own_template(client: httpx.Client, model: PolicyModel) -> None:
    turns = [("user", "Ann wins 3"), ("assistant", "in June."), ("user", "Bob")]
    messages = [{"role": role, "content": content} for role, content in turns]
    messages[0]["content"] = [{"type": "text", "text": "Ann "}, {"type": "text", "text": "wins 3"}]  # type: ignore[assignment]
    found = ask(client, messages=messages, return_token_ids=True)["prompt_token_ids"]
    text = "<|user|>Ann wins 3<|end|><|assistant|>in June.<|end|><|user|>Bob<|end|><|assistant|>"
    assert found == list(model.tokenizer(text, add_special_tokens=False).input_ids)


def test_a_stop_string_ends_an_answer_before_it(client: httpx.Client) -> None:
    whole = ask(client, return_token_ids=True, logprobs=True)["choices"][0]
    text, pieces = whole["message"]["content"], [entry["token"] for entry in whole["logprobs"]["content"]]
    mark = pieces[5].strip()
    cut = ask(client, return_token_ids=True, logprobs=True, stop=["never said", mark])["choices"][0]
    assert cut["message"]["content"] == text[: text.index(mark)] and cut["finish_reason"] == "stop"
    count = len(cut["token_ids"])
    assert cut["token_ids"] == whole["token_ids"][:count] and len(cut["logprobs"]["content"]) == count
    assert mark in "".join(pieces[:count]) and mark not in "".join(pieces[: count - 1])


REFUSED = [
    ({"stream": True}, 400, "stream is not supported by this server: ask without it."),
    ({"model": "gpt"}, 404, "The model gpt does not exist; this server has tiny."),
    ({"model": None}, 400, "model is missing or no string."),
    ({"messages": []}, 400, "messages is missing or no list of messages."),
    ({"messages": ["hello"]}, 400, "messages[0] is no object with a role and a content."),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
        400,
        "messages[0]: the content is no text; text is all this server reads.",
    ),
    ({"n": 0}, 400, "n is no whole number from 1 to 1024."),
    ({"n": True}, 400, "n is no whole number from 1 to 1024."),
    ({"max_tokens": 0}, 400, "max_tokens is no whole number of at least 1."),
    ({"max_tokens": 129}, 400, "max_tokens = 129 is more than the 128 that this server gives."),
    ({"temperature": -1}, 400, "temperature = -1.0 is negative, 0 or more was expected."),
    ({"temperature": "hot"}, 400, "temperature is no number."),
    ({"top_p": 0}, 400, "top_p = 0.0 does not lie in (0, 1]."),
    ({"seed": 1.5}, 400, "seed is no whole number."),
    ({"stop": [1]}, 400, "stop is neither a string nor a list of strings."),
    ({"logprobs": 5}, 400, "logprobs is neither true nor false."),
    ({"top_logprobs": 3}, 400, "top_logprobs is not supported by this server."),
    ({"presence_penalty": 0.5}, 400, "presence_penalty is not supported by this server."),
    ({"tools": [{"type": "function"}]}, 400, "tools is not supported by this server."),
]


@pytest.mark.parametrize(("body", "status", "message"), REFUSED)
def test_what_cannot_be_done_is_refused(client: httpx.Client, body: dict[str, Any], status: int, message: str) -> None:
    answer = client.post("/v1/chat/completions", json={**CHAT, **body})
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] == message and error["type"] == "invalid_request_error"


def test_a_prompt_that_leaves_no_room_is_refused(client: httpx.Client) -> None:
    long = {"messages": [{"role": "user", "content": "Ann wins 3 " * 80}], "max_tokens": 100}
    answer = client.post("/v1/chat/completions", json={**CHAT, **long})
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "context_length_exceeded"
    assert "maximum context length is 256 tokens" in answer.json()["error"]["message"]


def test_ids_beyond_the_vocabulary_and_empty_prompts_are_refused(client: httpx.Client) -> None:
    for prompt in ([10**9], "", [], [[]], [True], {"a": 1}, [1.5]):
        answer = client.post("/v1/completions", json={"model": NAME, "prompt": prompt})
        assert answer.status_code == 400, prompt


def test_a_body_that_is_no_json_is_refused(client: httpx.Client) -> None:
    for content in (b"", b"{", b"[]", b"\xff", b"[" * 100_000):
        answer = client.post("/v1/chat/completions", content=content)
        assert answer.status_code == 400 and "The body is no JSON" in answer.json()["error"]["message"]


def test_a_client_that_knows_other_fields_is_understood(client: httpx.Client) -> None:
    """Values at which a field changes nothing are fine, and so is what only names the asker."""
    same = ask(client, top_k=-1, stream=False, presence_penalty=0.0, user="me", tools=None, n=None)
    assert texts(same) == texts(ask(client))
    assert texts(ask(client, max_tokens=None, max_completion_tokens=12)) == texts(same)


def test_models_health_and_nowhere(client: httpx.Client) -> None:
    (card,) = client.get("/v1/models").json()["data"]
    assert card["id"] == NAME and card["object"] == "model"
    assert client.get("/health").json() == {"status": "ok", "waiting": 0, "running": 0}
    nowhere = client.get("/v1/engines")
    assert nowhere.status_code == 404 and nowhere.json()["error"]["message"] == "no route GET /v1/engines"
    assert client.get("/v1/completions").status_code == 405


def test_a_client_that_hangs_up_is_not_answered(model: PolicyModel) -> None:
    """The call is given up, and the next one is answered at once."""
    with listening(model, NAME) as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/chat/completions", json={**CHAT, "n": 1000, "max_tokens": 128}, timeout=0.3)
        started = time.monotonic()
        ask(client, max_tokens=1)
        assert time.monotonic() - started < 2.0
        assert client.get("/health").json()["waiting"] == 0


def test_a_failing_model_answers_500_and_lives(model: PolicyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("out of memory")

    with listening(model, NAME) as client:
        with monkeypatch.context() as patch:
            patch.setattr(native, "sample", broken)
            answer = client.post("/v1/chat/completions", json=CHAT)
        assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"
        assert answer.json()["error"]["message"] == "The model could not answer: RuntimeError: out of memory"
        ask(client)


def test_the_toy_teacher(scripted: httpx.Client) -> None:
    reply = ask(scripted, model="toy", n=4, seed=11, temperature=0.6, max_tokens=200)
    assert len(set(texts(reply))) > 1 and all("boxed" in text for text in texts(reply))
    generator = rng("toy teacher", 13, QUESTION, 0.6)
    assert texts(reply)[2] == teacher.respond(QUESTION, generator, teacher.Habits(), 200)[0]
    assert reply["usage"]["completion_tokens"] == sum(len(text.split()) for text in texts(reply))
    cut = ask(scripted, model="toy", max_tokens=5)["choices"][0]
    assert cut["finish_reason"] == "length" and len(cut["message"]["content"].split()) == 5
    refused = scripted.post("/v1/chat/completions", json={**CHAT, "model": "toy", "logprobs": True})
    assert refused.status_code == 400


def test_the_teacher_of_a_recipe_may_be_asked_through_a_port(scripted: httpx.Client, tmp_path: Path) -> None:
    """The same samples come as from the one inside the client."""
    shard = store.write_shard(tmp_path, 0, Problem, world.problems(1, "served", 12, range(1, 5)))
    asked = data_teacher.Settings(model="toy", samples=3, max_tokens=200, prompt="{problem}", seeded=True)
    found = []
    for url in (teacher.URL, str(scripted.base_url.join("/v1"))):
        settings = replace(asked, url=url)
        log = tmp_path / f"{len(found)}.sqlite"
        assert data_teacher.ask([shard], log, settings, seed=5).samples == 36
        found.append([(one.id, one.text, one.finish) for one in data_teacher.rollouts_of(shard, log, settings, seed=5)])
    assert found[0] == found[1] and len(set(found[0])) == 36


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_server_with_one_line(number: signal.Signals) -> None:
    code = "from algorist.serving.app import serve; serve('toy', port=0)"
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    assert first.startswith("Serving toy-teacher at http://127.0.0.1:"), process.communicate()
    assert httpx.get(f"{first.split()[3].rstrip('.')}/models", timeout=60).status_code == 200
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (out, err, process.returncode) == ("Stopped serving toy-teacher.\n", "", 0)


def test_a_server_that_stops_tells_whoever_waits(model: PolicyModel) -> None:
    """The call under way is given up, and what waits behind it is not begun."""
    with listening(model, NAME) as client, ThreadPoolExecutor(2) as threads:
        long = {**CHAT, "n": 1000, "max_tokens": 128}
        waiting = [threads.submit(client.post, "/v1/chat/completions", json=long) for _ in range(2)]
        while not client.get("/health").json()["running"]:
            time.sleep(0.01)
        STOP.set()
        answers = [one.result() for one in waiting]
        STOP.clear()
    assert [answer.status_code for answer in answers] == [503, 503]
    assert answers[0].json()["error"]["message"] == "The server is shutting down."


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RecipeError, match=rf"serve: cannot listen on 127.0.0.1:{port} .* Choose another --host"):
            serve("toy", port=port)


def test_a_precision_that_is_not_known() -> None:
    with pytest.raises(RecipeError, match="serve: precision float8 is not known. Choose float32 or bfloat16."):
        serve("toy", port=0, precision="float8")


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(RecipeError) as caught:
        serve("toy")
    assert str(caught.value) == ("serve: uvicorn is not installed. Install the extra with pip install '.[serve]'.")


def test_a_model_without_a_chat_template_goes_on_with_texts(model: PolicyModel) -> None:
    bare = replace(model, chat=None)
    with listening(bare, NAME) as client:
        assert ask(client, "/v1/completions", prompt="Ann")["choices"]
        refused = client.post("/v1/chat/completions", json=CHAT)
        assert refused.json()["error"]["message"] == "This model has no chat template: ask /v1/completions."


def test_every_field_that_is_read_is_known() -> None:
    """A reader of bodies that forgets a field would refuse it."""
    with pytest.raises(wire.Refusal, match="made_up is not supported"):
        wire.read({**CHAT, "made_up": 1}, chat=True)
