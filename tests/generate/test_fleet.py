"""Many servers at once: every sample exactly once, whatever they do; where the work goes; when it ends."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from algorist.errors import RunError
from algorist.generate import endpoints, fleet, server
from algorist.generate.answers import Answer, Ask, Refused, reading, writing
from algorist.generate.endpoints import Endpoint
from algorist.generate.fleet import Terms
from algorist.generate.sampling import Sampling
from algorist.generate.server import Trouble
from serving import Said, crowded

SAMPLING = Sampling(0.6, 0.95, 100)


def completion(texts: Sequence[str], **more: Any) -> str:
    found = [{"message": {"content": text}, "finish_reason": "stop"} for text in texts]
    return json.dumps({"choices": found, "usage": {"prompt_tokens": 9, "completion_tokens": 5 * len(texts)}, **more})


def well(body: dict[str, Any]) -> Said:
    """What a healthy server says: text i depends on question and seed + i alone."""
    question, seed = body["messages"][0]["content"], body.get("seed", 0)
    return Said(completion([f"{question}/{seed + i}" for i in range(body["n"])]))


def asks(count: int, samples: int = 1, seed: int | None = 100) -> list[Ask]:
    return [Ask(f"k{i}", f"q{i}", samples, 0, seed) for i in range(count)]


def terms(**changes: Any) -> Terms:
    return Terms("m", SAMPLING, **{"timeout": 5.0, "patience": 5.0, **changes})


def every(wanted: Sequence[Ask]) -> Counter[tuple[str, int]]:
    return Counter((one.key, one.first + i) for one in wanted for i in range(one.count))


def got(found: Sequence[Answer | Refused]) -> Counter[tuple[str, int]]:
    return Counter((one.key, one.index) for one in found if isinstance(one, Answer))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same ladder of pauses, in hundredths of its time."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(server, "_PAUSES", (0.02, 0.04, 0.08, 0.16, 0.32))
    monkeypatch.setattr(endpoints, "_PROBES", (0.02, 0.04, 0.08, 0.16))


# ------------------------------------------------------------------------------------------------------- under load


def test_every_sample_arrives_once_from_servers_that_stall_break_off_refuse_for_now_and_talk_nonsense(
    tmp_path: Path,
) -> None:
    """Each request is struck by a fault with probability 1/4, drawn from its number."""
    numbers: Counter[str] = Counter()
    sent: Counter[str] = Counter()

    def answer(path: str, _headers: dict[str, str], body: Any) -> Said:
        if path.endswith("/models"):
            return Said("{}")
        name = f"{body['messages'][0]['content']}/{body['seed']}/{body['n']}"
        numbers[name] += 1
        fault = hashlib.sha256(f"{name}/{numbers[name]}".encode()).digest()[0] % 32
        kind = ["stall", "cut", "status 429", "status 500", "broken", "fewer", "empty", "cut early"]
        sent[kind[fault] if fault < 8 else "well"] += 1
        said = well(body)
        choices = json.loads(said.text)["choices"]
        return {
            0: Said(said.text, after=30.0),
            1: Said(said.text, cut=len(said.text) // 2),
            2: Said("slower", 429, {"retry-after": "0"}),
            3: Said("oops", 500),
            4: Said(said.text[:-20]),
            5: Said(json.dumps({"choices": choices[: max(1, len(choices) // 2)]})),
            6: Said('{"choices": []}'),
            7: Said(said.text, cut=0),
        }.get(fault, Said(said.text, after=0.2))

    wanted = asks(300, 4)
    with crowded(answer) as one, crowded(answer) as two, writing(tmp_path / "log") as log:
        places = [Endpoint(one.url), Endpoint(two.url)]
        found = list(fleet.ask(wanted, places, terms(concurrency=400, timeout=3.0, patience=60.0), log))
        assert got(found) == every(wanted) and len(log) == 1200
        assert one.most + two.most > 80
    assert min(sent.values()) > 5 and len(sent) == 9, sent
    assert {one.text for one in found if isinstance(one, Answer)} == {
        f"q{i}/{100 + j}" for i in range(300) for j in range(4)
    }
    assert all(place.answered > 100 for place in places) and sum(place.failed for place in places) > 40


def test_hundreds_are_in_flight(tmp_path: Path) -> None:
    def answer(_path: str, _headers: dict[str, str], body: Any) -> Said:
        return Said(well(body).text, after=1.5)

    wanted = asks(450, 2)
    with crowded(answer) as one, crowded(answer) as two:
        found = list(fleet.ask(wanted, [Endpoint(one.url), Endpoint(two.url)], terms(concurrency=300, timeout=60.0)))
        assert got(found) == every(wanted)
        assert one.most == two.most == 150
        assert one.connections == two.connections == 150, "each connection is used again"


def test_answers_are_logged_before_they_are_given_out(tmp_path: Path) -> None:
    with crowded(lambda _path, _headers, body: well(body)) as here, writing(tmp_path / "log") as log:
        for one in fleet.ask(asks(20, 2), [Endpoint(here.url)], terms(), log):
            assert isinstance(one, Answer)
            assert (one.key, one.index) in log.have([one.key])


def test_asks_are_taken_as_there_is_room() -> None:
    taken = 0

    def slowly() -> Iterator[Ask]:
        nonlocal taken
        for taken, one in enumerate(asks(500), 1):  # noqa: B007 - what was taken is counted
            yield one

    with crowded(lambda _path, _headers, body: Said(well(body).text, after=0.2)) as here:
        found = fleet.ask(slowly(), [Endpoint(here.url)], terms(concurrency=10))
        next(found)
        assert taken <= 20
        found.close()


# ---------------------------------------------------------------------------------------------- what a request asks for


def collected(script: Callable[[dict[str, Any], int], Said]) -> tuple[list[dict[str, Any]], Callable[..., Said]]:
    """A place for the bodies of requests, and an answerer that gives each of them and its number to `script`."""
    bodies: list[dict[str, Any]] = []

    def answer(path: str, _headers: dict[str, str], body: Any) -> Said:
        if path.endswith("/models"):
            return Said("{}")
        bodies.append(body)
        return script(body, len(bodies))

    return bodies, answer


def test_one_request_for_all_samples_and_no_seed_unless_there_is_one() -> None:
    bodies, answer = collected(lambda body, _: well(body))
    with crowded(answer) as here:
        list(fleet.ask([Ask("a", "A", 8, 4, 70)], [Endpoint(here.url)], terms()))
        list(fleet.ask([Ask("b", "B", 8, 4)], [Endpoint(here.url)], terms()))
    assert [(body["n"], body.get("seed")) for body in bodies] == [(8, 74), (8, None)]


def test_a_server_that_ignores_n_is_asked_one_by_one() -> None:
    bodies, answer = collected(lambda body, _: well({**body, "n": 1}))
    wanted = asks(20, 4)
    with crowded(answer) as here:
        found = list(fleet.ask(wanted, [Endpoint(here.url)], terms(concurrency=2)))
    assert got(found) == every(wanted) and len(bodies) == 80, "nothing is asked for twice"
    assert {one.text for one in found if isinstance(one, Answer)} == {
        f"q{i}/{100 + j}" for i in range(20) for j in range(4)
    }
    assert sum(body["n"] > 1 for body in bodies) < 10
    # Alone in its reply, each sample's tokens are known.
    assert {one.num_tokens for one in found if isinstance(one, Answer)} == {5}


def test_a_server_that_refuses_n_is_asked_one_by_one() -> None:
    def script(body: dict[str, Any], _number: int) -> Said:
        return well(body) if body["n"] == 1 else Said('{"error": {"message": "n must be 1"}}', 400)

    bodies, answer = collected(script)
    wanted = asks(10, 4)
    with crowded(answer) as here:
        found = list(fleet.ask(wanted, [Endpoint(here.url)], terms(concurrency=2)))
    assert got(found) == every(wanted) and sum(body["n"] > 1 for body in bodies) <= 2


def test_a_server_that_gives_too_many_is_cut() -> None:
    with crowded(collected(lambda body, _: well({**body, "n": body["n"] + 2}))[1]) as here:
        assert got(list(fleet.ask(asks(3, 2), [Endpoint(here.url)], terms()))) == every(asks(3, 2))


def test_what_was_paid_for_is_counted_once() -> None:
    with crowded(lambda _path, _headers, body: well(body)) as here:
        found = list(fleet.ask(asks(3, 4), [Endpoint(here.url)], terms()))
    answers = [one for one in found if isinstance(one, Answer)]
    assert {(one.prompt_tokens, one.num_tokens) for one in answers} == {(9, 0)}
    assert (sum(one.spent_in for one in answers), sum(one.spent_out for one in answers)) == (27, 60)


def test_plain_completions() -> None:
    bodies, answer = collected(lambda body, _: Said(json.dumps({"choices": [{"text": f"{body['prompt']} 2"}]})))
    with crowded(answer) as here:
        (found,) = fleet.ask([Ask("a", "1 + 1 =")], [Endpoint(here.url)], terms(protocol="completion"))
    assert isinstance(found, Answer) and found.text == "1 + 1 = 2" and "messages" not in bodies[0]


# ------------------------------------------------------------------------------------------------- servers come and go


def test_what_a_dead_server_had_goes_to_the_others() -> None:
    seen: Counter[str] = Counter()

    def answer(path: str, headers: dict[str, str], body: Any) -> Said:
        seen[headers["host"]] += 1
        return Said(well(body).text, after=0.05)

    wanted = asks(300, 2)
    with ExitStack() as last, crowded(answer) as stays:
        goes = last.enter_context(crowded(answer))
        places = [Endpoint(stays.url), Endpoint(goes.url)]
        found = []
        for one in fleet.ask(wanted, places, terms(concurrency=40)):
            found.append(one)
            if len(found) == 200:
                last.close()
    assert got(found) == every(wanted)
    assert places[1].said.startswith(("ConnectError", "ReadError", "RemoteProtocolError")) and places[1].answered > 10
    assert places[0].failing_since is None


def test_a_server_that_dies_and_comes_back_is_used_again() -> None:
    """Like one that a request with a seed kills, and a supervisor starts again."""
    wanted = asks(120, 2)
    answer = collected(lambda body, _: Said(well(body).text, after=0.02))[1]
    with ExitStack() as first, ExitStack() as second:
        here = first.enter_context(crowded(answer))
        port = httpx.URL(here.url).port or 0
        place, found = Endpoint(here.url), []
        for one in fleet.ask(wanted, [place], terms(concurrency=8)):
            found.append(one)
            if len(found) == 80:
                first.close()
                threading.Timer(0.5, lambda: second.enter_context(crowded(answer, port))).start()
        assert got(found) == every(wanted) and place.failed > 5


def test_all_dead_for_too_long_ends_the_call_and_keeps_what_is_finished(tmp_path: Path) -> None:
    answer = collected(lambda body, number: well(body) if number <= 30 else Said("oops", 502))[1]
    with socket.socket() as free, crowded(answer) as here:
        free.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        began = time.monotonic()
        with writing(tmp_path / "log") as log, pytest.raises(RunError) as ended:
            list(fleet.ask(asks(100), [Endpoint(here.url), Endpoint(dead)], terms(concurrency=4, patience=1.0), log))
        refused = f"ConnectError: [Errno 111] Connect call failed ('127.0.0.1', {free.getsockname()[1]})"
        assert str(ended.value) == (
            f"No server has answered for 1 s ({here.url}: status 502; {dead}: {refused}). Start one or mend [teacher] "
            "url, then run the same command again; what is finished is kept."
        )
        assert 1.0 < time.monotonic() - began < 4.0
    with reading(tmp_path / "log") as log:
        assert len(log) == 30


def test_one_slow_answer_is_not_the_end_of_patience() -> None:
    def script(body: dict[str, Any], number: int) -> Said:
        return Said("oops", 500) if number == 1 else Said(well(body).text, after=1.5)

    with crowded(collected(script)[1]) as here:
        found = list(fleet.ask(asks(2), [Endpoint(here.url)], terms(patience=0.5)))
    assert len(found) == 2


def test_a_crowded_server_gets_less_at_a_time() -> None:
    """One that serves 20 at once and sends the rest away: not many are sent away."""
    state = Counter[str]()

    def answer(path: str, _headers: dict[str, str], body: Any) -> Said:
        if path.endswith("/models"):
            return Said("{}")
        if here.in_flight > 20:
            state["sent away"] += 1
            return Said("slower", 429)
        return Said(well(body).text, after=0.02)

    wanted = asks(300)
    with crowded(answer) as here:
        place = Endpoint(here.url)
        found = list(fleet.ask(wanted, [place], terms(concurrency=100)))
    assert got(found) == every(wanted) and place.failed == state["sent away"] < 200


def test_the_share_of_a_crowded_server_by_the_clock() -> None:
    crowd, place = Trouble("status 429", crowded=True), Endpoint("http://h/v1", in_flight=99)
    for _ in range(40):
        place.speaks(0.0)
    for number in range(4):
        place.fails(1.0, crowd, 0.5)
        assert place.room(1.0, 100) == 100, f"{number + 1} of 40 is no crowd"
    place.fails(1.0, crowd, 0.5)
    assert place.room(1.0, 100) == pytest.approx(70)
    for _ in range(50):
        place.speaks(1.1)
        place.fails(1.1, crowd, 0.9)
    assert place.room(1.1, 100) > 70, "those that were sent before the cut say nothing new"
    assert place.room(11.0, 100) == pytest.approx(70 * 2 ** (1 / 3)) and place.room(31.0, 100) == 100


def test_a_server_that_fails_is_left_alone_for_longer_each_time_and_grows_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "_PROBES", (1.0, 2.0, 4.0))
    place, now, pauses = Endpoint("http://h/v1"), 0.0, []
    for _ in range(8):
        assert place.room(now, 100) == 100
        place.fails(now, Trouble("ReadError"), now)
    for _ in range(4):
        assert place.broken and place.room(1e9, 100) == 0, "nothing is sent before a probe succeeds"
        pauses.append(place.paused_until - now)
        now = place.paused_until
        place.left_alone(now)
    assert all(0.5 * most <= pause <= most for pause, most in zip(pauses, (1.0, 2.0, 4.0, 4.0), strict=True))
    now = place.paused_until
    place.reopens(now)
    assert [place.room(now + seconds, 100) for seconds in (0.0, 1.0, 3.0, 9.0)] == [4, 8, 32, 100]


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_nothing_is_sent_before_the_time_that_the_server_names(form: str) -> None:
    told: list[float] = []
    asked: list[float] = []

    def answer(path: str, _headers: dict[str, str], body: Any) -> Said:
        asked.append(time.monotonic())
        if len(asked) == 3:
            told.append(asked[-1])
            date = {"date": "Wed, 21 Oct 2015 07:28:00 GMT", "retry-after": "Wed, 21 Oct 2015 07:28:01 GMT"}
            return Said("", 429, {"retry-after": "1"} if form == "seconds" else date)
        return well(body)

    with crowded(answer) as here:
        found = list(fleet.ask(asks(30), [Endpoint(here.url)], terms(concurrency=1)))
    assert len(found) == 30
    after = [then - told[0] for then in asked[3:]]
    assert len(after) == 28 and min(after) >= 1.0


# ------------------------------------------------------------------------------------------------------------- refusals


def test_a_question_that_is_refused_is_left_out_and_the_others_are_answered() -> None:
    def script(body: dict[str, Any], _number: int) -> Said:
        too_long = body["messages"][0]["content"] in ("q3", "q7")
        return Said('{"error": {"message": "too long"}}', 400) if too_long else well(body)

    bodies, answer = collected(script)
    with crowded(answer) as here:
        found = list(fleet.ask(asks(10, 2), [Endpoint(here.url)], terms()))
    left_out = [one for one in found if isinstance(one, Refused)]
    assert sorted(left_out, key=lambda one: one.key) == [
        Refused(key, "refused by the server (400)", "too long", here.url, 2, lasting=True) for key in ("k3", "k7")
    ]
    assert got(found) == every([one for one in asks(10, 2) if one.key not in ("k3", "k7")])
    assert sum(body["messages"][0]["content"] in ("q3", "q7") for body in bodies) == 4, "once for all, once for one"


def test_many_refusals_among_answers_are_no_reason_to_end() -> None:
    def script(body: dict[str, Any], _number: int) -> Said:
        return Said("too long", 400) if int(body["messages"][0]["content"][1:]) % 3 == 0 else well(body)

    with crowded(collected(script)[1]) as here:
        found = list(fleet.ask(asks(150), [Endpoint(here.url)], terms(concurrency=4)))
    assert sum(isinstance(one, Refused) for one in found) == 50 and len(got(found)) == 100


def test_a_server_that_refuses_everything_ends_the_call() -> None:
    with crowded(collected(lambda body, _: Said("n is too large", 422))[1]) as here:
        with pytest.raises(RunError) as ended:
            list(fleet.ask(asks(100, 2), [Endpoint(here.url)], terms(concurrency=10)))
        assert str(ended.value) == (
            f"{here.url}: the last 20 questions had no answer, refused by the server (422) (n is too large). "
            "Mend [teacher]."
        )


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_server_that_knows_us_not_ends_the_call_at_once(status: int) -> None:
    bodies, answer = collected(lambda body, _: Said('{"error": {"message": "no such model"}}', status))
    with crowded(answer) as here:
        with pytest.raises(RunError) as ended:
            list(fleet.ask(asks(100), [Endpoint(here.url)], terms(concurrency=5, section="labels")))
        assert str(ended.value) == f"{here.url}: the server refused ({status}: no such model). Mend [labels]."
    assert len(bodies) <= 5


def test_a_gateway_that_forgets_the_server_for_a_while_does_not() -> None:
    def script(body: dict[str, Any], number: int) -> Said:
        return Said("no tunnel", 404) if 10 < number < 20 else well(body)

    with crowded(collected(script)[1]) as here:
        assert len(list(fleet.ask(asks(60), [Endpoint(here.url)], terms(concurrency=3)))) == 60


def test_a_question_that_always_fails_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_PAUSES", (0.02,))

    def script(body: dict[str, Any], _number: int) -> Said:
        return (
            Said(well(body).text, cut=0)
            if body["messages"][0]["content"] == "q3"
            else Said(well(body).text, after=0.05)
        )

    bodies, answer = collected(script)
    with crowded(answer) as here:
        found = list(fleet.ask(asks(400), [Endpoint(here.url)], terms(concurrency=4)))
    (left_out,) = [one for one in found if isinstance(one, Refused)]
    assert left_out.key == "k3" and left_out.reason == "no usable answer after 20 tries" and not left_out.lasting
    assert got(found) == every([one for one in asks(400) if one.key != "k3"])


# ------------------------------------------------------------------------------------------------------------ the rest


def test_the_key_goes_into_a_header_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    monkeypatch.setenv("TEACHER_KEY", "sk-secret-0123456789")
    heard: list[str] = []

    def answer(_path: str, headers: dict[str, str], body: Any) -> Said:
        heard.append(headers.get("authorization", ""))
        echo = {**body, "messages": [{"content": headers["authorization"]}]}
        return well(echo) if len(heard) < 4 else Said(f"What is {headers['authorization']}?", 401)

    with crowded(answer) as here:
        place = Endpoint(here.url, "TEACHER_KEY")
        with writing(tmp_path / "log") as log, pytest.raises(RunError) as ended:
            list(fleet.ask(asks(10), [place], terms(concurrency=1, patience=0.3), log))
    assert set(heard) == {"Bearer sk-secret-0123456789"}
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    with reading(tmp_path / "log") as log:
        texts = [log.read(f"k{i}")[0].text for i in range(3)]
    said = repr(place) + repr(ended.value) + repr(texts) + caplog.text
    assert b"sk-secret" not in written and "sk-secret" not in said and "***" in repr(texts)


def test_a_transport_in_process_needs_no_network() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text=well(json.loads(request.content)).text)

    place = Endpoint("toy://teacher", transport=httpx.MockTransport(answer))
    found = list(fleet.ask(asks(10, 3), [place], terms()))
    assert got(found) == every(asks(10, 3)) and {one.endpoint for one in found} == {"toy://teacher"}


def test_a_fault_of_our_own_is_not_swallowed() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise ZeroDivisionError("ours")

    with pytest.raises(ZeroDivisionError):
        list(fleet.ask(asks(3), [Endpoint("toy://teacher", transport=httpx.MockTransport(answer))], terms()))


def test_nothing_to_ask() -> None:
    ticks: list[int] = []
    assert list(fleet.ask([], [Endpoint("http://127.0.0.1:1/v1")], terms(), tick=lambda: ticks.append(1))) == []
    assert ticks


def test_a_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "localhost,127.0.0.1")
    assert endpoints._proxy(httpx.URL("http://teacher:8000/v1")) == "http://proxy:3128"
    assert endpoints._proxy(httpx.URL("http://127.0.0.1:8000/v1")) is None
