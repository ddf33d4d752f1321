"""From stored rollouts to micro-batches: averages, freshness, rollouts that were carried over, corrections, replays."""

from __future__ import annotations

import shutil
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from algorist import journal, store
from algorist.errors import RunError
from algorist.model.policy import Policy
from algorist.recipe import Recipe
from algorist.records import Rollout
from algorist.stage import Run, Step
from algorist.stages import groups as grouping
from algorist.stages import rlvr
from algorist.stages.generations import Generations
from algorist.stages.learning import Objective
from algorist.stages.rlvr import Annealing, Critic, Engine
from algorist.stages.shaping import Reward
from algorist.train import train
from algorist.verify.pool import Pool
from stages.taught import MIXED, UNEVEN, WRONG, Parent, documents, groups, made, opened, spoken, steps

LONG = {"engine": Engine(issue=2.0), "steps": 4, "batch_size": 1, "group_size": 4, "oversample": 4, "refills": 0}


@pytest.mark.parametrize("average", ["response", "token", "horizon"])
def test_averages(tmp_path: Path, parent: Parent, average: Any) -> None:
    objective = Objective(average=average, keep_flat=True)
    run = made(tmp_path, parent, [MIXED, UNEVEN], steps=1, balance=False, objective=objective)
    (step,) = steps(run)
    lengths, shares = [], []
    for batch in groups([step]):
        for part, places in zip(documents(batch.rows), spoken(batch), strict=True):
            lengths.append(len(places))
            shares.append(float(batch.rows.weights[part].sum()))
    assert len(set(lengths)) > 1
    expected = {
        "response": [1 / len(lengths)] * len(lengths),
        "token": [n / sum(lengths) for n in lengths],
        "horizon": [n / (len(lengths) * 20) for n in lengths],
    }[average]
    assert shares == pytest.approx(expected, rel=1e-4)


def test_flat_groups_count_where_they_are_kept(tmp_path: Path, parent: Parent) -> None:
    run = made(tmp_path, parent, [WRONG], steps=1, objective=Objective(keep_flat=True))
    (step,) = steps(run)
    assert step.facts["groups"] == 1 and step.facts["none_right"] == 0 and step.facts["learned_from"] == 16
    assert all(batch.advantages.eq(0).all() for batch in groups([step]))
    (bare,) = steps(made(tmp_path / "bare", parent, [WRONG], steps=1))
    assert bare.batches == () and bare.facts["none_right"] == 1 and bare.facts["wasted"] == 1.0


@pytest.mark.parametrize("updates", [1, 2])
def test_strictly_on_policy_the_loss_is_its_own_old_policy(tmp_path: Path, parent: Parent, updates: int) -> None:
    run = made(tmp_path, parent, [MIXED, UNEVEN], steps=1, updates=updates)
    policy = opened(run)
    for batch in groups(steps(run, policy)):
        places = batch.rows.weights > 0
        assert bool(batch.fresh[places].all()) is (updates == 1) and not batch.fresh[~places].any()
        with torch.no_grad():
            gap = (policy.logprobs(batch.rows, temperature=batch.temperature) - batch.old_logprobs)[places].abs()
        assert float(gap.max()) < 1e-5
        # What the sampler said is not looked at where the loss is its own old policy.
        wrong = replace(batch, old_logprobs=batch.old_logprobs - 1.0)
        found, other = (float(rlvr.loss(policy, one, run.settings).metrics["kl"]) for one in (batch, wrong))
        assert abs(found) < 1e-6 and (abs(other) < 1e-6) is (updates == 1)


def carried_over(tmp_path: Path, parent: Parent, pool: Pool, **keys: Any) -> Any:
    """A run of four generations in which slow prompts are cut, and its steps."""
    run = made(tmp_path, parent, [MIXED, UNEVEN, WRONG], **{**LONG, **keys})
    return run, steps(run)


