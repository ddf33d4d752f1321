"""Stage 4 on a tiny model that was taught what to answer: which prompts, which groups, which advantages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from algorist import store
from algorist.errors import RunError
from algorist.generate.sampling import Sampling
from algorist.model import checkpoints
from algorist.model.batches import Batch, Document, GroupBatch, token_mean
from algorist.model.chat import Chat
from algorist.model.policy import Policy
from algorist.numerics.address import rng
from algorist.recipe import Recipe
from algorist.records import Checkpoint, Problem, Question, Rollout
from algorist.stage import Run, Step
from algorist.stages import rlvr
from algorist.stages.groups import Sampler
from algorist.toy import base, words
from algorist.verify import pool as verify
from algorist.verify.conventions import Conventions
from algorist.verify.pool import Pool

ASKED = "How many points does {} have?"
EASY = Problem.of(ASKED.format("Tom"), "3")  # always right
MIXED = Problem.of(ASKED.format("Ann"), "5")  # right one time in three
WRONG = Problem.of(ASKED.format("Bob"), "8")  # never right
UNEVEN = Problem.of(ASKED.format("Eva"), "9")  # never right, now short and now long
UNJUDGED = Problem.of("How many points does Tom win?", "")  # the gold answer cannot be read
ALL = [EASY, MIXED, WRONG, UNEVEN, UNJUDGED]
LESSONS = {
    EASY.id: ["The answer is \\boxed{3}."],
    MIXED.id: ["The answer is \\boxed{5}.", "The answer is \\boxed{6}.", "The answer is \\boxed{7}."],
    WRONG.id: ["The answer is \\boxed{1}."],
    UNEVEN.id: ["\\boxed{2}.", "Let me think again. That is right. That does not count. \\boxed{2}."],
    UNJUDGED.id: ["The answer is \\boxed{4}."],
}
Parent = tuple[Path, Chat]


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Parent:
    """A model of one layer that has learned the lessons by heart."""
    tokenizer = words.tokenizer()
    chat = Chat.of(tokenizer, "{problem}")
    shape = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "mlp_size": 32, "context": 64}
    policy = Policy(base.model(len(tokenizer), 1, **shape))
    documents = []
    for problem in ALL:
        prompt = chat.prompt_ids(problem.statement)
        for text in LESSONS[problem.id]:
            tokens = prompt + chat.response_ids(text)
            documents += [Document.of(tokens, len(prompt))] * (6 // len(LESSONS[problem.id]))
    (rows,) = token_mean(documents, 10_000)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.01)
    for _ in range(120):
        loss = -(rows.weights * policy.logprobs(rows)).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("parent") / "checkpoint"
    checkpoints.save(folder, policy, tokenizer, Checkpoint("", "dpo", 120))
    return folder, chat


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(workers=1) as shared:
        yield shared


def made(root: Path, parent: Parent, learned: list[Problem] | None = None, batch_size: int = 3, **keys: Any) -> Run:
    """A run whose problems are ALL and whose `curate` is done where `learned` says with what."""
    prompts = rlvr.Prompts(candidates=len(ALL), rounds=2, samples=4)
    defaults = {"max_tokens": 20, "group_size": 8, "oversample": 16, "max_prompt_accuracy": 0.8, "prompts": prompts}
    settings = rlvr.Settings(**{**defaults, **keys})
    training = replace(rlvr.STAGE.training, batch_size=batch_size, tokens_per_batch=60)
    values = {"rlvr": (settings, training), "verify": (verify.Settings(), Conventions())}
    run = Run(Recipe(root / "r.toml", "test", 1, values), root, rlvr.STAGE, str(parent[0]), parent[1], "float32")
    if not (root / "problems").exists():
        store.write(root / "problems", Problem, ALL)
        asked = [Question(f"q{one.id}", one.id, (), one.answer, 0.5, "", "", "", "") for one in ALL]
        store.write(root / "sets" / "rlvr", Question, asked)
    if learned is not None:
        store.write(run.data, Problem, learned)
    return run


def opened(run: Run, with_critic: bool = False) -> Policy:
    policy = checkpoints.open_policy(run.parent, precision="float32", with_critic=with_critic)
    if policy.critic is not None:
        with torch.no_grad():
            torch.manual_seed(1)
            policy.critic.weight.normal_(std=0.1)
    return policy


def steps(run: Run, policy: Policy | None = None) -> list[Step]:
    return list(rlvr.steps(run, policy or opened(run)))


def documents(batch: Batch) -> list[slice]:
    return [slice(a, b) for a, b in zip(batch.bounds, batch.bounds[1:], strict=False)]


def spoken(batch: GroupBatch) -> list[torch.Tensor]:
    """For each document, the places of its response."""
    return [part.start + batch.rows.weights[part].nonzero()[:, 0] for part in documents(batch.rows)]


def groups(found: list[Step]) -> list[GroupBatch]:
    return [batch for step in found for batch in step.batches if isinstance(batch, GroupBatch)]


def test_curate_keeps_prompts_of_uniform_length_that_are_not_too_easy(tmp_path: Path, parent: Parent) -> None:
    run = made(tmp_path, parent)
    found = rlvr.curate(run)
    assert store.read(run.data, Problem) == [MIXED, WRONG]
    assert found.dropped == {"too easy": 1, "lengths not uniform": 1, "could not be judged": 1}
    asked = store.manifest(run.folder / "prompts" / "verdicts")
    assert found.parents == (store.manifest(tmp_path / "sets" / "rlvr").id, asked.id) and asked.rows == 40
    assert rlvr.plan(run).documents == 2


def test_curate_thresholds(tmp_path: Path, parent: Parent) -> None:
    loose = rlvr.Prompts(candidates=5, rounds=1, samples=4, max_length_spread=9.0, max_accuracy=1.0)
    run = made(tmp_path / "loose", parent, prompts=loose)
    assert rlvr.curate(run).dropped == {"could not be judged": 1}
    assert store.read(run.data, Problem) == [EASY, MIXED, WRONG, UNEVEN]
    two = made(tmp_path / "two", parent, prompts=replace(loose, candidates=2))
    rlvr.curate(two)
    drawn = sorted(rng(1, "rlvr", "candidates").permutation(len(ALL))[:2])
    assert store.read(two.data, Problem) == [ALL[i] for i in drawn if ALL[i] is not UNJUDGED]


def test_no_prompt_left_is_an_error(tmp_path: Path, parent: Parent) -> None:
    prompts = rlvr.Prompts(candidates=5, rounds=2, samples=4, max_length_spread=-1.0)
    run = made(tmp_path, parent, prompts=prompts)
    with pytest.raises(RunError) as refused:
        rlvr.curate(run)
    assert str(refused.value) == (
        f"{run.data}: no prompt is left (4 lengths not uniform, 1 could not be judged). "
        "Raise max_length_spread or max_accuracy."
    )


def test_hard_prompts_are_sampled_again_and_groups_balanced(tmp_path: Path, parent: Parent, pool: Pool) -> None:
    run = made(tmp_path, parent)
    kept, facts = Sampler(run, opened(run), pool, Sampling(1.0, 1.0, 20), 0).fill([EASY, MIXED, WRONG])
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
            sampler = Sampler(run, opened(run), pool, Sampling(1.0, 1.0, 20), generation)
            kept, facts = sampler.fill(problems)
            order = [problems[i] for i in rng(1, "rlvr", "prompts", generation).permutation(3)]
            tried = order[: min(order.index(MIXED), refills) + 1]
            assert [group.problem for group in kept] == [MIXED] * (MIXED in tried)
            assert facts["sampled"] == sum(16 if problem is WRONG else 8 for problem in tried)
            sampled[refills, generation] = facts["sampled"]
    assert any(sampled[0, i] < sampled[2, i] for i in range(4))


def test_what_cannot_be_judged_leaves_its_group_and_is_counted(tmp_path: Path, parent: Parent, pool: Pool) -> None:
    run = made(tmp_path, parent)
    kept, facts = Sampler(run, opened(run), pool, Sampling(1.0, 1.0, 20), 0).fill([MIXED, UNJUDGED])
    assert [group.problem for group in kept] == [MIXED]
    assert facts["unjudged"] == 16 and facts["sampled"] == 8  # it stays below enough_right, so it is asked twice
    with pytest.raises(RunError) as refused:
        Sampler(run, opened(run), pool, Sampling(1.0, 1.0, 20), 1).fill([UNJUDGED])
    assert str(refused.value) == (
        "rlvr: none of the sampled responses could be judged. Look at the verdicts and mend [verify]."
    )


def test_temperatures_saves_and_resuming(tmp_path: Path, parent: Parent) -> None:
    run = made(tmp_path, parent, [MIXED, EASY], steps=4, updates=2)
    assert rlvr.plan(run).num_steps == 8
    found = steps(run)
    assert [step.facts["temperature"] for step in found] == pytest.approx([1.0, 1.0, 0.8, 0.8, 0.6, 0.6, 0.6, 0.6])
    assert all(batch.temperature == step.facts["temperature"] for step in found for batch in groups([step]))
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


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 0.8)])
def test_ppo_has_an_advantage_for_each_token(tmp_path: Path, parent: Parent, gamma: float, lam: float) -> None:
    critic = rlvr.Critic(gamma=gamma, lam=lam)
    reward = rlvr.Reward(right=2.0, wrong=-1.0)
    run = made(tmp_path, parent, [MIXED], steps=1, algorithm="ppo", critic=critic, reward=reward)
    assert rlvr.STAGE.with_critic(run.settings)
    policy = opened(run, with_critic=True)
    (step,) = steps(run, policy)
    finals = []
    for batch in groups([step]):
        with torch.no_grad():
            estimates = policy.values(policy.hidden(batch.rows))
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
    policy = opened(run, with_critic=True)
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
    run = made(tmp_path, parent, [MIXED], steps=1, max_logprob_gap=-1.0)
    with pytest.raises(RunError) as refused:
        steps(run)
    assert str(refused.value) == (
        f"{run.folder}: trainer and sampler disagree by 0.000 nats per token, at most -1.0 was expected. "
        'Use precision = "float32", or raise max_logprob_gap.'
    )
