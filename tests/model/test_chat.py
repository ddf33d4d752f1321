"""Text to ids and back, the end of turn, and what is refused, word for word."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from algorist.errors import RecipeError
from algorist.model.chat import Chat, load_tokenizer
from algorist.records import Problem
from algorist.toy import base as toy_base
from algorist.toy import words

TEMPLATES = Path(__file__).parents[2].parent / "shared" / "data" / "chat_templates"
PROMPT = "Think. {problem}"


@pytest.fixture(scope="module")
def toy() -> Chat:
    return Chat.of(words.tokenizer(), "{problem}")


def test_the_toys_end_of_turn(toy: Chat) -> None:
    assert toy.tokenizer.convert_ids_to_tokens(toy.end) == "<|end|>"
    assert toy.stops == {toy.end}


def test_sampling_stops_at_the_end_of_turn_and_at_the_end_of_text() -> None:
    """A tokenizer may name another end than its template writes, as Phi-4-mini's does."""
    tokenizer = words.tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    chat = Chat.of(tokenizer, "{problem}")
    assert tokenizer.convert_ids_to_tokens(chat.end) == "<|end|>"
    assert set(tokenizer.convert_ids_to_tokens(sorted(chat.stops))) == {"<|end|>", "<|endoftext|>"}


def test_prompt_ends_where_the_response_begins(toy: Chat) -> None:
    text = toy.tokenizer.decode(toy.prompt_ids("How many points does Tom have?"))
    assert text == "<|user|>How many points does Tom have?<|end|><|assistant|>"


def test_prompt_and_response_are_the_whole_conversation(toy: Chat) -> None:
    """Joined as ids they equal the rendered conversation: the policy is trained in the words it is asked in."""
    question, answer = "How many points does Tom have?", "Tom has 12 pens."
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    rendered = toy.tokenizer.apply_chat_template(messages, tokenize=False)
    expected = toy.tokenizer(rendered, add_special_tokens=False).input_ids
    assert list(toy.prompt_ids(question) + toy.response_ids(answer)) == expected


def test_responses_end_in_the_end_of_turn_unless_cut_off(toy: Chat) -> None:
    whole, part = toy.response_ids("12 + 5 = 17."), toy.response_ids("12 + 5 = 17.", ended=False)
    assert whole == (*part, toy.end)
    assert toy.text(whole) == toy.text(part) == "12 + 5 = 17."
    assert toy.text(()) == ""
    assert toy.text((toy.end,)) == ""


def test_text_keeps_what_stands_before_its_end(toy: Chat) -> None:
    """Only the token that ended it goes: a special token inside a response stays visible."""
    inside = toy.tokenizer.convert_tokens_to_ids("<|user|>")
    body = toy.response_ids("3 + 4", ended=False)
    assert toy.text((*body, inside, toy.end)) == "3 + 4<|user|>"


@pytest.mark.parametrize("seed", range(3))
def test_every_toy_text_survives_the_round_trip(toy: Chat, seed: int) -> None:
    from algorist.toy import teacher, world

    problems = world.problems(seed, "chat", 10, range(2, 9))
    texts = [problem.statement for problem in problems] + [toy_base.equations(seed, i, 4) for i in range(5)]
    texts += [toy_base.bare_answer(problem.answer) for problem in problems] + list(world.NAMES)
    assert teacher.PHRASES
    for text in texts:
        ids = toy.response_ids(text)
        assert toy.tokenizer.unk_token_id not in ids, text
        assert toy.text(ids) == text


def test_braces_in_a_statement_are_left_alone(toy: Chat) -> None:
    chat = Chat.of(toy.tokenizer, "{problem} = {n}?")
    asked = Problem.of("{problem} {0}", "1")
    text = chat.tokenizer.apply_chat_template([{"role": "user", "content": "{problem} {0} = {n}?"}], tokenize=False)
    ids = chat.tokenizer(text + "<|assistant|>", add_special_tokens=False).input_ids
    assert chat.prompt_ids(asked.statement) == tuple(ids)


def test_a_saved_tokenizer_opens_as_it_was(toy: Chat, tmp_path: Path) -> None:
    toy.tokenizer.save_pretrained(tmp_path)
    again = Chat.of(load_tokenizer(str(tmp_path)), "{problem}")
    question = "How many points does Tom have?"
    assert (again.end, again.stops) == (toy.end, toy.stops)
    assert again.prompt_ids(question) == toy.prompt_ids(question)


