"""The engine at a server: what is sent, how it is read, what its errors say, and the tokens of our own server."""

from __future__ import annotations

import json
import math
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from algorist import store
from algorist.errors import RunError
from algorist.evals import evaluate
from algorist.generate import ids, native, server
from algorist.generate.remote import Remote, require_same, served_model
from algorist.generate.rollouts import Native, Speaker
from algorist.generate.sampling import Request, Response, Sampling
from algorist.model.batches import Document, lay_out
from algorist.model.checkpoints import open_policy
from algorist.model.policy import Policy
from algorist.numerics.address import key
from algorist.records import Problem, Rollout
from algorist.serving.app import app
from algorist.serving.models import PolicyModel, open_model
from algorist.verify.pool import Pool
from serving import Said, checkpoint, crowded

END = 1
GREEDY = Sampling(0.0, 1.0, 12)


def reply(tokens: list[int], finish: str = "stop", **more: Any) -> dict[str, Any]:
    """A reply of vLLM's shape."""
    listed = {"tokens": ["a"] * len(tokens), "token_logprobs": [-0.5] * len(tokens), "top_logprobs": None}
    return {"choices": [{"text": "a", "finish_reason": finish, "logprobs": listed, "token_ids": tokens, **more}]}


def read(said: Any, limit: int = 3) -> Response:
    return ids.response(said, limit, (END,), "http://h/v1")


# ------------------------------------------------------------------------------------------------------ the protocol


def test_what_is_sent() -> None:
    request = Request((5, 6), 3, said=(7,), logprobs=(-0.1,))
    assert ids.body("m", request, Sampling(0.6, 0.95, 10), end_ids=(4, 1), seed=9) == {
        "model": "m",
        "prompt": [5, 6, 7],
        "max_tokens": 9,
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "stop_token_ids": [1, 4],
        "logprobs": 0,
        "return_token_ids": True,
        "seed": 9,
    }
    own = replace(request, max_tokens=4)
    unseeded = ids.body("m", own, GREEDY, end_ids=(1,), seed=None)
    assert unseeded["max_tokens"] == 3 and "seed" not in unseeded


def test_a_reply() -> None:
    assert read(reply([5, END])) == Response((5, END), (-0.5, -0.5), "stop")
    assert read(reply([5, 6, 7], "length")) == Response((5, 6, 7), (-0.5,) * 3, "length")
    assert read(reply([5, 6, END], "length")).finish == "stop"  # as every engine says it


def test_ids_in_the_place_of_texts() -> None:
    said = reply([5, END], token_ids=None)
    said["choices"][0]["logprobs"]["tokens"] = ["token_id:5", "token_id:1"]
    assert read(said).tokens == (5, END)


NO_IDS = (
    "http://h/v1: the reply has no token ids. vLLM gives them from 0.10.2 on, SGLang since it knows return_token_ids; "
    "start an older vLLM with --return-tokens-as-token-ids."
)
NO_LOGPROBS = (
    "http://h/v1: the reply has no log-probabilities of its tokens. Serve the checkpoint with vLLM, SGLang or algorist "
    "serve."
)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (reply([5, END], token_ids=None), NO_IDS),
        (reply([5, END], token_ids=None, logprobs=None), NO_IDS),
        (reply([5, END], logprobs=None), NO_LOGPROBS),
        (reply([5, END], logprobs={"token_logprobs": [None, -0.5]}), NO_LOGPROBS),
        (
            reply([5, 6], "length"),
            "http://h/v1: a response was cut after 2 tokens, 3 were asked for. Start the server with a longer context, "
            "or lower max_tokens.",
        ),
        (
            reply([5, 6]),
            "http://h/v1: a response ended with token 6, one of 1 was expected. Serve the folder of the checkpoint as "
            "it is, with its own tokenizer and generation_config.json.",
        ),
    ],
)
def test_what_a_server_does_not_give_is_said_word_for_word(said: Any, words: str) -> None:
    with pytest.raises(RunError) as raised:
        read(said)
    assert str(raised.value) == words


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"choices": []},
        {"choices": [3]},
        {"choices": reply([5])["choices"] * 2},
        reply([5], "abort"),
        reply([5], None),  # type: ignore[arg-type]
        reply([5, END], logprobs={"token_logprobs": [-0.5]}),
        reply([5, END], logprobs={"token_logprobs": [-0.5, math.nan]}),
        reply([5, END], logprobs={"token_logprobs": [-0.5, "x"]}),
    ],
)
def test_a_broken_reply_may_pass(said: Any) -> None:
    found = server.understood(200, {}, json.dumps(said).encode(), read)
    assert isinstance(found, server.Trouble) and found.alive


