"""Every path of attention computes what plain attention does, and lets no document see or move another."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn.attention import flex_attention as flexed

from algorist.model import kernels, recompute
from algorist.model.attention import Documents
from algorist.model.batches import Batch
from algorist.model.kernels import Alone, Attend, Groups
from algorist.model.policy import Policy, document_sums
from model import tiny

CPU = torch.device("cpu")
MIXED = [5, 130, 1, 128, 64, 2, 57, 1, 129, 33]
ROWS = {"mixed": MIXED, "one": [70], "single token": [1], "ones": [1] * 9, "equal": [16] * 8, "short": [3, 9, 4, 8, 2]}
HEADS = [(1, 1), (4, 4), (4, 2), (6, 2)]  # of queries, of keys: 1:1, 2:1, 3:1


@pytest.fixture(autouse=True)
def _flex_without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention off the GPU goes through the compiler's front end for each shape, unless it is told not to."""
    monkeypatch.setattr(flexed, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


def offsets(lengths: list[int]) -> tuple[int, ...]:
    return (0, *itertools.accumulate(lengths))


def layouts(lengths: list[int]) -> dict[str, Attend]:
    """All that can run forward and backward on a CPU."""
    bounds = np.asarray(offsets(lengths))
    return {
        "grouped": kernels.grouped(offsets(lengths), CPU),
        "alone": Alone(tuple(lengths)),
        "by similarity": Groups.of(bounds, kernels._by_similarity(np.diff(bounds)), CPU),
        "by grid": Groups.of(bounds, kernels._by_grid(np.diff(bounds)), CPU),
    }


def drawn(lengths: list[int], heads: int, kv_heads: int, size: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(sum(lengths), count, size, generator=generator) for count in (heads, kv_heads, kv_heads, heads)]


def plain(query: Tensor, key: Tensor, value: Tensor, lengths: list[int], scale: float | None) -> Tensor:
    """The definition, in float64, with a mask over all pairs of tokens."""
    query, key, value = query.double(), key.double(), value.double()
    total, heads, size = query.shape
    document = [number for number, length in enumerate(lengths) for _ in range(length)]
    mask = torch.tensor([[i >= j and document[i] == document[j] for j in range(total)] for i in range(total)])
    outputs = []
    for head in range(heads):
        shared = head // (heads // key.shape[1])
        scores = query[:, head] @ key[:, shared].T * (size**-0.5 if scale is None else scale)
        outputs.append(scores.masked_fill(~mask, -torch.inf).softmax(1) @ value[:, shared])
    return torch.stack(outputs, dim=1)


def run(attend: Attend, rows: list[Tensor], slope: Tensor, scale: float | None) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in rows]
    out = attend(*leaves, scale)
    return [out.detach(), *torch.autograd.grad(out, leaves, slope.to(out.dtype))]


@pytest.mark.parametrize("size", [16, 64, 80, 128])
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_forward_and_gradients_equal_plain_attention(heads: int, kv_heads: int, size: int) -> None:
    *rows, slope = drawn(MIXED, heads, kv_heads, size)
    for scale in (None, 0.3):
        expected = run(lambda q, k, v, s: plain(q, k, v, MIXED, s), rows, slope, scale)
        for name, attend in layouts(MIXED).items():
            for found, wanted in zip(run(attend, rows, slope, scale), expected, strict=True):
                assert found.dtype == torch.float32 and found.shape == wanted.shape, name
                tiny.assert_close(found, wanted.float(), 5e-6)


@pytest.mark.parametrize("lengths", ROWS.values(), ids=ROWS)
def test_rows_of_every_kind(lengths: list[int]) -> None:
    *rows, slope = drawn(lengths, 4, 2, 16)
    expected = run(lambda q, k, v, s: plain(q, k, v, lengths, s), rows, slope, None)
    for attend in layouts(lengths).values():
        for found, wanted in zip(run(attend, rows, slope, None), expected, strict=True):
            # A document of one token moves neither its query nor its key.
            assert float((found - wanted).abs().max()) <= 5e-6 * max(1.0, float(wanted.abs().max()))
    with torch.no_grad():
        tiny.assert_close(kernels.flex(offsets(lengths), CPU)(*rows, None), expected[0].float(), 5e-6)


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_flex_forward_equals_plain_attention(heads: int, kv_heads: int) -> None:
    *rows, _ = drawn(MIXED, heads, kv_heads, 64)
    with torch.no_grad():
        found = kernels.flex(offsets(MIXED), CPU)(*rows, 0.3)
    tiny.assert_close(found, plain(*rows, MIXED, 0.3).float(), 5e-6)


