"""One set of rotary factors at every length: those of Phi-4-mini, against transformers in both of its modes."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from algorist.errors import RecipeError
from algorist.generate import native
from algorist.generate.sampling import Request, Sampling
from algorist.model import longrope, selfcheck
from algorist.model.batches import Batch, Document, lay_out
from algorist.model.policy import Policy
from algorist.numerics.address import key
from model import tiny, wild

BORDER = 4096  # tokens: above it transformers takes the long factors
LENGTHS = (5000, 100, BORDER, 4100)
CHOICES: tuple[Literal["long", "short"], ...] = ("long", "short")
SMALL = {
    "vocab_size": tiny.VOCABULARY,
    "hidden_size": 256,  # two heads of 128 as in the real one, of which three quarters turn: 48 factors
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


def test_positions_that_a_config_speaks_of() -> None:
    assert longrope.positions({}) is None
    assert longrope.positions({"max_position_embeddings": 4096, "rope_parameters": None}) == 4096
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}
    assert longrope.positions({"max_position_embeddings": 40_960, "rope_parameters": yarn}) == 131_072
    assert longrope.positions({"text_config": {"max_position_embeddings": 512}, "max_position_embeddings": 9}) == 512


def published() -> dict[str, Any]:
    wild.need()
    return json.loads((wild.HERE / "phi-4-mini" / "config.json").read_text(encoding="utf-8"))


@functools.cache
def weights() -> dict[str, Tensor]:
    return tiny.build("Phi3", **{**SMALL, "max_position_embeddings": 131072}, rope_parameters=None).state_dict()


def stock() -> Any:
    """A small random Phi-4-mini as transformers makes it of the published config."""
    raw = {name: value for name, value in published().items() if name not in ("auto_map", "torch_dtype")}
    config = transformers.Phi3Config.from_dict({**raw, **SMALL, "tie_word_embeddings": False})
    model = transformers.Phi3ForCausalLM(config)
    model.load_state_dict(weights())
    return model.eval()


def settled(choice: Literal["long", "short"]) -> Any:
    model = stock()
    assert longrope.settle(model, choice)
    return model


@functools.cache
def text() -> tuple[int, ...]:
    return tuple(np.random.default_rng(0).integers(2, tiny.VOCABULARY, size=max(LENGTHS)).tolist())


def row(lengths: tuple[int, ...]) -> Batch:
    return lay_out([Document.of(text()[:length], prompt_len=1) for length in lengths])


@torch.no_grad()
def ours(model: Any, *lengths: int) -> list[Tensor]:
    """Log-probabilities by the policy of the first tokens of one text, as documents of one row."""
    batch = row(lengths)
    return list(Policy(model).logprobs(batch).split(list(lengths)))


@functools.cache
@torch.no_grad()
def theirs(length: int) -> Tensor:
    """Log-probabilities by plain transformers with the published factors."""
    return tiny.alone(stock(), text()[:length])


def gap(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max())


CLOSE = 2e-4  # nats, among log-probabilities down to -40: float32 angles of positions up to 5,000
FAR = 0.1


def test_the_two_sets_differ_on_this_text() -> None:
    """Without it no test below would mean anything."""
    assert gap(theirs(4100)[:100], theirs(100)) > FAR
    assert gap(theirs(4100)[:BORDER], theirs(BORDER)) > FAR
    assert gap(theirs(4100), theirs(5000)[:4100]) < CLOSE


def test_the_real_factors() -> None:
    rope = stock().config.rope_parameters
    assert len(rope["long_factor"]) == len(rope["short_factor"]) == 48
    assert set(rope["short_factor"]) == {1.0} and rope["long_factor"][-1] == 47.77
    assert longrope.switches_at(stock().config) == BORDER


@pytest.mark.parametrize("length", LENGTHS)
def test_long_is_what_transformers_does_above_the_border(length: int) -> None:
    """A text that goes on behind it has the same log-probabilities up to there."""
    assert gap(ours(settled("long"), length)[0], theirs(max(LENGTHS))[:length]) < CLOSE


@pytest.mark.parametrize("length", [100, BORDER])
def test_short_is_what_transformers_does_up_to_the_border(length: int) -> None:
    assert gap(ours(settled("short"), length)[0], theirs(length)) < CLOSE


@pytest.mark.parametrize("choice", CHOICES)
def test_packed_is_alone_at_every_length(choice: Literal["long", "short"]) -> None:
    model = settled(choice)
    for found, length in zip(ours(model, *LENGTHS), LENGTHS, strict=True):
        assert gap(found, ours(model, length)[0]) < CLOSE, length


def test_unsettled_a_long_document_would_change_its_neighbours() -> None:
    """What this is about: the row's largest position decides for all of it."""
    assert gap(ours(stock(), 5000, 100)[1], theirs(100)) > FAR


@pytest.mark.parametrize("choice", CHOICES)
def test_the_saved_model_is_the_same_in_plain_transformers(choice: Literal["long", "short"], tmp_path: Path) -> None:
    model = settled(choice)
    expected = ours(model, *LENGTHS)
    model.save_pretrained(tmp_path)
    longrope.write_old_names(tmp_path)
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        for length, found in zip(LENGTHS, expected, strict=True):
            assert gap(found, tiny.alone(opened, text()[:length])) < CLOSE, length
    assert opened.config.rope_parameters == model.config.rope_parameters