# --------------------------------------------------------------------------------------------- the engine, scripted


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_PAUSES", (0.0,) * 5)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def requests(count: int) -> list[Request]:
    return [Request((5, place), key("r", place)) for place in range(count)]


def echo(asked: dict[str, Any]) -> Said:
    """Says the last id of the prompt, and the end."""
    return Said(json.dumps(reply([asked["prompt"][-1], END])))


Answer = Callable[[dict[str, Any]], Said]


@contextmanager
def engine(answer: Answer, **settings: Any) -> Iterator[Remote]:
    with crowded(lambda path, headers, body: answer(body)) as here:
        yield Remote(here.url, "m", frozenset({END}), **settings)


def test_each_request_has_its_own_response() -> None:
    seeds = []

    def answer(asked: dict[str, Any]) -> Said:
        seeds.append(asked["seed"])
        return replace(echo(asked), after=0.05 + 0.001 * (asked["prompt"][-1] % 7))

    with crowded(lambda path, headers, body: answer(body)) as here:
        made = Remote(here.url, "m", frozenset({END}), concurrency=16)
        found = dict(made.stream(requests(60), GREEDY))
        again = dict(made.stream(requests(60), GREEDY))
    assert found == again == {place: Response((place, END), (-0.5, -0.5), "stop") for place in range(60)}
    assert here.most == 16 and len(set(seeds)) == 60 and sorted(seeds[:60]) == sorted(seeds[60:])


def test_no_seed_is_sent_where_none_may() -> None:
    with engine(lambda asked: echo(asked) if "seed" not in asked else Said("", 500), seeded=False) as made:
        assert len(list(made.stream(requests(3), GREEDY))) == 3


def test_a_response_that_goes_on() -> None:
    said = [
        Request((5,), 1, (8, 9), (-1.0, -2.0)),
        Request((5,), 2, (8, END), (-1.0, -2.0)),  # was finished before
        Request((5,), 3, (8, 9), (-1.0, -2.0), max_tokens=2),
    ]
    with engine(echo) as made:
        found = dict(made.stream(said, GREEDY))
    assert found == {
        0: Response((8, 9, 9, END), (-1.0, -2.0, -0.5, -0.5), "stop"),
        1: Response((8, END), (-1.0, -2.0), "stop"),
        2: Response((8, 9), (-1.0, -2.0), "length"),
    }


def test_enough_cancels_what_is_in_flight() -> None:
    asked = [replace(one, said=(7,), logprobs=(-1.0,)) for one in requests(6)]

    def answer(body: dict[str, Any]) -> Said:
        return replace(echo(body), after=0.0 if body["prompt"][1] < 2 else 30.0)

    heard: list[int] = []
    with engine(answer) as made:
        began = time.monotonic()
        for index, response in made.stream(asked, GREEDY, enough=lambda: len(heard) >= 2):
            heard.append(index)
            if index >= 2:
                assert response == Response((7,), (-1.0,), "unfinished")
    assert sorted(heard[:2]) == [0, 1] and sorted(heard) == list(range(6)) and time.monotonic() - began < 10


def test_a_consumer_may_stop_listening() -> None:
    with crowded(lambda path, headers, body: replace(echo(body), after=0.0 if body["prompt"][1] < 1 else 30.0)) as here:
        stream = Remote(here.url, "m", frozenset({END})).stream(requests(4), GREEDY)
        assert next(stream)[0] == 0
        stream.close()


@pytest.mark.parametrize(
    "trouble",
    [
        Said("", 500),
        Said("", 503),
        Said('{"choices": [{"te', 200),
        Said("{}" * 50, 200, cut=10),  # the line goes dead
        Said(json.dumps(reply([5], "abort")), 200),
    ],
)
def test_what_may_pass_is_asked_again(trouble: Said) -> None:
    failed: dict[int, int] = {}

    def answer(asked: dict[str, Any]) -> Said:
        place = asked["prompt"][-1]
        failed[place] = failed.get(place, 0) + 1
        return trouble if failed[place] <= 1 and place % 3 == 0 else echo(asked)

    with engine(answer, concurrency=4) as made:
        found = dict(made.stream(requests(12), GREEDY))
    assert found == {place: Response((place, END), (-0.5, -0.5), "stop") for place in range(12)}
    assert sum(failed.values()) == 12 + 4


