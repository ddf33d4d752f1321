"""The output head: its numbers and gradients in every tiling, at 200,064 words, and what it never holds."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from algorist.model import tiles
from algorist.model.head import Output, output_weight, scores, weighted_sum
from model import tiny
from oracles import head as oracle

WORDS = 200_064  # Phi-4-mini
TEMPERATURES = [0.6, 1.0, 1.3]
HELD = [None, 40, 7, 2]  # one tile; tiles of several tokens; of one; of some words of one


class Case:
    """Random states and weights whose logits spread by some nats, a third of the targets likely words."""

    def __init__(self, tokens: int, words: int, width: int, *, bias: bool = True, dtype: torch.dtype = torch.float32):
        draw = torch.Generator().manual_seed(tokens * words + width)

        def normal(*shape: int, spread: float = 1.0) -> Tensor:
            return (torch.randn(*shape, generator=draw, dtype=torch.float64) * spread).to(dtype).requires_grad_()

        self.hidden = normal(tokens, width)
        self.weight = normal(words, width, spread=4 / width**0.5)
        self.bias = normal(words) if bias else None
        self.targets = torch.randint(words, (tokens,), generator=draw)
        self.targets[::3] = self.logits().argmax(1)[::3]
        self.slopes = torch.randn(tokens, generator=draw, dtype=torch.float64).to(dtype)
        self.entropy_slopes = torch.randn(tokens, generator=draw, dtype=torch.float64).to(dtype)

    @property
    def output(self) -> Output:
        return Output(self.weight, self.bias)

    @property
    def inputs(self) -> list[Tensor]:
        return [one for one in (self.hidden, self.weight, self.bias) if one is not None]

    def to(self, dtype: torch.dtype) -> Case:
        """The same numbers in another type."""
        other = copy.copy(self)
        for name in ("hidden", "weight", "bias"):
            value = getattr(self, name)
            setattr(other, name, None if value is None else value.detach().to(dtype).requires_grad_())
        other.slopes, other.entropy_slopes = self.slopes.to(dtype), self.entropy_slopes.to(dtype)
        return other

    def logits(self) -> Tensor:
        return torch.nn.functional.linear(self.hidden, self.weight, self.bias)

    def plain(self, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """The textbook: all logits at once."""
        logp = torch.log_softmax(self.logits() / temperature, 1)
        return logp.gather(1, self.targets[:, None])[:, 0], -(logp.exp() * logp).sum(1)

    def gradients(self, logprobs: Tensor, entropy: Tensor | None = None, **how: bool) -> list[Tensor]:
        """By states, weight and bias, of a sum in which every token counts differently."""
        total = (logprobs * self.slopes).sum()
        total = total if entropy is None else total + (entropy * self.entropy_slopes).sum()
        return list(torch.autograd.grad(total, self.inputs, **how))


def error(found: Tensor, expected: Tensor) -> float:
    """Of a vector or matrix as a whole, relative."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def largest(found: Tensor, expected: Tensor) -> float:
    """The largest difference, in nats."""
    return float((found.detach().double() - expected.detach().double()).abs().max())


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_scores_equal_the_oracle(temperature: float, held: int | None) -> None:
    case = Case(6, 11, 3, dtype=torch.float64)
    assert case.bias is not None
    lists = [one.tolist() for one in (case.hidden, case.weight, case.bias, case.targets)]
    expected = oracle.scores(*lists, temperature)
    how = {"temperature": temperature, "precision": torch.float64, "held": held}
    found = scores(case.hidden, case.output, case.targets, with_entropy=True, **how)
    assert found.entropy is not None
    assert found.logprobs.tolist() == pytest.approx(expected[0], rel=1e-12)
    assert found.entropy.tolist() == pytest.approx(expected[1], rel=1e-12)
    total, logprobs = weighted_sum(case.hidden, case.output, case.targets, case.slopes, **how)
    assert logprobs.tolist() == pytest.approx(expected[0], rel=1e-12)
    assert total.item() == pytest.approx(sum(w * x for w, x in zip(case.slopes.tolist(), expected[0], strict=True)))


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_equal_finite_differences(bias: bool, held: int | None) -> None:
    case = Case(4, 9, 3, bias=bias, dtype=torch.float64)

    def asked(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, ...]:
        how: dict[str, Any] = {"temperature": 0.7, "precision": torch.float64, "held": held}
        both = scores(hidden, Output(weight, bias), case.targets, with_entropy=True, **how)
        return (*both, scores(hidden, Output(weight, bias), case.targets, **how).logprobs)  # type: ignore[return-value]

    assert torch.autograd.gradcheck(asked, case.inputs)


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_weighted_sum_has_the_gradient_of_its_scores(temperature: float, held: int | None) -> None:
    case = Case(9, 13, 4, dtype=torch.float64)
    how: dict[str, Any] = {"temperature": temperature, "precision": torch.float64, "held": held}
    expected = case.gradients(scores(case.hidden, case.output, case.targets, **how).logprobs)
    total, logprobs = weighted_sum(case.hidden, case.output, case.targets, case.slopes, **how)
    assert not logprobs.requires_grad
    found = torch.autograd.grad(3 * total, case.inputs, retain_graph=True)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, 3 * other, rtol=1e-12)
    with pytest.raises(AssertionError, match="an earlier backward has taken the gradients"):
        torch.autograd.grad(total, case.inputs)