def test_slow_prompts_are_cut_and_go_on_in_the_next_generation(tmp_path: Path, parent: Parent, pool: Pool) -> None:
    run, found = carried_over(tmp_path, parent, pool, temperature=Annealing(1.0, 0.5, 1.0))
    policy = opened(run)
    left = [grouping.carried(run, generation) for generation in range(4)]
    assert any(left), "nothing was cut"
    heard = [store.read_shard(run.folder / "rollouts" / f"{g:05d}.parquet", Rollout) for g in range(4)]
    seen = Counter(one.id for shard in heard for one in shard)
    assert max(seen.values()) == 1
    several = 0
    for generation, shard in enumerate(heard):
        before = grouping.by_sample(left[generation - 1]) if generation else {}
        for one in shard:
            assert sum(part.tokens for part in one.parts) == len(one.tokens or ()) == len(one.logprobs or ())
            begun = before.get((one.problem_id, one.index))
            if begun is None:
                assert {part.version for part in one.parts} == {generation}
                continue
            count = len(begun.tokens or ())
            assert (one.tokens or ())[:count] == begun.tokens and (one.logprobs or ())[:count] == begun.logprobs
            assert one.parts[: len(begun.parts)] == begun.parts and one.seed == begun.seed
            several += len(one.parts) > 1
        complete = {one.problem_id for one in shard}
        assert complete.isdisjoint({one.problem_id for one in left[generation]})
        unfinished = {one.problem_id for one in left[generation] if one.finish == "unfinished"}
        assert unfinished == {one.problem_id for one in left[generation]}
    assert several, "no rollout has parts of two policies"
    for step in found:
        for batch in groups([step]):
            with torch.no_grad():
                now = policy.logprobs(batch.rows, temperature=batch.temperature)
            places = batch.rows.weights > 0
            assert torch.allclose(now[places], batch.sampled_logprobs[places], atol=1e-4)  # nothing has moved here


def test_what_was_said_by_an_earlier_policy_keeps_its_probability(tmp_path: Path, parent: Parent, pool: Pool) -> None:
    """Rollouts of two policies, as a run that learns between its generations has them."""
    run = made(tmp_path, parent, [MIXED], steps=1)
    policy = opened(run)
    (step,) = steps(run, policy)
    shard = run.folder / "rollouts" / "00000.parquet"
    stored = store.read_shard(shard, Rollout)

    def older(one: Rollout) -> Rollout:
        (part,) = one.parts
        parts = (replace(part, tokens=3, temperature=0.5, version=-1), replace(part, tokens=part.tokens - 3))
        logprobs = tuple(x - 0.4 * (t < 3) for t, x in enumerate(one.logprobs or ()))
        return replace(one, parts=parts, logprobs=logprobs)

    store.write_shard(run.folder / "rollouts", 0, Rollout, [older(one) for one in stored])
    for correction in ("none", "truncate"):
        objective = Objective(correction=correction, correction_high=1.2)
        again = made(tmp_path, parent, steps=1, objective=objective)
        (step,) = steps(again, policy)
        for batch in groups([step]):
            for places in spoken(batch):
                assert batch.temperature[places].tolist() == [0.5] * 3 + [1.0] * (len(places) - 3)
                fresh = batch.fresh[places].tolist()
                assert fresh == [correction != "none"] * 3 + [True] * (len(places) - 3)
            found = rlvr.loss(policy, batch, again.settings)
            if correction == "none":
                assert float(found.metrics["kl"]) > 0.01  # the ratio of the first three is not 1
            else:
                assert float(found.metrics["kl"]) == pytest.approx(0.0, abs=1e-6)
                assert float(found.metrics["corrected"]) > 0


def test_a_stored_generation_is_not_sampled_again(tmp_path: Path, parent: Parent) -> None:
    run = made(tmp_path, parent, [MIXED, UNEVEN, WRONG], steps=3)
    found = steps(run)
    times = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*.parquet")}
    shutil.rmtree(run.folder / "verdicts")
    again = steps(run)
    for one, other in zip(groups(found), groups(again), strict=True):
        assert torch.equal(one.rows.tokens, other.rows.tokens) and torch.equal(one.advantages, other.advantages)
    assert all(path.stat().st_mtime_ns > old for path, old in times.items() if path.parent.name == "rollouts")
    times = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*.parquet")}
    for one, other in zip(groups(found), groups(steps(run)), strict=True):
        assert torch.equal(one.rows.tokens, other.rows.tokens) and torch.equal(one.old_logprobs, other.old_logprobs)
    assert times == {path: path.stat().st_mtime_ns for path in run.folder.rglob("*.parquet")}


