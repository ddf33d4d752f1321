"""The words of the toy world: its tokenizer and chat template. No torch here: the data engine counts tokens with it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from algorist.toy import teacher, world

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL = ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>", "<unk>")
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# One piece per word and per number up to 99. Spaces belong to words and signs, never to numbers, so that a number is
# the same token wherever it stands; pieces join to exactly the text they came from.
_CORE = r"(?:\\boxed\{|</?think>|[A-Za-z]+|[^A-Za-z0-9\s])"
_PIECE = rf" ?{_CORE}(?: (?=[0-9]))?|[0-9]{{1,2}}"


def tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer that knows every word of this world."""
    from transformers import PreTrainedTokenizerFast  # looks for torch, and does without

    texts = [text for text, _ in world.CLAUSES.values()]
    texts += [world.QUESTION, *teacher.PHRASES.values(), "<think> </think> + - * / = . , : so in", "{", "}"]
    texts += [" ".join(world.NAMES), " ".join(world.MONTHS)]
    blanked = [re.sub(r"\{(who|n)\}", " ", text.replace("{{", "{").replace("}}", "}")) for text in texts]
    pieces = {piece for text in blanked for piece in re.findall(_CORE, text)}
    spaced = sorted(before + piece + after for piece in pieces for before in ("", " ") for after in ("", " "))
    vocabulary = [*SPECIAL, *map(str, range(100)), *spaced]
    ids = {piece: index for index, piece in enumerate(vocabulary)}
    inner = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECE), behavior="isolated")
    inner.decoder = decoders.Fuse()
    named = {"pad_token": "<|endoftext|>", "bos_token": "<|endoftext|>", "eos_token": "<|end|>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        chat_template=TEMPLATE,
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        clean_up_tokenization_spaces=False,
        **named,
    )
