"""A run folder as it stands before the sets are drawn: problems, rollouts, verdicts, measures, profiles."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from algorist import store
from algorist.data import sets
from algorist.data.curate import Settings
from algorist.data.shards import Engine
from algorist.records import LEVELS, Measure, Problem, Profile, Rollout, Verdict
from algorist.verify.judge import CONFLICT, UNDECIDED

HERE = Engine("processes", 1)
PROMPT = "Please solve this.\n{problem}"


@dataclass(frozen=True)
class Told:
    """A rollout with its verdict and measure."""

    rollout: Rollout
    verdict: Verdict
    measure: Measure


def problem(number: int, level: str = "college", domain: str = "algebra", **more: Any) -> Problem:
    """A problem unlike all others."""
    labels = {"source": "made/up", "licence": "MIT", **more}
    return replace(
        Problem.of(f"What is {number} plus {number}?", str(2 * number)), level=level, domain=domain, **labels
    )


def told(of: Problem, right: bool | None, text: str = "x", index: int = 0, **more: Any) -> Told:
    """A rollout of a problem; finish, sampler, reason, extracted, repetition, leak, tokens: ids, or how many.

    Of a number of ids the first is the text's own, so that no two texts have the same.
    """
    ids = more.get("tokens", len(text))
    ids = (2 + crc32(text.encode()) % 2**30, *range(3, 2 + ids))[:ids] if isinstance(ids, int) else tuple(ids)
    sampler, finish = more.get("sampler", "teacher"), more.get("finish", "stop")
    rollout = Rollout.of(of.id, text, sampler, index=index, finish=finish)
    reason = more.get("reason", {True: "equal", False: "different", None: "timed out"}[right])
    verdict = Verdict(rollout.id, right, reason, more.get("extracted", "3"), "test")
    measure = Measure(rollout.id, of.id, len(ids), more.get("repetition", ""), more.get("leak", ""), ids)
    return Told(rollout, verdict, measure)


def profile(of: Problem, found: Sequence[Told]) -> Profile:
    """What is known of a problem from these rollouts of it."""
    rights = [one.verdict.right for one in found]
    right, wrong = rights.count(True), rights.count(False)
    rate = right / (right + wrong) if right + wrong else None
    return Profile(of.id, of.domain, of.level, "source" if of.level else "", right, wrong, rights.count(None), rate)


def write_run(root: Path, problems: Sequence[Problem], rollouts: Sequence[Told], shards: int = 1) -> Path:
    """The five data sets, in shards of equally many problems."""
    of: dict[str, list[Told]] = defaultdict(list)
    for one in rollouts:
        of[one.rollout.problem_id].append(one)
    size = -(-len(problems) // shards)
    kinds = {"problems": Problem, "profiles": Profile, "rollouts": Rollout, "verdicts": Verdict, "measures": Measure}
    for shard in range(shards):
        mine = problems[shard * size : (shard + 1) * size]
        found = [one for each in mine for one in of[each.id]]
        store.write_shard(root / "problems", shard, Problem, mine)
        store.write_shard(root / "profiles", shard, Profile, [profile(each, of[each.id]) for each in mine])
        store.write_shard(root / "rollouts", shard, Rollout, [one.rollout for one in found])
        store.write_shard(root / "verdicts", shard, Verdict, [one.verdict for one in found])
        store.write_shard(root / "measures", shard, Measure, [one.measure for one in found])
    for name, kind in kinds.items():
        store.finish(root / name, kind)
    return root


def draw(root: Path, name: sets.Name, rules: Any = None, seed: int = 1, settings: Settings | None = None) -> list[Any]:
    """The records of one set, made with these rules."""
    settings = settings or Settings()
    if rules is not None:
        settings = replace(settings, **{name: rules})
    sets.make(name, root, settings, seed, PROMPT, HERE)
    return store.read(root / "sets" / name, sets.KIND[name])


def dropped(root: Path, name: str) -> dict[str, int]:
    """What was left out of a set, by reason."""
    return dict(store.manifest(root / "sets" / name).dropped)


def world(count: int, seed: int = 0, samples: int = 8) -> tuple[list[Problem], list[Told]]:
    """Problems of all levels, domains and kinds of trouble, with rollouts of every fate."""
    levels, domains = ("", *LEVELS), ("algebra", "geometry", "number theory", "calculus")
    reasons = ("different", CONFLICT, f"{UNDECIDED}, rules: different", "judged different", "no answer")
    problems, rollouts = [], []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        level = levels[int(rng.choice(6, p=[0.1, 0.3, 0.2, 0.2, 0.15, 0.05]))]
        domain = domains[int(rng.choice(4, p=[0.6, 0.25, 0.1, 0.05]))]
        of = problem(number, level, domain, source=f"source {number % 3}")
        problems.append(replace(of, answer="" if rng.random() < 0.05 else of.answer))
        ease = float(rng.beta(1, 1))
        for index in range(int(rng.integers(0, samples + 1))):
            right = None if rng.random() < 0.05 else bool(rng.random() < ease)
            reason = reasons[int(rng.choice(5, p=[0.7, 0.05, 0.05, 0.1, 0.1]))]
            more: dict[str, Any] = {"reason": reason} if right is False else {}
            more["extracted"] = "" if reason == "no answer" and right is False else "3"
            more["tokens"] = 0 if rng.random() < 0.02 else int(rng.lognormal(4, 0.5)) + 1
            more["finish"] = "length" if rng.random() < 0.1 else "stop"
            more["repetition"] = "loop" if rng.random() < 0.05 else ""
            more["leak"] = "aime24" if rng.random() < 0.02 else ""
            more["sampler"] = "teacher" if rng.random() < 0.8 else "other"
            rollouts.append(told(of, right, f"text {number} {index}", index, **more))
    return problems, rollouts