@pytest.mark.parametrize("name", ["alone", "by similarity", "by grid"])
def test_canary_no_bit_of_another_document_moves(name: str) -> None:
    *rows, slope = drawn(MIXED, 4, 2, 16)
    *others, _ = drawn(MIXED, 4, 2, 16, seed=1)
    attend, bounds = layouts(MIXED)[name], offsets(MIXED)
    before = run(attend, rows, slope, None)
    for begin, end in itertools.pairwise(bounds):
        changed = [x.clone() for x in rows]
        for x, other in zip(changed, others, strict=True):
            x[begin:end] = other[begin:end]
        inside = torch.zeros(bounds[-1], dtype=torch.bool)
        inside[begin:end] = True
        for now, then in zip(run(attend, changed, slope, None), before, strict=True):
            assert torch.equal(now[~inside], then[~inside])
        alone = run(attend, rows, slope * inside[:, None, None], None)
        assert not any(found[~inside].any() for found in alone[1:])
        assert alone[3][inside].any()


def test_canary_flex() -> None:
    *rows, _ = drawn(MIXED, 4, 2, 16)
    *others, _ = drawn(MIXED, 4, 2, 16, seed=1)
    attend, bounds = kernels.flex(offsets(MIXED), CPU), offsets(MIXED)
    with torch.no_grad():
        before = attend(*rows, None)
        for begin, end in itertools.pairwise(bounds):
            changed = [x.clone() for x in rows]
            for x, other in zip(changed, others, strict=True):
                x[begin:end] = other[begin:end]
            moved = (attend(*changed, None) != before).any(2).any(1)
            assert moved[begin:end].all() and moved.sum() == end - begin


def test_long_documents_stand_alone_and_short_ones_in_groups() -> None:
    assert isinstance(kernels.grouped(offsets([32, 32]), CPU), Alone)
    assert isinstance(kernels.grouped(offsets([32, 31]), CPU), Groups)


@pytest.mark.parametrize("how", [kernels._by_similarity, kernels._by_grid])
def test_groups_bring_every_token_back_and_mix_no_documents(how: object) -> None:
    draw = np.random.default_rng(0)
    for _ in range(20):
        lengths = np.clip(draw.lognormal(4.0, 1.2, draw.integers(1, 60)), 1, 3000).astype(np.int64)
        bounds = np.asarray(offsets(lengths.tolist()))
        layout = Groups.of(bounds, how(lengths), CPU)  # type: ignore[operator]
        assert torch.equal(layout.there[layout.back], torch.arange(int(bounds[-1])))
        sizes = [n * length for n, length in layout.shapes]
        assert sum(sizes) == len(layout.there)
        for (n, length), places in zip(layout.shapes, layout.there.split(sizes), strict=True):
            found = places.view(n, length)
            document = torch.bucketize(found, torch.from_numpy(bounds[1:]), right=True)
            assert (document == document[:, :1]).all(), "a row of a group mixes documents"
            assert (found[:, 0] == torch.from_numpy(bounds)[document[:, 0]]).all(), "a document begins behind its place"


def test_groups_by_similarity_are_filled_up_by_a_tenth_at_most() -> None:
    lengths = np.random.default_rng(1).integers(1, 500, 200)
    for chosen, length in kernels._by_similarity(lengths):
        assert lengths[chosen].max() == length and lengths[chosen].min() >= 0.9 * length


def test_groups_by_grid_have_few_shapes() -> None:
    """cuDNN plans each shape for itself: rows of any lengths up to 25,600 must not bring ever new ones."""
    draw = np.random.default_rng(2)
    shapes = set()
    for _ in range(300):
        lengths = np.clip(draw.lognormal(np.log(2500), 1.0, 8), 1, 25_600).astype(np.int64)
        for chosen, length in kernels._by_grid(lengths):
            shapes.add((len(chosen), length))
            assert lengths[chosen].max() <= length <= max(128, 1.25 * lengths[chosen].min() + 128)
    assert len(shapes) <= 120 and all(n & (n - 1) == 0 for n, _ in shapes)


