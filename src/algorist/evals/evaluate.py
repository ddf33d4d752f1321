"""Ask a checkpoint every problem of a benchmark several times, verify, and keep every response.

The rollouts and verdicts are the result; scores are computed from them (evals/report.py), so that a new verifier
or another question to the same data needs no new sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from algorist import addresses, store
from algorist.generate import remote, server
from algorist.generate.remote import Remote
from algorist.generate.rollouts import Engine, Native, Speaker, rollouts
from algorist.generate.sampling import Sampling
from algorist.journal import progress
from algorist.model.chat import Chat
from algorist.model.longrope import positions
from algorist.model.policy import Policy
from algorist.records import Problem, Rollout, Verdict
from algorist.verify.pool import Pool

_TRIED = 16  # problems with which a server is tried
_SHARD = 2_000  # rollouts
# Nats per token that a server may lie from the checkpoint on average, by [model] precision (docs/engines.md).
_GAPS = {"float32": 0.005, "bfloat16": 0.05}


@dataclass(frozen=True)
class Settings:
    """[evaluate]"""

    temperature: float = 0.6  # the paper's protocol, with the two keys below
    top_p: float = 0.95  # share of the probability that is sampled from
    max_tokens: int = 32_768  # of a response; longer ones are cut and finish with "length"
    samples: dict[str, int] = field(default_factory=dict)  # per problem, by benchmark
    default_samples: int = 4  # for benchmarks that `samples` does not name
    num_slots: int = 128  # sequences decoded together
    url: str = ""  # of an OpenAI-compatible server that serves the checkpoint (docs/engines.md); empty: none does
    model: str = ""  # as the server knows the checkpoint; empty: the only one that it has
    concurrency: int = 128  # requests in flight at the server
    seeded: bool = True  # send the server seeds: the same run gets the same samples; some servers die of them
    max_logprob_gap: float = 0.0  # mean |server - checkpoint| in nats that passes; 0: 0.005, in bfloat16 0.05
    key_env: str = server.KEY  # name of the environment variable that holds the server's key, if it wants one

    def __post_init__(self) -> None:
        if min([self.default_samples, *self.samples.values()]) < 1:
            raise ValueError("samples must be at least 1 for each benchmark.")
        if self.num_slots < 1:
            raise ValueError("num_slots must be at least 1.")
        if self.concurrency < 1 or self.max_logprob_gap < 0:
            raise ValueError("concurrency must be at least 1 and max_logprob_gap 0 or more.")
        if not self.key_env.isidentifier():  # not shown: it may be the key itself
            raise ValueError(
                "key_env is no name of an environment variable. The key itself does not belong in a recipe."
            )
        if self.url:
            addresses.check(self.url)
        Sampling(self.temperature, self.top_p, self.max_tokens)


def engine(
    settings: Settings,
    policy: Policy,
    chat: Chat,
    statements: Sequence[str],
    *,
    checkpoint: Path,
    say: Callable[[str], object],
) -> Engine:
    """Who answers for a checkpoint: the policy itself, or the server that holds it, once it has shown that it does.

    An engine at a server does not keep the policy.

    Args:
        policy      of the checkpoint
        statements  of the problems, with the shortest of which a server is tried
        say         told of a server that was tried, and of responses that may outgrow the model

    Raises:
        RunError where the server does not answer, or says something else than the policy.
    """
    longest = chat.longest_prompt(statements) + settings.max_tokens
    known = positions(policy.model.config.to_dict())
    if known is not None and longest > known:
        say(
            f"{checkpoint}: a prompt with its response may come to {longest:,} tokens, and the model knows {known:,} "
            "positions: what lies beyond counts, but means little. Lower [evaluate] max_tokens."
        )
    if not settings.url:
        return Native(policy, chat.stops, settings.num_slots)
    name = settings.model or remote.served_model(settings.url, checkpoint=str(checkpoint), key_env=settings.key_env)
    made = Remote(
        settings.url,
        name,
        chat.stops,
        concurrency=settings.concurrency,
        seeded=settings.seeded,
        key_env=settings.key_env,
    )
    gap = remote.require_same(
        made,
        policy,
        [chat.prompt_ids(statement) for statement in sorted(statements, key=len)[:_TRIED]],
        temperature=settings.temperature,
        limit=settings.max_logprob_gap or _GAPS[str(policy.precision).removeprefix("torch.")],
        checkpoint=str(checkpoint),
    )
    say(f"{server.shown(settings.url)}: serves {checkpoint} as {name}, {gap:.2g} nats per token from it")
    return made


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