def test_a_prompt_without_a_place_for_the_problem_is_refused() -> None:
    with pytest.raises(RecipeError) as error:
        Chat.of(words.tokenizer(), "Please reason step by step.")
    assert str(error.value) == (
        '[model] prompt = "Please reason step by step." has no place for the problem. Write {problem} where it goes.'
    )


def test_a_tokenizer_without_a_template_is_refused(tmp_path: Path) -> None:
    tokenizer = words.tokenizer()
    tokenizer.chat_template = None
    tokenizer.name_or_path = "models/bare"
    with pytest.raises(RecipeError) as error:
        Chat.of(tokenizer, PROMPT)
    assert str(error.value) == (
        "models/bare: the tokenizer has no chat template. Add chat_template.jinja to the folder."
    )


def test_a_template_that_never_ends_a_turn_is_refused() -> None:
    tokenizer = words.tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}.{% endfor %}"
    tokenizer.name_or_path = "models/endless"
    with pytest.raises(RecipeError) as error:
        Chat.of(tokenizer, PROMPT)
    assert str(error.value) == (
        "models/endless: the chat template ends an assistant turn without a special token, "
        "so no end could be learned. Use a template that writes one."
    )


def test_the_token_for_unknown_text_is_no_end_of_turn() -> None:
    tokenizer = words.tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}~{% endfor %}"
    assert tokenizer("~", add_special_tokens=False).input_ids == [tokenizer.unk_token_id]
    with pytest.raises(RecipeError, match="the chat template ends an assistant turn without a special token"):
        Chat.of(tokenizer, PROMPT)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as error:
        load_tokenizer(str(tmp_path))
    assert str(error.value) == (
        f"{tmp_path}: this model folder has no tokenizer (tokenizer.json). "
        "Save the tokenizer beside the weights with tokenizer.save_pretrained."
    )


def test_a_broken_tokenizer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(RecipeError) as error:
        load_tokenizer(str(tmp_path))
    assert str(error.value).startswith(f'[model] base = "{tmp_path}": no tokenizer could be loaded (')
    assert str(error.value).endswith("). Name a folder or a hub model.")
    assert "\n" not in str(error.value)


def real(name: str, tmp_path: Path) -> Any:
    """A tokenizer with a template of the wild; skipped where its files are not at hand."""
    source = TEMPLATES / name
    if not source.is_dir():
        pytest.skip("the real chat templates are not here")
    for file in source.iterdir():
        content = file.read_bytes()
        target = tmp_path / file.name.removesuffix(".gz")
        target.write_bytes(gzip.decompress(content) if file.suffix == ".gz" else content)
    return load_tokenizer(str(tmp_path))


def test_phi_3_mini(tmp_path: Path) -> None:
    chat = Chat.of(real("phi-3-mini", tmp_path), PROMPT)
    assert chat.tokenizer.convert_ids_to_tokens(chat.end) == "<|end|>"
    assert {chat.tokenizer.convert_ids_to_tokens(i) for i in chat.stops} == {"<|end|>", chat.tokenizer.eos_token}
    text = chat.tokenizer.decode(chat.prompt_ids("What is 2 + 2?"))
    assert "<|user|>" in text and "Think. What is 2 + 2?" in text and text.rstrip().endswith("<|assistant|>")
    answer = "<think>\n2 + 2 = 4\n</think>\nIt is \\boxed{4}."
    assert chat.text(chat.response_ids(answer)).strip() == answer


def test_phi_4_mini(tmp_path: Path) -> None:
    """Its tokenizer names <|endoftext|> as the end while its template ends a turn with <|end|>: both stop."""
    tokenizer = real("phi-4-mini-variant", tmp_path)
    with open(TEMPLATES / "phi-4-mini" / "tokenizer_config.json", encoding="utf-8") as file:
        tokenizer.chat_template = json.load(file)["chat_template"]
    chat = Chat.of(tokenizer, PROMPT)
    assert tokenizer.convert_ids_to_tokens(chat.end) == "<|end|>"
    assert chat.end in chat.stops and tokenizer.eos_token_id in chat.stops
    answer = "<think>\n2 + 2 = 4\n</think>\n\\boxed{4}"
    assert chat.text(chat.response_ids(answer)) == answer
