"""The probe refuses paths of attention that are wrong in any of the ways known from the field, and says why."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from algorist.errors import RecipeError, RunError
from algorist.model import kernels, probe
from algorist.model.kernels import Attend, Path
from algorist.model.probe import Shape
from model import tiny

CPU = torch.device("cpu")
SHAPE = Shape(4, 2, 16, 3, 512)
VERSION = torch.__version__


def right(bounds: Sequence[int], device: torch.device) -> Attend:
    """Not the path of the package: what the probe calls right must not depend on it."""

    def attend(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        outputs = []
        for begin, end in itertools.pairwise(bounds):
            q, k, v = (x[None, begin:end].transpose(1, 2) for x in (query, key, value))
            outputs.append(scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)[0])
        return torch.cat(outputs, dim=1).transpose(0, 1)

    return attend


def changed(how: str) -> Path:
    """A path that goes wrong in one way."""

    def path(bounds: Sequence[int], device: torch.device) -> Attend:
        good = right(bounds, device)
        early = bounds[2]  # where the third document begins

        def attend(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
            match how:
                case "one document":  # packed rows attend to each other
                    return right((0, bounds[-1]), device)(query, key, value, scale)
                case "no scale":
                    return good(query, key, value, None)
                case "too large":
                    return good(query, key, value, scale) * 1.01
                case "one slope lost":
                    return good(query, key, value.detach(), scale) + 0 * value.sum()
                case "keys of another head":
                    return good(query, key.flip(1), value, scale)
                case "no number":
                    return good(query, key, value, scale) * torch.nan
                case "a whisper":  # too little to be seen in the numbers
                    return good(query, key, value, scale) + 1e-6 * value[:early].mean().detach()
                case "a whisper back":
                    quiet = (1e-7 * value[:early]).sum()
                    return good(query, key, value, scale) + (quiet - quiet.detach())
                case "crash":
                    raise RuntimeError("no kernel image\nis available")
            raise AssertionError(how)

        return attend

    return path


WRONG = {
    "one document": "its output differs from plain attention by ",
    "no scale": "its output differs from plain attention by ",
    "too large": "its output differs from plain attention by 0.01 of the largest number",
    "one slope lost": "its gradient of the values differs from plain attention by 1 of the largest number",
    "keys of another head": "its output differs from plain attention by ",
    "no number": "its output differs from plain attention by nan of the largest number",
    "a whisper": "what one document says moves the output of another",
    "a whisper back": "the gradient of one document reaches another",
    "crash": "it fails (no kernel image)",
}


def choose(candidates: Mapping[str, Path], path: str = "auto") -> tuple[probe.Choice, list[str]]:
    said: list[str] = []
    choice = probe.choose(SHAPE, CPU, torch.float32, path=path, candidates=candidates, say=said.append)
    return choice, said


@pytest.mark.parametrize("how", WRONG)
def test_a_wrong_path_is_refused_and_told(how: str) -> None:
    choice, said = choose({"fast": changed(how), "grouped": kernels.grouped})
    assert choice.name == "grouped" and list(choice.seconds) == ["grouped"]
    reason = choice.refused["fast"]
    assert reason.startswith(WRONG[how]) and "\n" not in reason
    assert said == [f"attention: fast refused, {reason}; using grouped"]


def test_all_that_are_wrong_are_told() -> None:
    choice, said = choose({how: changed(how) for how in WRONG} | {"ours": right})
    assert choice.name == "ours" and list(choice.refused) == list(WRONG)
    assert [line.split(" refused, ")[0] for line in said] == [f"attention: {how}" for how in WRONG]


def test_the_fastest_of_the_right_ones_is_taken() -> None:
    def slow(bounds: Sequence[int], device: torch.device) -> Attend:
        def attend(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
            time.sleep(0.2)
            return right(bounds, device)(query, key, value, scale)

        return attend

    def planned(bounds: Sequence[int], device: torch.device) -> Attend:
        time.sleep(0.3)  # for each row of new lengths: a third of it for each of three layers
        return right(bounds, device)

    choice, said = choose({"slow": slow, "planned": planned, "plain": right})
    assert list(choice.seconds) == ["plain", "planned", "slow"] and choice.name == "plain"
    times = [f"{seconds * 1e3:.1f}" for seconds in choice.seconds.values()]
    line = f"attention: plain {times[0]} ms per layer and row of 512 tokens (planned {times[1]}, slow {times[2]})"
    assert said == [line]
    assert choice.seconds["slow"] >= 0.2 and choice.seconds["planned"] >= 0.1


def test_where_none_is_right_training_does_not_start() -> None:
    with pytest.raises(RunError) as error:
        choose({"one": changed("crash"), "other": changed("too large")})
    assert str(error.value) == (
        f"attention: no path is right on cpu with torch {VERSION} (one: it fails (no kernel image); other: its output "
        "differs from plain attention by 0.01 of the largest number). Install another version of torch."
    )


def test_a_path_that_was_asked_for_and_is_wrong() -> None:
    assert choose({"fast": changed("no scale"), "ours": right}, "ours") == (
        probe.Choice("ours", {"ours": 0.0}, {}, 512),
        [],
    )
    with pytest.raises(RecipeError) as error:
        choose({"fast": changed("too large"), "ours": right}, "fast")
    assert str(error.value) == (
        '[model] attention = "fast": its output differs from plain attention by 0.01 of the largest number. '
        'Take "auto", which tries what there is.'
    )


@pytest.mark.parametrize("path", ["varlen", "flex", "cudnn", "flash"])
def test_a_path_that_cannot_run_here(path: str) -> None:
    with pytest.raises(RecipeError) as error:
        probe.choose(SHAPE, CPU, torch.float32, path=path)
    assert str(error.value) == (
        f'[model] attention = "{path}": it needs a CUDA device. Take "auto", which tries what there is.'
    )


@pytest.mark.parametrize("path", ["auto", "grouped"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_cpu_there_is_one_path_and_nothing_to_tell(dtype: torch.dtype, path: str) -> None:
    said: list[str] = []
    for shape in (Shape(4, 2, 16, 2, 1), Shape(6, 2, 64, 2, 8192), Shape(3, 3, 8, 1, 100)):
        assert probe.choose(shape, CPU, dtype, path=path, say=said.append).name == "grouped"
    assert said == []
    row = probe._Row.of(SHAPE, CPU, dtype, *probe._CHECKED["cpu"])
    assert isinstance(kernels.grouped(row.bounds, CPU), kernels.Alone), "what training runs on is not what is checked"


def test_a_shape_is_tried_once_in_a_process() -> None:
    tried: list[int] = []

    def counted(bounds: Sequence[int], device: torch.device) -> Attend:
        tried.append(bounds[-1])
        return right(bounds, device)

    first, _ = choose({"counted": counted})
    second, _ = choose({"counted": counted})
    assert first is second and len(tried) == 1
    probe.choose(Shape(4, 4, 16, 3, 512), CPU, torch.float32, candidates={"counted": counted})
    assert len(tried) == 2


def test_rows_hold_documents_of_all_lengths() -> None:
    for turn in range(3):
        row = probe._Row.of(SHAPE, CPU, torch.float32, 4096, 256, turn)
        lengths = torch.tensor(row.bounds).diff()
        assert row.bounds[-1] == 4096 and int(lengths.max()) <= 1024
        assert int(lengths.min()) == 1 and int(lengths.max()) > 256
        assert [tuple(x.shape) for x in (*row.rows, row.slope)] == [(4096, count, 16) for count in (4, 2, 2, 4)]
    assert len({probe._Row.of(SHAPE, CPU, torch.float32, 4096, 256, turn).bounds for turn in range(3)}) == 3


def test_plain_attention_is_what_torch_computes_for_each_document() -> None:
    row = probe._Row.of(SHAPE, CPU, torch.float32, 200, 50)
    found = row.run(functools.partial(probe._plain, bounds=row.bounds), row.rows)
    for ours, theirs in zip(found, row.run(right(row.bounds, CPU), row.rows), strict=True):
        tiny.assert_close(ours, theirs, 5e-6)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_the_shape_of_a_model(kind: str) -> None:
    head_dim = 16 if kind == "Qwen3" else 8
    assert Shape.of(tiny.build(kind).config, 300) == Shape(4, 2, head_dim, 2, 300)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_some_path_is_right_and_the_fallback_always(dtype: torch.dtype) -> None:
    device = torch.device("cuda")
    choice = probe.choose(Shape(24, 8, 128, 32, 16_384), device, dtype)
    print(*choice.lines(), sep="\n")
    assert choice.name in choice.seconds and "grouped" in choice.seconds