def test_blocks_are_those_that_torch_finds_from_all_pairs() -> None:
    draw = np.random.default_rng(0)
    rows = [*ROWS.values(), [128, 128], [127, 1, 128], [129, 127], [256], [384, 1], [500, 12, 300, 100, 1, 111]]
    rows += [draw.integers(1, 400, draw.integers(1, 9)).tolist() for _ in range(20)]
    for lengths in rows:
        total = sum(lengths)
        document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))

        def visible(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor, document: Tensor = document) -> Tensor:
            return (query >= key) & (document[query] == document[key])

        expected = flexed.create_block_mask(visible, None, None, total, total, device="cpu")
        found = kernels.blocks(offsets(lengths), CPU)
        assert found.shape == expected.shape
        assert torch.equal(found.to_dense(), expected.to_dense())
        for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
            assert torch.equal(getattr(found, name), getattr(expected, name)), (name, lengths)
        for kind in ("kv", "full_kv", "q", "full_q"):
            counts, places = getattr(found, f"{kind}_num_blocks")[0, 0], getattr(found, f"{kind}_indices")[0, 0]
            wanted = getattr(expected, f"{kind}_indices")[0, 0]
            for row, count in enumerate(counts.tolist()):
                assert places[row, :count].tolist() == wanted[row, :count].tolist()


def test_no_path_looks_at_all_pairs_of_tokens() -> None:
    """All pairs of 131,072 tokens would be 16 GiB as bool alone."""
    bounds = offsets([65_536, 1, 40_000, 25_535])
    assert kernels.blocks(bounds, CPU).kv_indices.shape == (1, 1, 1024, 1024)
    grid = Groups.of(np.asarray(bounds), kernels._by_grid(np.diff(bounds)), CPU)
    assert len(grid.there) < 1.2 * bounds[-1]


def test_what_a_path_needs() -> None:
    cuda = torch.device("cuda")
    for name in kernels.PATHS:
        assert kernels.missing(name, CPU, torch.float32) == (None if name == "grouped" else "it needs a CUDA device")
    half = "it computes in half precision only, and [model] precision is float32"
    expected = {"grouped": None, "flex": None, "varlen": half, "cudnn": half, "flash": half}
    assert {name: kernels.missing(name, cuda, torch.float32) for name in kernels.PATHS} == expected
    assert [kernels.missing(name, cuda, torch.bfloat16) for name in ("grouped", "varlen", "flex", "cudnn")] == [
        None
    ] * 4


def test_the_signature_of_torch_s_own_varlen_is_known() -> None:
    """What can be said of it without a GPU: it takes what it is given."""
    import inspect

    kernel, options = kernels._varlen_kernel()
    rows = drawn([3], 4, 2, 16)[:3]
    inspect.signature(kernel).bind(*rows, None, None, 3, 3, scale=None, **options)
    assert options["window_size"] == (-1, 0)


# Through the policy: short documents go in groups, longer ones alone.
KINDS_OF_ROWS = {"short": [7, 31, 2, 30, 12, 12, 1, 25], "long": [60, 1, 33, 100, 29]}


def hidden(policy: Policy, row: Batch, path: str = "grouped") -> Tensor:
    return policy.trunk(row.tokens, row.positions, documents=Documents.of(row.bounds, policy.device, path))


@pytest.mark.parametrize("lengths", KINDS_OF_ROWS.values(), ids=KINDS_OF_ROWS)
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_packed_equals_alone_equals_transformers(kind: str, lengths: list[int]) -> None:
    policy = tiny.policy(kind)
    row = tiny.row(0, lengths)
    theirs = tiny.as_transformers_runs_it(policy)
    with torch.no_grad():
        packed = policy.logits(hidden(policy, row))
        with_flex = policy.logits(hidden(policy, row, "flex"))
        spans = list(itertools.pairwise(row.bounds))
        expected = torch.cat([theirs(row.tokens[None, a:b]).logits[0] for a, b in spans])
        ones = [Batch(row.tokens[a:b], row.positions[a:b], (0, b - a), row.weights[a:b]) for a, b in spans]
        alone = torch.cat([policy.logits(hidden(policy, one)) for one in ones])
    for found in (packed, with_flex, alone):
        tiny.assert_close(found, expected, 1e-5)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_gradient_of_long_documents_equals_transformers(kind: str) -> None:
    policy, row = tiny.policy(kind), tiny.row(1, KINDS_OF_ROWS["long"])
    policy.logprobs(row).mul(row.weights).sum().backward()
    found = tiny.gradient(policy)
    theirs = tiny.as_transformers_runs_it(policy)
    for begin, end in itertools.pairwise(row.bounds):
        (tiny.alone(theirs, row.tokens[begin:end].tolist()) * row.weights[begin:end]).sum().backward()
    tiny.assert_close(found, tiny.gradient(Policy(theirs)))


