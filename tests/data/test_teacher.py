"""Asking a teacher: the scripted one and one over the network, whole and resumed."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from algorist import store
from algorist.data import teacher
from algorist.errors import RunError
from algorist.generate import server
from algorist.records import Problem, Rollout
from algorist.toy import teacher as toy
from algorist.toy import world

PROBLEMS = world.problems(1, "train", 23, range(1, 4))
SCRIPTED = teacher.Settings(samples=3, max_tokens=220, prompt="{problem}")


class Listening:
    """A server on this machine whose answers depend on question, seed and number alone; it fails when told to."""

    def __init__(self) -> None:
        self.asked: list[dict] = []
        self.keys: list[str | None] = []
        self.fails_after = 10**9
        here, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with lock:
                    here.asked.append(body)
                    here.keys.append(self.headers["authorization"])
                    fails = len(here.asked) > here.fails_after
                question = body["messages"][0]["content"]
                texts = [f"{question} {body['seed']} {i}" for i in range(body["n"])]
                found = [{"message": {"content": text}, "finish_reason": "length"} for text in texts]
                text = json.dumps({"choices": found}).encode()
                self.send_response(400 if fails else 200)
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listening]:
    monkeypatch.setattr(server, "_PAUSES", (0.0,) * 5)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    found = Listening()
    yield found
    found.close()


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher, "_SHARD", 10)


def ask(folder: Path, settings: teacher.Settings = SCRIPTED, problems: list[Problem] = PROBLEMS) -> list[Rollout]:
    teacher.ask(problems, folder, settings, seed=1, parents=["parent"])
    return store.read(folder, Rollout)


def networked(url: str, concurrency: int = 4) -> teacher.Settings:
    return teacher.Settings(url=url, model="m", samples=2, concurrency=concurrency, prompt="Solve: {problem}")


def test_the_scripted_teacher(tmp_path: Path) -> None:
    rollouts = ask(tmp_path / "a")
    assert [(r.problem_id, r.index) for r in rollouts] == [(p.id, i) for p in PROBLEMS for i in range(3)]
    assert len({rollout.id for rollout in rollouts}) == len(rollouts)
    assert {(r.sampler, r.temperature, r.top_p, r.max_tokens) for r in rollouts} == {(toy.MODEL, 0.6, 0.95, 220)}
    made = store.manifest(tmp_path / "a")
    assert made.shards == ("00000.parquet", "00001.parquet", "00002.parquet") and made.parents == ("parent",)
    right = [f"\\boxed{{{p.answer}}}" in r.text for p in PROBLEMS for r in rollouts if r.problem_id == p.id]
    assert sum(right) > len(right) / 2
    assert ask(tmp_path / "b") == rollouts


def test_a_problem_gets_the_same_rollouts_beside_others(tmp_path: Path) -> None:
    everything = ask(tmp_path / "all")
    few = [replace(problem) for problem in PROBLEMS[5:8]]
    ids = [problem.id for problem in few]
    assert ask(tmp_path / "few", problems=few) == [r for r in everything if r.problem_id in ids]


def test_a_server_on_the_network(listening: Listening, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    rollouts = ask(tmp_path, networked(listening.url))
    assert len(listening.asked) == len(PROBLEMS)
    assert {body["messages"][0]["content"] for body in listening.asked} == {f"Solve: {p.statement}" for p in PROBLEMS}
    assert all(0 <= body["seed"] < 2**31 for body in listening.asked)
    assert {(r.sampler, r.finish, r.max_tokens) for r in rollouts} == {("m", "length", 16_384)}
    assert rollouts[1].text == f"Solve: {PROBLEMS[0].statement} {rollouts[1].seed} 1"
    assert set(listening.keys) == {"Bearer sk-secret"}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and all(b"sk-secret" not in path.read_bytes() for path in files)


def test_the_rollouts_do_not_depend_on_the_concurrency(listening: Listening, tmp_path: Path) -> None:
    one = ask(tmp_path / "1", networked(listening.url, 1))
    assert ask(tmp_path / "8", networked(listening.url, 8)) == one
    assert store.manifest(tmp_path / "1").id == store.manifest(tmp_path / "8").id


def test_a_run_that_was_cut_short_asks_only_for_what_is_missing(listening: Listening, tmp_path: Path) -> None:
    settings = networked(listening.url)
    whole = ask(tmp_path / "whole", settings)
    listening.asked.clear()
    listening.fails_after = 15  # within the second shard of three
    folder = tmp_path / "cut"
    with pytest.raises(RunError, match="the server refused"):
        ask(folder, settings)
    assert [path.name for path in folder.iterdir()] == ["00000.parquet"]  # no manifest: not a data set yet
    written = (folder / "00000.parquet").stat().st_mtime_ns
    listening.fails_after = 10**9
    listening.asked.clear()
    assert ask(folder, settings) == whole
    assert (folder / "00000.parquet").stat().st_mtime_ns == written
    assert len(listening.asked) == len(PROBLEMS) - 10


def test_what_is_finished_is_not_asked_for_again(listening: Listening, tmp_path: Path) -> None:
    settings = networked(listening.url)
    whole = ask(tmp_path, settings)
    listening.asked.clear()
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.parquet")}
    assert ask(tmp_path, settings) == whole and listening.asked == []
    assert {path: path.stat().st_mtime_ns for path in times} == times


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"prompt": "Solve it."}, "prompt has no place for the problem. Write {problem} where it goes."),
        ({"samples": 0}, "samples and concurrency must be at least 1."),
        ({"concurrency": 0}, "samples and concurrency must be at least 1."),
    ],
)
def test_settings_that_cannot_be(keys: dict, words: str) -> None:
    with pytest.raises(ValueError) as refused:
        teacher.Settings(**keys)
    assert str(refused.value) == words
