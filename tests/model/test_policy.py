"""Log-probabilities: packed equals alone, documents never see each other, and what is saved opens again as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from algorist.errors import RecipeError
from algorist.model import checkpoints
from algorist.model.batches import lay_out
from algorist.model.optimizers import Optimizer
from algorist.model.policy import Policy, document_sums
from algorist.records import Checkpoint
from algorist.toy import words
from model import tiny

LENGTHS = [7, 31, 2, 30, 12, 12, 1, 25]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_packed_equals_each_document_alone(kind: str, temperature: float) -> None:
    policy = tiny.policy(kind)
    row = tiny.row(0, LENGTHS)
    reference = tiny.as_transformers_runs_it(policy)
    with torch.no_grad():
        found = policy.logprobs(row, temperature=temperature)
        spans = list(zip(row.bounds, row.bounds[1:], strict=False))
        expected = [tiny.alone(reference, row.tokens[a:b].tolist(), temperature) for a, b in spans]
    tiny.assert_close(found, torch.cat(expected), 1e-5)
    assert float(found.std()) > 0.5, "the model is too flat for this test to notice anything"


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_gradient_equals_that_of_documents_alone(kind: str) -> None:
    policy = tiny.policy(kind)
    row = tiny.row(1, LENGTHS)
    policy.logprobs(row).mul(row.weights).sum().backward()
    found = tiny.gradient(policy)
    reference = tiny.as_transformers_runs_it(policy)
    for begin, end in zip(row.bounds, row.bounds[1:], strict=False):
        (tiny.alone(reference, row.tokens[begin:end].tolist()) * row.weights[begin:end]).sum().backward()
    tiny.assert_close(found, tiny.gradient(Policy(reference)))


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_canary_changing_one_document_moves_no_other(kind: str) -> None:
    policy = tiny.policy(kind)
    row = tiny.row(2, LENGTHS)
    with torch.no_grad():
        before = policy.logprobs(row)
        for document, (begin, end) in enumerate(zip(row.bounds, row.bounds[1:], strict=False)):
            tokens = row.tokens.clone()
            tokens[begin:end] = (tokens[begin:end] + 17) % tiny.VOCABULARY
            moved = policy.logprobs(replace(row, tokens=tokens)) != before
            others = row.document() != document
            assert not moved[others].any(), f"document {document} is seen by another"
            assert moved[begin + 1 : end].any() or end - begin == 1


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_canary_no_gradient_crosses_a_border(kind: str) -> None:
    """The gradient of one document's log-probability with respect to every input embedding of the row."""
    policy = tiny.policy(kind)
    row = tiny.row(3, LENGTHS)
    kept: list[torch.Tensor] = []
    embedding = policy.model.get_input_embeddings()
    embedding.register_forward_hook(lambda _m, _i, out: kept.append(out.requires_grad_()) or out)
    sums = document_sums(policy.logprobs(row), row)
    for document in range(len(LENGTHS)):
        (slope,) = torch.autograd.grad(sums[document], kept[0], retain_graph=True)
        reached = slope[0].abs().sum(1) > 0
        inside = row.document() == document
        assert not reached[~inside].any(), f"document {document} reaches into another"
        assert reached[inside].any() == (LENGTHS[document] > 1)


def test_training_mode_has_no_dropout() -> None:
    """Else a resumed run, the reference of DPO and the sampler would not compute what the loop computes."""
    dropout = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attention_dropout": 0.1}
    policy, row = Policy(tiny.build("Phi3", **dropout).train()), tiny.row(4, LENGTHS)
    expected = policy.logprobs(row)
    policy.train()
    assert policy.training
    assert torch.equal(policy.logprobs(row), expected) and torch.equal(policy.logprobs(row), expected)
    assert {name: getattr(policy.model.config, name) for name in dropout} == dropout


def test_tokens_without_weight_are_not_scored() -> None:
    policy = tiny.policy()
    row = lay_out(tiny.documents(4, [9, 5], prompt_len=3), total=8.0)
    found = policy.logprobs(row)
    assert torch.equal(found == 0, row.weights == 0)
    nothing = replace(row, weights=torch.zeros_like(row.weights))
    assert policy.logprobs(nothing).tolist() == [0.0] * 14


def test_entropy_is_that_of_the_tempered_distribution() -> None:
    policy, row = tiny.policy("Phi3"), tiny.row(5, LENGTHS)
    found = policy.scores(row, temperature=0.7, with_entropy=True)
    assert found.entropy is not None
    plain = (policy.logits(policy.hidden(row)) / 0.7).log_softmax(1)
    expected = -(plain.exp() * plain).sum(1).roll(1) * (row.weights > 0)
    tiny.assert_close(found.entropy, expected, 1e-5)
    assert torch.equal(found.logprobs, policy.logprobs(row, temperature=0.7))


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_cross_entropy_at_once_is_that_of_the_logprobs(kind: str) -> None:
    policy, row = tiny.policy(kind), tiny.row(5, LENGTHS)
    apart = policy.logprobs(row).mul(row.weights).sum()
    apart.backward()
    expected = tiny.gradient(policy)
    policy.zero_grad()
    at_once = policy.weighted_logprob(row)
    at_once.backward()
    assert at_once.item() == pytest.approx(apart.item(), rel=1e-6)
    tiny.assert_close(tiny.gradient(policy), expected)


