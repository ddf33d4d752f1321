"""Products by packed weights: the numbers of a linear layer, from a copy that is made when it pays and no larger."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear

from algorist.generate import native, products
from algorist.generate.products import Products
from algorist.generate.sampling import Request, Sampling
from algorist.model import memory
from model import tiny

pytestmark = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="torch without MKL")


@pytest.fixture(autouse=True)
def nothing_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_compared", {})


def packed(kind: str = "Phi3") -> Products:
    """With weights that are packed already."""
    found = Products(tiny.policy(kind))
    for _ in range(products._STEPS):
        with found.lent(2):
            pass
    return found


@pytest.mark.parametrize("kind", ["Phi3", "Qwen2"])  # without and with a bias
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 16, 17, 64, 200])
def test_a_product_is_that_of_a_linear_layer(kind: str, rows: int) -> None:
    some = packed(kind)
    with torch.inference_mode(), some.lent(rows):
        for attributes, name, forward in some.loans:
            layer = forward.__self__
            assert (attributes, name) == (layer.__dict__, "forward")
            for given in (torch.randn(rows, layer.in_features), torch.randn(1, rows, layer.in_features)):
                expected = linear(given, layer.weight, layer.bias)
                for _ in range(2):  # the first is compared, the second is not
                    found = forward(given)
                    assert found.is_contiguous() and found.shape == expected.shape
                    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert products._compared and all(products._compared.values())


def test_packed_weights_are_what_is_read_and_only_while_they_are_lent() -> None:
    some = packed()
    forward = some.loans[0][2]
    given = torch.randn(8, forward.__self__.in_features)
    with torch.inference_mode():
        with some.lent(8):
            before = forward(given)
        forward.__self__.weight.zero_()
        assert not forward(given).any()
        with some.lent(8):
            torch.testing.assert_close(forward(given), before, atol=1e-5, rtol=1e-5)
        assert not forward(given).any() and not products._packed


def test_what_differs_from_the_plain_product_is_not_used() -> None:
    """As if MKL's copy were of use for other numbers of rows only."""
    some = packed()
    forward = some.loans[0][2]
    given = torch.randn(8, forward.__self__.in_features)
    with torch.inference_mode(), some.lent(8):
        forward.__self__.weight.mul_(2)
        expected = linear(given, forward.__self__.weight)
        with pytest.warns(UserWarning, match="without packed weights for 8 rows"):
            assert torch.equal(forward(given), expected)
        assert torch.equal(forward(given), expected)


def test_weights_are_packed_after_some_steps_of_several_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    some, sizes = Products(tiny.policy("Phi3")), []
    for rows in [1] * products._STEPS + [2] * (products._STEPS + 2):
        with some.lent(rows):
            sizes.append(len(products._packed))
    assert sizes == [0] * (2 * products._STEPS - 1) + [len(some.loans)] * 3


def test_large_models_and_other_types_are_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not Products(tiny.policy("Phi3", precision="bfloat16")).loans
    policy = tiny.policy("Phi3")
    size = sum(4 * layer.weight.numel() for layer in products._layers(policy))
    least = 1 << (products._SHARE * size - 1).bit_length()  # wide steps: a little less free memory changes nothing
    for free in (least, 2 * least - 1):
        monkeypatch.setattr(memory, "available", lambda device, free=free: free)
        assert Products(policy).loans
    monkeypatch.setattr(memory, "available", lambda device: least - 1)
    assert not Products(policy).loans


@pytest.mark.parametrize("fused", [False, True])
def test_sampling_multiplies_by_packed_weights(fused: bool) -> None:
    policy = tiny.policy("Phi3")
    if fused:
        policy.fuse(backend="eager")
    asked = [Request((3 + i, 4), i) for i in range(5)]
    given = native.sample(policy, asked, Sampling(1.0, 1.0, products._STEPS + 6), end_ids=())
    assert products._compared and {rows for _, rows, *_ in products._compared} == {5}
    products._compared.clear()
    alone = [native.sample(policy, [one], Sampling(1.0, 1.0, products._STEPS + 6), end_ids=())[0] for one in asked]
    assert not products._compared  # a row alone waits for memory whichever way
    assert [one.tokens for one in given] == [one.tokens for one in alone]
