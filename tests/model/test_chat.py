"""Text to ids and back, the end of turn, and what is refused, word for word."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from algorist.errors import RecipeError
from algorist.model import chat as chats
from algorist.model.chat import Chat, load_tokenizer
from algorist.records import Problem
from algorist.toy import base as toy_base
from algorist.toy import words
from model import wild

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
    chats.save_tokenizer(toy.tokenizer, tmp_path)
    # A name that transformers 4 knows as well as 5.
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
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


def templated(template: str, **tokens: str) -> Any:
    """The toy's tokenizer with another chat template."""
    tokenizer = words.tokenizer()
    tokenizer.chat_template, tokenizer.name_or_path = template, "models/odd"
    for name, token in tokens.items():
        setattr(tokenizer, name, token)
    return tokenizer


PLAIN = "{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}{{ '<|assistant|>' if add_generation_prompt }}"
TWO_BOS = (
    "models/odd: a prompt begins with two BOS tokens (<|user|>). Let the chat template alone write it: take it out of "
    "[model] prompt and system, of the problem, and of what the tokenizer adds by itself."
)


def test_a_bos_from_the_template_and_another_from_the_tokenizer() -> None:
    """A tokenizer that adds a BOS when it is asked for special tokens is not asked for them."""
    tokenizer = templated("{{ bos_token }}" + PLAIN, bos_token="<|user|>")
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<|user|> $A", special_tokens=[("<|user|>", bos)])
    assert tokenizer("<|user|>Tom has 3 pens.").input_ids[:2] == [bos, bos]
    ids = Chat.of(tokenizer, "{problem}").prompt_ids("Tom has 3 pens.")
    assert ids[0] == bos and ids.count(bos) == 1