def test_document_sums() -> None:
    row = tiny.row(6, [3, 1, 4])
    assert document_sums(torch.arange(8.0), row).tolist() == [3.0, 3.0, 22.0]


def test_critic_estimates_one_value_per_token_from_what_stands_before_it() -> None:
    policy = tiny.policy("Phi3", critic="shared")
    assert policy.critic is not None
    row = tiny.row(7, [5, 6])
    assert policy.values(row).tolist() == [0.0] * 11
    torch.nn.init.normal_(policy.critic.head.weight)
    hidden = policy.hidden(row)
    values = policy.values(row, hidden)
    assert values.shape == (11,) and values.dtype == torch.float32
    assert torch.equal(values[1:], policy.critic.head(hidden)[:-1, 0]) and torch.equal(values, policy.values(row))


def test_a_critic_of_its_own_begins_as_the_policy_and_goes_its_own_way() -> None:
    shared, own = (tiny.policy("Phi3", critic=kind) for kind in ("shared", "own"))
    row = tiny.row(7, [5, 6])
    for policy in (shared, own):
        assert policy.critic is not None
        torch.nn.init.constant_(policy.critic.head.weight, 0.1)
    assert torch.allclose(shared.values(row), own.values(row), atol=1e-6)
    own.values(row).sum().backward()
    assert all(parameter.grad is None for parameter in own.model.parameters())
    assert own.critic is not None and own.critic.trunk is not None
    assert float(next(own.critic.trunk.layers.parameters()).grad.abs().max()) > 0


def test_tokens_of_one_row_may_have_temperatures_of_their_own() -> None:
    policy = tiny.policy("Phi3")
    row = tiny.row(7, [5, 6, 9])
    temperature = torch.ones(20, dtype=torch.float64)
    temperature[3:8] = 0.7
    both = [policy.scores(row, temperature=one, with_entropy=True) for one in (1.0, 0.7)]
    found = policy.scores(row, temperature=temperature, with_entropy=True)
    for name in ("logprobs", "entropy"):
        plain, cool = (getattr(one, name) for one in both)
        expected = torch.where(temperature == 0.7, cool, plain)
        assert torch.allclose(getattr(found, name), expected, atol=1e-6) and not torch.allclose(plain, cool, atol=1e-3)


def test_without_a_critic_there_are_no_values() -> None:
    policy = tiny.policy()
    with pytest.raises(AssertionError, match="only PPO has a critic"):
        policy.values(tiny.row(7, [3]))


