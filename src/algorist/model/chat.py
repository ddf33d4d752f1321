"""Text to token ids: the one place where prompts are rendered and responses tokenised.

Training, sampling and evaluation call the same two functions, so that a policy is asked in the words it was taught
with. A response is tokenised apart from its prompt and joined to it as ids, which is how it stands when it is
sampled; nothing is decoded and encoded again. No torch here: the data engine uses this file too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from algorist.errors import RecipeError


@dataclass(frozen=True)
class Settings:
    """[model]"""

    base: str = "toy"  # a local folder, a hub name, or "toy": a small model made in the run
    # Asked in training, sampling and evaluation alike; {problem} is the statement.
    prompt: str = "Please reason step by step, and put your final answer within \\boxed{}. {problem}"
    precision: Literal["float32", "bfloat16"] = "float32"  # of matrix products; weights are always float32


@dataclass(frozen=True)
class Chat:
    """A tokenizer with its chat template, and the words around a problem."""

    tokenizer: Any  # of transformers
    prompt: str  # with {problem} where the statement goes
    end: int  # id of the end-of-turn token: what every trained response ends in
    stops: frozenset[int]  # ids at which sampling stops: the end of turn and the tokenizer's end of text

    @classmethod
    def of(cls, tokenizer: Any, prompt: str) -> Chat:
        """Find the end of turn in the template itself: configs disagree about it (Phi-4-mini's tokenizer names
        <|endoftext|> as eos while its template and model config end a turn with <|end|>)."""
        if "{problem}" not in prompt:
            raise RecipeError(
                f'[model] prompt = "{prompt}" has no place for the problem. Write {{problem}} where it goes.'
            )
        if not getattr(tokenizer, "chat_template", None):
            raise RecipeError(
                f"{tokenizer.name_or_path}: the tokenizer has no chat template. Add chat_template.jinja to the folder."
            )
        end = _end_of_turn(tokenizer)
        eos = tokenizer.eos_token_id
        return cls(tokenizer, prompt, end, frozenset({end} if eos is None else {end, eos}))

    def prompt_ids(self, statement: str) -> tuple[int, ...]:
        """Ids of the rendered question, up to where the response begins."""
        messages = [{"role": "user", "content": self.prompt.replace("{problem}", statement)}]
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids = tuple(self.tokenizer(text, add_special_tokens=False).input_ids)
        bos = self.tokenizer.bos_token_id
        assert bos is None or ids[:2] != (bos, bos), "the prompt begins with two BOS tokens"
        return ids

    def response_ids(self, text: str, *, ended: bool = True) -> tuple[int, ...]:
        """Ids of a response, with the end of turn unless it was cut off before it."""
        ids = tuple(self.tokenizer(text, add_special_tokens=False).input_ids)
        return (*ids, self.end) if ended else ids

    def text(self, response: tuple[int, ...]) -> str:
        """The text of sampled response ids, without what ended it."""
        body = response[:-1] if response and response[-1] in self.stops else response
        return self.tokenizer.decode(body, skip_special_tokens=False)  # type: ignore[no-any-return]


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
