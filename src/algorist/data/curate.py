"""Which verified rollouts become what: everything right, a hard and clean subset, pairs of right and wrong.

Pure functions from records to records; each returns what it left out, counted by reason. What they return still is
text: token ids come from model/chat.py, through `sample` and `pair`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from statistics import median

from algorist.model.chat import Chat
from algorist.numerics.address import key
from algorist.records import Pair, Problem, Rollout, Sample, Verdict, content_id
from algorist.verify.judge import contested

Drops = Counter[str]


def accepted(rollouts: Iterable[Rollout], verdicts: Iterable[Verdict]) -> tuple[list[Rollout], Drops]:
    """Rejection sampling: the rollouts that were verified right and ended by themselves."""
    by_id = {verdict.rollout_id: verdict for verdict in verdicts}
    kept, dropped = [], Drops()
    for rollout in rollouts:
        verdict = by_id.get(rollout.id)
        if verdict is None or not verdict.right:
            dropped[verdict.reason if verdict else "not verified"] += 1
        elif rollout.finish != "stop":  # it never ended, so it cannot teach where to end
            dropped["right but cut off"] += 1
        else:
            kept.append(rollout)
    return kept, dropped


def hard_and_clean(
    right: Iterable[Rollout],
    problems: Mapping[str, Problem],
    *,
    levels: Collection[str],
    keep_easier: float,
    per_problem: int,
    seed: int,
) -> tuple[list[Rollout], Drops]:
    """The subset of stage 2: hard levels and a share of the easier ones, and of each problem the most typical chains.

    Args:
        right        verified-right rollouts
        levels       that count as hard; all are kept where empty
        keep_easier  share of the easier problems kept, so that they are not forgotten
        per_problem  how many rollouts of one problem, those nearest to its median length first: rambling and corrected
                     slips make a chain long, missing work makes it short
    """
    dropped = Drops()
    by_problem: dict[str, list[Rollout]] = defaultdict(list)
    for rollout in right:
        problem = problems[rollout.problem_id]
        hard = not levels or problem.level in levels
        if hard or key(seed, "keep easier", problem.id) < keep_easier * 2**63:
            by_problem[problem.id].append(rollout)
        else:
            dropped["easier level"] += 1
    kept = []
    for rollouts in by_problem.values():
        typical = median(len(r.text) for r in rollouts)
        ordered = sorted(rollouts, key=lambda r: (abs(len(r.text) - typical), r.id))
        kept += ordered[:per_problem]
        dropped["further from its problem's median length"] += max(0, len(ordered) - per_problem)
    return kept, dropped


def pairs(
    rollouts: Iterable[Rollout], verdicts: Iterable[Verdict], *, per_problem: int, max_length_ratio: float
) -> tuple[list[tuple[Rollout, Rollout]], Drops]:
    """(chosen, rejected) of the same problem: right and wrong rollouts of the most similar length, each used once.

    Matching by length over all of a problem's rollouts keeps length, and with it style, from telling the two apart:
    what is left to prefer is what makes one right. What only the rules call wrong, though a judge was asked, is not
    rejected: the rules may have misread a right answer.

    Args:
        per_problem       most pairs of one problem
        max_length_ratio  longest allowed ratio of the two texts' lengths

    Returns:
        The pairs, and how many wrong rollouts found no partner, by reason.
    """
    by_id = {verdict.rollout_id: verdict for verdict in verdicts}
    groups: dict[str, tuple[list[Rollout], list[Rollout]]] = defaultdict(lambda: ([], []))
    found, dropped = [], Drops()
    for rollout in rollouts:
        verdict = by_id.get(rollout.id)
        if verdict is None or verdict.right is None or not rollout.text:
            continue
        if contested(verdict):
            dropped[verdict.reason] += 1
        else:
            groups[rollout.problem_id][0 if verdict.right else 1].append(rollout)
    for good, bad in groups.values():
        similar = [(r, w) for r in good for w in bad if _length_ratio(r, w) <= max_length_ratio]
        similar.sort(key=lambda pair: (abs(len(pair[0].text) - len(pair[1].text)), pair[0].id, pair[1].id))
        used: set[str] = set()
        for right_one, wrong in similar:
            if len(used) < 2 * per_problem and used.isdisjoint((right_one.id, wrong.id)):
                used |= {right_one.id, wrong.id}
                found.append((right_one, wrong))
        matched = {wrong.id for _, wrong in similar}
        for wrong in bad:
            if not good:
                dropped["no right rollout of its problem"] += 1
            elif wrong.id not in matched:
                dropped["no right rollout of similar length"] += 1
            elif wrong.id not in used:
                dropped["its problem has enough pairs"] += 1
    return found, dropped


def _length_ratio(one: Rollout, other: Rollout) -> float:
    shorter, longer = sorted((len(one.text), len(other.text)))
    return longer / shorter


def samples(
    rollouts: Sequence[Rollout], problems: Mapping[str, Problem], chat: Chat, *, sequence_length: int
) -> tuple[list[Sample], Drops]:
    """Token ids of each rollout as training will see it; what is longer than a row is left out, never cut."""
    kept, dropped = [], Drops()
    for rollout in rollouts:
        prompt = chat.prompt_ids(problems[rollout.problem_id].statement)
        tokens = prompt + chat.response_ids(rollout.text)
        if len(tokens) > sequence_length:
            dropped["longer than sequence_length"] += 1
        else:
            identity = content_id("sample", rollout.id, tokens)
            kept.append(Sample(identity, rollout.problem_id, rollout.id, tokens, len(prompt)))
    return kept, dropped


def token_pairs(
    found: Sequence[tuple[Rollout, Rollout]], problems: Mapping[str, Problem], chat: Chat, *, sequence_length: int
) -> tuple[list[Pair], Drops]:
    """Token ids of each pair; a response that was cut off has no end of turn to prefer or to avoid."""
    kept, dropped = [], Drops()
    for right, wrong in found:
        prompt = chat.prompt_ids(problems[right.problem_id].statement)
        chosen = prompt + chat.response_ids(right.text, ended=right.finish == "stop")
        rejected = prompt + chat.response_ids(wrong.text, ended=wrong.finish == "stop")
        if max(len(chosen), len(rejected)) > sequence_length:
            dropped["longer than sequence_length"] += 1
        else:
            identity = content_id("pair", right.id, wrong.id, chosen, rejected)
            kept.append(Pair(identity, right.problem_id, right.id, wrong.id, chosen, rejected, len(prompt)))
    return kept, dropped