@pytest.mark.parametrize("choice", CHOICES)
def test_frequencies_and_scale_are_those_of_the_published_code(choice: Literal["long", "short"]) -> None:
    """By the formula, which vLLM computes for both of its branches; below and above the border."""
    model, raw = settled(choice), published()
    factors = torch.tensor(raw["rope_scaling"][f"{choice}_factor"], dtype=torch.float64)
    inverse = 1 / (factors * 10_000 ** (torch.arange(0, 96, 2, dtype=torch.float64) / 96))
    scale = math.sqrt(1 + math.log(131072 / 4096) / math.log(4096))
    assert round(scale, 4) == 1.1902
    for positions in (torch.arange(8), torch.tensor([0, 5000])):
        cos, sin = model.model.rotary_emb(torch.zeros(1), positions[None])
        angles = positions[:, None] * inverse.repeat(2)
        assert (cos[0] - scale * angles.cos()).abs().max() < 1e-3  # float32 angles up to 5,000
        assert (sin[0] - scale * angles.sin()).abs().max() < 1e-3
    assert stock().model.rotary_emb.attention_scaling == model.model.rotary_emb.attention_scaling == scale


@pytest.mark.parametrize("choice", CHOICES)
def test_a_settled_model_keeps_its_choice(choice: Literal["long", "short"]) -> None:
    """A checkpoint goes on with the factors that it was trained with, whatever a later recipe says."""
    model = settled(choice)
    before = json.dumps(model.config.to_dict())
    for later in CHOICES:
        assert longrope.settle(model, later)
        assert json.dumps(model.config.to_dict()) == before
    assert longrope.switches_at(model.config) is None


def test_settling_after_a_long_forward_leaves_nothing_of_it() -> None:
    """transformers keeps the frequencies of its last forward in the model."""
    model = stock()
    with torch.no_grad():
        model(torch.tensor([text()[: BORDER + 1]]))
    longrope.settle(model, "short")
    assert gap(ours(model, 100)[0], theirs(100)) < CLOSE


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_other_models_are_left_alone(kind: str) -> None:
    model = tiny.build(kind)
    before, rotary = json.dumps(model.config.to_dict()), model.model.rotary_emb
    assert not longrope.settle(model, "long")
    assert json.dumps(model.config.to_dict()) == before and model.model.rotary_emb is rotary
    assert longrope.switches_at(model.config) is None


def test_a_response_that_crosses_the_border_is_sampled_with_the_numbers_of_training() -> None:
    """The sampler decodes with cached keys, whose factors nothing may change afterwards."""
    policy = Policy(settled("long"))
    prompt = text()[: BORDER - 6]
    sampling = Sampling(temperature=1.0, max_tokens=14)
    (said,) = native.sample(policy, [Request(prompt, key("longrope"))], sampling, end_ids=frozenset(), num_slots=1)
    batch = lay_out([Document.of((*prompt, *said.tokens), prompt_len=len(prompt))])
    with torch.no_grad():
        again = policy.logprobs(batch)[len(prompt) :]
    assert len(said.tokens) == 14 and gap(torch.tensor(said.logprobs), again) < CLOSE


def test_a_model_that_still_switches_is_refused() -> None:
    with pytest.raises(RecipeError) as error:
        selfcheck.require_exact(stock(), "models/phi")
    assert str(error.value) == (
        '[model] base = "models/phi": Phi3ForCausalLM takes other rotary factors in texts longer than 4,096 tokens, so '
        "that documents of one row would change each other. Write one set of factors into both of its config's lists."
    )
    selfcheck.require_exact(settled("long"), "models/phi")
    selfcheck.require_exact(settled("short"), "models/phi")


OLD = {
    "Phi3": {},
    "Llama": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "Qwen2": {"rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0}},
    "Qwen3": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1_000_000.0,
            "factor": 2.0,
            "original_max_position_embeddings": 64,
        }
    },
}


@pytest.mark.parametrize("kind", OLD)
def test_readers_of_the_old_names_find_them(kind: str, tmp_path: Path) -> None:
    model = tiny.build(kind, **OLD[kind])
    model.save_pretrained(tmp_path)
    for _ in range(2):
        longrope.write_old_names(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    rope = raw["rope_parameters"]
    assert raw["rope_theta"] == rope["rope_theta"]
    assert ("rope_scaling" in raw) == (rope["rope_type"] != "default")
    if kind == "Phi3":
        assert raw["partial_rotary_factor"] == 0.75
    if "rope_scaling" in raw:
        assert raw["rope_scaling"]["type"] == rope["rope_type"] and raw["rope_scaling"]["factor"] == rope["factor"]
    again = transformers.AutoConfig.from_pretrained(tmp_path)
    assert {**again.rope_parameters, "type": ""} == {**model.config.rope_parameters, "type": ""}


def test_the_old_name_of_longrope_has_three_keys(tmp_path: Path) -> None:
    """Phi-3's config refuses more in transformers 4."""
    model = settled("long")
    model.config.save_pretrained(tmp_path)
    longrope.write_old_names(tmp_path)
    raw, factors = json.loads((tmp_path / "config.json").read_text()), published()["rope_scaling"]["long_factor"]
    assert raw["rope_scaling"] == {"type": "longrope", "short_factor": factors, "long_factor": factors}
    assert (raw["rope_theta"], raw["partial_rotary_factor"]) == (10_000.0, 0.75)
    assert raw["original_max_position_embeddings"] == BORDER


def test_a_config_without_rotary_embeddings_stays_as_it_is(tmp_path: Path) -> None:
    transformers.GPT2Config().save_pretrained(tmp_path)
    before = json.loads((tmp_path / "config.json").read_text())
    longrope.write_old_names(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == before