def test_kl_entropy_and_critic_join_the_loss(tmp_path: Path, parent: Parent) -> None:
    plain = made(tmp_path, parent, [MIXED], steps=1)
    policy = opened(plain)
    (step,) = steps(plain, policy)
    for name, objective in {
        "kl": Objective(kl=0.5),
        "k3": Objective(kl=0.5, kl_estimator="k3"),
        "entropy": Objective(entropy=0.5),
    }.items():
        run = made(tmp_path, parent, steps=1, objective=objective)
        (again,) = steps(run, policy)
        for one, batch in zip(groups([step]), groups([again]), strict=True):
            with torch.no_grad():
                bare = rlvr.loss(policy, one, plain.settings)
                moved = replace(batch, ref_logprobs=batch.ref_logprobs - 0.2 * (batch.rows.weights > 0))
                found = rlvr.loss(policy, moved, run.settings)
            if name == "entropy":
                expected = -0.5 * float(bare.metrics["entropy"])
            else:
                value = 0.02 if name == "kl" else float(torch.tensor(-0.2).exp()) - 1 + 0.2
                expected = 0.5 * value * float(batch.rows.weights.sum())
            assert float(found.value - bare.value) == pytest.approx(expected, rel=1e-3)


def test_advantages_of_other_kinds(tmp_path: Path, parent: Parent) -> None:
    found: dict[str, set[float]] = defaultdict(set)
    for kind in ("grpo", "dr_grpo", "rloo", "lead"):
        reward = Reward(right=3.0)
        run = made(tmp_path / kind, parent, [MIXED], steps=1, reward=reward, objective=Objective(advantage=kind))
        for batch in groups(steps(run)):
            found[kind] |= {round(x, 4) for x in batch.advantages[batch.rows.weights > 0].tolist()}
    (count,) = {
        len(one.selection.kept) for one in grouping.read(made(tmp_path / "rloo", parent), 0, {MIXED.id: MIXED}).kept
    }
    assert found["dr_grpo"] == {-2.0, 2.0}
    assert found["rloo"] == {round(x * 2 * count / (count - 1), 4) for x in (-1, 1)}
    assert len(found["grpo"]) == 2 and max(found["grpo"]) == pytest.approx(1.0, abs=1e-3)
    assert 1.3 < max(found["lead"]) < 1.5 and -1.3 < min(found["lead"]) < -0.4  # a third of its responses are right


def test_the_critic_learns_alone_at_first_and_whitening_spans_the_step(tmp_path: Path, parent: Parent) -> None:
    for warmup in (0, 1):
        critic = Critic(warmup=warmup, whiten=True)
        run = made(tmp_path / str(warmup), parent, [MIXED, UNEVEN], steps=2, algorithm="ppo", critic=critic)
        for generation, step in enumerate(steps(run)):
            batches = groups([step])
            weights = torch.cat([batch.rows.weights for batch in batches]).double()
            found = torch.cat([batch.advantages for batch in batches]).double()
            assert all(batch.critic_alone == (generation < warmup) for batch in batches)
            mean = float((weights * found).sum() / weights.sum())
            assert mean == pytest.approx(0.0, abs=1e-5)
            assert float((weights * (found - mean).square()).sum() / weights.sum()) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("trunk", ["own", "shared"])
def test_in_the_warm_up_nothing_but_the_critic_moves(
    tmp_path: Path, parent: Parent, trunk: Literal["own", "shared"]
) -> None:
    more = {"algorithm": "ppo", "objective": Objective(entropy=0.1, kl=0.1)}
    run = made(tmp_path, parent, [MIXED, UNEVEN], critic=Critic(trunk=trunk, warmup=1), **more)
    policy = run.opened(critic=trunk)
    with torch.no_grad():
        policy.critic.head.weight.fill_(0.1)  # so that its trunk has a slope
    (batch, *_) = groups([next(rlvr.steps(run, policy))])
    for alone, learn in ((True, {"critic"}), (False, {"critic", "model"})):
        policy.zero_grad()
        rlvr.loss(policy, replace(batch, critic_alone=alone), run.settings).value.backward()
        moved = {name.partition(".")[0] for name, p in policy.named_parameters() if p.grad is not None and p.grad.any()}
        assert moved == learn


