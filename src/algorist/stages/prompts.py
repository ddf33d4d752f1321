"""Which prompts stage 4 learns from, and in which order they are asked.

Remedy 1 of the paper, prompt optimization: before training, the model that stage 4 starts from samples every candidate
prompt, and only prompts whose responses have uniform length are kept. Rounds, samples, measure and threshold are not
printed; ours is the coefficient of variation over all samples of all rounds, and what the rule does to length spread
and idle time is stored beside the data.

The order is drawn an epoch at a time: no prompt comes again before all others had their turn.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from algorist import store
from algorist.errors import RunError
from algorist.evals.evaluate import ask
from algorist.generate.rollouts import Native, Speaker
from algorist.generate.sampling import Sampling
from algorist.model.longrope import positions
from algorist.model.policy import Policy
from algorist.numerics.address import rng
from algorist.numerics.groups import idle_share, length_spread
from algorist.records import Problem, Question, Rollout, Verdict
from algorist.stage import Run
from algorist.stages.spread import picture
from algorist.verify.pool import Pool


@dataclass(frozen=True)
class Prompts:
    """Remedy 1: which prompts are trained on, measured by sampling with the first policy; and their order."""

    candidates: int = 10_000  # problems sampled, drawn at random
    rounds: int = 2  # of sampling every candidate
    samples: int = 4  # per round
    max_length_spread: float = 0.25  # coefficient of variation of a prompt's response lengths; the paper's bad example
    max_accuracy: float = 0.75  # prompts that are this easy already would only be dropped later
    min_accuracy: float = 0.0  # prompts below it are left out: few of their samples would be right
    levels: int = 1  # parts of growing difficulty, one learned from after the other (arXiv 2504.00829); 1: all at once
    history: bool = False  # a prompt that was all right in its last group leaves the next epoch (arXiv 2504.14286)

    def __post_init__(self) -> None:
        if min(self.candidates, self.rounds, self.samples, self.levels) < 1:
            raise ValueError("candidates, rounds, samples and levels must be at least 1.")
        if not 0 <= self.min_accuracy <= self.max_accuracy <= 1:
            raise ValueError("min_accuracy and max_accuracy are shares, 0 to 1, and the first is not above the second.")
        if self.max_length_spread <= 0:
            raise ValueError("max_length_spread must be above 0: no prompt would be left.")


_ADVICE = {  # by the reason why most candidates were left out
    "could not be judged": "Look at the verdicts, and mend [verify].",
    "lengths not uniform": "[rlvr] prompts.max_length_spread is {0.max_length_spread:g}: raise it.",
    "too easy": "[rlvr] prompts.max_accuracy is {0.max_accuracy:g}: raise it, or take harder problems.",
    "too hard": "[rlvr] prompts.min_accuracy is {0.min_accuracy:g}: lower it.",
}


@dataclass(frozen=True)
class Candidate:
    """What the first policy made of a prompt."""

    problem_id: str
    accuracy: float | None  # share right of those that could be judged; None where none could
    mean_length: float  # of its responses, tokens
    length_spread: float  # their coefficient of variation
    idle_share: float  # of a slot's time, were its group decoded until the longest is done
    kept: bool
    reason: str  # why it was left out; empty where it was kept


def curate(run: Run) -> store.Manifest:
    """Prompts whose responses by the parent policy have uniform length and are not mostly right already.

    What was measured of every candidate is stored in `<stage>/prompts/candidates`, and drawn in `prompts/spread.svg`.
    """
    settings: Prompts = run.settings.prompts
    asked = {question.problem_id for question in store.stream(run.set, Question)}
    problems = [problem for problem in store.stream(run.root / "problems", Problem) if problem.id in asked]
    order = rng(run.seed, "rlvr", "candidates").permutation(len(problems))
    candidates = [problems[i] for i in sorted(order[: settings.candidates])]
    folder = run.folder / "prompts"
    _sample(run, candidates)
    measured = _measured(run, candidates)
    verdicts = store.manifest(folder / "verdicts").id
    store.write(folder / "candidates", Candidate, measured, parents=[verdicts])
    spread, idle = [one.length_spread for one in measured], [one.idle_share for one in measured]
    drawn = picture(spread, idle, [one.kept for one in measured], run.settings.prompts.max_length_spread)
    store.write_text(folder / "spread.svg", drawn)
    dropped = Counter(one.reason for one in measured if not one.kept)
    kept = [problem for problem, one in zip(candidates, measured, strict=True) if one.kept]
    if not kept:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.most_common())
        advice = _ADVICE[dropped.most_common(1)[0][0]].format(settings)
        raise RunError(f"{run.data}: no prompt is left ({reasons}). {advice}")
    return store.write(run.data, Problem, kept, parents=[store.manifest(run.set).id, verdicts], dropped=dropped)


def _require_positions(run: Run, policy: Policy, candidates: Sequence[Problem]) -> None:
    """Refuse responses that may outgrow the model, before any is sampled: the first of them would take hours."""
    known = positions(policy.model.config.to_dict())
    prompt = run.chat.longest_prompt(problem.statement for problem in candidates)
    if known is not None and prompt + run.settings.max_tokens > known:
        raise RunError(
            f"{run.parent}: the model knows {known:,} positions, and a prompt of {prompt:,} tokens with a response of "
            f"{run.settings.max_tokens:,} may come. Lower [rlvr] max_tokens to {known - prompt:,} or less."
        )


def _sample(run: Run, candidates: Sequence[Problem]) -> None:
    settings: Prompts = run.settings.prompts
    sampling = Sampling(run.settings.temperature.start, 1.0, run.settings.max_tokens)
    wanted = [(problem, i) for problem in candidates for i in range(settings.rounds * settings.samples)]
    policy = run.opened()
    _require_positions(run, policy, candidates)
    engine = Native(policy, run.chat.stops, run.settings.engine.num_slots)
    with Pool.of(run.recipe) as pool:
        ask(
            Speaker(engine, run.chat, "rlvr/prompts"),
            wanted,
            run.folder / "prompts",
            sampling,
            address=(run.seed, "rlvr", "prompts"),
            pool=pool,
            title="rlvr: prompts",
        )


def _measured(run: Run, candidates: Sequence[Problem]) -> list[Candidate]:
    folder = run.folder / "prompts"
    lengths, right = defaultdict(list), defaultdict(list)
    found, verdicts = store.stream(folder / "rollouts", Rollout), store.stream(folder / "verdicts", Verdict)
    for rollout, verdict in zip(found, verdicts, strict=True):
        lengths[rollout.problem_id].append(rollout.num_tokens)
        if verdict.right is not None:
            right[rollout.problem_id].append(verdict.right)
    return [_judged(run.settings.prompts, one.id, lengths[one.id], right[one.id]) for one in candidates]


def _judged(settings: Prompts, problem_id: str, lengths: Sequence[int], right: Sequence[bool]) -> Candidate:
    accuracy = float(np.mean(right)) if right else None
    spread = length_spread(lengths)
    reason = ""
    if accuracy is None:
        reason = "could not be judged"
    elif spread > settings.max_length_spread:
        reason = "lengths not uniform"
    elif accuracy > settings.max_accuracy:
        reason = "too easy"
    elif accuracy < settings.min_accuracy:
        reason = "too hard"
    mean = float(np.mean(lengths))
    return Candidate(problem_id, accuracy, mean, spread, idle_share(lengths), not reason, reason)


class Deck:
    """The prompts still to be asked in this epoch.

    What is drawn is a function of the prompts, the seed and what was drawn before, all of which a run has on disk:
    `take` brings a deck to where a killed run left it.
    """

    def __init__(self, run: Run, problems: Sequence[Problem]) -> None:
        self._seed, self._settings = run.seed, run.settings.prompts
        self._generations: int = run.settings.steps
        self._parts = _by_difficulty(run, problems)
        self._level, self._epoch = 0, -1
        self._left: list[Problem] = []
        self._mastered: set[str] = set()  # prompts that were all right when they were last asked

    def draw(self, count: int, generation: int, busy: Collection[str]) -> list[Problem]:
        """The next `count` prompts, fewer where there are no more; never one of `busy`, problem ids, and none twice."""
        level = min(generation * len(self._parts) // self._generations, len(self._parts) - 1)
        if level != self._level:
            self._level, self._left = level, []
        drawn: list[Problem] = []
        taken = set(busy)
        for epoch_over in (False, True):
            if epoch_over and len(drawn) < count:
                self._next_epoch(taken)
            left = []
            for problem in self._left:
                if len(drawn) < count and problem.id not in taken:
                    drawn.append(problem)
                    taken.add(problem.id)
                else:
                    left.append(problem)
            self._left = left
        return drawn

    def note(self, problem_id: str, all_right: bool) -> None:
        """Remember how a group ended, once its generation is over: the next epoch looks at it."""
        (self._mastered.add if all_right else self._mastered.discard)(problem_id)

    def take(self, problem_ids: Collection[str], generation: int, busy: Collection[str]) -> None:
        """Draw again what a generation before the resumed one had drawn, in whatever portions."""
        drawn = self.draw(len(problem_ids), generation, busy)
        assert {problem.id for problem in drawn} == set(problem_ids), "the rollouts on disk are of other prompts"

    def _next_epoch(self, taken: Collection[str]) -> None:
        """Begin an epoch, unless all of its prompts are taken: then there is nothing to begin it for."""
        part = self._parts[self._level]
        fresh = [one for one in part if one.id not in self._mastered] if self._settings.history else part
        fresh = fresh or list(part)
        if all(one.id in taken for one in fresh):
            return
        self._epoch += 1
        order = rng(self._seed, "rlvr", "epoch", self._epoch).permutation(len(fresh))
        waiting = {problem.id for problem in self._left}
        self._left += [fresh[i] for i in order if fresh[i].id not in waiting]


def _by_difficulty(run: Run, problems: Sequence[Problem]) -> list[list[Problem]]:
    """`levels` parts of about equal size, those with the highest accuracy under the parent first."""
    levels: int = run.settings.prompts.levels
    if levels == 1:
        return [list(problems)]
    known = store.stream(run.folder / "prompts" / "candidates", Candidate)
    accuracy = {one.problem_id: one.accuracy or 0.0 for one in known}
    ordered = sorted(problems, key=lambda one: -accuracy[one.id])
    bounds = [round(k * len(ordered) / levels) for k in range(levels + 1)]
    return [part for a, b in zip(bounds, bounds[1:], strict=False) if (part := ordered[a:b])]
