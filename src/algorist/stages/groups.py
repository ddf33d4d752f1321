"""How stage 4 fills an optimizer step: sample groups, verify them, sample hard prompts again, keep and balance.

Prompts come in an order of their own for each generation. Where too few groups survive, the next prompts are
sampled, a limited number of times: a step may then learn from fewer groups than asked for, and the journal says so.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from algorist import store
from algorist.errors import RunError
from algorist.generate.rollouts import Speaker, rollouts
from algorist.generate.sampling import Sampling
from algorist.model.policy import Policy
from algorist.numerics.address import rng
from algorist.numerics.groups import Selection, select, wants_more
from algorist.records import Problem, Rollout, Verdict
from algorist.stage import Run
from algorist.verify.pool import Pool


@dataclass(frozen=True)
class Group:
    """The judged responses to one prompt, and which of them are learned from."""

    problem: Problem
    rollouts: tuple[Rollout, ...]
    right: tuple[bool, ...]
    selection: Selection


@dataclass(frozen=True)
class Sampler:
    """Samples and verifies groups for one generation."""

    run: Run
    policy: Policy
    pool: Pool
    sampling: Sampling
    generation: int

    def fill(self, problems: Sequence[Problem]) -> tuple[list[Group], dict[str, float]]:
        """Up to `batch_size` groups to learn from, and the facts of this generation for the journal.

        Every rollout that was sampled is stored in the stage's folder with its verdict, selected or not.
        """
        started = time.monotonic()
        settings, size = self.run.settings, self.run.training.batch_size
        order = rng(self.run.seed, "rlvr", "prompts", self.generation).permutation(len(problems))
        groups: list[Group] = []
        kept: list[Group] = []
        heard: list[tuple[Rollout, Verdict]] = []
        begun = 0
        for _ in range(1 + settings.refills):
            chosen = [problems[i] for i in order[begun : begun + size - len(kept)]]
            begun += len(chosen)
            if not chosen:
                break
            sampled = self._groups(chosen, heard)
            groups += sampled
            kept += [group for group in sampled if group.selection.kept]
            if len(kept) >= size:
                break
        store.write_shard(self.run.folder / "rollouts", self.generation, Rollout, [said for said, _ in heard])
        store.write_shard(self.run.folder / "verdicts", self.generation, Verdict, [verdict for _, verdict in heard])
        unjudged = sum(verdict.right is None for _, verdict in heard)
        return kept, {**_facts(groups, unjudged), "sample_seconds": time.monotonic() - started}

    def _groups(self, problems: Sequence[Problem], heard: list[tuple[Rollout, Verdict]]) -> list[Group]:
        """A group for each problem, sampled again while it has too few right responses; `heard` gets all of them."""
        settings = self.run.settings
        found: dict[str, tuple[list[Rollout], list[bool]]] = {problem.id: ([], []) for problem in problems}
        golds = {problem.id: problem.answer for problem in problems}
        sampled = 0
        asking = list(problems)
        while asking and sampled < settings.oversample:
            more = range(sampled, min(sampled + settings.group_size, settings.oversample))
            fresh = rollouts(
                Speaker(self.policy, self.run.chat, f"rlvr/{self.generation}", settings.num_slots),
                [(problem, index) for problem in asking for index in more],
                self.sampling,
                address=(self.run.seed, "rlvr", self.generation),
            )
            for rollout, verdict in zip(fresh, self.pool.verdicts(fresh, golds), strict=True):
                heard.append((rollout, verdict))
                if verdict.right is None:
                    continue
                found[rollout.problem_id][0].append(rollout)
                found[rollout.problem_id][1].append(verdict.right)
            sampled = more.stop
            asking = [
                problem
                for problem in asking
                if wants_more(found[problem.id][1], enough_right=settings.enough_right, most=settings.oversample)
            ]
        return [self._group(problem, *found[problem.id]) for problem in problems]

    def _group(self, problem: Problem, sampled: Sequence[Rollout], right: Sequence[bool]) -> Group:
        settings = self.run.settings
        generator = rng(self.run.seed, "rlvr", "balance", self.generation, problem.id)
        chosen = select(right, generator, balance=settings.balance, max_accuracy=settings.max_prompt_accuracy)
        return Group(problem, tuple(sampled), tuple(right), chosen)


def _facts(groups: Sequence[Group], unjudged: int) -> dict[str, float]:
    sampled = [rollout for group in groups for rollout in group.rollouts]
    if not sampled:
        raise RunError("rlvr: none of the sampled responses could be judged. Look at the verdicts and mend [verify].")
    reasons = Counter(group.selection.reason for group in groups)
    lengths = [rollout.num_tokens for rollout in sampled]
    return {
        "accuracy": float(np.mean([right for group in groups for right in group.right])),
        "groups": reasons["kept"],
        "too_easy": reasons["too easy"],
        "none_right": reasons["none right"],
        "none_wrong": reasons["none wrong"],
        "sampled": len(sampled),
        "learned_from": sum(len(group.selection.kept) for group in groups),
        "unjudged": unjudged,
        "response_len": float(np.mean(lengths)),
        "ended": float(np.mean([rollout.finish == "stop" for rollout in sampled])),
        "sampled_tokens": sum(lengths),
    }