@pytest.mark.parametrize("held", HELD)
def test_a_second_backward_of_scores_finds_the_same(held: int | None) -> None:
    case = Case(9, 13, 4)
    found = scores(case.hidden, case.output, case.targets, with_entropy=True, held=held)
    total = found.logprobs @ case.slopes + found.entropy @ case.entropy_slopes
    first, second = (torch.autograd.grad(total, case.inputs, retain_graph=True) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_tiles_change_nothing() -> None:
    case = Case(300, 61, 16)

    def found(held: int | None) -> list[Tensor]:
        both = scores(case.hidden, case.output, case.targets, temperature=0.6, with_entropy=True, held=held)
        total, logprobs = weighted_sum(case.hidden, case.output, case.targets, case.slopes, temperature=0.6, held=held)
        return [*both, logprobs, *case.gradients(*both), *torch.autograd.grad(total, case.inputs)]  # type: ignore[list-item]

    expected = found(None)
    for held in (2**14, 1000, 61, 50):
        for one, other in zip(found(held), expected, strict=True):
            tiny.assert_close(one, other, 5e-6)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_float32_at_200064_words(temperature: float) -> None:
    """At logits up to 40: 1e-5 nats of log-probability and entropy, 3e-6 of the gradients' norms, nearer to float64
    than the plain path is, which sums a distribution less exactly."""
    case = Case(16, WORDS, 32, bias=False)
    exact = case.to(torch.float64)
    expected, plain = exact.plain(temperature), case.plain(temperature)
    found = scores(case.hidden, case.output, case.targets, temperature=temperature, with_entropy=True, held=2**22)
    total, logprobs = weighted_sum(case.hidden, case.output, case.targets, case.slopes, temperature=temperature)
    assert found.entropy is not None
    assert largest(found.logprobs, expected[0]) < min(1e-5, largest(plain[0], expected[0]))
    assert largest(found.entropy, expected[1]) < min(1e-5, largest(plain[1], expected[1]))
    assert largest(logprobs, expected[0]) < 1e-5
    slopes = exact.gradients(*expected, retain_graph=True)
    for ours, theirs, right in zip(case.gradients(*found), case.gradients(*plain), slopes, strict=True):
        assert error(ours, right) < min(3e-6, error(theirs, right))
    for ours, right in zip(torch.autograd.grad(total, case.inputs), exact.gradients(expected[0]), strict=True):
        assert error(ours, right) < 3e-6


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_bfloat16_products_are_no_further_from_float32_than_those_of_autocast(temperature: float) -> None:
    """At logits up to 30: 0.2 nats at the worst token, 3 % of the gradients' norms."""
    case = Case(256, 2000, 64)
    expected = case.plain(temperature)
    slopes = case.gradients(*expected)
    with torch.autocast("cpu", torch.bfloat16):
        logits = case.logits().float() / temperature
    theirs = torch.log_softmax(logits, 1).gather(1, case.targets[:, None])[:, 0]
    how: dict[str, Any] = {"temperature": temperature, "precision": torch.bfloat16}
    for held in (None, 2**16):
        both = scores(case.hidden, case.output, case.targets, with_entropy=True, held=held, **how)
        total, logprobs = weighted_sum(case.hidden, case.output, case.targets, case.slopes, held=held, **how)
        assert both.logprobs.dtype == total.dtype == torch.float32
        assert 1e-4 < largest(both.logprobs, expected[0]) < min(0.2, 1.5 * largest(theirs, expected[0]))
        assert torch.equal(logprobs, both.logprobs)
        for one, other in zip(case.gradients(*both), slopes, strict=True):
            assert one.dtype == torch.float32 and 1e-4 < error(one, other) < 0.03


def test_what_is_cast_in_the_caller_is_not_cast_here() -> None:
    case = Case(20, 61, 16)

    def found() -> list[Tensor]:
        both = scores(case.hidden, case.output, case.targets, with_entropy=True)
        total, _ = weighted_sum(case.hidden, case.output, case.targets, case.slopes)
        return [*both, *case.gradients(*both), *torch.autograd.grad(total, case.inputs)]  # type: ignore[list-item]

    expected = found()
    with torch.autocast("cpu", torch.bfloat16):
        assert all(torch.equal(one, other) for one, other in zip(found(), expected, strict=True))


def test_gradients_are_of_the_type_of_what_they_belong_to() -> None:
    case = Case(20, 61, 16).to(torch.bfloat16)
    exact = case.to(torch.float32)
    expected = torch.autograd.grad(exact.plain()[0].sum(), exact.inputs)
    for held in (None, 61):
        found = scores(case.hidden, case.output, case.targets, precision=torch.bfloat16, held=held).logprobs
        for one, other in zip(torch.autograd.grad(found.sum(), case.inputs), expected, strict=True):
            assert one.dtype == torch.bfloat16 and error(one, other) < 0.03


def test_no_token_at_all() -> None:
    case = Case(3, 61, 16)
    hidden, targets = case.hidden[:0], case.targets[:0]
    both = scores(hidden, case.output, targets, with_entropy=True)
    assert both.entropy is not None and both.logprobs.shape == both.entropy.shape == (0,)
    total, logprobs = weighted_sum(hidden, case.output, targets, case.slopes[:0])
    assert total.item() == 0.0 and logprobs.shape == (0,)
    for loss in (both.logprobs.sum() + both.entropy.sum(), total):
        gradients = torch.autograd.grad(loss, case.inputs)
        assert [float(one.abs().sum()) for one in gradients] == [0.0] * 3


def test_only_what_is_wanted_is_computed() -> None:
    case = Case(9, 61, 16)
    expected = case.gradients(scores(case.hidden, case.output, case.targets).logprobs)
    case.weight.requires_grad_(False)
    for held in (None, 61):
        found = scores(case.hidden, case.output, case.targets, held=held).logprobs @ case.slopes
        total, _ = weighted_sum(case.hidden, case.output, case.targets, case.slopes, held=held)
        for loss in (found, total):
            by_hidden, by_weight, by_bias = torch.autograd.grad(
                loss, [case.hidden, case.weight.requires_grad_(), case.bias], allow_unused=True
            )
            case.weight.requires_grad_(False)
            assert by_weight is None
            tiny.assert_close(by_hidden, expected[0])
            tiny.assert_close(by_bias, expected[2])
    with torch.no_grad():
        assert not scores(case.hidden, case.output, case.targets).logprobs.requires_grad
        assert not weighted_sum(case.hidden, case.output, case.targets, case.slopes)[0].requires_grad


def test_entropy_that_is_only_looked_at_moves_nothing() -> None:
    case = Case(9, 61, 16)
    alone = case.gradients(scores(case.hidden, case.output, case.targets).logprobs)
    beside = case.gradients(scores(case.hidden, case.output, case.targets, with_entropy=True).logprobs)
    assert all(torch.equal(one, other) for one, other in zip(alone, beside, strict=True))
    entropy = scores(case.hidden, case.output, case.targets, with_entropy=True).entropy
    found = torch.autograd.grad(entropy @ case.entropy_slopes, case.inputs)
    expected = torch.autograd.grad(case.plain()[1] @ case.entropy_slopes, case.inputs)
    for one, other in zip(found, expected, strict=True):
        tiny.assert_close(one, other)


def test_tied_embeddings_get_both_gradients() -> None:
    draw = torch.Generator().manual_seed(1)
    tied, tokens = nn.Parameter(torch.randn(61, 16, generator=draw)), torch.randint(61, (30,), generator=draw)

    def gradient(loss: Callable[[Tensor], Tensor]) -> Tensor:
        states = torch.nn.functional.embedding(tokens, tied).cumsum(0) / 4
        loss(states[:-1]).backward()
        found, tied.grad = tied.grad, None
        assert found is not None
        return found

    def plain(states: Tensor) -> Tensor:
        return torch.log_softmax(states @ tied.T, 1).gather(1, tokens[1:, None]).sum()

    expected, ones = gradient(plain), torch.ones(29)
    for held in (None, 61):

        def ours(states: Tensor, held: int | None = held) -> Tensor:
            return scores(states, Output(tied), tokens[1:], held=held).logprobs.sum()

        def ours_at_once(states: Tensor, held: int | None = held) -> Tensor:
            return weighted_sum(states, Output(tied), tokens[1:], ones, held=held)[0]

        tiny.assert_close(gradient(ours), expected)
        tiny.assert_close(gradient(ours_at_once), expected)


def test_deterministic_algorithms_are_enough() -> None:
    """Memory that nothing has been written to is NaN in this mode."""
    case = Case(10, 61, 16)

    def found(held: int | None) -> list[Tensor]:
        both = scores(case.hidden, case.output, case.targets, with_entropy=True, held=held)
        total, _ = weighted_sum(case.hidden, case.output, case.targets, case.slopes, held=held)
        return [*both, *case.gradients(*both), *torch.autograd.grad(total, case.inputs)]  # type: ignore[list-item]

    expected = [found(held) for held in HELD]
    torch.use_deterministic_algorithms(True)
    try:
        again = [found(held) for held in HELD]
    finally:
        torch.use_deterministic_algorithms(False)
    for one, other in zip(again, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


class Largest(TorchDispatchMode):
    """The most numbers in any tensor that an operation gave back."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else [out]:
            if isinstance(one, Tensor):
                self.numbers = max(self.numbers, one.untyped_storage().nbytes() // one.element_size())
        return out


@contextmanager
def watched() -> Iterator[tuple[Largest, list[int]]]:
    """The largest tensor, and the sizes of all tensors that are saved for a backward."""
    saved: list[int] = []

    def keep(one: Tensor) -> Tensor:
        saved.append(one.numel())
        return one

    with Largest() as seen, torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one):
        yield seen, saved


@pytest.mark.parametrize("tokens", [512, 2048])
def test_logits_are_held_a_tile_at_a_time(tokens: int) -> None:
    words, width, held = 500, 4, 2**14
    case = Case(tokens, words, width, bias=False)
    with watched() as (seen, saved):
        both = scores(case.hidden, case.output, case.targets, with_entropy=True, held=held)
        case.gradients(*both)
        weighted_sum(case.hidden, case.output, case.targets, case.slopes, held=held)[0].backward()
    assert tokens * words > 10 * held, "the case is too small to show anything"
    assert seen.numbers == held - held % words or seen.numbers <= held
    # States, weight, targets, normalisers and entropies; what the test's own products save is as small.
    assert max(saved) <= tokens * width and sum(saved) <= tokens * width + words * width + 12 * tokens
    with watched() as (seen, saved), torch.no_grad():
        scores(case.hidden, case.output, case.targets, with_entropy=True)
        weighted_sum(case.hidden, case.output, case.targets, case.slopes)
    assert not saved


@pytest.mark.parametrize("with_entropy", [True, False])
def test_what_a_gpu_compiles_computes_the_same(with_entropy: bool) -> None:
    """Traced as for a GPU and run without its kernels."""
    case = Case(12, 61, 8, bias=False)
    with torch.no_grad():
        logits = case.logits()
        read, gradient = (torch.compile(f, backend="aot_eager", dynamic=True) for f in (tiles.read, tiles.gradient))
        expected = tiles.read(logits, case.targets, with_entropy, torch.empty_like(logits))
        for one, other in zip(read(logits, case.targets, with_entropy, None), expected, strict=True):
            tiny.assert_close(one, other, 1e-6)
        extra = (expected[2], case.entropy_slopes) if with_entropy else ()
        rows = tiles.Rows(case.targets, expected[1], case.slopes, *extra)
        before = logits.clone()
        for columns in (slice(0, 61), slice(10, 40)):
            part, cut = logits[:, columns], rows.cut(slice(0, 12), columns.start)
            found = gradient(part, cut, torch.float32, None)
            tiny.assert_close(found, tiles.gradient(part, cut, torch.float32, torch.empty_like(part)), 1e-6)
        assert torch.equal(logits, before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("held", [None, 2**14])
def test_a_gpu_computes_the_same(precision: torch.dtype, held: int | None) -> None:
    case = Case(300, 1000, 64)
    there = case.to(torch.float32)
    for name in ("hidden", "weight", "bias", "targets", "slopes", "entropy_slopes"):
        setattr(there, name, getattr(case, name).detach().cuda())
    for one in there.inputs:
        one.requires_grad_()
    expected = case.plain(0.7)
    how: dict[str, Any] = {"temperature": 0.7, "precision": precision, "held": held}
    found = scores(there.hidden, there.output, there.targets, with_entropy=True, **how)
    total, _ = weighted_sum(there.hidden, there.output, there.targets, there.slopes, **how)
    bound = 1e-5 if precision == torch.float32 else 0.1
    assert largest(found.logprobs.cpu(), expected[0]) < bound
    alone = torch.autograd.grad(total, there.inputs)
    for one, other in zip(there.gradients(*found), case.gradients(*expected, retain_graph=True), strict=True):
        assert error(one.cpu(), other) < bound
    for one, other in zip(alone, case.gradients(expected[0]), strict=True):
        assert error(one.cpu(), other) < bound


def test_a_linear_layer_is_an_output_embedding() -> None:
    for bias in (True, False):
        layer = nn.Linear(3, 5, bias=bias)
        assert output_weight(layer) == (layer.weight, layer.bias)


def test_another_layer_is_none() -> None:
    class Scaled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) / 2

    for layer, name in ((Scaled(3, 5), "Scaled"), (nn.Sequential(), "Sequential"), (nn.Embedding(3, 5), "Embedding")):
        with pytest.raises(TypeError) as refused:
            output_weight(layer)
        assert str(refused.value) == f"The output embedding is a {name}; a plain linear layer was expected."


def with_adapter(**settings: Any) -> Any:
    """A small model whose output embedding has an adapter of peft that does something."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(**{"r": 2, "lora_alpha": 3, "target_modules": ["lm_head"], "bias": "none", **settings})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft calls what transformers 5.23 has renamed
        model = peft.get_peft_model(tiny.build("Llama"), config)
    draw = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=draw))
    return model


