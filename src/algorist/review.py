"""A second look at stored verdicts: judged again by the present verifier, and those on which rules and judge disagree.

Nothing here changes a stored verdict. Where a judge has had its word, what the rules had said lies beside it, in
verdicts/rules, and that is what a recheck compares.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from algorist import store
from algorist.errors import RecordError, RunError
from algorist.journal import progress
from algorist.recipe import Recipe
from algorist.records import Problem, Rollout, Verdict
from algorist.verify import judge
from algorist.verify import pool as pools
from algorist.verify.conventions import Conventions
from algorist.verify.equal import verifier
from algorist.verify.pool import Pool

Item = TypeVar("Item")
CHANGES = "recheck.jsonl"  # in the folder of a run
_TOGETHER = 1_000  # rollouts judged at a time
_SHOWN = 10  # disagreements
_WORDS = {True: "right", False: "wrong", None: "not judged"}


@dataclass(frozen=True)
class _Checked:
    """A stored verdict and the one that its rollout gets now."""

    place: str  # folder of the verdicts inside the run
    problem: Problem
    before: Verdict  # the rules'
    now: Verdict
    judged: bool  # whether a judge has seen the stored one

    @property
    def changed(self) -> bool:
        """The name of the verifier alone is no change."""
        return _said(self.before) != _said(self.now)


@dataclass(frozen=True)
class _Disagreement:
    """A verdict on which rules and judge contradict each other."""

    verdict: Verdict
    problem: Problem
    rules: str  # their reason


def recheck(root: Path, recipe: Recipe, out: Path | None = None, workers: int | None = None) -> str:
    """Judge every stored rollout of a run again, by rules, and say what would change; nothing stored does.

    Each verdict that would change becomes a line of `out`, or of recheck.jsonl in the folder.

    Args:
        recipe: the run's: its [verify] has the limits and conventions.
        workers: as Pool takes them.

    Raises RunError where no verdict is stored, RecordError where a record cannot be read.
    """
    limits, conventions = recipe.of("verify", pools.Settings), recipe.of("verify", Conventions)
    found: list[_Checked] = []
    said: list[str] = []
    with Pool(workers, limits.seconds, limits.memory_mib, conventions) as pool:
        for place in _places(root):
            missing: Counter[str] = Counter()
            part = list(_recheck_one(root, place, pool, missing))
            said += _table(place, part, missing)
            found += part
    path = out or root / CHANGES
    store.write_text(path, "".join(json.dumps(_line(one)) + "\n" for one in found if one.changed))
    return "\n".join([*said, _conclusion(root, found, path)])


def show_disagreements(
    root: Path, settings: judge.Settings, identity: str, count: int | None, say: Callable[[str], object]
) -> None:
    """Say every stored verdict on which rules and judge contradict each other, for a person to decide.

    Args:
        settings: the run's [judge]: with it the judge's words are found in judge.jsonl.
        identity: of a rollout or a problem, or how it begins; all of them where empty.
        count: how many at most, ten unless given.

    Raises RunError where no verdict is stored, RecordError where no disagreement has the id.
    """
    found: list[_Disagreement] = []
    told: Counter[str] = Counter()
    for place in _places(root):
        verdicts = _all(root / place, Verdict)
        told.update(judge.tally(verdicts))
        if both := judge.disagreements(verdicts):
            found += _with_problems(root, place, both)
    own = [one for one in found if one.verdict.rollout_id.startswith(identity) or one.problem.id.startswith(identity)]
    if told["conflicts"] and identity and not own:
        raise RecordError(f"{root}: no disagreement has the id {identity}. Leave --id out to see all of them.")
    words = judge.answers(root / judge.CACHE)
    shown = own[: count or _SHOWN]
    for one in shown:
        for line in _disagreement_lines(one, settings, words):
            say(line)
    undecided = f"judge undecided: {told['undecided']:,}"
    if not told["asked"]:
        say(f"{root}: no judge has seen a verdict of this folder. [judge] url in a recipe names one.")
    elif not told["conflicts"]:
        say(f"{root}: rules and judge disagree on none of the {told['asked']:,} verdicts that both saw; {undecided}")
    else:
        gone = told["conflicts"] - len(found)
        lost = f"; {gone:,} cannot be shown: rollout or problem is not here" if gone else ""
        say(f"{len(shown):,} of {told['conflicts']:,} disagreements; --count shows more; {undecided}{lost}")


def _recheck_one(root: Path, place: str, pool: Pool, missing: Counter[str]) -> Iterator[_Checked]:
    """Every verdict of a data set beside a new one; those that cannot be had are counted in `missing`, by reason."""
    problems, rollouts, rules = _problems(root, place), _rollouts(root, place), _rules(root, place)
    rows = []
    for verdict in _all(root / place, Verdict):
        rollout, judged = rollouts.get(verdict.rollout_id), judge.saw(verdict)
        before = rules.get(verdict.rollout_id) if judged else verdict
        if rollout is None:
            missing["the rollout is not here"] += 1
        elif rollout.problem_id not in problems:
            missing["the problem is not here"] += 1
        elif before is None:
            missing["what the rules had said is not here"] += 1
        else:
            rows.append((rollout, before, judged))
    golds = {problem.id: problem.answer for problem in problems.values()}
    with progress(f"verify: {place}", len(rows)) as advance:
        for start in range(0, len(rows), _TOGETHER):
            part = rows[start : start + _TOGETHER]
            fresh = pool.verdicts([rollout for rollout, _, _ in part], golds)
            for (rollout, before, judged), now in zip(part, fresh, strict=True):
                yield _Checked(place, problems[rollout.problem_id], before, now, judged)
            advance(len(part))


def _said(verdict: Verdict) -> tuple[bool | None, str, str]:
    return verdict.right, verdict.reason, verdict.extracted


def _change(one: _Checked) -> str:
    """`wrong (different) by algorist-1 → right (equal) by algorist-2`."""
    stored, new = (f"{_WORDS[v.right]} ({v.reason}) by {v.verifier}" for v in (one.before, one.now))
    same = _said(one.before)[:2] == _said(one.now)[:2]
    return f"{stored} → {new}{', of another answer' if same else ''}"


def _line(one: _Checked) -> dict[str, object]:
    return {
        "data_set": one.place,
        "rollout_id": one.now.rollout_id,
        "problem_id": one.problem.id,
        "gold": one.problem.answer,
        "extracted_before": one.before.extracted,
        "extracted_now": one.now.extracted,
        "before": one.before.right,
        "now": one.now.right,
        "reason_before": one.before.reason,
        "reason_now": one.now.reason,
        "verifier_before": one.before.verifier,
        "verifier_now": one.now.verifier,
    }


def _table(place: str, found: Sequence[_Checked], missing: Mapping[str, int]) -> Iterator[str]:
    """Counts of a data set; the verdicts that a judge has seen stand apart."""
    for judged in (False, True):
        rows = [one for one in found if one.judged is judged]
        if not rows:
            continue
        changes = Counter(_change(one) for one in rows if one.changed)
        seen = ", seen by a judge (compared is what the rules had said)" if judged else ""
        unchanged = len(rows) - changes.total()
        yield f"{place}{seen}: {len(rows):,} rows, {unchanged:,} unchanged, {changes.total():,} changed"
        for change, count in changes.most_common():
            yield f"{count:>9,}  {change}"
    for reason, count in missing.items():
        yield f"{place}: {count:,} left out: {reason}"


def _conclusion(root: Path, found: Sequence[_Checked], path: Path) -> str:
    """What all of it comes to, and how the new verdicts can be had."""
    places = dict.fromkeys(one.place for one in found if one.changed)
    before, now = sorted({one.before.verifier for one in found}), verifier()
    if not places and before == [now]:
        return f"recheck: nothing changed; the stored verdicts are by the present verifier, {now}."
    if not places:
        return f"recheck: nothing changed from {', '.join(before) or 'nothing'} to {now}."
    total = sum(one.changed for one in found)
    listed = (
        f"recheck: {total:,} of {len(found):,} verdicts would change, listed in {path}; what is stored stays as it is."
    )
    # What is made again is a task; the scores of each stage are one.
    tasks = dict.fromkeys("/".join(Path(place).parts[: 2 if place.startswith("scores/") else 1]) for place in places)
    folders = ", ".join(str(root / task) for task in tasks)
    return f"{listed} To have the new ones, delete {folders} and run the recipe again: what follows is made again too."


def _with_problems(root: Path, place: str, verdicts: Sequence[Verdict]) -> Iterator[_Disagreement]:
    problems, rollouts, rules = _problems(root, place), _rollouts(root, place), _rules(root, place)
    for verdict in verdicts:
        rollout, before = rollouts.get(verdict.rollout_id), rules.get(verdict.rollout_id)
        if rollout and rollout.problem_id in problems:
            yield _Disagreement(verdict, problems[rollout.problem_id], before.reason if before else "different")


def _disagreement_lines(one: _Disagreement, settings: judge.Settings, words: Mapping[str, str]) -> Iterator[str]:
    asked = judge.Question(one.problem.statement, one.problem.answer, one.verdict.extracted)
    said = words.get(asked.id(settings), f"(its words are not in {judge.CACHE}; [judge] was another then)")
    yield f"rollout {one.verdict.rollout_id}, problem {one.problem.id}, stored as {_WORDS[one.verdict.right]}"
    facts = {"problem": one.problem.statement, "gold": one.problem.answer, "answer": one.verdict.extracted}
    for name, text in {**facts, "rules": one.rules, "judge": said}.items():
        yield f"  {name + ':':9}" + text.strip().replace("\n", f"\n{'':11}")
    yield ""


def _places(root: Path) -> list[str]:
    """Folders of verdicts, finished or still growing, without what is superseded."""
    folders = {path.parent.relative_to(root) for path in root.rglob("verdicts/[0-9]*.parquet")}
    places = sorted((len(folder.parts), str(folder)) for folder in folders if "superseded" not in folder.parts)
    if not places:
        raise RunError(f"{root}: has no verdicts yet. Run the command that made the folder until verdicts is done.")
    return [place for _, place in places]


def _problems(root: Path, place: str) -> dict[str, Problem]:
    """The problems that the rollouts beside these verdicts respond to, by id."""
    parts = Path(place).parts
    folders = [f"benchmarks/{parts[2]}"] if parts[0] == "scores" else ["problems"]
    return {problem.id: problem for folder in folders for problem in _all(root / folder, Problem)}


def _rollouts(root: Path, place: str) -> dict[str, Rollout]:
    return {rollout.id: rollout for rollout in _all((root / place).parent / "rollouts", Rollout)}


def _rules(root: Path, place: str) -> dict[str, Verdict]:
    """What the rules had said of verdicts that a judge has seen."""
    return {verdict.rollout_id: verdict for verdict in _all(root / place / judge.RULES, Verdict)}


def _all(folder: Path, kind: type[Item]) -> list[Item]:
    """The records of a data set, finished or still growing; none where there is none."""
    return [record for shard in sorted(folder.glob("[0-9]*.parquet")) for record in store.read_shard(shard, kind)]