def test_a_server_that_asks_to_wait_is_left_alone() -> None:
    times: list[float] = []

    def answer(asked: dict[str, Any]) -> Said:
        times.append(time.monotonic())
        return Said("", 429, {"retry-after": "0.5"}) if len(times) == 1 else echo(asked)

    with engine(answer, concurrency=1) as made:
        assert len(list(made.stream(requests(2), GREEDY))) == 2
    assert 0.5 <= times[1] - times[0] < 3


def words_of(answer: Answer, **settings: Any) -> str:
    """How a stream of two ends, without the address."""
    with engine(answer, **settings) as made, pytest.raises(RunError) as raised:
        list(made.stream(requests(2), GREEDY))
    where, _, words = str(raised.value).partition("/v1: ")
    assert where.startswith("http://127.0.0.1:")
    return words


def test_how_it_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    long = json.dumps({"error": {"message": "the prompt is too long"}})
    assert words_of(lambda _: Said(long, 400)) == ("the server refused (400: the prompt is too long). Mend [evaluate].")
    assert words_of(lambda _: Said("", 500), concurrency=1) == (
        "no usable answer to one request after 20 tries (status 500). The server's log says why; mend that or "
        "[evaluate], then run the same command again."
    )
    assert words_of(lambda _: Said("", 502), patience=0.2) == (
        "no answer for 0.2 s (status 502). Start the server or mend [evaluate] url, then run the same command again; "
        "what is finished is kept."
    )
    assert words_of(lambda _: Said(json.dumps(reply([5, END], token_ids=None)))) == NO_IDS.partition("/v1: ")[2]


def test_no_server_and_no_key_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789abcdef")

    def answer(path: str, headers: Mapping[str, str], body: Any) -> Said:
        return Said(f"who is {headers['authorization']}?", 401)

    with crowded(answer) as here, pytest.raises(RunError) as raised:
        list(Remote(here.url, "m", frozenset({END})).stream(requests(1), GREEDY))
    assert str(raised.value) == f"{here.url}: the server refused (401: who is Bearer ***?). Mend [evaluate]."


def test_weights_cannot_be_handed_over() -> None:
    made = Remote("http://me:secret@h/v1", "m", frozenset({END}))
    made.rest()
    with pytest.raises(RunError) as raised:
        made.hand_over(None)  # type: ignore[arg-type]
    assert str(raised.value) == (
        "http://h/v1: a server cannot be given the weights of a policy in training. Take the native engine or vllm."
    )


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (Said("", 500), "status 500"),
        (Said("[]"), "a reply that cannot be read"),
        (Said('{"data": []}'), "it has none"),
        (Said('{"data": [{"id": "a"}, {"id": "b"}]}'), "it has a, b"),
    ],
)
def test_the_only_model_of_a_server(said: Said, words: str) -> None:
    with crowded(lambda path, headers, body: said) as here, pytest.raises(RunError) as raised:
        served_model(here.url, checkpoint="runs/x/sft/checkpoint")
    assert str(raised.value) == (
        f"{here.url}: one model was expected ({words}). Serve runs/x/sft/checkpoint there, or mend [evaluate] url and "
        "model."
    )


# ----------------------------------------------------------------------------------------------- our own server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("served"), 0)


@pytest.fixture(scope="module")
def ours(served: PolicyModel) -> Iterator[Remote]:
    with serving(served) as found:
        yield found


@pytest.fixture(scope="module")
def served(folder: Path) -> PolicyModel:
    found = open_model(str(folder), num_slots=8)
    assert isinstance(found, PolicyModel)
    return found


@contextmanager
def serving(served: PolicyModel) -> Iterator[Remote]:
    """Our own server, on a free port in this process."""
    import uvicorn

    at = uvicorn.Server(uvicorn.Config(app(served, "tiny"), log_level="warning", lifespan="on"))
    with socket.create_server(("127.0.0.1", 0), backlog=128) as bound:
        thread = threading.Thread(target=at.run, kwargs={"sockets": [bound]})
        thread.start()
        while not at.started:
            time.sleep(0.01)
        yield Remote(f"http://127.0.0.1:{bound.getsockname()[1]}/v1", "tiny", served.stops)
        at.should_exit = True
        thread.join()


def asked(served: PolicyModel, count: int) -> list[Request]:
    assert served.chat is not None
    names = ("Ann", "Bob", "Cid", "Dan")
    prompts = [served.chat.prompt_ids(f"{names[i % 4]} starts with {i} in May. How many?") for i in range(count)]
    return [Request(prompt, key("ours", i)) for i, prompt in enumerate(prompts)]


