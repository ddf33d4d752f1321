"""Stage 4 on a tiny model that was taught what to answer: which prompts, which groups, which advantages."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from algorist import store
from algorist.errors import RunError
from algorist.model import devices
from algorist.numerics.address import rng
from algorist.records import Problem, Rollout
from algorist.stages import groups as grouping
from algorist.stages import prompts as prompting
from algorist.stages import rlvr
from algorist.stages.health import Health
from algorist.stages.shaping import Reward
from algorist.verify.pool import Pool
from stages.taught import (
    ALL,
    EASY,
    MIXED,
    UNEVEN,
    UNJUDGED,
    WRONG,
    Parent,
    documents,
    filled,
    groups,
    made,
    opened,
    spoken,
    steps,
)


def test_curate_keeps_prompts_of_uniform_length_that_are_not_too_easy(tmp_path: Path, parent: Parent) -> None:
    run = made(tmp_path, parent)
    found = prompting.curate(run)
    assert store.read(run.data, Problem) == [MIXED, WRONG]
    assert found.dropped == {"too easy": 1, "lengths not uniform": 1, "could not be judged": 1}
    asked = store.manifest(run.folder / "prompts" / "verdicts")
    assert found.parents == (store.manifest(tmp_path / "sets" / "rlvr").id, asked.id) and asked.rows == 40
    assert rlvr.plan(run).documents == 2


def test_responses_that_may_outgrow_the_model_are_refused_before_any_is_sampled(tmp_path: Path, parent: Parent) -> None:
    prompt = max(len(parent[1].prompt_ids(problem.statement)) for problem in ALL)
    run = made(tmp_path, parent, max_tokens=65 - prompt)
    with pytest.raises(RunError) as refused:
        prompting.curate(run)
    assert str(refused.value) == (
        f"{parent[0]}: the model knows 64 positions, and a prompt of {prompt} tokens with a response of {65 - prompt} "
        f"may come. Lower [rlvr] max_tokens to {64 - prompt} or less."
    )
    assert not (run.folder / "prompts").exists()
    prompting.curate(made(tmp_path, parent, max_tokens=64 - prompt))


def test_the_plan_counts_the_longest_response_that_may_come(tmp_path: Path, parent: Parent) -> None:
    run = made(tmp_path, parent, [MIXED, EASY])
    prompts = [len(run.chat.prompt_ids(problem.statement)) for problem in (MIXED, EASY)]
    assert rlvr.plan(run).longest == max(prompts) + run.settings.max_tokens


def test_curate_thresholds(tmp_path: Path, parent: Parent) -> None:
    loose = prompting.Prompts(candidates=5, rounds=1, samples=4, max_length_spread=9.0, max_accuracy=1.0)
    run = made(tmp_path / "loose", parent, prompts=loose)
    assert prompting.curate(run).dropped == {"could not be judged": 1}
    assert store.read(run.data, Problem) == [EASY, MIXED, WRONG, UNEVEN]
    two = made(tmp_path / "two", parent, prompts=replace(loose, candidates=2))
    prompting.curate(two)
    drawn = sorted(rng(1, "rlvr", "candidates").permutation(len(ALL))[:2])
    assert store.read(two.data, Problem) == [ALL[i] for i in drawn if ALL[i] is not UNJUDGED]


def test_no_prompt_left_is_an_error(tmp_path: Path, parent: Parent) -> None:
    prompts = prompting.Prompts(candidates=5, rounds=2, samples=4, min_accuracy=0.01, max_accuracy=0.01)
    run = made(tmp_path, parent, prompts=prompts)
    with pytest.raises(RunError) as refused:
        prompting.curate(run)
    assert str(refused.value) == (
        f"{run.data}: no prompt is left (2 too easy, 1 too hard, 1 lengths not uniform, 1 could not be judged). "
        "[rlvr] prompts.max_accuracy is 0.01: raise it, or take harder problems."
    )


def test_what_cannot_be_done_is_said_before_a_prompt_is_sampled(
    tmp_path: Path, parent: Parent, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(name: str, **keys: Any) -> str:
        run = made(tmp_path / name, parent, **keys)
        with pytest.raises(RunError) as told:
            rlvr.STAGE.curate(run)
        assert not (run.folder / "prompts").exists()
        return str(told.value)

    assert refused("updates", updates=99).startswith("[rlvr] updates = 99: ")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    elsewhere = rlvr.Engine(ahead=True, device="cuda:1")
    assert "one of this machine's 1 CUDA devices" in refused("device", engine=elsewhere)
    metal = rlvr.Engine(ahead=True, device="mps")
    assert '"mps": the sampler runs on "cpu" or on one of' in refused("metal", engine=metal)
    if importlib.util.find_spec("vllm") is None:
        assert "vllm is not installed" in refused("vllm", engine=rlvr.Engine(kind="vllm"))


def test_models_beside_the_policy_are_in_the_memory_plan() -> None:
    def copies(kl: float = 0.0, **engine: Any) -> int:
        objective = replace(rlvr.Settings().objective, kl=kl)
        return rlvr.STAGE.copies(rlvr.Settings(objective=objective, engine=rlvr.Engine(**engine)))

    assert (copies(), copies(kl=0.1), copies(ahead=True), copies(kl=0.1, ahead=True)) == (0, 1, 1, 2)
    assert (copies(ahead=True, device="cuda:1"), copies(ahead=True, kind="vllm")) == (0, 0)
    assert copies(ahead=True, device=str(devices.default())) == 1


def test_hard_prompts_are_sampled_again_and_groups_balanced(tmp_path: Path, parent: Parent, pool: Pool) -> None:
    run = made(tmp_path, parent)
    kept, facts = filled(run, pool, [EASY, MIXED, WRONG])
    (group,) = kept
    assert group.problem == MIXED and len(group.rollouts) == 8
    assert [answer_is(5, one) for one in group.rollouts] == list(group.right)
    rights = [group.right[i] for i in group.selection.kept]
    assert sum(rights) == len(rights) / 2 > 0
    names = ("groups", "too_easy", "none_right", "none_wrong", "sampled", "learned_from", "unjudged", "ended")
    assert [facts[name] for name in names] == [1, 1, 1, 0, 8 + 8 + 16, len(rights), 0, 1.0]
    assert facts["accuracy"] == (8 + sum(group.right)) / 32
    stored = store.read_shard(run.folder / "rollouts" / "00000.parquet", Rollout)
    assert len({one.id for one in stored}) == 32 and sum(one.num_tokens for one in stored) == facts["sampled_tokens"]
    assert sorted(one.index for one in stored if one.problem_id == WRONG.id) == list(range(16))
    assert set(group.rollouts) <= set(stored)


def answer_is(number: int, rollout: Rollout) -> bool:
    return f"\\boxed{{{number}}}" in rollout.text


def test_new_prompts_replace_dropped_ones(tmp_path: Path, parent: Parent, pool: Pool) -> None:
    problems = [EASY, WRONG, MIXED]
    sampled = {}
    for refills in (0, 1, 2):
        run = made(tmp_path / str(refills), parent, batch_size=1, refills=refills)
        for generation in range(4):
            kept, facts = filled(run, pool, problems, generation)
            order = [problems[i] for i in rng(1, "rlvr", "epoch", 0).permutation(3)]
            tried = order[: min(order.index(MIXED), refills) + 1]
            assert [group.problem for group in kept] == [MIXED] * (MIXED in tried)
            assert facts["sampled"] == sum(16 if problem is WRONG else 8 for problem in tried)
            sampled[refills, generation] = facts["sampled"]
    assert any(sampled[0, i] < sampled[2, i] for i in range(4))


def test_what_cannot_be_judged_leaves_its_group_and_is_counted(tmp_path: Path, parent: Parent, pool: Pool) -> None:
    run = made(tmp_path, parent)
    kept, facts = filled(run, pool, [MIXED, UNJUDGED])
    assert [group.problem for group in kept] == [MIXED]
    assert facts["unjudged"] == 16 and facts["sampled"] == 24  # it stays below enough_right, so it is asked twice
    with pytest.raises(RunError) as refused:
        filled(run, pool, [UNJUDGED], 1)
    assert str(refused.value) == (
        "rlvr: none of the 16 responses of generation 1 could be judged. Run the same command again if the machine was "
        "overloaded, or mend [verify]."
    )
    assert not grouping.stored(run, 1)  # the same command asks again


def test_temperatures_saves_and_resuming(tmp_path: Path, parent: Parent) -> None:
    run = made(tmp_path, parent, [MIXED, EASY], steps=4, updates=2)
    assert rlvr.plan(run).num_steps == 8
    found = steps(run)
    assert [step.facts["temperature"] for step in found] == pytest.approx([1.0, 1.0, 0.8, 0.8, 0.6, 0.6, 0.6, 0.6])
    for step in found:
        for batch in groups([step]):
            spoke = batch.rows.weights > 0
            assert (
                batch.temperature[spoke].eq(step.facts["temperature"]).all() and batch.temperature[~spoke].eq(1).all()
            )
    assert [step.may_stop for step in found] == [False, True] * 4
    resumed = steps(replace(run, start=4))
    assert len(resumed) == 4
    for one, other in zip(groups(found[4:]), groups(resumed), strict=True):
        assert torch.equal(one.rows.tokens, other.rows.tokens) and torch.equal(one.old_logprobs, other.old_logprobs)


def test_weights_of_a_step_sum_to_one_with_equal_shares_for_all_responses(tmp_path: Path, parent: Parent) -> None:
    run = made(tmp_path, parent, [MIXED, UNEVEN, WRONG], steps=1)
    (step,) = steps(run)
    batches = groups([step])
    assert len(batches) > 1  # micro-batches
    assert sum(float(batch.rows.weights.sum()) for batch in batches) == pytest.approx(1.0, abs=1e-5)
    shares = [float(batch.rows.weights[part].sum()) for batch in batches for part in documents(batch.rows)]
    assert len(shares) == step.facts["learned_from"]
    assert shares == pytest.approx([1 / len(shares)] * len(shares), rel=1e-5)
    assert step.facts["tokens"] == sum(len(batch.rows.tokens) for batch in batches)
    prompt = run.chat.prompt_ids(MIXED.statement)
    for batch in batches:
        for part, places in zip(documents(batch.rows), spoken(batch), strict=True):
            assert tuple(batch.rows.tokens[part][: len(prompt)].tolist()) == prompt
            assert places.tolist() == list(range(part.start + len(prompt), part.stop))
            assert int(batch.rows.tokens[part.stop - 1]) == run.chat.end


def test_grpo_advantages_are_plus_and_minus_one_along_the_response(tmp_path: Path, parent: Parent) -> None:
    run = made(tmp_path, parent, [MIXED], steps=1)
    policy = opened(run)
    (step,) = steps(run, policy)
    signs = []
    for batch in groups([step]):
        assert batch.advantages[batch.rows.weights == 0].eq(0).all() and batch.old_values.eq(0).all()
        with torch.no_grad():
            again = policy.logprobs(batch.rows, temperature=1.0)
        assert torch.allclose(batch.old_logprobs, again, atol=1e-5)
        for places in spoken(batch):
            (value,) = set(batch.advantages[places].tolist())
            right = answer_is(5, Rollout.of("", run.chat.text(tuple(batch.rows.tokens[places].tolist())), ""))
            assert value == pytest.approx(1.0 if right else -1.0)
            signs.append(right)
    assert sum(signs) == len(signs) / 2 > 0
    assert 0 <= step.facts["logprob_gap"] <= step.facts["logprob_gap_max"] < 1e-3


def test_old_logprobs_are_taken_at_the_temperature_of_the_sampling(tmp_path: Path, parent: Parent) -> None:
    annealing = rlvr.Annealing(start=0.7, end=0.7)
    run = made(tmp_path, parent, [MIXED], steps=1, temperature=annealing)
    policy = opened(run)
    (step,) = steps(run, policy)
    assert step.facts["logprob_gap_max"] < 1e-3
    batch = groups([step])[0]
    with torch.no_grad():
        assert torch.allclose(batch.old_logprobs, policy.logprobs(batch.rows, temperature=0.7), atol=1e-5)
        assert not torch.allclose(batch.old_logprobs, policy.logprobs(batch.rows), atol=1e-3)


@pytest.mark.parametrize(("trunk", "gamma", "lam"), [("own", 1.0, 1.0), ("shared", 0.9, 0.8)])
def test_ppo_has_an_advantage_for_each_token(
    tmp_path: Path, parent: Parent, trunk: Any, gamma: float, lam: float
) -> None:
    critic = rlvr.Critic(trunk=trunk, gamma=gamma, lam=lam)
    reward = Reward(right=2.0, wrong=-1.0)
    run = made(tmp_path, parent, [MIXED], steps=1, algorithm="ppo", critic=critic, reward=reward)
    assert rlvr.STAGE.critic(run.settings) == trunk
    policy = opened(run)
    (step,) = steps(run, policy)
    finals = []
    for batch in groups([step]):
        with torch.no_grad():
            estimates = policy.values(batch.rows)
        for places in spoken(batch):
            values = estimates[places].tolist()
            right = answer_is(5, Rollout.of("", run.chat.text(tuple(batch.rows.tokens[places].tolist())), ""))
            finals.append(2.0 if right else -1.0)
            ahead = following = 0.0
            expected: list[float] = []
            for place, value in reversed(list(enumerate(values))):
                earned = finals[-1] if place == len(values) - 1 else 0.0
                following = earned + gamma * ahead - value + gamma * lam * following
                ahead = value
                expected.insert(0, following)
            assert batch.advantages[places].tolist() == pytest.approx(expected, abs=1e-4)
            assert batch.old_values[places].tolist() == pytest.approx(values, abs=1e-5)
            returns = [a + v for a, v in zip(expected, values, strict=True)]
            assert batch.returns[places].tolist() == pytest.approx(returns, abs=1e-4)
        silent = batch.rows.weights == 0
        assert all(x[silent].eq(0).all() for x in (batch.advantages, batch.returns, batch.old_values))
    assert set(finals) == {2.0, -1.0}


def test_the_loss_of_the_policy_that_sampled(tmp_path: Path, parent: Parent) -> None:
    """Nothing has moved: every ratio is 1, balanced advantages cancel, and the critic's fit stands beside it."""
    run = made(tmp_path, parent, [MIXED], steps=1, algorithm="ppo")
    policy = opened(run)
    (step,) = steps(run, policy)
    for batch in groups([step]):
        found = rlvr.loss(policy, batch, run.settings)
        weights = batch.rows.weights
        surrogate = -float((weights * batch.advantages).sum())
        fit = 0.5 * float((weights * (batch.old_values - batch.returns).square()).sum())
        assert float(found.value.detach()) == pytest.approx(surrogate + 0.5 * fit, abs=1e-4)
        assert float(found.metrics["loss"]) == pytest.approx(surrogate, abs=1e-4)
        assert float(found.metrics["value_loss"]) == pytest.approx(fit, abs=1e-4)
        assert float(found.metrics["clipped"]) == 0.0 and float(found.metrics["kl"]) == pytest.approx(0.0, abs=1e-5)


def test_trainer_and_sampler_must_agree(tmp_path: Path, parent: Parent) -> None:
    run = made(tmp_path, parent, [MIXED], steps=1, health=Health(max_logprob_gap=0.0))
    with pytest.raises(RunError) as refused:
        steps(run)
    assert str(refused.value) == (
        f"{run.folder}: trainer and sampler disagree by 0.000 nats per token, at most 0.0 was expected. "
        'Use precision = "float32", or raise health.max_logprob_gap.'
    )
