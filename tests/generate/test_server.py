"""The protocol of OpenAI-compatible servers: what is sent, how replies are read, and one question at a time."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from algorist.errors import RunError
from algorist.generate import server as server_module
from algorist.generate.sampling import Sampling
from algorist.generate.server import Choice, Refusal, Reply, Server, Trouble, body, outcome, pause
from serving import listening

Said = tuple[int, dict[str, str], str]
SAMPLING = Sampling(0.6, 0.95, 100)


def choices(*texts: str, finish: str = "stop", **more: str) -> str:
    """A chat completion with one choice for each text."""
    return json.dumps({"choices": [{"message": {"content": text, **more}, "finish_reason": finish} for text in texts]})


def read(text: str | bytes, protocol: server_module.Protocol = "chat") -> Reply | Trouble | Refusal:
    return outcome(200, {}, text if isinstance(text, bytes) else text.encode(), protocol)


# --------------------------------------------------------------------------------------------------------- what is sent


def test_a_chat_request() -> None:
    assert body("chat", "m", "What is 1 + 1?", SAMPLING, count=3, seed=7) == {
        "model": "m",
        "messages": [{"role": "user", "content": "What is 1 + 1?"}],
        "n": 3,
        "temperature": 0.6,
        "top_p": 0.95,
        "max_tokens": 100,
        "seed": 7,
    }


def test_a_completion_request_has_a_bare_prompt_and_no_seed_unless_there_is_one() -> None:
    asked = body("completion", "m", "1 + 1 =", SAMPLING, count=1, seed=None)
    assert asked["prompt"] == "1 + 1 =" and "messages" not in asked and "seed" not in asked


# ------------------------------------------------------------------------------------------------------ how it is read


def test_choices_and_usage() -> None:
    one = {"choices": [{"message": {"content": "2"}, "finish_reason": "stop"}]}
    usage = {"prompt_tokens": 9, "completion_tokens": 4}
    assert read(json.dumps({**one, "usage": usage})) == Reply((Choice("2", "stop", 4),), 9, 4)
    # Two choices share what the usage says; neither has it alone.
    two = {"choices": one["choices"] * 2, "usage": usage}
    assert read(json.dumps(two)) == Reply((Choice("2", "stop"),) * 2, 9, 4)
    for listed in ({"token_ids": [5, 6, 7]}, {"logprobs": {"content": [{}] * 3}}, {"logprobs": {"tokens": ["a"] * 3}}):
        told = {"choices": [{**choice, **listed} for choice in one["choices"] * 2], "usage": usage}
        assert read(json.dumps(told)) == Reply((Choice("2", "stop", 3),) * 2, 9, 4)


@pytest.mark.parametrize(
    "usage", [None, {}, {"completion_tokens": -1}, {"completion_tokens": "4"}, {"prompt_tokens": 1e3}]
)
def test_usage_that_says_nothing(usage: object) -> None:
    said = {"choices": [{"message": {"content": "2"}, "finish_reason": "stop"}], "usage": usage}
    assert read(json.dumps(said)) == Reply((Choice("2", "stop"),))


def test_a_completion() -> None:
    said = {"choices": [{"text": " 2", "finish_reason": "length"}]}
    assert read(json.dumps(said), "completion") == Reply((Choice(" 2", "length"),))


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_thoughts_that_come_apart_are_put_back(name: str) -> None:
    assert read(choices("It is 2.", **{name: "1 + 1 = 2"})) == Reply(
        (Choice("<think>\n1 + 1 = 2\n</think>\nIt is 2.", "stop"),)
    )
    whole = "<think>1 + 1</think>It is 2."
    assert read(choices(whole, **{name: "1 + 1"})) == Reply((Choice(whole, "stop"),))


@pytest.mark.parametrize(
    ("reason", "finish"),
    [("stop", "stop"), (None, "stop"), ("length", "length"), ("max_tokens", "length"), ("content_filter", "length")],
)
def test_why_it_ended(reason: str | None, finish: str) -> None:
    said = json.dumps({"choices": [{"message": {"content": "It is"}, "finish_reason": reason}]})
    assert read(said) == Reply((Choice("It is", finish),))


def test_a_choice_that_the_server_broke_off_is_no_sample() -> None:
    said = json.loads(choices("a", "b"))
    said["choices"][0]["finish_reason"] = "abort"
    assert read(json.dumps(said)) == Reply((Choice("b", "stop"),))
    assert isinstance(read(choices("a", finish="error")), Trouble)


def test_a_response_without_text_is_empty_and_half_an_emoji_is_replaced() -> None:
    said = json.dumps({"choices": [{"message": {"content": None}, "finish_reason": "stop"}]})
    assert read(said) == Reply((Choice("", "stop"),))
    assert read(choices("a\ud83d")) == Reply((Choice("a?", "stop"),))


@pytest.mark.parametrize(
    "text",
    [
        '{"choices": [{"mess',
        "[]",
        "3",
        '{"choices": []}',
        '{"choices": null}',
        '{"error": "none"}',
        '{"choices": [3]}',
        '{"choices": [{"message": {"content": 3}}]}',
        "[" * 100_000,
        b"\xff\xfe\xfd",
    ],
)
def test_a_broken_reply_may_pass(text: str | bytes) -> None:
    found = read(text)
    assert isinstance(found, Trouble) and found.alive and found.words.startswith("a reply that cannot be read (")
    assert len(found.words) < 400


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 529, 204])
def test_a_status_that_may_pass(status: int) -> None:
    found = outcome(status, {}, b"oops", "chat")
    assert found == Trouble(f"status {status}", 0.0, crowded=status in (429, 503), alive=status == 500)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"max_tokens is too large", "max_tokens is too large"),
        (b'{"error": {"message": "no\\nsuch model"}}', "no such model"),
        (b'{"error": "no such model"}', "no such model"),
        (b'{"detail": "no such model"}', "no such model"),
        (b'{"error": 3}', '{"error": 3}'),
        (b"a\x1b[31m" + b"x" * 1000, "a [31m" + "x" * 293 + "…"),
        (b"", ""),
    ],
)
def test_a_refusal_has_the_servers_words(content: bytes, words: str) -> None:
    assert outcome(404, {}, content, "chat") == Refusal(404, words)


def test_which_refusals_are_of_one_question() -> None:
    assert {status for status in range(400, 500) if Refusal(status, "").of_question} == {400, 413, 422}
    assert outcome(301, {"location": "https://x"}, b"", "chat") == Refusal(301, "it sends elsewhere: https://x")


def test_a_key_that_a_server_repeats_is_blacked_out() -> None:
    key = "sk-0123456789abcdef"
    long = "x" * 290 + key  # what is cut must not leave a part of it
    found = [
        outcome(401, {}, f'{{"error": {{"message": "Bad key {key}"}}}}'.encode(), "chat", key),
        outcome(401, {}, long.encode(), "chat", key),
        outcome(200, {}, choices(f"You are {key}").encode(), "chat", key),
        outcome(200, {}, f"{key}".encode(), "chat", key),
    ]
    assert "sk-0" not in repr(found) and "Bad key ***" in repr(found)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0.0),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "soon"}, 0.0),
        ({"retry-after": "٣"}, 3.0),
        ({"retry-after": "Wed, 21 Oct 2020 07:28:00 GMT"}, 0.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:40 GMT", "date": "Wed, 21 Oct 2015 07:28:00 GMT"}, 40.0),
        ({"retry-after": "Wed, 99 Oct 2015 07:28:40 GMT"}, 0.0),
    ],
)
def test_how_long_the_server_asks_to_wait(headers: Mapping[str, str], seconds: float) -> None:
    found = outcome(429, headers, b"", "chat")
    assert isinstance(found, Trouble) and found.wait == seconds


def test_a_date_without_a_clock_of_the_servers_is_by_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module.time, "time", lambda: 1445412480.0)  # 21 Oct 2015 07:28:00
    found = outcome(503, {"retry-after": "Wed, 21 Oct 2015 07:28:40 GMT"}, b"", "chat")
    assert found == Trouble("status 503", 40.0, crowded=True)


def test_pauses_grow_and_are_drawn_by_address() -> None:
    pauses = [pause(attempt, 0.0, "k") for attempt in range(8)]
    assert all(0.5 * 2**i <= found <= 2**i for i, found in enumerate(pauses[:5]))
    assert all(8 <= found <= 16 for found in pauses[5:])
    assert pauses == [pause(attempt, 0.0, "k") for attempt in range(8)]
    assert len({pause(0, 0.0, i) for i in range(50)}) == 50
    assert pause(0, 20.0, "k") == 20.0 and pause(0, 1e9, "k") == 300.0


def test_an_address_is_shown_without_what_is_secret() -> None:
    assert server_module.shown("https://me:secret@h:80/v1?key=secret") == "https://h:80/v1"
    assert server_module.shown("http://me:secret@h:80o0/v1") == "?"


# ------------------------------------------------------------------------------------------- one question at a time


@dataclass
class Desk:
    """A listening server: replies in the order of `script`, and then with an answer for ever."""

    url: str = ""
    script: list[Said] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)  # bodies
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    def ask(self) -> str:
        judge = Server(self.url, "m", timeout=10.0)
        with judge.client() as client:
            return judge.ask(client, "What is 1 + 1?", SAMPLING, seed=7)


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setattr(server_module, "_PAUSES", (0.0,) * 5)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    desk = Desk()

    def answer(path: str, headers: dict[str, str], content: bytes) -> Said:
        desk.asked.append(json.loads(content))
        desk.headers.append(headers)
        desk.paths.append(path)
        return desk.script.pop(0) if desk.script else (200, {}, choices("It is 2."))

    with listening(answer) as desk.url:
        yield desk


def test_one_question(desk: Desk) -> None:
    assert desk.ask() == "It is 2."
    assert desk.paths == ["/v1/chat/completions"]
    assert desk.asked == [body("chat", "m", "What is 1 + 1?", SAMPLING, count=1, seed=7)]
    assert "authorization" not in desk.headers[0]


@pytest.mark.parametrize(
    "failures",
    [
        [(500, {}, "oops")],
        [(429, {"retry-after": "0"}, "slower")],
        [(200, {}, '{"choices": [{"mess')],
        [(200, {}, '{"choices": []}')],
        [(500, {}, "oops")] * 5,
    ],
    ids=["500", "429", "cut JSON", "no choices", "500 five times"],
)
def test_what_may_pass_is_tried_again(desk: Desk, failures: list[Said]) -> None:
    desk.script = list(failures)
    assert desk.ask() == "It is 2."
    assert len(desk.asked) == len(failures) + 1
    assert all(asked == desk.asked[0] for asked in desk.asked)


def test_the_server_says_how_long_to_wait(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(server_module.time, "sleep", slept.append)
    desk.script = [(429, {"retry-after": "3"}, ""), (429, {"retry-after": "9999"}, ""), (500, {}, "")]
    desk.ask()
    assert slept == [3.0, 300.0, 0.0]


def test_six_failures_end_the_run(desk: Desk) -> None:
    desk.script = [(500, {}, "oops")] * 6
    with pytest.raises(RunError) as refused:
        desk.ask()
    assert str(refused.value) == (
        f"{desk.url}: no usable answer after 6 tries (status 500). "
        "Start the server or mend [judge] url, then run the same command again; what is finished is kept."
    )
    assert len(desk.asked) == 6


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_PAUSES", (0.0,) * 5)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(RunError) as refused:
        Desk(f"http://127.0.0.1:{port}/v1").ask()
    assert str(refused.value) == (
        f"http://127.0.0.1:{port}/v1: no usable answer after 6 tries (ConnectError: [Errno 111] Connection refused). "
        "Start the server or mend [judge] url, then run the same command again; what is finished is kept."
    )


def test_a_refusal_is_not_tried_again(desk: Desk) -> None:
    desk.script = [(400, {}, "max_tokens is too large")]
    with pytest.raises(RunError) as refused:
        desk.ask()
    assert str(refused.value) == f"{desk.url}: the server refused (400: max_tokens is too large). Mend [judge]."
    assert len(desk.asked) == 1


def test_the_key_goes_into_a_header_and_nowhere_else(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-0123456789")
    desk.script = [(401, {}, "What is sk-secret-0123456789?")]
    with pytest.raises(RunError) as refused:
        desk.ask()
    assert desk.headers[0]["authorization"] == "Bearer sk-secret-0123456789"
    assert "sk-secret" not in json.dumps(desk.asked) + repr(Server(desk.url, "m")) + repr(refused.value)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-sécret-0123456789")
    with pytest.raises(RunError) as refused:
        desk.ask()
    assert str(refused.value) == "OPENAI_API_KEY: holds a character that no key has. Set it again."


def test_a_failure_of_the_connection_in_words() -> None:
    assert server_module.failure(httpx.ReadTimeout("")) == Trouble("ReadTimeout")
    assert server_module.failure(httpx.ReadError("gone")) == Trouble("ReadError: gone")
    error = httpx.ConnectError("All attempts failed")
    error.__cause__ = OSError("No route to host")
    assert server_module.failure(error) == Trouble("ConnectError: No route to host")
