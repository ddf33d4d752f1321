"""The client of an OpenAI-compatible server, against a real one on this machine that misbehaves on demand."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from algorist.errors import RunError
from algorist.generate import server as server_module
from algorist.generate.sampling import Sampling
from algorist.generate.server import Answer, Server
from serving import listening

Reply = tuple[int, dict[str, str], str]
SAMPLING = Sampling(0.6, 0.95, 100)


def choices(*texts: str, finish: str = "stop", **more: str) -> Reply:
    """A chat completion with one choice for each text."""
    found = [{"message": {"content": text, **more}, "finish_reason": finish} for text in texts]
    return 200, {}, json.dumps({"choices": found})


@dataclass
class Desk:
    """A listening server: replies in the order of `script`, and then with n numbered choices for ever."""

    url: str = ""
    script: list[Reply] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)  # bodies
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    def ask(self, count: int, seed: int = 7) -> list[Answer]:
        teacher = Server(self.url, "m", timeout=10.0)
        with teacher.client() as client:
            return teacher.ask(client, "What is 1 + 1?", SAMPLING, count=count, seed=seed)


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setattr(server_module, "_PAUSES", (0.0,) * 5)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    desk = Desk()

    def answer(path: str, headers: dict[str, str], body: bytes) -> tuple[int, Mapping[str, str], str]:
        asked = json.loads(body)
        desk.asked.append(asked)
        desk.headers.append(headers)
        desk.paths.append(path)
        usual = choices(*(f"answer {i}" for i in range(asked["n"])))
        return desk.script.pop(0) if desk.script else usual

    with listening(answer) as desk.url:
        yield desk


def test_one_request_brings_all_samples(desk: Desk) -> None:
    assert desk.ask(3) == [Answer(f"answer {i}", "stop") for i in range(3)]
    assert desk.paths == ["/v1/chat/completions"]
    assert desk.asked == [
        {
            "model": "m",
            "messages": [{"role": "user", "content": "What is 1 + 1?"}],
            "n": 3,
            "temperature": 0.6,
            "top_p": 0.95,
            "max_tokens": 100,
            "seed": 7,
        }
    ]
    assert "authorization" not in desk.headers[0]


def test_a_server_that_ignores_n_is_asked_again_with_other_seeds(desk: Desk) -> None:
    desk.script = [choices("a"), choices("b"), choices("c")]
    assert [answer.text for answer in desk.ask(3)] == ["a", "b", "c"]
    assert [(body["n"], body["seed"]) for body in desk.asked] == [(3, 7), (2, 8), (1, 9)]


def test_a_server_that_gives_too_many_is_cut(desk: Desk) -> None:
    desk.script = [choices("a", "b", "c")]
    assert [answer.text for answer in desk.ask(2)] == ["a", "b"]


@pytest.mark.parametrize(
    "failures",
    [
        [(500, {}, "oops")],
        [(429, {"retry-after": "0"}, "slower")],
        [(503, {"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, "later")],
        [(200, {}, '{"choices": [{"mess')],
        [(200, {}, "[]")],
        [(200, {}, '{"choices": []}')],
        [(200, {}, '{"choices": null}')],
        [(200, {}, '{"error": "none"}')],
        [(500, {}, "oops")] * 5,
    ],
    ids=["500", "429", "503 until a date", "cut JSON", "a list", "no choices", "null", "no key", "500 five times"],
)
def test_what_may_pass_is_tried_again(desk: Desk, failures: list[Reply]) -> None:
    desk.script = list(failures)
    assert desk.ask(2) == [Answer("answer 0", "stop"), Answer("answer 1", "stop")]
    assert len(desk.asked) == len(failures) + 1
    assert all(body == desk.asked[0] for body in desk.asked)


def test_the_server_says_how_long_to_wait(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(server_module.time, "sleep", slept.append)
    desk.script = [(429, {"retry-after": "3"}, ""), (429, {"retry-after": "9999"}, ""), (500, {}, "")]
    desk.ask(1)
    assert slept == [3.0, 60.0, 0.0]


def test_six_failures_end_the_run(desk: Desk) -> None:
    desk.script = [(500, {}, "oops")] * 6
    with pytest.raises(RunError) as refused:
        desk.ask(1)
    assert str(refused.value) == (
        f"{desk.url}: no usable answer after 6 tries (status 500). "
        "Start the server or mend [teacher] url, then run the same command again; what is finished is kept."
    )
    assert len(desk.asked) == 6


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_PAUSES", (0.0,) * 5)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(RunError) as refused:
        Desk(f"http://127.0.0.1:{port}/v1").ask(1)
    assert str(refused.value) == (
        f"http://127.0.0.1:{port}/v1: no usable answer after 6 tries (ConnectError: [Errno 111] Connection refused). "
        "Start the server or mend [teacher] url, then run the same command again; what is finished is kept."
    )


def test_a_refusal_is_not_tried_again(desk: Desk) -> None:
    desk.script = [(400, {}, "max_tokens is too large")]
    with pytest.raises(RunError) as refused:
        desk.ask(1)
    assert str(refused.value) == f"{desk.url}: the server refused (400: max_tokens is too large). Mend [teacher]."
    assert len(desk.asked) == 1


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_thoughts_that_come_apart_are_put_back(desk: Desk, name: str) -> None:
    desk.script = [choices("It is 2.", **{name: "1 + 1 = 2"})]
    assert desk.ask(1) == [Answer("<think>\n1 + 1 = 2\n</think>\nIt is 2.", "stop")]


def test_a_response_that_was_cut_says_so(desk: Desk) -> None:
    desk.script = [choices("It is", finish="length")]
    assert desk.ask(1) == [Answer("It is", "length")]


def test_a_response_without_text_is_empty(desk: Desk) -> None:
    desk.script = [(200, {}, json.dumps({"choices": [{"message": {"content": None}, "finish_reason": "stop"}]}))]
    assert desk.ask(1) == [Answer("", "stop")]


def test_the_key_goes_into_a_header(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    desk.ask(1)
    assert desk.headers[0]["authorization"] == "Bearer sk-secret"
    assert "sk-secret" not in json.dumps(desk.asked) and "sk-secret" not in repr(Server(desk.url, "m"))
