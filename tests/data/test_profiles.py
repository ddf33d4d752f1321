"""Profiles of problems and their sums: counted by hand, whatever the order, whatever the shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from algorist import store
from algorist.data import labels, profiles
from algorist.errors import RecordError
from algorist.records import LEVELS, Measure, Problem, Profile, Rollout, Verdict
from algorist.verify.judge import CONFLICT, contested

NOBODY = labels.Settings()
REASONS = {True: ("equal", "judged equal"), None: ("gold unreadable", "judge undecided, rules: timed out")}
WRONG = ("different", "cut off", CONFLICT, "judge undecided, rules: different", "judged different")


class World:
    """A shard of everything, made by chance."""

    def __init__(self, folder: Path, seed: int, count: int = 40) -> None:
        rng = np.random.default_rng(seed)
        self.folder, self.index = folder, seed
        self.problems = [
            Problem.of(
                f"{seed}: {n}?",
                str(n),
                domain=str(rng.choice(["Algebra", "Prealgebra", "", "chess"])),
                level=str(rng.choice([*LEVELS, ""])),
                source=f"set {n % 3}",
                licence="MIT",
            )
            for n in range(count)
        ]
        self.rollouts, self.verdicts, self.measures = [], [], []
        for one in self.problems:
            for n in range(int(rng.integers(0, 9))):
                rollout = Rollout.of(one.id, f"{n}", "teacher", index=n)
                right = (True, False, None)[int(rng.choice(3, p=[0.5, 0.3, 0.2]))]
                reason = str(rng.choice(WRONG if right is False else REASONS[right]))
                length = int(rng.integers(0, 30_000))
                flag, leak = str(rng.choice(["", "loop"])), str(rng.choice(["", "aime24"]))
                self.rollouts.append(rollout)
                self.verdicts.append(Verdict(rollout.id, right, reason, "", "rules"))
                self.measures.append(Measure(rollout.id, one.id, length, flag, leak, (1, 2)))
        kinds = {"problems": Problem, "rollouts": Rollout, "verdicts": Verdict, "measures": Measure}
        self.paths = {
            name: store.write_shard(folder / name, seed, kind, getattr(self, name)) for name, kind in kinds.items()
        }
        self.out = folder / "profiles" / f"{seed:05d}.parquet"

    def profiled(self) -> list[Profile]:
        inputs = (self.paths[name] for name in ("problems", "rollouts", "verdicts"))
        profiles.profile(*inputs, self.out, self.folder / "labels.sqlite", NOBODY, "made from")  # type: ignore[misc]
        return store.read_shard(self.out, Profile)


@pytest.mark.parametrize("seed", range(4))
def test_rollouts_are_counted_as_by_hand(tmp_path: Path, seed: int) -> None:
    here = World(tmp_path, seed)
    found = here.profiled()
    assert [one.problem_id for one in found] == [one.id for one in here.problems]
    assert store.facts(here.out).made_from == "made from"
    by_id = {verdict.rollout_id: verdict for verdict in here.verdicts}
    assert any(contested(verdict) for verdict in here.verdicts)
    for problem, profile in zip(here.problems, found, strict=True):
        own = [by_id[rollout.id] for rollout in here.rollouts if rollout.problem_id == problem.id]
        right = sum(verdict.right is True for verdict in own)
        wrong = sum(verdict.right is False and not contested(verdict) for verdict in own)
        assert (profile.right, profile.wrong, profile.unjudged) == (right, wrong, len(own) - right - wrong)
        assert profile.pass_rate == (right / (right + wrong) if right + wrong else None)
        assert profile.level == problem.level
        assert profile.domain == {"Algebra": "algebra", "Prealgebra": "arithmetic"}.get(problem.domain, problem.domain)
        assert profile.labelled_by == ("source" if problem.domain or problem.level else "")


def test_problems_without_rollouts_have_a_profile(tmp_path: Path) -> None:
    here = World(tmp_path, 1)
    for name, kind in (("rollouts", Rollout), ("verdicts", Verdict)):
        store.write_shard(tmp_path / name, 1, kind, [])
    assert {(one.right, one.wrong, one.unjudged, one.pass_rate) for one in here.profiled()} == {(0, 0, 0, None)}
    store.write_shard(tmp_path / "problems", 1, Problem, [])
    assert here.profiled() == []


def test_shards_that_do_not_belong_together_are_errors(tmp_path: Path) -> None:
    here = World(tmp_path, 1)
    store.write_shard(tmp_path / "verdicts", 1, Verdict, here.verdicts[::-1])
    with pytest.raises(RecordError, match=r"verdicts.* its rows are not those of .*rollouts"):
        here.profiled()
    store.write_shard(tmp_path / "verdicts", 1, Verdict, here.verdicts[:-1])
    with pytest.raises(RecordError, match="its rows are not those of"):
        here.profiled()
    store.write_shard(tmp_path / "verdicts", 1, Verdict, here.verdicts)
    store.write_shard(tmp_path / "problems", 1, Problem, here.problems[:20])
    with pytest.raises(RecordError, match=r"has rollouts of \d+ problems that are not in"):
        here.profiled()
    store.write_shard(tmp_path / "problems", 1, Problem, here.problems)
    here.profiled()
