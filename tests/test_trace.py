"""Where a record came from and what became of it: every way between a row of a source and a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from algorist import store
from algorist.records import CARD, Example, Pair, Preference, Problem, Question, Rollout, Sample
from conftest import Command

STAGES = ("base", "midtrain", "sft", "dpo", "rlvr")


@pytest.fixture
def told(command: Command, smoke_run: Path):
    """`told(id)` → [(place, line)] of `algorist why id`."""

    def call(identity: str) -> list[tuple[str, str]]:
        status, out, err = command("why", identity, "--run", smoke_run)
        assert (status, err) == (0, ""), err
        first, *lines = out.splitlines()
        assert first == str(smoke_run)
        return [(line[2:].split()[0], line[2:].split(maxsplit=1)[1]) for line in lines]

    return call


def places(story: list[tuple[str, str]]) -> list[str]:
    return list(dict.fromkeys(place for place, _ in story))


def test_a_pair_is_followed_to_its_problem_and_its_checkpoints(told, smoke_run: Path) -> None:
    pair = store.read(smoke_run / "dpo" / "data", Pair)[0]
    story = told(pair.id)
    assert places(story) == ["sources/problems", "problems", "profiles", "rollouts", "measures", "verdicts", "dpo/data",
                             "dpo", "rlvr"]  # fmt: skip
    said = {place: line for place, line in story}
    assert said["dpo/data"].endswith(f"rollout {pair.chosen_id} chosen, {pair.rejected_id} rejected")
    assert pair.problem_id in said["problems"]
    card = store.read_json(smoke_run / "dpo" / "checkpoint" / CARD)
    assert said["dpo"].startswith(f"checkpoint {card['id']} trained on it: ") and " % on toy" in said["dpo"]
    assert "descends from that" in said["rlvr"]
    rollouts = [line for place, line in story if place == "rollouts"]
    assert len(rollouts) == 2 and all("toy-teacher" in line for line in rollouts)


@pytest.mark.parametrize(
    ("place", "kind", "stages"),
    [
        ("sets/midtrain", Example, ["midtrain/data", "midtrain", "sft", "dpo", "rlvr"]),
        ("sets/dpo", Preference, ["dpo/data", "dpo", "rlvr"]),
        ("sets/rlvr", Question, []),
        ("midtrain/data", Sample, ["midtrain", "sft", "dpo", "rlvr"]),
        ("sft/data", Sample, ["midtrain", "sft", "dpo", "rlvr"]),  # the same sample is in stage 1 too
        ("rlvr/data", Problem, ["rlvr"]),
    ],
)
def test_every_record_is_followed_back_to_its_source(
    told, smoke_run: Path, place: str, kind: type, stages: list
) -> None:
    story = told(store.read(smoke_run / place, kind)[0].id)
    found = places(story)
    assert place in found and "sources/problems" in found and "problems" in found
    assert set(stages) <= set(found)


def test_a_problem_is_followed_forward_to_everything(told, smoke_run: Path) -> None:
    pair = store.read(smoke_run / "dpo" / "data", Pair)[0]
    story = told(pair.problem_id)
    assert sum(place == "rollouts" for place, _ in story) == 4
    assert {"sets/midtrain", "sets/dpo", "dpo/data", "midtrain/data", "midtrain"} <= set(places(story))


def test_a_benchmark_problem_is_followed_to_the_scores(told, smoke_run: Path) -> None:
    asked = store.read(smoke_run / "benchmarks" / "toy", Problem)[0]
    assert {f"scores/{stage}/toy/rollouts" for stage in STAGES} <= set(places(told(asked.id)))


def test_a_rollout_that_was_not_kept_says_why(told, smoke_run: Path) -> None:
    kept = {example.rollout_id for example in store.read(smoke_run / "sets" / "midtrain", Example)}
    lost = next(r for r in store.read(smoke_run / "rollouts", Rollout) if r.id not in kept and r.finish == "stop")
    verdict = [line for place, line in told(lost.id) if place == "verdicts"]
    assert len(verdict) == 1 and "wrong (" in verdict[0]


def test_checkpoints_and_data_sets_say_what_they_were_made_from(told, smoke_run: Path) -> None:
    card = store.read_json(smoke_run / "sft" / "checkpoint" / CARD)
    story = told(card["id"])
    assert places(story)[:3] == ["sft/checkpoint", "midtrain/checkpoint", "sft/data"]
    assert {"sets/sft", "rollouts", "problems", "sources/problems"} <= set(places(story))


def test_messages(command: Command, smoke_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = f"{smoke_run}: no record has the id zz. `algorist show {smoke_run} problems` lists some.\n"
    assert command("why", "zz", "--run", smoke_run)[::2] == (3, expected)
    assert command("why", "zz", "--run", tmp_path)[::2] == (
        4,
        f"{tmp_path}: is no run (there is no recipe.toml). Name the folder that algorist run wrote.\n",
    )
    monkeypatch.chdir(tmp_path)
    assert command("why", "zz")[::2] == (3, "runs: holds no run. Name one with --run.\n")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "smoke").symlink_to(smoke_run)
    problem = store.read(smoke_run / "problems", Problem)[0]
    status, out, _ = command("why", problem.id)
    assert status == 0 and out.startswith("runs/smoke\n")
    one = next(digit for digit in "0123456789abcdef" if problem.id.startswith(digit))
    status, _, err = command("why", one, "--run", smoke_run)
    assert status == 3 and f"{smoke_run}: {one} begins " in err
