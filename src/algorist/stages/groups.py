"""The groups of a generation: all judged responses to each prompt, and which of them are learned from.

Groups are always read from what stands on disk, whether it was sampled a moment ago, before a kill, or last month:
training on a stored generation again sees the same numbers. What was sampled and not selected stays there too, and
`selection` says why.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from algorist import store
from algorist.errors import RunError
from algorist.numerics.address import rng
from algorist.numerics.groups import Selection, idle_share, length_spread, select
from algorist.records import Problem, Rollout, Verdict
from algorist.stage import Run

_BOX = re.compile(r"\\boxed\{[^}]*\}")
_WORDS = 5  # before the answer; fewer are no reasoning


@dataclass(frozen=True)
class Group:
    """The judged responses to one prompt, and which of them are learned from."""

    problem: Problem
    rollouts: tuple[Rollout, ...]
    right: tuple[bool, ...]
    selection: Selection

    @property
    def all_right(self) -> bool:
        """Whether there is nothing to learn from it any more."""
        return bool(self.right) and all(self.right)


@dataclass(frozen=True)
class Generation:
    """What one round of sampling brought."""

    groups: tuple[Group, ...]  # of complete prompts, in the order in which they were asked
    heard: tuple[tuple[Rollout, Verdict], ...]  # finished rollouts of these prompts, unjudged ones too
    carried: tuple[Rollout, ...]  # of prompts that were left in the middle, for the next generation

    @property
    def kept(self) -> list[Group]:
        """The groups that are learned from."""
        return [group for group in self.groups if group.selection.kept]


def write(run: Run, generation: int, heard: Sequence[tuple[Rollout, Verdict]], carried: Sequence[Rollout]) -> None:
    """Store a generation. The verdicts come last: a generation without them is not there.

    Raises RunError where not one response could be judged; nothing is stored then.
    """
    if all(verdict.right is None for _, verdict in heard):
        raise RunError(
            f"rlvr: none of the {len(heard):,} responses of generation {generation} could be judged. Run the same "
            "command again if the machine was overloaded, or mend [verify]."
        )
    store.write_shard(run.folder / "carried", generation, Rollout, carried)
    store.write_shard(run.folder / "rollouts", generation, Rollout, [said for said, _ in heard])
    store.write_shard(run.folder / "verdicts", generation, Verdict, [verdict for _, verdict in heard])


def stored(run: Run, generation: int) -> bool:
    """Whether a generation is on disk."""
    return _shard(run, "verdicts", generation).exists()


def read(run: Run, generation: int, problems: Mapping[str, Problem]) -> Generation:
    """A generation from disk; `problems` by id."""
    said = store.read_shard(_shard(run, "rollouts", generation), Rollout)
    verdicts = store.read_shard(_shard(run, "verdicts", generation), Verdict)
    heard = tuple(zip(said, verdicts, strict=True))
    judged: dict[str, list[tuple[Rollout, bool]]] = defaultdict(list)
    for rollout, verdict in heard:
        judged[rollout.problem_id] += [(rollout, verdict.right)] if verdict.right is not None else []
    groups = tuple(group(run, generation, problems[one], found) for one, found in judged.items())
    return Generation(groups, heard, tuple(carried(run, generation)))


def carried(run: Run, generation: int) -> list[Rollout]:
    """Rollouts that a generation left to the next, none before the first."""
    return store.read_shard(_shard(run, "carried", generation), Rollout) if generation >= 0 else []


def group(run: Run, generation: int, problem: Problem, judged: Sequence[tuple[Rollout, bool]]) -> Group:
    """The group of one prompt. Which responses stay is drawn by generation and prompt."""
    settings = run.settings
    right = tuple(verdict for _, verdict in judged)
    chosen = select(
        right,
        rng(run.seed, "rlvr", "balance", generation, problem.id),
        balance=settings.balance,
        max_accuracy=settings.max_prompt_accuracy,
        keep_flat=settings.objective.keep_flat,
    )
    return Group(problem, tuple(rollout for rollout, _ in judged), right, chosen)


def facts(generation: Generation) -> dict[str, float]:
    """What the journal is told of a generation: all of it follows from what is on disk."""
    groups, sampled = generation.groups, [rollout for rollout, _ in generation.heard]
    judged = [(rollout, right) for one in groups for rollout, right in zip(one.rollouts, one.right, strict=True)]
    reasons = Counter(one.selection.reason for one in groups)
    lengths = [rollout.num_tokens for rollout in sampled]
    by_verdict = {right: [rollout.num_tokens for rollout, found in judged if found is right] for right in (True, False)}
    of_groups = [[rollout.num_tokens for rollout in one.rollouts] for one in groups if one.rollouts]
    learned = sum(len(one.selection.kept) for one in groups)
    return {
        "accuracy": float(np.mean([right for _, right in judged])),
        "groups": reasons["kept"],
        "too_easy": reasons["too easy"],
        "none_right": reasons["none right"],
        "none_wrong": reasons["none wrong"],
        "kept_flat": sum(len(set(one.right)) == 1 for one in groups if one.selection.kept),
        "sampled": len(sampled),
        "learned_from": learned,
        "wasted": 1 - learned / len(sampled),
        "unjudged": len(sampled) - len(judged),
        "carried": len(generation.carried),
        "response_len": float(np.mean(lengths)),
        "right_len": _mean(by_verdict[True]),
        "wrong_len": _mean(by_verdict[False]),
        "length_spread": float(np.mean([length_spread(one) for one in of_groups])),
        "idle_share": float(np.mean([idle_share(one) for one in of_groups])),
        "ended": float(np.mean([rollout.finish == "stop" for rollout in sampled])),
        "several_boxes": _share(judged, lambda text: len(set(_BOX.findall(text))) > 1),
        "bare": _share(judged, lambda text: len(text.partition("\\boxed")[0].split()) < _WORDS),
        "sampled_tokens": sum(lengths),
    }


def by_sample(rollouts: Collection[Rollout]) -> dict[tuple[str, int], Rollout]:
    """Rollouts by problem id and sample index."""
    return {(rollout.problem_id, rollout.index): rollout for rollout in rollouts}


def _share(judged: Sequence[tuple[Rollout, bool]], trick: Callable[[str], bool]) -> float:
    """Of the right responses, those that look like a trick."""
    good = [trick(rollout.text) for rollout, right in judged if right]
    return float(np.mean(good)) if good else 0.0


def _mean(lengths: Sequence[int]) -> float:
    return float(np.mean(lengths)) if lengths else 0.0


def _shard(run: Run, name: str, generation: int) -> Path:
    return run.folder / name / f"{generation:05d}.parquet"
