"""The toy's model and tokenizer: every word of the world is known, and the model is a small Phi-3."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import Phi3ForCausalLM

from algorist.model.chat import Chat
from algorist.numerics.address import rng
from algorist.stages.base import Settings
from algorist.toy import base, teacher, words, world


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return words.tokenizer()


def model(seed: int = 1, vocab_size: int = 300) -> Phi3ForCausalLM:
    shape = Settings()
    return base.model(
        vocab_size,
        seed,
        hidden_size=shape.hidden_size,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        mlp_size=shape.mlp_size,
        context=shape.context,
    )


def said() -> Iterator[str]:
    """What the world, its teacher and the base corpus say."""
    yield from (phrase.format(n=3) for phrase in teacher.PHRASES.values())
    for who in world.NAMES:
        yield world.QUESTION.format(who=who)
        for clause, _ in world.CLAUSES.values():
            for n in range(1, world.LARGEST + 1):
                yield from (f"{clause.format(who=who, n=n)} in {month}." for month in world.MONTHS)
    for index, problem in enumerate(world.problems(3, "train", 300, range(1, 9))):
        yield problem.statement
        for habits in (teacher.Habits(), teacher.Habits(slip=0.5, notice=0.8, misread=0.3, misled=0.5, ramble=1)):
            yield teacher.respond(problem.statement, rng("test", index), habits, 220)[0]
        yield base.bare_answer(problem.answer)
        yield base.equations(3, index, 8)
        yield base.diary(3, index, 6)


def test_every_text_goes_through_the_tokenizer_and_back(tokenizer: Any) -> None:
    texts = list(said())
    for text, ids in zip(texts, tokenizer(texts, add_special_tokens=False).input_ids, strict=True):
        assert tokenizer.unk_token_id not in ids, text
        assert tokenizer.decode(ids) == text


def test_a_number_is_the_same_token_wherever_it_stands(tokenizer: Any) -> None:
    seventeen = tokenizer.convert_tokens_to_ids("17")
    for text in ("17", "Tom wins 17 in May.", "= 17.", "3 + 17 = 20.", "\\boxed{17}", "so 17."):
        assert tokenizer(text, add_special_tokens=False).input_ids.count(seventeen) == 1, text


def test_what_the_world_cannot_say_is_unknown(tokenizer: Any) -> None:
    assert tokenizer.unk_token_id in tokenizer("Zebra", add_special_tokens=False).input_ids


def test_the_template_marks_turns(tokenizer: Any) -> None:
    chat = Chat.of(tokenizer, "{problem}")
    assert tokenizer.decode(chat.prompt_ids("Tom wins 3")) == "<|user|>Tom wins 3<|end|><|assistant|>"
    assert chat.end == tokenizer.eos_token_id == words.SPECIAL.index("<|end|>")
    assert tokenizer.unk_token_id not in chat.stops
    assert chat.text(chat.response_ids("The answer is \\boxed{3}.")) == "The answer is \\boxed{3}."


def test_the_model_is_a_small_phi3(tokenizer: Any) -> None:
    found = model(vocab_size=len(tokenizer))
    config = found.config
    assert isinstance(found, Phi3ForCausalLM)
    assert config.num_key_value_heads * 2 == config.num_attention_heads
    assert found.lm_head.weight is found.model.embed_tokens.weight
    assert found.lm_head.weight.shape[0] == len(tokenizer)
    assert sum(parameter.numel() for parameter in found.parameters()) == pytest.approx(0.8e6, rel=0.1)
    assert config.eos_token_id == tokenizer.eos_token_id
    assert config.rope_parameters["partial_rotary_factor"] == 0.75


def test_the_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one = model(1).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    same, other = model(1).state_dict(), model(2).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])


def test_equations_are_right_and_go_on_from_one_another() -> None:
    for index in range(200):
        value = None
        for part in base.equations(1, index, 6).removesuffix(".").split(". "):
            a, sign, b, _, c = part.split(" ")
            results = {
                "+": int(a) + int(b),
                "-": int(a) - int(b),
                "*": int(a) * int(b),
                "/": int(a) / int(b),
            }
            assert results[sign] == int(c) and value in (None, int(a))
            value = int(c)


def test_a_diary_tells_the_same_months_twice() -> None:
    for index in range(100):
        text = base.diary(1, index, 5)
        first, _, again = text.partition(": ")
        cut = first.rindex(" ")
        told = {tuple(part.rsplit(" in ", 1)) for part in first[:cut].removesuffix(".").split(". ")}
        again = f"{first[cut + 1 :]}: {again}"
        retold = {tuple(reversed(part.split(": "))) for part in again.removesuffix(".").split(". ")}
        assert told == retold, text
