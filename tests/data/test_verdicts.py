"""Verdicts of a run with a judge, asked over a real connection: rules first, nothing asked twice, killed anywhere."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from algorist import recipe, store
from algorist.data import verdicts
from algorist.data.shards import Engine
from algorist.errors import RunError
from algorist.generate import server as server_module
from algorist.pipeline import fingerprint
from algorist.records import Problem, Rollout, Verdict
from algorist.tasks import sections, tasks
from algorist.verify import judge
from algorist.verify import pool as pools
from algorist.verify.conventions import Conventions
from conftest import ROOT, Command
from serving import listening

SMOKE = ROOT / "recipes" / "smoke.toml"
Judged = Callable[..., str]


@dataclass
class Bench:
    """A judge on this machine: what it was asked, and after how many questions it breaks."""

    url: str = ""
    asked: list[str] = field(default_factory=list)  # candidates
    breaks_after: int = 1_000_000
    turn: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, prompt: str) -> tuple[int, str]:
        (candidate,) = re.findall(r"(?m)^<candidate>\n(.*)\n</candidate>$", prompt)
        with self.turn:
            if len(self.asked) >= self.breaks_after:
                return 400, "out of order"
            self.asked.append(candidate)
        content = f"I look at {candidate}.\nVERDICT: {opinion(candidate)}"
        return 200, json.dumps({"choices": [{"message": {"content": content}, "finish_reason": "stop"}]})


def opinion(candidate: str) -> str:
    """What this judge says: it depends on the last digit alone."""
    return ("SAME", "DIFFERENT", "PERHAPS")[ord(candidate[-1]) % 3]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(server_module, "_PAUSES", (0.0,) * 5)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    bench = Bench()

    def answer(_path: str, _headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], str]:
        status, text = bench.answer(json.loads(body)["messages"][0]["content"])
        return status, {}, text

    with listening(answer) as bench.url:
        yield bench


@pytest.fixture
def judged(command: Command, bench: Bench, tmp_path: Path) -> Judged:
    """`judged("trust=judge")` runs the smoke recipe until verdicts with the judge at the bench; what it said."""

    def call(*changes: str, status: int = 0) -> str:
        keys = (f'url="{bench.url}"', 'model="wise-7b"', "concurrency=4", *changes)
        overrides = [word for key in keys for word in ("--set", f"judge.{key}")]
        found, printed, err = command("run", SMOKE, "--out", tmp_path / "run", "--until", "verdicts", *overrides)
        assert (found, printed) == (status, ""), err
        return err

    return call


def of_run(run: Path, place: str = "verdicts") -> list[Verdict]:
    return store.read(run / place, Verdict)


# ------------------------------------------------------------------------------------------------------------ a run


def test_a_run_with_a_judge(judged: Judged, bench: Bench, tmp_path: Path) -> None:
    run = tmp_path / "run"
    said = judged()
    rules, final = of_run(run, "verdicts/rules"), of_run(run)
    assert [verdict.rollout_id for verdict in final] == [r.id for r in store.read(run / "rollouts", Rollout)]
    for before, after in zip(rules, final, strict=True):
        if before.reason != "different":
            assert after == before and before.right is not None
            continue
        spoken = opinion(before.extracted)
        reasons = {"SAME": judge.CONFLICT, "DIFFERENT": "different", "PERHAPS": "judge undecided, rules: different"}
        expected = replace(before, reason=reasons[spoken], verifier=after.verifier)
        assert after == expected and after.verifier == f"{before.verifier}+judge:wise-7b@{judge.prompt_hash()}"
    told = Counter(opinion(before.extracted) for before in rules if before.reason == "different")
    assert min(told.values()) > 0 and len(told) == 3, "the toy teacher's slips show all that a judge may say"
    line = (
        f"verdicts: wise-7b was asked about {told.total()}: {told['SAME']} equal, {told['DIFFERENT']} different, "
        f"{told['PERHAPS']} undecided; {told['SAME']} disagreements with the rules "
        f"(algorist show {run} --disagreements)\n"
    )
    assert line in said
    golds = {problem.id: problem.answer for problem in store.read(run / "problems", Problem)}
    owner = {rollout.id: rollout.problem_id for rollout in store.read(run / "rollouts", Rollout)}
    pairs = {(owner[v.rollout_id], golds[owner[v.rollout_id]], v.extracted) for v in rules if v.reason == "different"}
    assert sorted(bench.asked) == sorted(extracted for *_, extracted in pairs), "each question once"
    ids = [store.manifest(run / place).id for place in ("rollouts", "verdicts/rules")]
    assert store.manifest(run / "verdicts").parents == tuple(ids)


def test_a_second_run_asks_nothing(judged: Judged, bench: Bench, tmp_path: Path) -> None:
    judged()
    first, count = of_run(tmp_path / "run"), len(bench.asked)
    elsewhere = bench.url.replace("127.0.0.1", "localhost")
    for moved in ((), ("concurrency=9",), (f'url="{elsewhere}"',)):
        assert "verdicts: done before, skipped" in judged(*moved)
    assert "verdicts: done in" in judged('trust="judge"')
    trusted = of_run(tmp_path / "run")
    assert {v.right for v in first if v.reason == judge.CONFLICT} == {False}
    assert {v.right for v in trusted if v.reason == judge.CONFLICT} == {True}
    assert "verdicts: done in" in judged('of=["undecided"]')
    assert not any(map(judge.saw, of_run(tmp_path / "run")))
    assert len(bench.asked) == count, "its answers outlive the verdicts that were made with them"
    assert "verdicts: done in" in judged('model="wise-8b"')
    assert len(bench.asked) == 2 * count


def test_broken_off_in_the_middle_it_goes_on(judged: Judged, bench: Bench, tmp_path: Path) -> None:
    bench.breaks_after = 7
    why = f"{bench.url}: the server refused (400: out of order). Mend [judge].\n"
    assert judged(status=4).endswith(why)
    run = tmp_path / "run"
    assert len(judge.answers(run / "judge.jsonl")) == 7
    assert not (run / "verdicts" / store.MANIFEST).exists()
    rules = {path: path.stat().st_mtime_ns for path in (run / "verdicts" / "rules").glob("*.parquet")}
    bench.breaks_after = 1_000_000
    judged()
    assert rules and all(path.stat().st_mtime_ns == then for path, then in rules.items()), "rules judge once"
    broken, asked = of_run(run), list(bench.asked)
    # The same as a run that nothing disturbed.
    (run / "judge.jsonl").unlink()
    shutil.rmtree(run / "verdicts")
    bench.asked.clear()
    judged()
    assert of_run(run) == broken and sorted(asked) == sorted(bench.asked) and len(asked) > 20


def test_killed_between_the_answers_and_the_verdicts(
    command: Command, judged: Judged, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise RunError("killed")

    run = tmp_path / "run"
    words = ("run", SMOKE, "--out", run, "--until", "rollouts")
    assert command(*words)[0] == 0
    with monkeypatch.context() as patched:
        patched.setattr(judge, "read_verdict", killed)  # every answer is there, no verdict yet
        assert judged(status=4).endswith("killed\n")
    count = len(bench.asked)
    assert count > 20 and not (run / "verdicts" / store.MANIFEST).exists()
    judged()
    assert len(bench.asked) == count and judge.tally(of_run(run))["conflicts"] > 0


def test_nobody_listens(judged: Judged, tmp_path: Path) -> None:
    said = judged('url="http://127.0.0.1:9/v1"', status=4).splitlines()[-1]
    assert said.startswith("http://127.0.0.1:9/v1: no usable answer after 6 tries (ConnectError: ")
    assert said.endswith(
        "). Start the server or mend [judge] url, then run the same command again; what is finished is kept."
    )


def test_what_of_the_judge_makes_verdicts_anew() -> None:
    def verdicts_of(*changes: str) -> tuple[str, str]:
        overrides = [f"judge.{change}" for change in changes]
        read = recipe.read(SMOKE, sections(), overrides)
        found = {task.name: fingerprint(read, task) for task in tasks(read)}
        return found["verdicts"], found["scores/base"]

    none, asked = verdicts_of(), verdicts_of('url="http://a/v1"', 'model="m"')
    assert none[0] == verdicts_of('model="m"')[0] == verdicts_of("max_tokens=9", 'trust="judge"')[0]
    same = (('url="https://b:1/v1"', 'model="m"'), ('url="http://a/v1"', 'model="m"', "concurrency=2"))
    assert {asked[0]} == {verdicts_of(*changes)[0] for changes in same}
    others = ('model="n"', "max_tokens=9", 'trust="judge"', 'of=["rejected"]')
    anew = [verdicts_of('url="http://a/v1"', 'model="m"', change) for change in others]
    assert len({none[0], asked[0], *(found for found, _ in anew)}) == 6
    assert {none[1], asked[1], *(scores for _, scores in anew)} == {none[1]}, "scores are the rules' alone"


# ------------------------------------------------------------------------------------------------- rows that are rare


def test_what_the_judge_leaves_open_stays_open(bench: Bench, tmp_path: Path) -> None:
    """A gold answer that the rules cannot read; the judge decides two of three."""
    problem = Problem.of("Which one?", "the second of the two that Ann \\foo{")
    said = [
        Rollout.of(problem.id, f"\\boxed{{{answer}}}", "t", index=i) for i, answer in enumerate(("x_0", "x_1", "x_2"))
    ]
    for run, settings in (("v", judge.Settings(bench.url, "wise-7b")), ("w", judge.Settings())):
        store.write(tmp_path / run / "problems", Problem, [problem])
        store.write(tmp_path / run / "rollouts", Rollout, said)
        verdicts.write(tmp_path / run, pools.Settings(), Conventions(), settings, Engine(workers=1))
    rules = of_run(tmp_path / "w")
    assert {verdict.right for verdict in rules} == {None} and of_run(tmp_path / "v", "verdicts/rules") == rules
    spoken = {"SAME": (True, "judged equal"), "DIFFERENT": (False, "judged different")}
    undecided = (None, f"judge undecided, rules: {rules[0].reason}")
    expected = [spoken.get(opinion(verdict.extracted), undecided) for verdict in rules]
    assert [(verdict.right, verdict.reason) for verdict in of_run(tmp_path / "v")] == expected and undecided in expected
    assert not (tmp_path / "w" / "judge.jsonl").exists() and not (tmp_path / "w" / "verdicts" / "rules").exists()
