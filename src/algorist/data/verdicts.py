"""Verdicts on the teacher's rollouts: the rules' on every one, then, where there is one, a judge's second opinion.

    rollouts/ ──→ rules ──→ verdicts/                                            without a [judge]
    rollouts/ ──→ rules ──→ verdicts/rules/ ──→ judge, judge.jsonl ──→ verdicts/   with one

What the judge says decides only what stages 1 to 3 learn from. Scores and the rewards of stage 4 are the rules' alone:
a score must not depend on which judge was at hand, and a policy that a judge rewards learns to please the judge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from algorist import store
from algorist.generate.sampling import Sampling
from algorist.generate.server import Server
from algorist.journal import progress
from algorist.records import Problem, Rollout, Verdict
from algorist.verify import judge
from algorist.verify.pool import Pool


def write(
    rollouts: Path, target: Path, problems: Sequence[Problem], pool: Pool, settings: judge.Settings, cache: Path
) -> store.Manifest:
    """Write a verdict for each of the data set `rollouts` to `target`, shard by shard; finished shards stay.

    With a judge the rules' verdicts go to `target`/rules first, and the judge's answers to `cache`, each as it
    arrives: killed anywhere, the same call goes on and asks nothing twice. Beside the cache, all of it may be deleted.

    Raises RecordError for a rollout whose problem is not among `problems`, RunError where no worker can start or the
    judge's server refuses.
    """
    by_id = {problem.id: problem for problem in problems}
    golds = {problem.id: problem.answer for problem in problems}
    said = store.manifest(rollouts)
    rules = target / judge.RULES if settings.url else target
    asked: dict[str, Problem] = {}
    with progress("verify", said.rows) as advance:
        for index, shard in enumerate(said.shards):
            found = store.read_shard(rollouts / shard, Rollout)
            if not (rules / f"{index:05d}.parquet").exists():
                store.write_shard(rules, index, Verdict, pool.verdicts(found, golds))
            if settings.url:
                asked |= {rollout.id: by_id[rollout.problem_id] for rollout in found}
            advance(len(found))
    made = store.finish(rules, Verdict, parents=[said.id])
    if not settings.url:
        return made
    judged = _second_opinion(store.read(rules, Verdict), asked, settings, cache)
    return store.write(target, Verdict, judged, parents=[said.id, made.id])


def _second_opinion(
    verdicts: Sequence[Verdict], problems: Mapping[str, Problem], settings: judge.Settings, cache: Path
) -> list[Verdict]:
    server = Server(settings.url, settings.model, section="judge")
    sampling = Sampling(judge.TEMPERATURE, 1.0, settings.max_tokens)
    with server.client() as client:

        def ask(prompt: str) -> str:
            (answer,) = server.ask(client, prompt, sampling, count=1, seed=judge.SEED)
            return answer.text

        return judge.second_opinion(verdicts, problems, settings, cache, ask)