@pytest.mark.parametrize("path", ["grouped", "flex"])
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_canary_changing_one_document_moves_no_other(kind: str, path: str) -> None:
    policy, row = tiny.policy(kind), tiny.row(2, KINDS_OF_ROWS["long"])
    with torch.no_grad():
        before = policy.logits(hidden(policy, row, path))
        for begin, end in itertools.pairwise(row.bounds):
            tokens = row.tokens.clone()
            tokens[begin:end] = (tokens[begin:end] + 17) % tiny.VOCABULARY
            moved = (policy.logits(hidden(policy, replace(row, tokens=tokens), path)) != before).any(1)
            assert moved[begin:end].all() and moved.sum() == end - begin


@pytest.mark.parametrize("lengths", KINDS_OF_ROWS.values(), ids=KINDS_OF_ROWS)
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_canary_no_gradient_crosses_a_border(kind: str, lengths: list[int]) -> None:
    """What each document's log-probability owes to every input embedding, and whether another's words move that."""
    policy, row = tiny.policy(kind), tiny.row(3, lengths)
    before = slopes(policy, row)
    for document, slope in enumerate(before):
        inside = row.document() == document
        assert not slope[~inside].any() and slope[inside].any() == (lengths[document] > 1)
    begin, end = row.bounds[1], row.bounds[2]
    tokens = row.tokens.clone()
    tokens[begin:end] = (tokens[begin:end] + 17) % tiny.VOCABULARY
    after = slopes(policy, replace(row, tokens=tokens))
    moved = [not torch.equal(now, then) for now, then in zip(after, before, strict=True)]
    assert moved == [document == 1 and lengths[1] > 1 for document in range(len(lengths))]


def slopes(policy: Policy, row: Batch) -> list[Tensor]:
    """(T, H) gradient of each document's summed log-probability with respect to the input embeddings."""
    policy = Policy(copy.deepcopy(policy.model))
    kept: list[Tensor] = []
    policy.model.get_input_embeddings().register_forward_hook(lambda _m, _i, out: kept.append(out.requires_grad_()))
    sums = document_sums(policy.logprobs(row), row)
    return [torch.autograd.grad(total, kept[0], retain_graph=True)[0][0] for total in sums]


def test_in_bfloat16_all_three_have_the_type_of_the_products() -> None:
    """The rotary embedding leaves float32 queries and keys under autocast; kernels take one type."""
    seen: list[set[torch.dtype]] = []

    def attend(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        seen.append({x.dtype for x in (query, key, value)})
        return Alone((9,))(query, key, value, scale)

    for kind in tiny.KINDS:
        policy, row = tiny.policy(kind, precision="bfloat16"), tiny.row(0, [9])
        policy.trunk(row.tokens, row.positions, documents=Documents(attend))
    assert seen == [{torch.bfloat16}] * 8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("path", kernels.PATHS)
def test_on_a_gpu_the_policy_is_the_same_by_every_path(path: str, precision: str) -> None:
    device = torch.device("cuda")
    if reason := kernels.missing(path, device, getattr(torch, precision)):
        pytest.skip(reason)
    policy = tiny.policy("Qwen3", precision=precision).to(device)
    row = tiny.row(0, KINDS_OF_ROWS["long"])
    expected = tiny.policy("Qwen3").logprobs(row)
    found = policy.logprobs(row.to(device), hidden=hidden(policy, row.to(device), path))
    assert float((found.cpu() - expected).abs().mean()) < (1e-4 if precision == "float32" else 0.15)
    found.mul(row.weights.to(device)).sum().backward()
    assert tiny.gradient(policy).isfinite().all()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler looks at what it is given
@pytest.mark.parametrize(("kind", "precision", "again"), [("Phi3", "float32", "none"), ("Qwen3", "bfloat16", "full")])
def test_fused_layers_compute_the_same_and_are_compiled_once_for_all_lengths(
    kind: str, precision: str, again: recompute.Kind
) -> None:
    """By the compiler's front end alone, which decides what is compiled anew; its C++ would take a minute."""
    torch.compiler.reset()
    policy, fused = tiny.policy(kind, precision=precision), tiny.policy(kind, precision=precision)
    fused.fuse(backend="eager")
    recompute.apply(fused.model, again)
    graphs = []
    for lengths in ([7, 31, 2], [40, 3], [5], [60, 60, 70], [9] * 9, [100, 20], [2]):
        row = tiny.row(0, lengths)
        found = []
        for one in (policy, fused):
            logprobs = one.logprobs(row)
            logprobs.mul(row.weights).sum().backward()
            found.append((logprobs.detach(), tiny.gradient(one)))
        for ours, theirs in zip(*found, strict=True):
            tiny.assert_close(ours, theirs, 1e-5 if precision == "float32" else 3e-2)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0 and set(graphs) == {graphs[0]}
    assert fused.state_dict().keys() == policy.state_dict().keys()
