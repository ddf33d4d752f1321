"""Models that the policy would compute wrongly are refused when they are opened; the others are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from algorist.errors import RecipeError
from algorist.model import checkpoints, selfcheck
from algorist.records import CARD, Checkpoint
from algorist.toy import words
from model import tiny

FAMILIES = "Llama, OLMo 2, Phi-3 and Phi-4, Qwen2 and 2.5, Qwen3, SmolLM3"


def folder(tmp_path: Path, kind: str, **more: Any) -> Path:
    """A model folder as it comes from the hub: no card of ours."""
    tiny.build(kind, **more).save_pretrained(tmp_path / kind)
    words.tokenizer().save_pretrained(tmp_path / kind)
    return tmp_path / kind


def refusal(source: Path) -> str:
    with pytest.raises(RecipeError) as error:
        checkpoints.open_policy(source, precision="float32")
    return str(error.value)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", [*tiny.KINDS, "Olmo2", "SmolLM3"])
def test_exact_families_open(tmp_path: Path, kind: str, precision: str) -> None:
    source = folder(tmp_path, kind)
    policy = checkpoints.open_policy(source, precision=precision)
    for name, found in policy.model.state_dict().items():
        assert torch.equal(found, tiny.build(kind).state_dict()[name]), name
    row = tiny.row(0, [9, 5])
    assert policy.precision == getattr(torch, precision) and not policy.logprobs(row)[[0, 9]].any()


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("Granite", {"logits_scaling": 4.0}),
        ("Cohere", {}),  # scales its logits too
        ("Gemma2", {"head_dim": 8, "sliding_window": 128}),  # caps logits and attention scores
        ("GptOss", {"head_dim": 8, "num_local_experts": 4, "sliding_window": 128}),  # sinks
        ("Falcon", {"alibi": True}),
        ("Lfm2", {"layer_types": ["conv", "full_attention"]}),
        ("FalconH1", {}),  # attention beside a state space
    ],
)
def test_what_the_policy_leaves_out_is_refused(tmp_path: Path, kind: str, more: dict[str, Any]) -> None:
    source = folder(tmp_path, kind, **more)
    before, gap, after = refusal(source).partition(" gives log-probabilities here that are ")
    assert before == f'[model] base = "{source}": {kind}ForCausalLM'
    nats, rest = gap and after.split(" ", 1)
    assert float(nats) > 0.03
    assert rest == (
        "nats from its own in transformers, at most 0.01 was expected. "
        f"Take a model of another family; known to be exact: {FAMILIES}."
    )


def test_a_model_that_cannot_be_run_is_refused(tmp_path: Path) -> None:
    source = folder(tmp_path, "StableLm")
    assert refusal(source) == (
        f'[model] base = "{source}": StableLmForCausalLM cannot be run with the attention of this package (no layout '
        "came here: it comes from Policy, and not every model passes it on). "
        f"Take a model of another family; known to be exact: {FAMILIES}."
    )


@pytest.mark.parametrize(
    ("kind", "more", "window"),
    [
        ("Mistral", {"sliding_window": 16}, 16),
        ("Phi3", {"sliding_window": 127}, 127),  # longer than what the probe could see
        ("Qwen2", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}, 64),
    ],
)
def test_windows_shorter_than_the_longest_text_are_refused(
    tmp_path: Path, kind: str, more: dict[str, Any], window: int
) -> None:
    source = folder(tmp_path, kind, **more)
    assert refusal(source) == (
        f'[model] base = "{source}": {kind}ForCausalLM has layers that see only the last {window} of up to 128 '
        "tokens, and windows are not computed here. "
        f"Take a model of a family without them; known to be exact: {FAMILIES}."
    )


@pytest.mark.parametrize(
    ("kind", "published", "window"),
    [
        ("phi3", {"sliding_window": 262144, "max_position_embeddings": 131072}, 262144),  # Phi-4-mini-instruct
        ("qwen2", {"sliding_window": 32768, "max_position_embeddings": 131072}, float("inf")),  # switched off
        ("mistral", {"sliding_window": 4096, "max_position_embeddings": 32768}, 4096),  # Mistral-7B-v0.1
        ("mistral", {"sliding_window": None}, float("inf")),
        ("gemma3_text", {"sliding_window": 512, "max_position_embeddings": 32768}, 512),
        ("llama4_text", {"attention_chunk_size": 8192}, 8192),
    ],
)
def test_windows_in_published_configs(kind: str, published: dict[str, Any], window: float) -> None:
    assert selfcheck._window(AutoConfig.for_model(kind, **published)) == window


def test_a_window_that_holds_the_longest_text_is_no_window(tmp_path: Path) -> None:
    checkpoints.open_policy(folder(tmp_path, "Phi3", sliding_window=128), precision="float32")


def test_checkpoints_of_our_own_are_not_checked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints.save(tmp_path / "c", tiny.policy(), words.tokenizer(), Checkpoint("", "sft", 1))
    monkeypatch.setattr(selfcheck, "_TOLERANCE", -1.0)
    checkpoints.open_policy(tmp_path / "c", precision="float32")
    (tmp_path / "c" / CARD).unlink()
    assert "nats from its own" in refusal(tmp_path / "c")
