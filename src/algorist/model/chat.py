"""Text to token ids: the one place where prompts are rendered and responses tokenised.

Training, sampling and evaluation call the same two functions, so that a policy is asked in the words it was taught
with. A response is tokenised apart from its prompt and joined to it as ids, which is how it stands when it is
sampled; nothing is decoded and encoded again. Only what stands before a response is rendered by the chat template, so
that a template which takes the thoughts out of an answer, as those of Qwen3 and DeepSeek do, takes nothing out here.
No torch here: the data engine uses this file too.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from algorist import store
from algorist.errors import RecipeError

_AS_IT_IS = "template"  # of [model] system
_THOUGHT = "<think>"
_MARKS = ("first 7193", "answer 7193", "second 7193")  # turns that no template says by itself
_SYSTEM_TURN = (
    '{% if not messages or messages[0]["role"] != "system" %}'
    '{% set messages = [{"role": "system", "content": TEXT}] + messages %}{% endif %}'
)
Message = dict[str, str]  # role, content


@dataclass(frozen=True)
class Settings:
    """[model]"""

    base: str = "toy"  # a local folder, a hub name, or "toy": a small model made in the run
    # Asked in training, sampling and evaluation alike; {problem} is the statement.
    prompt: str = "Please reason step by step, and put your final answer within \\boxed{}. {problem}"
    system: str = "template"  # "template": the chat template's own words; "": no system turn; or the text of one
    rope: Literal["long", "short"] = "long"  # LongRoPE factors at all lengths; long moves short texts a little
    precision: Literal["float32", "bfloat16"] = "float32"  # of matrix products
    weights: Literal["float32", "bfloat16"] = "float32"  # how they are held; bfloat16 takes half, for lora
    # The kernel of attention; auto checks and times those that run here and takes the fastest that is right.
    attention: Literal["auto", "grouped", "varlen", "flex", "cudnn", "flash"] = "auto"

    def __post_init__(self) -> None:
        if self.weights == "bfloat16" and self.precision != "bfloat16":
            raise ValueError('weights = "bfloat16" needs precision = "bfloat16": they have no more digits than that.')


@dataclass(frozen=True)
class Chat:
    """A tokenizer with its chat template, and the words around a problem."""

    tokenizer: Any  # of transformers
    prompt: str  # with {problem} where the statement goes
    end: int  # id of the end-of-turn token: what every trained response ends in
    stops: frozenset[int]  # ids at which sampling stops: the end of turn and the tokenizer's end of text
    opening: str = ""  # what prompts say of the response already: "<think>\n" where the template opens the thought

    @classmethod
    def of(cls, tokenizer: Any, prompt: str, *, system: str = _AS_IT_IS) -> Chat:
        """Find the end of turn in the template itself: configs disagree about it (Phi-4-mini's tokenizer names
        <|endoftext|> as eos while its template and model config end a turn with <|end|>).

        Args:
            tokenizer  of transformers; a copy of it is kept where `system` changes its template
            prompt     what a user says, {problem} being the statement
            system     "template": the system turn is what the template makes of a user's turn alone; "": none; any
                       other text is given to the template as a system message

        Raises:
            RecipeError where prompt, system and template do not go together.
        """
        if "{problem}" not in prompt:
            raise RecipeError(
                f'[model] prompt = "{prompt}" has no place for the problem. Write {{problem}} where it goes.'
            )
        if not getattr(tokenizer, "chat_template", None):
            raise RecipeError(
                f"{tokenizer.name_or_path}: the tokenizer has no chat template. Add chat_template.jinja to the folder."
            )
        if system != _AS_IT_IS:
            tokenizer = _with_system(tokenizer, system)
        end = _end_of_turn(tokenizer)
        eos = tokenizer.eos_token_id
        chat = cls(tokenizer, prompt, end, frozenset({end} if eos is None else {end, eos}), opening(tokenizer))
        chat.prompt_ids("1")  # what is wrong with it shows here, before anything was paid for
        return chat

    def prompt_ids(self, statement: str) -> tuple[int, ...]:
        """Ids of the rendered question, up to where the response begins. Raises RecipeError at two BOS tokens."""
        text = render(self.tokenizer, [{"role": "user", "content": self.prompt.replace("{problem}", statement)}])
        ids = tuple(self.tokenizer(text, add_special_tokens=False).input_ids)
        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:2] == (bos, bos):
            raise RecipeError(
                f"{self.tokenizer.name_or_path}: a prompt begins with two BOS tokens ({self.tokenizer.bos_token}). Let "
                "the chat template alone write it: take it out of [model] prompt and system, of the problem, and of "
                "what the tokenizer adds by itself."
            )
        return ids

    def longest_prompt(self, statements: Iterable[str]) -> int:
        """Tokens of the longest rendered question; 0 where there is none."""
        return max((len(self.prompt_ids(statement)) for statement in statements), default=0)

    def response_ids(self, text: str, *, ended: bool = True) -> tuple[int, ...]:
        """Ids of a response, with the end of turn unless it was cut off before it; what the prompt has said of it
        already is left out."""
        ids = tuple(self.tokenizer(unopened(text, self.opening), add_special_tokens=False).input_ids)
        return (*ids, self.end) if ended else ids

    def text(self, response: tuple[int, ...]) -> str:
        """The text of sampled response ids, without what ended it and behind what the prompt has said of it already."""
        body = response[:-1] if response and response[-1] in self.stops else response
        return self.opening + str(self.tokenizer.decode(body, skip_special_tokens=False))


def render(tokenizer: Any, messages: Sequence[Message]) -> str:
    """A conversation as its chat template writes it, up to where the next response begins."""
    try:
        return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    except Exception as error:  # a template raises what it likes
        roles = ", ".join(message["role"] for message in messages)
        raise RecipeError(
            f"{tokenizer.name_or_path}: the chat template cannot write turns of {roles} ({error}). "
            "Mend chat_template.jinja in the model's folder, or take another model."
        ) from error


def opening(tokenizer: Any) -> str:
    """What the generation prompt of a chat template says of the response: the tag of a thought, or "" in most."""
    if not getattr(tokenizer, "chat_template", None):
        return ""
    text = render(tokenizer, [{"role": "user", "content": "1"}])
    return text[text.rindex(_THOUGHT) :] if text.rstrip().endswith(_THOUGHT) else ""


def unopened(text: str, opening: str) -> str:
    r"""A response without the tag that it begins with where the prompt has written it.

    >>> unopened("<think>\nSo", "<think>\n"), unopened("So", "<think>\n"), unopened("<think>\nSo", "")
    ('So', 'So', '<think>\nSo')
    """
    begun = text.lstrip()
    if not opening or not begun.startswith(_THOUGHT):
        return text
    return begun.removeprefix(_THOUGHT).removeprefix(opening.removeprefix(_THOUGHT))


def name_ends(model: Any, tokenizer: Any) -> None:
    """Name every token that ends a response in the configs saved with a model, the end of turn first.

    Servers and `generate` stop at the tokens that generation_config.json names, and some at config.json's: with the
    end of the tokenizer alone (Phi-4-mini: <|endoftext|>) they would talk on behind every answer. What is named there
    already stays.

    Args:
        model      a causal LM of transformers; its `generation_config` and `config` are changed
        tokenizer  whose chat template the model was trained with
    """
    named = [_end_of_turn(tokenizer)] if getattr(tokenizer, "chat_template", None) else []
    for found in (tokenizer.eos_token_id, model.generation_config.eos_token_id, model.config.eos_token_id):
        named += found if isinstance(found, list) else [found]
    ends = [end for end in dict.fromkeys(named) if end is not None]
    if ends:
        model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
        model.config.eos_token_id = ends if isinstance(model.config.eos_token_id, list) else ends[0]


def tokenizer_files(source: str) -> tuple[Path, ...]:
    """The files of a local model folder that its tokenizer is read from; none of a hub model or the toy."""
    known = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*")
    return tuple(sorted(path for pattern in known for path in Path(source).glob(pattern) if path.is_file()))


def load_tokenizer(source: str) -> Any:
    """The tokenizer of a local folder or a hub name. Raises RecipeError where there is none."""
    from transformers import AutoTokenizer

    files = [Path(source) / name for name in ("tokenizer.json", "vocab.json", "tokenizer.model")]
    if Path(source).is_dir() and not any(file.exists() for file in files):
        raise RecipeError(
            f"{source}: this model folder has no tokenizer (tokenizer.json). "
            "Save the tokenizer beside the weights with tokenizer.save_pretrained."
        )
    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise RecipeError(
            f'[model] base = "{source}": no tokenizer could be loaded ({first}). Name a folder or a hub model.'
        ) from error


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Save a tokenizer so that transformers 4 opens it too: it does not know the name that transformers 5 gives to a
    tokenizer which is its tokenizer.json and nothing more."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    saved = store.read_json(path)
    if saved.get("tokenizer_class") == "TokenizersBackend":
        store.write_json(path, {**saved, "tokenizer_class": "PreTrainedTokenizerFast"})


def _end_of_turn(tokenizer: Any) -> int:
    mark = "7"
    messages = [{"role": "user", "content": "1"}, {"role": "assistant", "content": mark}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    rest = text[text.rindex(mark) + len(mark) :]
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    special.discard(tokenizer.unk_token_id)
    for token in tokenizer(rest, add_special_tokens=False).input_ids:
        if token in special:
            return int(token)
    raise RecipeError(
        f"{tokenizer.name_or_path}: the chat template ends an assistant turn without a special token, "
        "so no end could be learned. Use a template that writes one."
    )


def _with_system(tokenizer: Any, system: str) -> Any:
    """A copy of a tokenizer whose chat template writes the system turn that is asked for, on every server that it is
    saved for; the tokenizer itself where its template does so already."""
    asked = [{"role": "user", "content": _MARKS[0]}]
    plain = render(tokenizer, asked)
    if system:
        wanted, begin, end = _told(tokenizer, system, asked), _SYSTEM_TURN.replace("TEXT", _quoted(system)), ""
    else:
        turn = _system_turn(tokenizer)
        wanted, begin, end = (
            plain.replace(turn, "", 1),
            f'{{% filter replace({_quoted(turn)}, "") %}}',
            "{% endfilter %}",
        )
    if wanted == plain:
        return tokenizer
    changed, template = copy.copy(tokenizer), tokenizer.chat_template
    if isinstance(template, dict):  # several by name, of which "default" is the one for conversations
        changed.chat_template = {**template, "default": begin + template["default"] + end}
    else:
        changed.chat_template = begin + template + end
    if render(changed, asked) != wanted:
        raise _entangled(tokenizer)
    return changed


def _told(tokenizer: Any, system: str, asked: list[Message]) -> str:
    """A conversation behind a system message. Raises RecipeError where the template has no place for one."""
    try:
        told = render(tokenizer, [{"role": "system", "content": system}, *asked])
    except RecipeError:  # some templates raise at the role, others pass it over
        told = ""
    if system.strip() not in told:
        raise RecipeError(
            f"{tokenizer.name_or_path}: the chat template has no system turn, so the words of [model] system would be "
            "lost. Put them into [model] prompt."
        )
    return told


def _system_turn(tokenizer: Any) -> str:
    """What a chat template writes before the first turn of a user, without a BOS; "" in many."""
    first, answer, second = _MARKS
    turns = [("user", first), ("assistant", answer), ("user", second)]
    alone = render(tokenizer, [{"role": "user", "content": first}])
    text = render(tokenizer, [{"role": role, "content": content} for role, content in turns])
    end = tokenizer.convert_ids_to_tokens(_end_of_turn(tokenizer))
    header = text[text.index(answer) : text.index(second)].rpartition(end)[2].lstrip()  # of any turn of a user
    before = alone[: alone.index(first)]
    if not before.endswith(header):
        raise _entangled(tokenizer)
    return before.removesuffix(header).removeprefix(tokenizer.bos_token or "")


def _entangled(tokenizer: Any) -> RecipeError:
    return RecipeError(
        f"{tokenizer.name_or_path}: the system turn cannot be told from the rest of the chat template, so [model] "
        "system cannot change it. Change chat_template.jinja in the model's folder."
    )


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # JSON's strings are Jinja's
