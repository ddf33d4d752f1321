"""Phi-4-mini as it was published: renders and token ids that others recorded, its two ends, its identity sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from algorist.model import chat as chats
from algorist.model.chat import Chat
from algorist.toy import words
from model import tiny, wild

IDENTITY = "Your name is Phi, an AI math expert developed by Microsoft."
TOKENIZERS = {
    "phi-4-mini": wild.phi_4_mini,
    "phi-4-mini-reasoning": wild.phi_4_mini,
    "phi-3-mini": wild.phi_3_mini,
    "phi-3-medium": wild.phi_3_mini,
}  # of the others the vocabulary is not at hand, so only the text is compared


def golden() -> list[Any]:
    if not wild.HERE.is_dir():
        return []
    rows = [json.loads(line) for line in (wild.HERE / "golden.jsonl").read_text(encoding="utf-8").splitlines()]
    # Nothing here gives a template tools of its own; those inside a system message travel with it.
    return [pytest.param(row, id=row["id"]) for row in rows if "tools" not in row]


@pytest.mark.parametrize("row", golden())
def test_recorded_renders_and_ids(row: dict[str, Any]) -> None:
    name = row["template_dir"]
    tokenizer = TOKENIZERS.get(name, wild.qwen_3)(name)
    text = chats.render(tokenizer, row["messages"])
    assert text == row["expected"]
    ids = tokenizer(text, add_special_tokens=False).input_ids
    if name in TOKENIZERS and "expected_token_ids" in row:
        assert ids == row["expected_token_ids"]
    *before, last = row["messages"]
    if last["role"] == "user" and not any("tools" in message for message in before):
        chat = Chat.of(tokenizer, "{problem}", system=before[0]["content"] if before else "template")
        assert list(chat.prompt_ids(last["content"])) == ids


def test_the_prompt_of_phi_4_mini_reasoning_id_by_id() -> None:
    """Through the one path that training, sampling and evaluation take."""
    row = next(param.values[0] for param in golden() if param.id == "Phi4MiniReasoningChatTemplate")
    system, user = (message["content"] for message in row["messages"])
    chat = Chat.of(wild.phi_4_mini("phi-4-mini-reasoning"), "{problem}", system=system)
    assert len(row["expected_token_ids"]) == 38
    assert list(chat.prompt_ids(user)) == row["expected_token_ids"]


@pytest.mark.parametrize("name", ["phi-3-mini", "phi-3-medium"])
def test_a_recorded_answer_is_what_response_ids_makes_of_it(name: str) -> None:
    """Apart from its prompt an answer has the ids that it has in a conversation."""
    row = next(param.values[0] for param in golden() if param.values[0]["template_dir"] == name)
    chat = Chat.of(wild.phi_3_mini(name), "{problem}")
    answer, ids = chat.response_ids(row["messages"][-1]["content"]), row["expected_token_ids"]
    places = [i for i in range(len(ids)) if tuple(ids[i : i + len(answer)]) == answer]
    assert len(places) == 1 and ids[places[0] - 1] == chat.tokenizer.convert_tokens_to_ids("<|assistant|>")


@pytest.mark.parametrize("name", ["phi-4-mini", "phi-4-mini-reasoning"])
def test_the_end_of_turn_is_not_the_tokenizers_end(name: str) -> None:
    chat = Chat.of(wild.phi_4_mini(name), "{problem}")
    assert (chat.end, chat.tokenizer.eos_token_id) == (200020, 199999)  # <|end|>, <|endoftext|>
    assert chat.stops == {200020, 199999}
    assert chat.response_ids("\\boxed{4}")[-1] == 200020
    assert chat.text((*chat.response_ids("4", ended=False), 199999)) == "4"


@pytest.mark.parametrize(
    "answer", ["<think>\n2 + 2 = 4\n</think>\n\\boxed{4}", "\n a  b\t\n\n", "x≤½ 北京 😀 don't WE'LL 12345678 /\r\n"]
)
def test_responses_come_back_as_they_were(answer: str) -> None:
    chat = Chat.of(wild.phi_4_mini(), "{problem}")
    assert chat.text(chat.response_ids(answer)) == answer


@pytest.mark.parametrize(
    ("system", "written"),
    [
        ("template", f"<|system|>{IDENTITY}<|end|>"),
        ("", ""),  # as the flash variant has it
        (
            'Say "so" in {{ two }} lines.\n\\boxed{%}',
            f'<|system|>{IDENTITY} Say "so" in {{{{ two }}}} lines.\n\\boxed{{%}}<|end|>',
        ),
    ],
)
def test_the_identity_sentence_is_a_setting(system: str, written: str) -> None:
    chat = Chat.of(wild.phi_4_mini("phi-4-mini-reasoning"), "Think. {problem}", system=system)
    text = chat.tokenizer.decode(chat.prompt_ids("What is 2 + 2?"))
    assert text == f"{written}<|user|>Think. What is 2 + 2?<|end|><|assistant|>"


def test_what_is_saved_stops_at_both_ends(tmp_path: Path) -> None:
    """Plain transformers, told nothing, samples from the saved folder up to the first of the two ends."""
    tokenizer = words.tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    ends = tokenizer.convert_tokens_to_ids(["<|end|>", "<|endoftext|>"])
    model = tiny.build("Phi3", eos_token_id=ends[1])
    chats.name_ends(model, tokenizer)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == ends
    assert json.loads((tmp_path / "config.json").read_text())["eos_token_id"] == ends[0]
    saved = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.manual_seed(0)
    asked = torch.tensor([[5, 6]] * 32)
    said = saved.generate(
        asked, attention_mask=torch.ones_like(asked), do_sample=True, temperature=5.0, max_new_tokens=100
    )
    seen = set()
    for row in said[:, 2:].tolist():
        places = [place for place, token in enumerate(row) if token in ends]
        if places:
            seen.add(row[places[0]])
            assert set(row[places[0] + 1 :]) <= {saved.generation_config.pad_token_id}, "it went on behind an end"
    assert seen == set(ends)


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        (200020, [200020, 199999], (200020, [200020, 199999])),  # Phi-4-mini-instruct as published
        (199999, 199999, (200020, [200020, 199999])),
        (None, None, (200020, [200020, 199999])),
        ([199999, 7], [8, 199999], ([200020, 199999, 8, 7], [200020, 199999, 8, 7])),  # what others named stays
    ],
)
def test_the_ends_that_configs_name(config: Any, generation: Any, expected: Any) -> None:
    model = tiny.build("Phi3")
    model.config.eos_token_id, model.generation_config.eos_token_id = config, generation
    for _ in range(2):
        chats.name_ends(model, wild.phi_4_mini())
        assert (model.config.eos_token_id, model.generation_config.eos_token_id) == expected


def test_a_single_end_stays_a_number() -> None:
    model, tokenizer = tiny.build("Llama", eos_token_id=None), wild.qwen_3()
    chats.name_ends(model, tokenizer)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert (model.config.eos_token_id, model.generation_config.eos_token_id) == (end, end)
