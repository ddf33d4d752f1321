"""Asking a teacher: the scripted one and real servers, whole, killed at any moment and resumed, in rounds."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from algorist import recipe, store
from algorist.data import teacher
from algorist.data.teacher import Settings, Usage
from algorist.errors import RecordError, RunError
from algorist.generate import answers, endpoints, server
from algorist.records import Problem, Rollout
from algorist.toy import teacher as toy
from algorist.toy import world
from conftest import ROOT
from serving import Said, crowded

PROBLEMS = world.problems(1, "train", 23, range(1, 4))
SCRIPTED = Settings(samples=3, max_tokens=220, prompt="{problem}")


@dataclass
class Teacher:
    """Behind a real server: an answer depends on question and seed alone; what was asked for is counted."""

    asked: list[dict[str, Any]] = field(default_factory=list)
    samples: Counter[tuple[str, int]] = field(default_factory=Counter)  # (question, seed) → how often
    fails_after: int = 10**9
    after: float = 0.0
    right: Callable[[str, int], bool] = lambda question, seed: True

    def __call__(self, path: str, headers: dict[str, str], body: Any) -> Said:
        if path.endswith("/models"):
            return Said("{}")
        self.asked.append({**body, "key": headers.get("authorization")})
        if len(self.asked) > self.fails_after:
            return Said("out of paper", 403)
        question, texts = body["messages"][0]["content"], []
        for seed in range(body.get("seed", 0), body.get("seed", 0) + body["n"]):
            self.samples[question, seed] += 1
            texts.append(f"{question} {seed} {'right' if self.right(question, seed) else 'wrong'}")
        found = [{"message": {"content": text}, "finish_reason": "length"} for text in texts]
        usage = {"prompt_tokens": 10, "completion_tokens": 7 * body["n"]}
        return Said(json.dumps({"choices": found, "usage": usage}), after=self.after)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(server, "_PAUSES", (0.02, 0.04))
    monkeypatch.setattr(endpoints, "_PROBES", (0.02, 0.04))


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    return written(tmp_path / "problems", PROBLEMS)


def written(folder: Path, problems: Sequence[Problem], size: int = 10) -> list[Path]:
    starts = range(0, len(problems), size)
    return [store.write_shard(folder, i, Problem, problems[start : start + size]) for i, start in enumerate(starts)]


def networked(*urls: str, **changes: Any) -> Settings:
    usual = {
        "model": "m",
        "samples": 2,
        "concurrency": 4,
        "seeded": True,
        "prompt": "Solve: {problem}",
        "patience": 0.5,
    }
    return Settings(url=urls, **{**usual, **changes})


def read(shards: Sequence[Path], log: Path, settings: Settings = SCRIPTED) -> list[Rollout]:
    return [rollout for shard in shards for rollout in teacher.rollouts_of(shard, log, settings, seed=1)]


def ask(shards: Sequence[Path], log: Path, settings: Settings = SCRIPTED, **more: Any) -> tuple[Usage, list[Rollout]]:
    usage = teacher.ask(shards, log, settings, seed=1, **more)
    return usage, read(shards, log, settings)


# ------------------------------------------------------------------------------------------------------------- the toy


def test_the_scripted_teacher(shards: list[Path], tmp_path: Path) -> None:
    usage, rollouts = ask(shards, tmp_path / "log")
    assert (usage.samples, usage.found, usage.refused) == (69, 0, {})
    assert [(r.problem_id, r.index) for r in rollouts] == [(p.id, i) for p in PROBLEMS for i in range(3)]
    assert len({rollout.id for rollout in rollouts}) == len(rollouts)
    assert {(r.sampler, r.temperature, r.top_p, r.max_tokens) for r in rollouts} == {(toy.MODEL, 0.6, 0.95, 220)}
    assert len({rollout.seed for rollout in rollouts}) == len(rollouts), "each sample has a seed of its own"
    assert all(0 <= rollout.seed < 2**31 for rollout in rollouts)
    right = [f"\\boxed{{{p.answer}}}" in r.text for p in PROBLEMS for r in rollouts if r.problem_id == p.id]
    assert sum(right) > len(right) / 2
    assert ask(shards, tmp_path / "other log")[1] == rollouts
    assert usage.servers == ((toy.URL, 23, 0),) and usage.completion_tokens > 69


def test_a_problem_gets_the_same_rollouts_beside_others(shards: list[Path], tmp_path: Path) -> None:
    _, everything = ask(shards, tmp_path / "log")
    few = written(tmp_path / "few", PROBLEMS[5:8])
    ids = [problem.id for problem in PROBLEMS[5:8]]
    assert ask(few, tmp_path / "few log")[1] == [r for r in everything if r.problem_id in ids]


def test_more_samples_leave_those_that_are_there(shards: list[Path], tmp_path: Path) -> None:
    _, three = ask(shards, tmp_path / "log")
    usage, five = ask(shards, tmp_path / "log", replace(SCRIPTED, samples=5))
    assert (usage.samples, usage.found) == (46, 69) and [r for r in five if r.index < 3] == three
    assert five == ask(shards, tmp_path / "straight", replace(SCRIPTED, samples=5))[1]
    assert read(shards, tmp_path / "log") == three, "and fewer are read where fewer are wanted"


def test_nobody_is_asked_without_a_url(shards: list[Path], tmp_path: Path) -> None:
    for nobody in (replace(SCRIPTED, url=""), replace(SCRIPTED, url=())):
        usage, rollouts = ask(shards, tmp_path / "log", nobody)
        assert usage == Usage() and rollouts == [] and not (tmp_path / "log").exists()
    with pytest.raises(RecordError, match="there is no such log of answers"):
        read(shards, tmp_path / "log")


# ------------------------------------------------------------------------------------------------------------- servers


def test_a_server_on_the_network(shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-0123456789")
    there = Teacher()
    with crowded(there) as here:
        usage, rollouts = ask(shards, tmp_path / "log" / "a", networked(here.url, price_in=1.0, price_out=1000.0))
    assert len(there.asked) == len(PROBLEMS) and set(there.samples.values()) == {1}
    assert {body["messages"][0]["content"] for body in there.asked} == {f"Solve: {p.statement}" for p in PROBLEMS}
    assert all(0 <= body["seed"] < 2**31 for body in there.asked)
    assert {(r.sampler, r.finish, r.max_tokens, r.prompt_tokens) for r in rollouts} == {("m", "length", 16_384, 10)}
    assert rollouts[1].text == f"Solve: {PROBLEMS[0].statement} {rollouts[1].seed} right"
    assert (usage.prompt_tokens, usage.completion_tokens) == (230, 322)
    assert usage.cost == pytest.approx(0.32223) and usage.servers == ((here.url, 23, 0),)
    assert {body["key"] for body in there.asked} == {"Bearer sk-secret-0123456789"}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and all(b"sk-secret" not in path.read_bytes() for path in files)
    assert "sk-secret" not in repr(usage)


def test_seeds_are_sent_only_where_they_are_asked_for(shards: list[Path], tmp_path: Path) -> None:
    there = Teacher()
    with crowded(there) as here:
        _, rollouts = ask(shards, tmp_path / "log", networked(here.url, seeded=False))
        _, seeded = ask(shards, tmp_path / "log", networked(here.url))
    assert [("seed" in body) for body in there.asked] == [False] * 23 + [True] * 23
    assert {rollout.seed for rollout in rollouts} == {0} and len({r.id for r in rollouts + seeded}) == 92


def test_several_servers_share_the_work_whatever_their_number_the_rollouts_are_the_same(
    shards: list[Path], tmp_path: Path
) -> None:
    one, two = Teacher(after=0.01), Teacher(after=0.01)
    with crowded(one) as first, crowded(two) as second:
        usage, both = ask(shards, tmp_path / "both", networked(first.url, second.url))
        assert ask(shards, tmp_path / "one", networked(first.url, concurrency=1))[1] == both
    assert all(answered > 5 for _, answered, _ in usage.servers) and two.asked


def test_other_words_or_settings_are_other_rows_and_the_old_ones_stay(shards: list[Path], tmp_path: Path) -> None:
    there, log = Teacher(), tmp_path / "log"
    changes = [
        {},
        {"prompt": "Answer: {problem}"},
        {"temperature": 0.7},
        {"top_p": 0.9},
        {"max_tokens": 99},
        {"model": "n"},
        {"seeded": False},
    ]
    with crowded(there) as here:
        found = []
        for number, change in enumerate(changes, 1):
            found.append(ask(shards, log, networked(here.url, **change))[1])
            assert len(there.asked) == 23 * number
        for change, before in zip(changes, found, strict=True):
            usage, again = ask(shards, log, networked(here.url, **change))
            assert again == before and usage.samples == 0 and usage.found == 46
        # What shapes no answer changes nothing.
        ask(shards, log, networked(here.url, concurrency=9, patience=7.0, timeout=9.0, price_in=1.0))
        ask(shards, log, networked(here.url.replace("127.0.0.1", "localhost")))
    assert len(there.asked) == 23 * len(changes)
    assert len({rollout.id for rollouts in found for rollout in rollouts}) == 46 * len(changes)
    with answers.reading(log) as known:
        assert len(known) == 46 * len(changes)


def test_a_server_that_stops_in_the_middle_loses_nothing(shards: list[Path], tmp_path: Path) -> None:
    there = Teacher(fails_after=15)
    with crowded(there) as here:
        settings = networked(here.url)
        with pytest.raises(RunError, match=r"No server has answered for 0.5 s .*status 403: out of paper"):
            ask(shards, tmp_path / "log", settings)
        there.fails_after = 10**9
        usage, rollouts = ask(shards, tmp_path / "log", settings)
        assert (usage.samples, usage.found) == (16, 30) and set(there.samples.values()) == {1}
        assert rollouts == ask(shards, tmp_path / "straight", settings)[1]


def test_a_refused_question_is_left_out_and_not_asked_again(shards: list[Path], tmp_path: Path) -> None:
    long = PROBLEMS[3].statement
    there = Teacher()

    def answer(path: str, headers: dict[str, str], body: Any) -> Said:
        refused = body and long in body["messages"][0]["content"]
        said = there(path, headers, body)
        return Said('{"error": {"message": "too long"}}', 400) if refused else said

    with crowded(answer) as here:
        usage, rollouts = ask(shards, tmp_path / "log", networked(here.url))
        assert usage.refused == {"refused by the server (400)": 1} and usage.words == "too long"
        assert [r.problem_id for r in rollouts] == [p.id for p in PROBLEMS for _ in range(2) if p.statement != long]
        there.asked.clear()
        usage, again = ask(shards, tmp_path / "log", networked(here.url))
        assert usage.refused == {"refused by the server before": 1} and usage.words == "too long"
        assert again == rollouts and not there.asked


def test_a_server_that_refuses_all_of_a_few_questions(tmp_path: Path) -> None:
    with crowded(lambda path, headers, body: Said("max_tokens is too large", 400)) as here:
        with pytest.raises(RunError) as ended:
            ask(written(tmp_path / "few", PROBLEMS[:3]), tmp_path / "log", networked(here.url))
        said = f"{here.url}: refused by the server (400): max_tokens is too large. Mend [teacher]."
        assert str(ended.value) == said
        assert answers.FILE not in os.listdir(tmp_path)
        with answers.reading(tmp_path / "log") as known:
            assert len(known) == 0 and not known._connection.execute("SELECT * FROM refused").fetchall()


# ------------------------------------------------------------------------------------------------------ killed, resumed

KILLED = """
import sys
from pathlib import Path
from algorist.data import teacher
folder, url = Path(sys.argv[1]), sys.argv[2]
settings = teacher.Settings(url=url, model="m", samples=4, concurrency=32, seeded=True, prompt="Solve: {problem}")
teacher.ask(sorted((folder / "problems").iterdir()), folder / "log", settings, seed=1)
"""


def test_killed_at_random_moments_nothing_is_lost_and_nothing_asked_twice(tmp_path: Path) -> None:
    """What was in the log before a kill is never asked for again; the rollouts are those of a straight run."""
    problems = world.problems(2, "train", 150, range(1, 4))
    shards = written(tmp_path / "problems", problems, 40)
    there = Teacher(after=0.1)
    moments = random.Random(5)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    settings = Settings(model="m", samples=4, concurrency=32, seeded=True, prompt="Solve: {problem}")
    with crowded(there) as here:
        settings = replace(settings, url=here.url)
        words = [sys.executable, "-c", KILLED, str(tmp_path), here.url]
        kills, known = 0, set()
        for _ in range(30):
            there.samples.clear()
            with subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL) as process:
                wanted = moments.randrange(2, 120)
                while sum(there.samples.values()) < wanted and process.poll() is None:
                    time.sleep(0.002)
                time.sleep(moments.random() * 0.15)
                process.send_signal(signal.SIGKILL)
            kills += process.returncode == -signal.SIGKILL
            time.sleep(0.15)  # the server still answers what it was asked
            assert not known & set(there.samples), "a sample of the log was asked for again"
            with answers.writing(tmp_path / "log") as log:
                rows = log._connection.execute("SELECT key, sample FROM answers").fetchall()
            asked = {teacher._ask(p, settings, 1, 0, 4).key: p for p in problems}
            before = known
            known = set()
            for key, sample in rows:
                question = teacher._ask(asked[key], settings, 1, 0, 4)
                known.add((question.content, (question.seed or 0) + sample))
            assert before <= known and len(known) == len(rows)
            if process.returncode == 0 or kills >= 5:
                break
        assert kills >= 3
        there.samples.clear()
        usage, rollouts = ask(shards, tmp_path / "log", settings)
        assert not known & set(there.samples) and usage.found == len(known) and usage.samples == 600 - len(known)
        assert rollouts == ask(shards, tmp_path / "straight", settings)[1]
    assert [(r.problem_id, r.index) for r in rollouts] == [(p.id, i) for p in problems for i in range(4)]


# -------------------------------------------------------------------------------------------------------------- rounds


def says(rollouts: list[Rollout]) -> dict[str, bool | None]:
    """A judge who believes what the server of these tests writes at the end."""
    return {r.id: None if "unjudged" in r.text else r.text.endswith("right") for r in rollouts}


def test_problems_without_a_right_sample_are_asked_again_up_to_the_cap(shards: list[Path], tmp_path: Path) -> None:
    first = {f"Solve: {p.statement}": p for p in PROBLEMS}

    def right(question: str, seed: int) -> bool:
        """Of problem k sample k is the first right one."""
        own = teacher._ask(first[question], networked("http://h"), 1, 0, 1).seed
        return seed - (own or 0) >= PROBLEMS.index(first[question])

    there = Teacher(right=right)
    with crowded(there) as here:
        settings = networked(here.url, samples=2, max_samples=7)
        usage, rollouts = ask(shards, tmp_path / "log", settings, judge=says)
        counts = Counter(r.problem_id for r in rollouts)
        assert [counts[p.id] for p in PROBLEMS] == [2, 2, 4, 4, 6, 6, *[7] * 17]
        assert set(there.samples.values()) == {1} and usage.samples == len(rollouts) == 143
        assert usage.asked_again == 21
        asked = len(there.asked)
        again, same = ask(shards, tmp_path / "log", settings, judge=says)
        assert same == rollouts and len(there.asked) == asked and again.samples == 0
        # Without a judge, and without a cap, there is one round.
        assert len(ask(shards, tmp_path / "other", settings)[1]) == 46
        assert len(ask(shards, tmp_path / "third", networked(here.url, samples=2), judge=says)[1]) == 46


def test_a_problem_whose_samples_nobody_can_judge_is_not_asked_again(tmp_path: Path) -> None:
    shards = written(tmp_path / "problems", [Problem.of("unjudged", "3"), Problem.of("wrong", "3")])
    with crowded(Teacher(right=lambda question, seed: False)) as here:
        _, rollouts = ask(shards, tmp_path / "log", networked(here.url, max_samples=4), judge=says)
    assert [rollout.index for rollout in rollouts] == [0, 1, 0, 1, 2, 3]


# -------------------------------------------------------------------------------------------------------------- traces


def trace(problem: Problem, index: int) -> Rollout:
    return Rollout.of(problem.id, f"trace {index}", "deepseek-r1", index=index, source="traced.parquet", row=index)


def test_traced_problems_are_used_as_they_are_unless_asked_otherwise(shards: list[Path], tmp_path: Path) -> None:
    traces = [trace(PROBLEMS[12], 1), trace(PROBLEMS[12], 0), trace(Problem.of("left out since", "1"), 0)]
    folder = tmp_path / "traces"
    beside = [store.write_shard(folder, k, Rollout, traces if k == 1 else []) for k in range(3)]
    usage = teacher.ask(shards, tmp_path / "log", SCRIPTED, seed=1, traces=beside)
    assert usage.samples == 66
    found = teacher.rollouts_of(shards[1], tmp_path / "log", SCRIPTED, seed=1, traces=traces)
    assert [(r.problem_id, r.index) for r in found] == [
        (p.id, i) for p in PROBLEMS[10:20] for i in range(2 if p is PROBLEMS[12] else 3)
    ]
    assert [r for r in found if r.problem_id == PROBLEMS[12].id] == [traces[1], traces[0]]
    too = replace(SCRIPTED, ask_traced=True)
    assert teacher.ask(shards, tmp_path / "log", too, seed=1, traces=beside).samples == 3
    found = teacher.rollouts_of(shards[1], tmp_path / "log", too, seed=1, traces=traces)
    assert [r.index for r in found if r.problem_id == PROBLEMS[12].id] == [0, 0, 1, 1, 2]
    alone = teacher.rollouts_of(shards[1], tmp_path / "none", replace(SCRIPTED, url=""), seed=1, traces=traces)
    assert alone == [traces[1], traces[0]]


# ------------------------------------------------------------------------------------------------------ shown, settings


def test_what_is_shown(shards: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = Teacher()

    def answer(path: str, headers: dict[str, str], body: Any) -> Said:
        stumbles = len(there.asked) == 5 and not there.samples["stumbled", 0]
        there.samples["stumbled", 0] += stumbles
        return Said("oops", 500) if stumbles else there(path, headers, body)

    with crowded(answer) as here:
        ask(shards, tmp_path / "log", networked(here.url, price_in=5.0, price_out=100.0))
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("teacher: 46/46, took ")
    assert " samples/s, " in last and " tokens/s, tokens 322, cost 0.03, failed 1 at http://127.0.0.1:" in last


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"prompt": "Solve it."}, "prompt has no place for the problem. Write {problem} where it goes."),
        ({"samples": 0}, "samples and concurrency must be at least 1."),
        ({"concurrency": 0}, "samples and concurrency must be at least 1."),
        ({"max_samples": -1}, "max_samples, price_in and price_out must be 0 or more."),
        ({"price_out": -0.1}, "max_samples, price_in and price_out must be 0 or more."),
        ({"patience": 0.0}, "timeout and patience must be more than 0 seconds."),
        (
            {"key_env": "sk-0123456789"},
            "key_env is no name of an environment variable. The key itself does not belong in a recipe.",
        ),
        (
            {"url": "localhost:8000"},
            'url = "localhost:8000" is no address: http://…, https://… or toy://teacher was expected.',
        ),
        ({"url": ("http://a", "")}, 'url = "" is no address: http://…, https://… or toy://teacher was expected.'),
        ({"url": ("http://a", "http://a")}, "url names a server twice."),
        (
            {"url": "http://me:sk-0123456789@a/v1"},
            "url holds a user, a password or a query. Put the key into the environment variable that key_env names.",
        ),
    ],
)
def test_settings_that_cannot_be(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as refused:
        Settings(**keys)
    assert str(refused.value) == words


def test_a_recipe_names_one_server_or_several(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    for written_down, urls in (
        ('"http://a/v1"', ("http://a/v1",)),
        ('["http://a/v1", "http://b/v1"]', None),
        ('""', ()),
    ):
        path.write_text(f'name = "a"\n[teacher]\nurl = {written_down}\nprotocol = "completion"\n', encoding="utf-8")
        found = recipe.read(path, {"teacher": (Settings,)})
        settings = found.of("teacher", Settings)
        assert settings.urls == (("http://a/v1", "http://b/v1") if urls is None else urls)
        assert settings.protocol == "completion"
        (tmp_path / "b.toml").write_text(found.dumps(), encoding="utf-8")
        assert recipe.read(tmp_path / "b.toml", {"teacher": (Settings,)}).of("teacher", Settings) == settings