def test_ahead_a_generation_is_sampled_by_the_policy_before_the_one_before(tmp_path: Path, parent: Parent) -> None:
    every = {"balance": False, "max_prompt_accuracy": 1.0, "objective": Objective(keep_flat=True)}
    run = made(tmp_path, parent, [MIXED, UNEVEN, WRONG], steps=4, updates=2, engine=Engine(ahead=True), **every)
    run = replace(run, recipe=with_rate(run, save_every=3))
    stops = []

    def watched(run: Run, policy: Policy) -> Iterator[Step]:
        for step in rlvr.steps(run, policy):
            stops.append(step.may_stop)
            yield step

    train(replace(run, stage=replace(run.stage, steps=watched)))
    versions = [{part.version for one in shard(run, generation) for part in one.parts} for generation in range(4)]
    assert versions == [{0}, {0}, {2}, {4}]
    assert stops == [False, False, False, True, False, True, False, False]  # saves are due after steps 3 and 6
    entries = [entry for entry in journal.read(run.folder) if "sampled" in entry]
    assert [entry["beside_seconds"] > 0 for entry in entries] == [False, True, True, True]
    assert all(entry["idle_seconds"] > -0.01 for entry in entries)
    assert entries[0]["logprob_gap"] < 1e-4 < entries[1]["logprob_gap"]  # the policy has moved since
    assert entries[0]["kl"] < 1e-9 < entries[1]["kl"]  # to the policy that sampled


def test_what_fails_ahead_fails_before_a_save(tmp_path: Path, parent: Parent, pool: Pool) -> None:
    """After one the run would sample that generation by other weights than before."""
    run = made(tmp_path, parent, [MIXED], engine=Engine(ahead=True))
    failed: Future[Any] = Future()
    failed.set_exception(RunError("no worker started"))
    with Generations(run, lambda: None, pool, {}, 0) as generations:
        generations._coming = failed
        with pytest.raises(RunError, match="no worker"):
            generations.wait()


def test_what_is_sampled_ahead_is_given_up_when_the_run_ends(tmp_path: Path, parent: Parent) -> None:
    engine = Engine(ahead=True, num_slots=1)
    run = made(tmp_path, parent, [MIXED], steps=2, group_size=64, oversample=0, engine=engine)
    found = rlvr.steps(run, opened(run))
    next(found)
    found.close()
    assert not (run.folder / "verdicts" / "00001.parquet").exists()
    assert "generation_0" not in {thread.name for thread in threading.enumerate()}


KINDS: dict[str, Any] = {
    "plain": {},
    "carried": LONG,
    "ppo": {"updates": 2, "algorithm": "ppo"},
    "ahead": {"engine": Engine(ahead=True, issue=1.5), "updates": 2},
}


@pytest.mark.parametrize("keys", KINDS.values(), ids=KINDS)
def test_a_run_is_resumed_and_learned_from_again_bit_for_bit(tmp_path: Path, parent: Parent, keys: Any) -> None:
    def begun(name: str) -> Run:
        run = made(tmp_path / name, parent, [MIXED, UNEVEN, WRONG], **{"steps": 4, **keys})
        return replace(run, recipe=with_rate(run))

    straight = begun("straight")
    card, entries = train(straight), told(straight.folder)
    versions = {part.version for one in shard(straight, 3) for part in one.parts}
    assert len(versions) > 1 or keys is not LONG
    assert len({entry.get("loss") for entry in entries}) > 1
    for at in range(1, 4):
        run = begun(f"killed in generation {at}")
        with pytest.raises(RunError, match="killed"):
            train(replace(run, stage=replace(run.stage, steps=killed(at * run.settings.updates))))
        assert train(run).id == card.id and told(run.folder) == entries
        assert [one.id for one in shard(run, 3)] == [one.id for one in shard(straight, 3)]
    again = begun("learned from again")
    shutil.rmtree(again.folder)
    left = shutil.ignore_patterns("checkpoint", "journal.jsonl")
    shutil.copytree(straight.folder, again.folder, ignore=left)
    assert train(again).id == card.id and told(again.folder) == entries


def killed(at: int) -> Any:
    """The steps of the stage, ended by an error before step `at`."""

    def steps(run: Run, policy: Policy) -> Iterator[Step]:
        for index, step in enumerate(rlvr.steps(run, policy), run.start):
            if index == at:
                raise RunError("killed")
            yield step

    return steps


def shard(run: Run, generation: int) -> list[Rollout]:
    return store.read_shard(run.folder / "rollouts" / f"{generation:05d}.parquet", Rollout)


def with_rate(run: Run, save_every: int = 1) -> Recipe:
    """The run's recipe, learning fast enough for its numbers to change, and saved after each step."""
    settings, training = run.recipe.values["rlvr"]
    values = {**run.recipe.values, "rlvr": (settings, replace(training, learning_rate=1e-3, save_every=save_every))}
    return replace(run.recipe, values=values)


def told(folder: Path) -> list[dict[str, Any]]:
    entries = journal.read(folder)
    return [{key: value for key, value in entry.items() if not key.endswith("seconds")} for entry in entries]
