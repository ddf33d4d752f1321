"""Verdicts on the teacher's rollouts: the rules' on every one, then, where there is one, a judge's second opinion.

    rollouts/ ──→ rules ──→ verdicts/                                              without a [judge]
    rollouts/ ──→ rules ──→ verdicts/rules/ ──→ judge, judge.jsonl ──→ verdicts/   with one

What the judge says decides only what stages 1 to 3 learn from. Scores and the rewards of stage 4 are the rules' alone:
a score must not depend on which judge was at hand, and a policy that a judge rewards learns to please the judge.
"""

from __future__ import annotations

import functools
import itertools
import multiprocessing
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from algorist import store
from algorist.data.shards import Engine, Job, build, made_from
from algorist.generate.sampling import Sampling
from algorist.generate.server import Server
from algorist.records import Problem, Rollout, Verdict
from algorist.verify import judge
from algorist.verify import pool as pools
from algorist.verify.conventions import Conventions
from algorist.verify.equal import verifier
from algorist.verify.pool import Pool

_TOGETHER = 32  # shards whose verdicts a judge sees at a time: its cache is read once for each such part


def judge_shard(
    rollouts: Path, problems: Path, out: Path, limits: pools.Settings, conventions: Conventions, made_from: str
) -> None:
    """Write the rules' verdicts on a shard of rollouts, in its order, by the golds of its shard of problems."""
    golds = {problem.id: problem.answer for problem in store.read_shard(problems, Problem)}
    found = _pool(limits, conventions).verdicts(store.read_shard(rollouts, Rollout), golds)
    store.write_shard(out.parent, int(out.stem), Verdict, found, made_from=made_from)


def write(
    root: Path,
    limits: pools.Settings,
    conventions: Conventions,
    settings: judge.Settings,
    engine: Engine,
    older: Sequence[Path] = (),
) -> store.Manifest:
    """Write `verdicts` of a run: one for each of its `rollouts`, shard by shard; finished shards stay.

    With a judge the rules' verdicts go to verdicts/rules first, and the judge's answers to judge.jsonl, each as it
    arrives: killed anywhere, the same call goes on and asks nothing twice. Beside the cache, all of it may be deleted.

    Raises RecordError for a rollout whose problem is not there, RunError where no worker can start or the judge's
    server refuses.
    """
    said, target = store.manifest(root / "rollouts"), root / "verdicts"
    rules = target / judge.RULES if settings.url else target
    jobs = []
    for shard in said.shards:
        paths = root / "rollouts" / shard, root / "problems" / shard
        read = [store.facts(path).content for path in paths]
        origin = made_from(judge_shard, verifier(), asdict(limits), asdict(conventions), *read)
        jobs.append(Job(rules / shard, (*paths, rules / shard, limits, conventions, origin), origin))
    # Whether a judge came after them changes nothing in what the rules say.
    build("verify", judge_shard, jobs, engine, [place for folder in older for place in (folder / judge.RULES, folder)])
    made = store.finish(rules, Verdict, parents=[said.id])
    if not settings.url:
        return made
    for start in range(0, len(said.shards), _TOGETHER):
        part = said.shards[start : start + _TOGETHER]
        asked: dict[str, Problem] = {}
        for shard in part:
            problems = {problem.id: problem for problem in store.read_shard(root / "problems" / shard, Problem)}
            ids = store.read_columns(root / "rollouts" / shard, ("id", "problem_id")).to_pylist()
            asked |= {row["id"]: problems[row["problem_id"]] for row in ids}
        found = [store.read_shard(rules / shard, Verdict) for shard in part]
        judged = iter(_second_opinion([one for some in found for one in some], asked, settings, root / judge.CACHE))
        for shard, some in zip(part, found, strict=True):
            store.write_shard(target, int(Path(shard).stem), Verdict, list(itertools.islice(judged, len(some))))
    return store.finish(target, Verdict, parents=[said.id, made.id], shards=said.shards)


def tally(folder: Path, made: store.Manifest) -> Counter[str]:
    """How many verdicts of a data set are right, wrong and not judged, and what a judge said (`judge.tally`)."""
    counts: Counter[str] = Counter()
    for shard in made.shards:
        found = store.read_shard(folder / shard, Verdict)
        counts.update({True: "right", False: "wrong", None: "not judged"}[verdict.right] for verdict in found)
        counts.update(judge.tally(found))
    return counts


@functools.cache
def _pool(limits: pools.Settings, conventions: Conventions) -> Pool:
    """One for each process: its workers are started once for all shards that the process judges. Of several processes
    that judge beside each other each has one worker."""
    beside = multiprocessing.parent_process() is not None
    return Pool(1 if beside else None, limits.seconds, limits.memory_mib, conventions)


def _second_opinion(
    verdicts: Sequence[Verdict], problems: Mapping[str, Problem], settings: judge.Settings, cache: Path
) -> list[Verdict]:
    server = Server(settings.url, settings.model, section="judge")
    sampling = Sampling(judge.TEMPERATURE, 1.0, settings.max_tokens)
    with server.client() as client:

        def ask(prompt: str) -> str:
            return server.ask(client, prompt, sampling, seed=judge.SEED)

        return judge.second_opinion(verdicts, problems, settings, cache, ask)