@pytest.mark.parametrize("kind", ["Phi3", "Qwen3"])
def test_bfloat16_products_stay_near_float32(kind: str) -> None:
    exact, rough = tiny.policy(kind), tiny.policy(kind, precision="bfloat16", critic="shared")
    row = tiny.row(8, LENGTHS)
    rough.logprobs(row).mul(row.weights).sum().backward()
    assert all(p.dtype == torch.float32 for p in rough.parameters())
    with torch.no_grad():
        found, expected = rough.logprobs(row), exact.logprobs(row)
        assert rough.values(row).dtype == torch.float32
    assert found.dtype == torch.float32
    gap = (found - expected).abs().mean()
    assert 0 < float(gap) < 0.15, "bfloat16 was not used, or is far off"
    assert float(tiny.gradient(rough).abs().max()) > 0


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_optimizer_state_goes_on_identically(kind: str) -> None:
    def step(policy: Policy, optimizer: Optimizer, seed: int) -> None:
        row = tiny.row(seed, LENGTHS)
        (-policy.logprobs(row).mul(row.weights).sum()).backward()
        optimizer.step(1e-2)

    straight = tiny.policy("Phi3")
    optimizer = Optimizer(straight, kind=kind, weight_decay=0.1)
    step(straight, optimizer, 1)
    step(straight, optimizer, 2)
    state = {name: value.clone() for name, value in optimizer.state().items()}
    resumed = Policy(tiny.build("Phi3"))
    resumed.load_state_dict(straight.state_dict())
    again, forgetful = (Optimizer(resumed, kind=kind, weight_decay=0.1) for _ in range(2))
    assert not forgetful.state()
    again.load(state)
    assert {name: value.tolist() for name, value in again.state().items()} == {n: v.tolist() for n, v in state.items()}
    step(straight, optimizer, 3)
    step(resumed, again, 3)
    for (name, expected), found in zip(straight.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(found, expected), name


def test_muon_takes_the_matrices_of_the_trunk_and_nothing_else() -> None:
    policy = tiny.policy("Phi3", critic="shared")
    optimizer = Optimizer(policy, kind="muon", weight_decay=0.0)
    row = tiny.row(1, LENGTHS)
    hidden = policy.hidden(row)
    (policy.values(row, hidden).sum() + policy.logprobs(row, hidden=hidden).sum()).backward()
    optimizer.step(1e-3)
    by_muon = {address.rpartition("/")[0] for address in optimizer.state() if address.endswith("momentum_buffer")}
    assert by_muon == {n for n, p in policy.named_parameters() if p.ndim == 2 and ".layers." in n}
    by_adamw = {address.rpartition("/")[0] for address in optimizer.state() if address.endswith("exp_avg")}
    assert by_adamw == {name for name, _ in policy.named_parameters()} - by_muon


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_checkpoint_opens_bit_for_bit(tmp_path: Path, kind: str, tied: bool) -> None:
    policy = Policy(tiny.build(kind, tied=tied))
    card = checkpoints.save(tmp_path / "c", policy, words.tokenizer(), Checkpoint("", "sft", 3, ("p", "q"), 7, 1.5))
    assert checkpoints.card(tmp_path / "c") == card
    assert card == Checkpoint(checkpoints.weights_id(tmp_path / "c"), "sft", 3, ("p", "q"), 7, 1.5)
    opened = checkpoints.open_policy(tmp_path / "c", precision="float32")
    expected = policy.state_dict()
    assert opened.state_dict().keys() == expected.keys()
    for name, found in opened.state_dict().items():
        assert torch.equal(found, expected[name]), name
    shared = opened.model.get_input_embeddings().weight is opened.model.get_output_embeddings().weight
    assert shared is tied
    row = tiny.row(9, LENGTHS)
    assert torch.equal(opened.logprobs(row), policy.logprobs(row))
    assert [path.name for path in tmp_path.iterdir()] == ["c"], "a draft was left behind"


def test_checkpoint_with_critic_and_optimizer(tmp_path: Path) -> None:
    policy = tiny.policy("Phi3", critic="shared")
    optimizer = Optimizer(policy, kind="adamw", weight_decay=0.0)
    row = tiny.row(1, LENGTHS)
    hidden = policy.hidden(row)
    (policy.values(row, hidden).sum() + policy.logprobs(row, hidden=hidden).sum()).backward()
    optimizer.step(1e-3)
    checkpoints.save(tmp_path / "c", policy, words.tokenizer(), Checkpoint("", "rlvr", 1), optimizer)
    opened = checkpoints.open_policy(tmp_path / "c", precision="float32", critic="shared")
    assert opened.critic is not None and policy.critic is not None
    assert (
        torch.equal(opened.critic.head.weight, policy.critic.head.weight) and opened.critic.head.weight.abs().max() > 0
    )
    again = Optimizer(opened, kind="adamw", weight_decay=0.0)
    assert checkpoints.resume(tmp_path / "c", opened, again) == 1
    assert {n: v.tolist() for n, v in again.state().items()} == {n: v.tolist() for n, v in optimizer.state().items()}
    without = checkpoints.open_policy(tmp_path / "c", precision="float32")
    assert without.critic is None


def test_weights_id_follows_the_weights_and_nothing_else(tmp_path: Path) -> None:
    policy, tokenizer = tiny.policy("Phi3"), words.tokenizer()
    first = checkpoints.save(tmp_path / "a", policy, tokenizer, Checkpoint("", "sft", 1))
    optimizer = Optimizer(policy, kind="adamw", weight_decay=0.0)
    policy.logprobs(tiny.row(1, [5])).sum().backward()
    optimizer.step(0.0)
    same = checkpoints.save(tmp_path / "b", policy, tokenizer, Checkpoint("", "dpo", 2), optimizer)
    assert same.id == first.id and len(first.id) == 16
    with torch.no_grad():
        next(policy.parameters())[5, 5] += 1e-3
    assert checkpoints.save(tmp_path / "b", policy, tokenizer, Checkpoint("", "dpo", 2)).id != first.id


def test_a_checkpoint_takes_the_place_of_what_stood_there(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "left-over").write_text("old")
    checkpoints.save(tmp_path / "c", tiny.policy(), words.tokenizer(), Checkpoint("", "sft", 1))
    assert not (tmp_path / "c" / "left-over").exists()


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as error:
        checkpoints.open_policy(tmp_path, precision="float32")
    message = str(error.value)
    assert message.startswith(f'[model] base = "{tmp_path}": no model could be loaded (')
    assert message.endswith("). Name a folder or a hub model.") and "\n" not in message