class Eager:
    """A tokenizer that begins every text with its BOS, whatever it is told."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __call__(self, text: str, **told: Any) -> Any:
        return SimpleNamespace(input_ids=[self.inner.bos_token_id, *self.inner(text, **told).input_ids])


def test_a_tokenizer_that_adds_its_bos_unasked_is_refused_beside_a_template_that_writes_one() -> None:
    tokenizer = templated("{{ bos_token }}" + PLAIN, bos_token="<|user|>")
    with pytest.raises(RecipeError) as error:
        Chat.of(Eager(tokenizer), "{problem}")
    assert str(error.value) == TWO_BOS
    tokenizer.chat_template = PLAIN
    ids = Chat.of(Eager(tokenizer), "{problem}").prompt_ids("Tom has 3 pens.")
    assert ids.count(tokenizer.bos_token_id) == 1


def test_a_second_bos_in_the_prompts_words_or_in_a_problem_is_refused() -> None:
    tokenizer = templated("{{ bos_token }}" + PLAIN, bos_token="<|user|>")
    with pytest.raises(RecipeError) as error:
        Chat.of(tokenizer, "<|user|>{problem}")
    assert str(error.value) == TWO_BOS
    with pytest.raises(RecipeError) as error:
        Chat.of(tokenizer, "{problem}").prompt_ids("<|user|>3 + 4")
    assert str(error.value) == TWO_BOS


def test_a_template_that_fails_is_named() -> None:
    tokenizer = templated("{% for m in messages %}{{ raise_exception('no ' ~ m['role']) }}{% endfor %}")
    with pytest.raises(RecipeError) as error:
        Chat.of(tokenizer, "{problem}", system="")
    assert str(error.value) == (
        "models/odd: the chat template cannot write turns of user (no user). "
        "Mend chat_template.jinja in the model's folder, or take another model."
    )


USERS_ONLY = "{% for m in messages %}{% if m['role'] == 'system' %}{{ OTHERWISE }}{% else %}" + (
    "<|user|>{{ m['content'] }}<|end|>{% endif %}{% endfor %}<|assistant|>"
)


@pytest.mark.parametrize("otherwise", ["raise_exception('System role not supported')", "''"])
def test_words_for_a_system_turn_that_a_template_does_not_have_are_refused(otherwise: str) -> None:
    """Gemma's raises, Phi-3-medium's passes it over."""
    tokenizer = templated(USERS_ONLY.replace("OTHERWISE", otherwise))
    with pytest.raises(RecipeError) as error:
        Chat.of(tokenizer, "{problem}", system="You are Tom.")
    assert str(error.value) == (
        "models/odd: the chat template has no system turn, so the words of [model] system would be lost. "
        "Put them into [model] prompt."
    )
    assert Chat.of(tokenizer, "{problem}", system="").tokenizer is tokenizer


def test_a_system_turn_inside_the_users_turn_is_not_guessed_at() -> None:
    """Some templates write it into the first turn of the user: without it that turn begins like no other."""
    tokenizer = templated(
        "{% for m in messages %}<|user|>{{ 'Be brief.' if loop.first }}{{ m['content'] }}<|end|>{% endfor %}"
    )
    with pytest.raises(RecipeError) as error:
        Chat.of(tokenizer, "{problem}", system="")
    assert str(error.value) == (
        "models/odd: the system turn cannot be told from the rest of the chat template, so [model] system cannot "
        "change it. Change chat_template.jinja in the model's folder."
    )


def test_a_template_that_says_its_system_turn_twice_is_not_changed_by_halves() -> None:
    twice = "{% set turn = 'Be brief.<|end|>' %}{{ turn }}{{ turn if add_generation_prompt }}"
    tokenizer = templated(twice + PLAIN.replace("{{ m['content'] }}", "<|user|>{{ m['content'] }}"))
    chat = Chat.of(tokenizer, "{problem}", system="")
    assert chat.tokenizer.decode(chat.prompt_ids("3 + 4")) == "<|user|>3 + 4<|end|><|assistant|>"
    tokenizer = templated(
        "{{ 'Be brief.<|end|>' }}" + PLAIN.replace("{{ m['content'] }}", "<|user|>{{ m['content'] }}Be brief.<|end|>")
    )
    with pytest.raises(RecipeError, match="the system turn cannot be told from the rest of the chat template"):
        Chat.of(tokenizer, "{problem}", system="")


def text_of(chat: Chat, statement: str) -> str:
    return str(chat.tokenizer.decode(chat.prompt_ids(statement)))


@pytest.mark.parametrize(
    ("system", "written"),
    [
        (
            "template",
            "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n",
        ),
        ("", ""),
        ("Be brief.", "<|im_start|>system\nBe brief.<|im_end|>\n"),
    ],
)
def test_the_system_turn_of_qwen_2_5(system: str, written: str) -> None:
    chat = Chat.of(wild.qwen_3("qwen2.5"), PROMPT, system=system)
    expected = f"{written}<|im_start|>user\nThink. 2 + 2?<|im_end|>\n<|im_start|>assistant\n"
    assert text_of(chat, "2 + 2?") == expected


@pytest.mark.parametrize("system", ["", 'Be "brief" {{ 7 }}\n\\boxed'])
@pytest.mark.parametrize("name", ["phi-4-mini-reasoning", "qwen2.5", "qwen3", "phi-3-mini", "deepseek-r1-distill"])
def test_what_is_saved_asks_as_the_run_did(name: str, system: str, tmp_path: Path) -> None:
    """Any server renders a user's turn as we do, from the template that is saved; settling it again changes nothing."""
    marks = ("<|im_start|>", "<|im_end|>", "<|system|>", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")
    loaded = templated(wild.template(name))
    loaded.add_special_tokens({"additional_special_tokens": marks, "bos_token": marks[3]})
    before = loaded.chat_template
    chat = Chat.of(loaded, PROMPT, system=system)
    assert loaded.chat_template == before, "the tokenizer that was given stays as it was"
    chats.save_tokenizer(chat.tokenizer, tmp_path)
    saved = load_tokenizer(str(tmp_path))
    asked = [{"role": "user", "content": "Think. 2 + 2?"}]
    text = saved.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    assert text == chats.render(chat.tokenizer, asked)
    assert ("system" in text) == bool(system) or name.startswith("deepseek")
    assert system in text
    again = Chat.of(saved, PROMPT, system=system)
    assert again.tokenizer is saved and again.prompt_ids("2 + 2?") == chat.prompt_ids("2 + 2?")
    # A server's own system message is said in the place of ours, and later turns are as they were.
    told = [{"role": "system", "content": "Say so."}, *asked, {"role": "assistant", "content": "4"}, asked[0]]
    assert chats.render(saved, told) == chats.render(loaded, told)


def test_a_named_template_is_changed_among_others() -> None:
    tokenizer = wild.qwen_3("qwen2.5")
    template = tokenizer.chat_template
    tokenizer.chat_template = {"default": template, "tool_use": "tools"}
    chat = Chat.of(tokenizer, PROMPT, system="")
    assert text_of(chat, "2?") == "<|im_start|>user\nThink. 2?<|im_end|>\n<|im_start|>assistant\n"
    assert chat.tokenizer.chat_template["tool_use"] == "tools" and tokenizer.chat_template["default"] == template


THOUGHT = "<think>\n2 + 2 = 4\n\nSo it is.\n</think>\n\nIt is \\boxed{4}."


@pytest.mark.parametrize("name", ["qwen3", "deepseek-r1-distill"])
def test_no_thought_is_taken_out_by_a_template_that_would(name: str) -> None:
    """These templates leave the thought of an earlier turn out; a response never goes through one here."""
    tokenizer = wild.deepseek() if name.startswith("deepseek") else wild.qwen_3()
    chat = Chat.of(tokenizer, PROMPT)
    asked = [{"role": "user", "content": "Think. 2 + 2?"}, {"role": "assistant", "content": THOUGHT}]
    assert "2 + 2 = 4" not in chats.render(tokenizer, [*asked, {"role": "user", "content": "And?"}])
    whole = chat.prompt_ids("2 + 2?") + chat.response_ids(THOUGHT)
    text = tokenizer.decode(whole)
    assert text.endswith(THOUGHT + tokenizer.convert_ids_to_tokens(chat.end))
    assert text.count("<think>") == text.count("</think>") == 1


@pytest.mark.parametrize(
    "text", [THOUGHT, THOUGHT.removeprefix("<think>\n"), THOUGHT.replace("<think>\n", "<think>"), "\n" + THOUGHT]
)
def test_a_thought_that_the_prompt_opens_is_opened_once(text: str) -> None:
    """DeepSeek's generation prompt ends in <think>. Whether a teacher's text repeats the tag or not, training sees the
    ids that sampling goes on from; what is read is the whole thought."""
    chat = Chat.of(wild.deepseek(), PROMPT)
    assert chat.opening == "<think>\n"
    prompt = chat.prompt_ids("2 + 2?")
    assert chat.tokenizer.decode(prompt).endswith("<｜Assistant｜><think>\n")
    assert chat.text(chat.response_ids(text)) == THOUGHT
    assert chat.tokenizer.decode(prompt + chat.response_ids(text)).count("<think>") == 1
    assert chat.response_ids(text) == chat.response_ids(THOUGHT)


def test_a_thought_that_the_prompt_leaves_closed_stays_with_the_response() -> None:
    chat = Chat.of(wild.phi_3_mini(), PROMPT)
    assert chat.opening == ""
    assert chat.text(chat.response_ids(THOUGHT)).strip() == THOUGHT
    assert chats.opening(templated("")) == ""


def test_phi_3_mini() -> None:
    chat = Chat.of(wild.phi_3_mini(), PROMPT)
    assert chat.tokenizer.convert_ids_to_tokens(chat.end) == "<|end|>"
    assert {chat.tokenizer.convert_ids_to_tokens(i) for i in chat.stops} == {"<|end|>", chat.tokenizer.eos_token}
    assert text_of(chat, "2 + 2?").endswith("Think. 2 + 2?<|end|><|assistant|>")
