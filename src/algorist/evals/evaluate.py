"""Ask a checkpoint every problem of a benchmark several times, verify, and keep every response.

The rollouts and verdicts are the result; scores are computed from them (evals/report.py), so that a new verifier
or another question to the same data needs no new sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from algorist import store
from algorist.generate.rollouts import Speaker, rollouts
from algorist.generate.sampling import Sampling
from algorist.journal import progress
from algorist.records import Problem, Rollout, Verdict
from algorist.verify.pool import Pool

_SHARD = 2_000  # rollouts


@dataclass(frozen=True)
class Settings:
    """[evaluate]"""

    temperature: float = 0.6  # the paper's protocol, with the two keys below
    top_p: float = 0.95  # share of the probability that is sampled from
    max_tokens: int = 32_768  # of a response; longer ones are cut and finish with "length"
    samples: dict[str, int] = field(default_factory=dict)  # per problem, by benchmark
    default_samples: int = 4  # for benchmarks that `samples` does not name
    num_slots: int = 128  # sequences decoded together

    def __post_init__(self) -> None:
        if min([self.default_samples, *self.samples.values()]) < 1:
            raise ValueError("samples must be at least 1 for each benchmark.")
        if self.num_slots < 1:
            raise ValueError("num_slots must be at least 1.")
        Sampling(self.temperature, self.top_p, self.max_tokens)


def evaluate(
    speaker: Speaker, problems: Sequence[Problem], folder: Path, settings: Settings, *, seed: int, pool: Pool
) -> None:
    """Write rollouts and verdicts of one benchmark to `<folder>/rollouts` and `<folder>/verdicts`.

    Every stage is asked with the same addresses, so that two stages differ by their weights alone.
    """
    benchmark = folder.name
    count = settings.samples.get(benchmark, settings.default_samples)
    sampling = Sampling(settings.temperature, settings.top_p, settings.max_tokens)
    wanted = [(problem, index) for problem in problems for index in range(count)]
    address = (seed, "evaluate", benchmark)
    ask(speaker, wanted, folder, sampling, address=address, pool=pool, title=f"{speaker.name}: {benchmark}")


def ask(
    speaker: Speaker,
    wanted: Sequence[tuple[Problem, int]],
    folder: Path,
    sampling: Sampling,
    *,
    address: tuple[str | int, ...],
    pool: Pool,
    title: str,
) -> None:
    """Sample and judge (problem, sample index) after (problem, sample index), shard by shard.

    Finished shards are kept: what was killed goes on at the next.
    """
    golds = {problem.id: problem.answer for problem, _ in wanted}
    said, judged = folder / "rollouts", folder / "verdicts"
    with progress(title, len(wanted)) as advance:
        for shard, start in enumerate(range(0, len(wanted), _SHARD)):
            part = wanted[start : start + _SHARD]
            if (judged / f"{shard:05d}.parquet").exists():
                advance(len(part))
                continue
            found = rollouts(speaker, part, sampling, address=address, progress=advance)
            store.write_shard(said, shard, Rollout, found)
            store.write_shard(judged, shard, Verdict, pool.verdicts(found, golds))
    said_manifest = store.finish(said, Rollout)
    store.finish(judged, Verdict, parents=[said_manifest.id])
