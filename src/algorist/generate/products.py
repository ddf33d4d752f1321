"""Matrix products of a decoding step on a CPU: a few rows by all weights of the model.

MKL copies a matrix before it multiplies a few rows by it, at every step again. Here it copies each once, into the order
in which it reads them. That takes a third to a half of the time of a step's products away (bench/decode.py) and costs a
copy of the weights, so it is done where that is small beside the memory, and once a call has gone on for some steps.

MKL does not promise that weights packed for one number of rows serve for another. They do on every machine that was
tried, so the first product of each shape is compared with the plain one; where they differ, nothing packed is used.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from algorist.model import memory
from algorist.model.policy import Policy

Loan = tuple[dict[str, Any], str, Any]  # attributes of a module, a name among them, and what stands there meanwhile

_SHARE = 8  # of the memory that the process may use, one in so many bytes may go to the copy
_STEPS = 16  # of several rows, before weights are packed: packing takes as long as several steps
_FOR = 16  # rows that MKL is told

_packed: dict[int, Tensor] = {}  # address of a weight → its copy; during a step only
_compared: dict[tuple[int, ...], bool] = {}  # threads, rows, outputs, inputs → whether the products were equal


class Products:
    """The packed weights of a policy, for as long as its weights do not change."""

    def __init__(self, policy: Policy) -> None:
        self._layers = list(_layers(policy))
        free = memory.in_wide_steps(memory.available(policy.device))  # what is packed rounds a little otherwise
        if _SHARE * sum(4 * layer.weight.numel() for layer in self._layers) > free:
            self._layers = []
        self.loans: list[Loan] = [(one.__dict__, "forward", MethodType(_linear, one)) for one in self._layers]
        self._steps = 0
        self._table: dict[int, Tensor] = {}

    @contextmanager
    def lent(self, rows: int) -> Iterator[None]:
        """A step of so many rows, in which what stands in `loans` finds the packed weights."""
        self._steps += rows > 1
        if self._steps == _STEPS and not self._table:
            for weight in (layer.weight.detach() for layer in self._layers):
                self._table[weight.data_ptr()] = torch.ops.mkl._mkl_reorder_linear_weight(weight, _FOR)
        _packed.update(self._table)
        try:
            yield
        finally:
            for address in self._table:
                _packed.pop(address, None)


def _layers(policy: Policy) -> Iterator[nn.Linear]:
    """Those whose products MKL computes."""
    if policy.device.type == "cpu" and policy.precision == torch.float32 and torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        for module in policy.model.modules():
            if type(module) is nn.Linear and module.weight.dtype == torch.float32:
                yield module


def _linear(module: nn.Linear, given: Tensor) -> Tensor:
    multiply = _opaque if torch.compiler.is_compiling() else _multiply
    return multiply(given, module.weight, module.bias)


def _multiply(given: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b, by the packed weights where there are some."""
    packed = _packed.get(weight.data_ptr())
    if packed is None:
        return linear(given, weight, bias)
    rows = given.shape[:-1].numel()
    found: Tensor = torch.ops.mkl._mkl_linear(given, packed, weight, bias, rows)
    shape = (torch.get_num_threads(), rows, *weight.shape)
    if _compared.get(shape):
        return found
    expected = linear(given, weight, bias)
    if shape not in _compared:
        _compared[shape] = torch.allclose(found, expected, 1e-3, 1e-4 * float(expected.abs().max()), equal_nan=True)
        if not _compared[shape]:
            warnings.warn(f"sampling goes on without packed weights for {rows} rows, more slowly", stacklevel=2)
    return found if _compared[shape] else expected


_opaque = torch.library.custom_op("algorist::packed_product", _multiply, mutates_args=())


@_opaque.register_fake
def _(given: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return given.new_empty(*given.shape[:-1], len(weight))
