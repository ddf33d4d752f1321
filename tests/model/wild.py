"""Tokenizers and chat templates as they were published; what needs them is skipped where they are not at hand."""

from __future__ import annotations

import copy
import functools
import gzip
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from algorist.model.chat import load_tokenizer

HERE = Path(__file__).parents[2].parent / "shared" / "data" / "chat_templates"
# How the o200k vocabulary cuts a text before it merges.
_WORDS = "".join(
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    )
)
_QWEN = ("<|im_start|>", "<|im_end|>", "<|im_sep|>")
_DEEPSEEK = tuple(f"<｜{name}｜>" for name in ("begin▁of▁sentence", "end▁of▁sentence", "User", "Assistant"))


def need() -> None:
    if not HERE.is_dir():
        pytest.skip("the real chat templates are not here")


def config(name: str) -> dict[str, Any]:
    """The tokenizer config of a model."""
    need()
    return json.loads((HERE / name / "tokenizer_config.json").read_text(encoding="utf-8"))


def template(name: str) -> str:
    """The chat template of a model, from its own file or out of its tokenizer config."""
    need()
    file = HERE / name / "chat_template.jinja"
    return file.read_text(encoding="utf-8") if file.exists() else config(name)["chat_template"]


def phi_4_mini(name: str = "phi-4-mini") -> Any:
    """A tokenizer with the vocabulary of Phi-4-mini, its special tokens, and the template of any model."""
    need()
    tokenizer = copy.copy(_phi_4_mini())
    tokenizer.chat_template = template(name)
    return tokenizer


def phi_3_mini(name: str = "phi-3-mini") -> Any:
    """A tokenizer with the vocabulary of Phi-3-mini and the template of any model."""
    need()
    tokenizer = copy.copy(_phi_3_mini())
    tokenizer.chat_template = template(name)
    return tokenizer


def qwen_3(name: str = "qwen3") -> Any:
    """A tokenizer with template and special tokens of Qwen3, in the vocabulary of Phi-4-mini: its own is not here."""
    return _dressed(phi_4_mini(name), bos_token=None, eos_token="<|im_end|>")


def deepseek() -> Any:
    """A tokenizer with template and special tokens of the distilled DeepSeek-R1, in the vocabulary of Phi-4-mini."""
    return _dressed(phi_4_mini("deepseek-r1-distill"), bos_token=_DEEPSEEK[0], eos_token=_DEEPSEEK[1])


def _dressed(tokenizer: Any, **tokens: str | None) -> Any:
    tokenizer._special_tokens_map = dict(tokenizer._special_tokens_map)  # which a copy shares
    for name, token in tokens.items():
        setattr(tokenizer, name, token)
    return tokenizer


@functools.cache
def _phi_4_mini() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("vocab.json", "merges.txt")]
        for file in files:
            file.write_bytes(gzip.decompress((HERE / "phi-4-mini-variant" / f"{file.name}.gz").read_bytes()))
        made = Tokenizer(models.BPE.from_file(*map(str, files)))
    cut = pre_tokenizers.Split(Regex(_WORDS), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(False, use_regex=False)])
    made.decoder = decoders.ByteLevel()
    named = config("phi-4-mini")
    for token in named["added_tokens_decoder"].values():  # in the order of their ids
        made.add_tokens([AddedToken(**token)])
    made.add_special_tokens([*_QWEN, *_DEEPSEEK])  # behind its own, where they disturb nothing
    words = {name: named[name] for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    return PreTrainedTokenizerFast(tokenizer_object=made, clean_up_tokenization_spaces=False, **words)


@functools.cache
def _phi_3_mini() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(HERE / "phi-3-mini", folder, dirs_exist_ok=True)
        # Of the model: without it transformers takes the class that the tokenizer names, which cuts texts otherwise.
        (Path(folder) / "config.json").write_text('{"model_type": "phi3"}', encoding="utf-8")
        return load_tokenizer(folder)
