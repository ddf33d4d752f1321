"""The rows of bench/gpu.py run end to end at the tiny size; their arithmetic is that of the note they answer to."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCH = Path(__file__).parents[1] / "bench"
Lines = list[dict[str, Any]]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    import gpu

    return gpu


@pytest.fixture
def lines(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Lines]:
    """`lines("attn16k")` → the lines of its table, from `python bench/gpu.py attn16k --size tiny`."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # tiny, and on a GPU no less

    def call(row: str, *words: str) -> Lines:
        monkeypatch.setattr(sys, "argv", ["gpu.py", row, "--size", "tiny", *words])
        gpu.main()
        out = capsys.readouterr().out
        assert f"gpu.{row}, size tiny, CPU" in out
        return [json.loads(line) for line in out.splitlines() if line.startswith("{")]

    return call


def of(found: Lines, name: str, who: str) -> dict[str, Any]:
    """The line of a set and a contender."""
    (one,) = [line for line in found if line["set"] == name and line["who"] == who]
    return one


def test_ceilings(lines):
    found = lines("ceilings")
    assert [line["unit"] for line in found] == ["TFLOP/s", "TB/s", "us"]
    assert all(line["value"] > 0 for line in found)


def test_attention_of_every_set_is_compared_with_its_peers(lines):
    found = lines("attn16k")
    for name in ("one document", "short", "long"):
        own = of(found, name, "ours: grouped")
        peers = [of(found, name, who) for who in ("SDPA per document", "SDPA, dense mask")]
        assert own["ratio"] == pytest.approx(own["value"] / max(peer["value"] for peer in peers), rel=1e-3)
        assert own["error"] < 1e-5 and own["bound"] > 0
    assert of(found, "one document", "ours: grouped")["documents"] == 1
    assert of(found, "short", "ours: grouped")["documents"] > of(found, "long", "ours: grouped")["documents"]


def test_the_output_head_is_compared_with_its_peers(lines):
    found = lines("loss200k")
    for name in ("0% ignored", "30% ignored"):
        own, plain = of(found, name, "ours: weighted sum"), of(found, name, "plain, all logits")
        best = min(line["value"] for line in found if line["set"] == name and not line["who"].startswith("ours"))
        assert own["ratio"] == pytest.approx(best / own["value"], rel=1e-3) and plain["ratio"] <= 1
        assert own["error"] < 1e-4
    few, all_of_them = (of(found, name, "ours: scores")["bound"] for name in ("30% ignored", "0% ignored"))
    assert few == pytest.approx(0.7 * all_of_them, rel=0.1)  # ignored labels are no work


@pytest.mark.parametrize(
    ("row", "sets"),
    [
        ("midtrain16k", ("short", "one document")),
        ("sft20k", ("long",)),
        ("dpo16k", ("reference pass", "policy step")),
    ],
)
def test_training_rows(lines, row, sets):
    found = lines(row)
    for name in sets:
        own = of(found, name, "ours")
        assert own["unit"] == "tokens/s" and own["value"] > 0
        assert own["of_ceiling"] == pytest.approx(own["value"] / own["bound"], rel=0.5)
        assert "mfu" not in own  # 989 TFLOP/s are those of a GPU
        if name != "reference pass":
            assert own["loss_gap"] == 0 and own["path"] == "grouped" and own["recompute"] == "none"
    if row == "dpo16k":
        assert of(found, "policy step", "ours")["logprob_gap"] < 1e-5


def test_steps_of_decoding(lines):
    found = lines("decode_step")
    one, many = (of(found, name, "ours") for name in ("1 x 40", "3 x 40"))
    assert one["unit"] == "ms" and one["value"] > 0
    assert one["of_ceiling"] == pytest.approx(one["bound"] / one["value"], rel=0.5)
    assert one["bound"] < many["bound"] < 1.2 * one["bound"]  # matrices are read once, however many sequences


def test_rollouts(lines):
    found = lines("rollout")
    ragged, late = (of(found, name, "ours") for name in ("ragged", "late"))
    assert ragged["unit"] == late["unit"] == "tokens/s" and 0 < ragged["value"] < ragged["bound"]
    assert ragged["logprob_gap"] < 1e-4 and 0 < late["value"] < late["bound"]


def test_grpo_steps(lines):
    found = lines("grpo_step")
    for name in ("on policy", "two updates"):
        own = of(found, name, "ours")
        assert own["unit"] == "tokens/s" and 0 < own["value"] < own["bound"] and own["logprob_gap"] < 1e-4
        assert set(own["phases"]) == {"generate", "verify", "prepare", "train"} and 0 < own["outside"] < 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("average", ["response", "token"])
