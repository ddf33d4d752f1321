"""The words of the protocol: a request's body read into what is asked, and answers written as a reply.

Fields follow OpenAI's chat completions and completions, with `return_token_ids` and `stop_token_ids` as in vLLM. A
field that would change the answer and that this server cannot do is refused, never passed over.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from algorist.generate.sampling import Sampling

MOST_CHOICES = 1024  # of one request
_IGNORED = frozenset({"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "priority"})
# Values at which a field that this server does not have changes nothing.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "stream": (False,),
    "stream_options": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "top_k": (0, -1),
    "min_p": (0,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "top_logprobs": (0,),
    "ignore_eos": (False,),
    "min_tokens": (0,),
    "add_generation_prompt": (True,),
    "include_stop_str_in_output": (False,),
}
_OURS = frozenset(
    {
        *("model", "n", "temperature", "top_p", "max_tokens", "max_completion_tokens", "seed", "stop", "logprobs"),
        *("return_token_ids", "stop_token_ids"),
    }
)

Prompt = tuple[int, ...] | str | list[dict[str, str]]  # token ids, text, or the messages of a chat


class Refusal(Exception):  # noqa: N818 - a reply, not a failure
    """What a client is told instead of an answer: status, the field to blame, OpenAI's code."""

    def __init__(self, status: int, message: str, *, field: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.field, self.code = status, message, field, code

    def body(self) -> dict[str, Any]:
        """The error object."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.field, "code": self.code}}


@dataclass(frozen=True)
class Asked:
    """One request, checked."""

    model: str
    prompts: tuple[Prompt, ...]  # one for a chat
    chat: bool
    choices: int  # of each prompt
    temperature: float
    top_p: float
    max_tokens: int | None  # None where the request does not say
    seed: int  # choice i of the request is the sample of seed + i
    stop: tuple[str, ...]
    logprobs: bool
    token_ids: bool
    stop_ids: tuple[int, ...]  # tokens that the client knows as ends of a response

    def sampling(self, default_tokens: int) -> Sampling:
        """How to sample. Raises Refusal where no engine could."""
        try:
            return Sampling(self.temperature, self.top_p, self.max_tokens or default_tokens)
        except ValueError as error:
            raise Refusal(400, f"{error}.") from error


@dataclass(frozen=True)
class Said:
    """One choice."""

    text: str
    finish: str  # "stop" or "length"
    count: int  # tokens; words of the toy teacher
    tokens: tuple[int, ...] = ()  # the end of turn included where it ended by itself
    logprobs: tuple[float, ...] = ()  # of `tokens`
    pieces: tuple[str, ...] = ()  # text of each token; only where log-probs are asked for


def read(body: object, *, chat: bool) -> Asked:
    """What a body of POST /v1/chat/completions (`chat`) or /v1/completions asks. Raises Refusal."""
    if not isinstance(body, dict):
        raise Refusal(400, "The body is no JSON object.")
    _refuse_unknown(body, chat)
    stop = body.get("stop") or []
    stop = [stop] if isinstance(stop, str) else stop
    if not isinstance(stop, list) or not all(isinstance(text, str) and text for text in stop):
        raise Refusal(400, "stop is neither a string nor a list of strings.", field="stop")
    most = [_integer(body, name, None, 1) for name in ("max_completion_tokens", "max_tokens")]
    ends = body.get("stop_token_ids") or []
    if ends and not _is_ids(ends):
        raise Refusal(400, "stop_token_ids is no list of token ids.", field="stop_token_ids")
    default = None if chat else 16  # OpenAI's own
    seed = _integer(body, "seed", None, -(2**63))
    return Asked(
        model=_text(body, "model"),
        prompts=(_messages(body),) if chat else _prompts(body),
        chat=chat,
        choices=_integer(body, "n", 1, 1, MOST_CHOICES) or 1,
        temperature=_number(body, "temperature", 1.0),
        top_p=_number(body, "top_p", 1.0),
        max_tokens=next((value for value in most if value is not None), default),
        seed=secrets.randbits(48) if seed is None else seed,
        stop=tuple(stop),
        logprobs=_logprobs(body, chat),
        token_ids=_flag(body, "return_token_ids"),
        stop_ids=tuple(ends),
    )


def _refuse_unknown(body: Mapping[str, Any], chat: bool) -> None:
    known = {*_OURS, *_IGNORED, "messages" if chat else "prompt"}
    for name, value in body.items():
        if name in known or value is None or value in _NEUTRAL.get(name, ()):
            continue
        if name == "stream":
            raise Refusal(400, "stream is not supported by this server: ask without it.", field="stream")
        raise Refusal(400, f"{name} is not supported by this server.", field=name)


def _text(body: Mapping[str, Any], name: str) -> str:
    if not isinstance(body.get(name), str):
        raise Refusal(400, f"{name} is missing or no string.", field=name)
    return str(body[name])


def _integer(body: Mapping[str, Any], name: str, default: int | None, least: int, most: int = 2**63 - 1) -> int | None:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        bounds = f" from {least} to {most}" if most < 2**63 - 1 else f" of at least {least}" if least > 0 else ""
        raise Refusal(400, f"{name} is no whole number{bounds}.", field=name)
    return value


def _number(body: Mapping[str, Any], name: str, default: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e6:
        raise Refusal(400, f"{name} is no number.", field=name)
    return float(value)


def _flag(body: Mapping[str, Any], name: str) -> bool:
    if not isinstance(body.get(name) or False, bool):
        raise Refusal(400, f"{name} is neither true nor false.", field=name)
    return bool(body.get(name))


def _logprobs(body: Mapping[str, Any], chat: bool) -> bool:
    """A chat asks with true; a completion with how many of the likeliest it wants, and 0 is the token said alone."""
    if chat:
        return _flag(body, "logprobs")
    value = body.get("logprobs")
    if value is None or value is False:
        return False
    if value not in (0, 1):  # True is 1
        raise Refusal(400, "logprobs is more than 1: only those of the tokens said are known.", field="logprobs")
    return True


def _messages(body: Mapping[str, Any]) -> list[dict[str, str]]:
    given = body.get("messages")
    if not isinstance(given, list) or not given:
        raise Refusal(400, "messages is missing or no list of messages.", field="messages")
    found = []
    for place, message in enumerate(given):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise Refusal(400, f"messages[{place}] is no object with a role and a content.", field="messages")
        content = message.get("content")
        if isinstance(content, list):
            parts = [part.get("text") for part in content if isinstance(part, dict)]
            texts = [part for part in parts if isinstance(part, str)]
            content = "".join(texts) if len(texts) == len(content) else None
        if not isinstance(content, str):
            raise Refusal(400, f"messages[{place}]: the content is no text; text is all this server reads.")
        found.append({"role": message["role"], "content": content})
    return found


def _prompts(body: Mapping[str, Any]) -> tuple[Prompt, ...]:
    given = body.get("prompt")
    if isinstance(given, str) or _is_ids(given):
        given = [given]
    if not isinstance(given, list) or not given or not all(isinstance(p, str) or _is_ids(p) for p in given):
        raise Refusal(400, "prompt is neither a text nor token ids, nor a list of either.", field="prompt")
    return tuple(prompt if isinstance(prompt, str) else tuple(prompt) for prompt in given)


def _is_ids(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int and token >= 0 for token in value)


def cut(text: str, stop: Sequence[str]) -> int | None:
    """Where the first of the stop strings begins, None where there is none."""
    places = [place for place in (text.find(mark) for mark in stop) if place >= 0]
    return min(places, default=None)


def reply(asked: Asked, prompts: Sequence[tuple[int, tuple[int, ...]]], said: Sequence[Said]) -> dict[str, Any]:
    """The body of an answer.

    Args:
        prompts  length and token ids of each prompt
        said     `choices` answers to the first prompt, then to the second, and so on
    """
    choices = []
    for index, one in enumerate(said):
        choice: dict[str, Any] = {"index": index, "finish_reason": one.finish, "logprobs": None}
        if asked.chat:
            choice["message"] = {"role": "assistant", "content": one.text}
        else:
            choice["text"] = one.text
        if asked.logprobs:
            choice["logprobs"] = _chat_logprobs(one) if asked.chat else _completion_logprobs(one)
        if asked.token_ids:
            choice["token_ids"] = list(one.tokens)
            if not asked.chat:
                choice["prompt_token_ids"] = list(prompts[index // asked.choices][1])
        choices.append(choice)
    read_tokens = sum(length for length, _ in prompts)
    spoken = sum(one.count for one in said)
    kind, prefix = ("chat.completion", "chatcmpl") if asked.chat else ("text_completion", "cmpl")
    body: dict[str, Any] = {
        "id": f"{prefix}-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": asked.model,
        "choices": choices,
        "usage": {
            "prompt_tokens": read_tokens,
            "completion_tokens": spoken,
            "total_tokens": read_tokens + spoken,
        },
    }
    if asked.token_ids and asked.chat:
        body["prompt_token_ids"] = list(prompts[0][1])
    return body


def _chat_logprobs(one: Said) -> dict[str, Any]:
    entries = [
        {"token": piece, "logprob": logprob, "bytes": _bytes(piece), "top_logprobs": []}
        for piece, logprob in zip(one.pieces, one.logprobs, strict=True)
    ]
    return {"content": entries, "refusal": None}


def _bytes(piece: str) -> list[int] | None:
    """None where a token is a part of a letter: its own bytes are not in its text."""
    return None if "\ufffd" in piece else list(piece.encode())


def _completion_logprobs(one: Said) -> dict[str, Any]:
    starts = [0]
    for piece in one.pieces:
        starts.append(starts[-1] + len(piece))
    return {
        "tokens": list(one.pieces),
        "token_logprobs": list(one.logprobs),
        "top_logprobs": None,
        "text_offset": starts[:-1],
    }