def test_lora_on_the_output_embedding() -> None:
    model = with_adapter()
    layer, case = model.get_output_embeddings(), Case(9, tiny.VOCABULARY, 32, bias=False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(trained) == 2

    def plain() -> Tensor:
        return torch.log_softmax(layer(case.hidden), 1).gather(1, case.targets[:, None])[:, 0]

    found, expected = scores(case.hidden, output_weight(layer), case.targets).logprobs, plain()
    tiny.assert_close(found, expected, 2e-6)
    ours, theirs = (torch.autograd.grad(one @ case.slopes, trained) for one in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        tiny.assert_close(one, other)
    with model.disable_adapter():
        assert output_weight(layer).weight is layer.get_base_layer().weight
    layer.merge()
    tiny.assert_close(scores(case.hidden, output_weight(layer), case.targets).logprobs, expected, 2e-6)
    layer.unmerge()
    model.add_adapter("second", model.peft_config["default"])
    layer.lora_B["second"].weight.data.normal_()
    layer.set_adapter(["default", "second"])
    tiny.assert_close(scores(case.hidden, output_weight(layer), case.targets).logprobs, plain(), 2e-6)


def test_a_copy_that_peft_trains_is_the_output_embedding() -> None:
    model = with_adapter(target_modules=["q_proj"], modules_to_save=["lm_head"])
    layer = model.get_output_embeddings()
    layer.modules_to_save["default"].weight.data.add_(1.0)
    assert output_weight(layer).weight is layer.modules_to_save["default"].weight
    with model.disable_adapter():
        assert output_weight(layer).weight is layer.original_module.weight


def test_other_adapters_are_refused() -> None:
    layer = with_adapter(use_dora=True).get_output_embeddings()
    with pytest.raises(TypeError) as refused:
        output_weight(layer)
    assert str(refused.value) == 'The adapter "default" of the output embedding is no plain LoRA without a bias.'