def test_ours_and_trl_take_the_same_grpo_step(gpu, average):
    pytest.importorskip("trl")
    import gpu_rollouts
    import gpu_training
    import grpo_steps as steps
    import grpo_trl

    from algorist.model.optimizers import Optimizer
    from algorist.model.policy import Policy

    size, cpu = gpu.SIZES["tiny"], torch.device("cpu")
    asked = gpu_rollouts.learning(size, timed=1)
    turn = asked.turns[-1]
    given = tuple(tuple(range(2 + i, 2 + i + length)) for i, length in enumerate(turn.lengths))
    asked = replace(asked, turns=(replace(turn, given=given), turn), average=average, gradients=True)
    told: dict[str, list[tuple[dict[str, float], dict[str, Any]]]] = {"ours": [], "theirs": []}

    def tell(who: str) -> Any:
        return lambda index, seconds, facts: told[who].append((seconds, facts)) is None

    policy = Policy(gpu_training.build(size, cpu, "eager"))
    policy.train()
    steps.ours(asked, policy, Optimizer(policy, kind="adamw", weight_decay=0.0), tell("ours"))
    peer = gpu_training.build(size, cpu, "sdpa")
    grpo_trl.theirs(asked, peer, {"generate": "static", "batch": 8}, tell("theirs"), bf16=False)
    (ours, _), (theirs, generated) = told["ours"], told["theirs"]
    assert steps.apart(ours[1]["gradient"], theirs[1]["gradient"]) < 1e-3
    if average == "token":  # a mean over responses is 0 whatever they are
        assert steps.SAMPLE * ours[1]["loss"] == pytest.approx(theirs[1]["loss"], rel=1e-3)
        assert abs(theirs[1]["loss"]) > 1e-4
    assert generated[1]["tokens"] == asked.turns[1].tokens  # by itself, and as long as it was told
    assert generated[0]["generate"] > 0 and generated[0]["train"] > 0


def test_what_decoding_must_read(gpu):
    import gpu_rollouts

    full, card = gpu.SIZES["full"], torch.device("cuda")
    # Milliseconds a step at 4.3 TB/s, and seconds of the whole rollouts: performance is judged by these.
    for batch, context, expected in ((1, 2_048, 1.85), (64, 2_048, 5.78), (64, 8_192, 17.8), (256, 2_048, 17.8)):
        asked = gpu_rollouts.step(full, card, batch, context, [1.0])["bytes"]
        assert asked / 4.3e9 == pytest.approx(expected, rel=0.01)
    lengths = [count for _, count in gpu_rollouts.jobs(full)]
    assert len(lengths) == 128 and max(lengths) == 1_536 and sum(lengths) == pytest.approx(77_000, rel=0.01)
    assert gpu_rollouts.read(full, card, lengths) / 4.3e12 == pytest.approx(4.1, rel=0.02)


def test_the_shorter_peer_of_sampling_runs_first(gpu):
    for row, last in (("decode_step", "continuous batching"), ("rollout", "continuous batching")):
        assert gpu.contenders(row, peers=True)[-1] == last and gpu.contenders(row, peers=False) == ["ours"]


def test_a_contender_in_a_process_of_its_own_tells_the_same(gpu, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = list(gpu.apart("ceilings", "ceilings", "tiny", time.time() + 100))
    assert [line["unit"] for line in found] == ["TFLOP/s", "TB/s", "us"]


def test_a_process_is_ended_when_time_is_up(gpu):
    found = list(gpu.apart("ceilings", "ceilings", "tiny", time.time() + 0.1))
    assert found == [{"set": "", "who": "ceilings", "failed": "no time was left"}]


def test_what_no_time_is_left_for_is_skipped(lines):
    assert lines("midtrain16k", "--seconds", "-1") == []


def test_full_size_wants_a_gpu(lines):
    with pytest.raises(SystemExit):
        lines("midtrain16k", "--size", "full")


def test_a_peer_with_other_losses_is_none(gpu):
    steps = [{"set": "long", "turn": turn, "timed": turn > 0, "unit": "tokens/s"} for turn in range(3)]
    ours = [{**step, "who": "ours", "value": 20.0, "loss": 2.0} for step in steps]
    right = [{**step, "who": "right", "value": 10.0, "loss": 2.001} for step in steps]
    wrong = [{**step, "who": "wrong", "value": 40.0, "loss": 2.1} for step in steps]
    table = {line["who"]: line for line in gpu.table("sft20k", [*ours, *right, *wrong])}
    assert table["ours"]["ratio"] == 2.0 and table["wrong"]["loss_gap"] == pytest.approx(0.05)
    assert "(too far: no peer)" in gpu.notes("sft20k", table["wrong"])
    assert "(too far: no peer)" not in gpu.notes("sft20k", table["right"])


def test_the_full_size_is_phi_4_mini(gpu):
    full = gpu.SIZES["full"]
    assert full.parameters == pytest.approx(3.836e9, rel=1e-3)
    # GFLOP a token of documents of one length: performance is judged by these.
    for length, expected in ((2_048, 24.22), (8_192, 27.85), (16_384, 32.68), (25_600, 38.11)):
        assert full.operations([length] * 3) / (3e9 * length) == pytest.approx(expected, rel=1e-3)


def test_the_work_of_the_full_size(gpu):
    full, work = gpu.SIZES["full"], gpu.work
    midtrain = work.steps("midtrain16k", full)
    assert [step.set for step in midtrain] == ["short"] * 3 + ["one document"] * 3
    assert all(len(step.rows) == 4 and 0.99 * 65_536 < sum(step.lengths) <= 65_536 for step in midtrain)
    for step in work.steps("sft20k", full):
        assert len(step.rows) == 8 and 69_000 < sum(step.lengths) < 71_000 and max(step.lengths) <= 20_480
    for step in work.steps("dpo16k", full):
        assert len(step.pairs) == 6 and 85_000 < sum(step.lengths) < 93_000 and max(step.lengths) <= 16_384
        assert all((pair.documents[0][:200] == pair.documents[1][:200]).all() for pair in step.pairs)