@pytest.mark.parametrize("sampling", [Sampling(0.0, 1.0, 24), Sampling(0.7, 1.0, 24), Sampling(0.7, 0.9, 24)])
def test_the_tokens_of_our_own_sampler(ours: Remote, served: PolicyModel, sampling: Sampling) -> None:
    wanted = asked(served, 10)
    found = dict(ours.stream(wanted, sampling))
    seeds = [key(one.key, "remote", 0) % 2**48 for one in wanted]
    same = [replace(one, key=key("serve", one.prompt, seed)) for one, seed in zip(wanted, seeds, strict=True)]
    expected = native.sample(served.policy, same, sampling, end_ids=served.stops)
    for place, one in enumerate(expected):
        assert (found[place].tokens, found[place].finish) == (one.tokens, one.finish)
        assert found[place].logprobs == pytest.approx(one.logprobs, abs=1e-4)


def test_a_greedy_response_goes_on_where_it_was_left(ours: Remote, served: PolicyModel) -> None:
    whole = native.sample(served.policy, asked(served, 4), Sampling(0.0, 1.0, 24), end_ids=served.stops)
    begun = [
        replace(one, said=said.tokens[:5], logprobs=said.logprobs[:5])
        for one, said in zip(asked(served, 4), whole, strict=True)
    ]
    found = dict(ours.stream(begun, Sampling(0.0, 1.0, 24)))
    assert [found[place].tokens for place in range(4)] == [one.tokens for one in whole]


def test_our_server_names_what_it_serves(ours: Remote) -> None:
    assert served_model(ours.url, checkpoint="x") == "tiny"


def test_ends_that_our_server_does_not_know(ours: Remote, served: PolicyModel) -> None:
    ends = " or ".join(map(str, sorted(served.stops)))
    other = replace(ours, end_ids=served.stops | {9})
    with pytest.raises(RunError) as raised:
        list(other.stream(asked(served, 1), GREEDY))
    assert str(raised.value) == (
        f"{ours.url}: the server refused (400: Token 9 does not end a response of this model; {ends} does.). Mend "
        "[evaluate]."
    )


# ------------------------------------------------------------------------------------------------------ the canary


def canary(made: Remote, policy: Policy, served: PolicyModel, temperature: float, limit: float = 0.005) -> float:
    prompts = [one.prompt for one in asked(served, 12)]
    return require_same(made, policy, prompts, temperature=temperature, limit=limit, checkpoint="runs/x/sft")


@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0])
def test_a_server_of_the_same_checkpoint_passes(
    ours: Remote, served: PolicyModel, folder: Path, temperature: float
) -> None:
    policy = open_policy(folder, precision="float32")
    assert canary(ours, policy, served, temperature) < 1e-5


def test_a_server_of_another_checkpoint_is_refused(ours: Remote, served: PolicyModel, tmp_path: Path) -> None:
    policy = open_policy(checkpoint(tmp_path, 1), precision="float32")
    with pytest.raises(RunError) as raised:
        canary(ours, policy, served, 0.6)
    before, after = str(raised.value).split(" nats ")
    words, _, gap = before.rpartition(" ")
    assert words.startswith(f"{ours.url}: log-probabilities of ") and words.endswith(" tokens lie") and float(gap) > 1
    assert after == (
        "from those of runs/x/sft, at most 0.005 was expected. Serve that checkpoint and in the precision of [model], "
        "or raise [evaluate] max_logprob_gap."
    )


def test_weights_that_moved_a_little_are_seen(ours: Remote, served: PolicyModel, folder: Path) -> None:
    policy = open_policy(folder, precision="float32")
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(1.01)
    with pytest.raises(RunError, match="nats from those of"):
        canary(ours, policy, served, 0.6)


def test_logprobs_at_temperature_1_are_refused(served: PolicyModel) -> None:
    """vLLM as it comes: it samples at the temperature and tells the log-probabilities of the bare model."""

    def answer(body: dict[str, Any]) -> Said:
        request = Request(tuple(body["prompt"]), body["seed"])
        (said,) = native.sample(
            served.policy, [request], Sampling(body["temperature"], 1.0, body["max_tokens"]), end_ids=served.stops
        )
        row = lay_out([Document.of(request.prompt + said.tokens, len(request.prompt))])
        with torch.no_grad():
            raw = served.policy.logprobs(row)[row.weights > 0].tolist()
        told = reply(list(said.tokens), said.finish, logprobs={"token_logprobs": raw})
        return Said(json.dumps(told))

    with engine(answer) as made:
        made = replace(made, end_ids=served.stops)
        assert canary(made, served.policy, served, 1.0) < 1e-5
        with pytest.raises(RunError) as raised:
            canary(made, served.policy, served, 0.5)
    assert str(raised.value) == (
        f"{made.url}: its log-probabilities are those at temperature 1, not at 0.5. Start vLLM with --logprobs-mode "
        "processed_logprobs, SGLang without SGLANG_RETURN_ORIGINAL_LOGPROB."
    )


# ------------------------------------------------------------------------------------------------------ evaluation


def test_evaluation_at_a_server(ours: Remote, served: PolicyModel, folder: Path, tmp_path: Path) -> None:
    """Greedy responses and verdicts are those of the checkpoint in this process."""
    assert served.chat is not None
    settings = evaluate.Settings(temperature=0.0, top_p=1.0, max_tokens=24, default_samples=2, url=ours.url)
    problems = [Problem.of(f"What is {i} + 1?", str(i + 1)) for i in range(5)]
    policy, told = open_policy(folder, precision="float32"), []
    statements = [problem.statement for problem in problems]
    made = evaluate.engine(settings, policy, served.chat, statements, checkpoint=folder, say=told.append)
    assert isinstance(made, Remote) and len(told) == 1
    assert str(told[0]).startswith(f"{ours.url}: serves {folder} as tiny, ")
    here = evaluate.engine(
        replace(settings, url=""), policy, served.chat, statements, checkpoint=folder, say=told.append
    )
    assert here == Native(policy, served.chat.stops, 128) and len(told) == 1
    with Pool() as pool:
        for name, one in (("there", made), ("here", here)):
            speaker = Speaker(one, served.chat, "sft")
            evaluate.evaluate(speaker, problems, tmp_path / name / "toy", settings, seed=0, pool=pool)
    there, expected = (store.read(tmp_path / name / "toy" / "rollouts", Rollout) for name in ("there", "here"))
    assert [(one.id, one.tokens, one.text, one.finish) for one in there] == [
        (one.id, one.tokens, one.text, one.finish) for one in expected
    ]


def test_a_recipe_names_the_server(smoke_run: Path, command: Any, tmp_path: Path) -> None:
    """The scores of a stage come from the server of its checkpoint; the next stage has another one."""
    run = shutil.copytree(smoke_run, tmp_path / "run")
    model = open_model(str(run / "base" / "checkpoint"))
    assert isinstance(model, PolicyModel)
    recipe = Path(__file__).parents[2] / "recipes" / "smoke.toml"
    with serving(model) as at:
        words = ("run", recipe, "--out", run, "--set", f'evaluate.url="{at.url}"', "--until")
        status, _, err = command(*words, "scores/base")
        assert status == 0, err
        assert f"{at.url}: serves {run}/base/checkpoint as tiny, " in err
        there = store.read(run / "scores" / "base" / "toy" / "rollouts", Rollout)
        before = store.read(smoke_run / "scores" / "base" / "toy" / "rollouts", Rollout)
        assert [one.problem_id for one in there] == [one.problem_id for one in before] and there != before
        status, _, err = command(*words, "scores/sft")
    line = err.rstrip("\n").splitlines()[-1]
    assert status == 4 and line.startswith(f"{at.url}: log-probabilities of ")
    assert f" nats from those of {run}/midtrain/checkpoint, at most 0.005 was expected. " in line


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"url": "localhost:8000"}, 'url = "localhost:8000" is no address: http://… or https://… was expected.'),
        ({"concurrency": 0}, "concurrency must be at least 1 and max_logprob_gap 0 or more."),
        (
            {"key_env": "sk-secret"},
            "key_env is no name of an environment variable. The key itself does not belong in a recipe.",
        ),
    ],
)
def test_settings_that_cannot_be(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as raised:
        evaluate.Settings(**given)
    assert str(raised.value) == words


def test_nobody_at_the_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/v1"
    with pytest.raises(RunError) as raised:
        served_model(url, checkpoint="runs/x/sft/checkpoint")
    assert str(raised.value) == (
        f"{url}: nobody answers (ConnectError: [Errno 111] Connection refused). Serve runs/x/sft/checkpoint there, or "
        "mend [evaluate] url."
    )
