"""The protocol of OpenAI-compatible servers where prompts and responses are token ids: what is sent, how it is read.

A server that holds a checkpoint of ours is asked at /v1/completions, where a prompt may be a list of ids. The ids of
the response and the log-probability of each come back as they were sampled; no text is ever read back into tokens.
vLLM and SGLang list ids where `return_token_ids` asks for them; an older vLLM writes "token_id:5" in the place of a
token's text.

What cannot be used is an error and never a shorter record: a reply without ids or log-probabilities, a response that
was cut before its limit, and one that ended at a token which ends nothing. There is no torch here.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from algorist.errors import RunError
from algorist.generate.sampling import Request, Response, Sampling

PATH = "/completions"
_MARK = "token_id:"


def room(request: Request, sampling: Sampling) -> int:
    """How many tokens a response may still get."""
    return request.limit(sampling) - len(request.said)


def body(
    model: str, request: Request, sampling: Sampling, *, end_ids: Collection[int], seed: int | None
) -> dict[str, Any]:
    """The JSON of a request for the rest of one response. What was said of it already is a part of the prompt.

    top_k, min_p and repetition_penalty are named because vLLM and SGLang take theirs from the checkpoint's own
    generation_config.json where a request is silent about them.
    """
    asked = {
        "model": model,
        "prompt": [*request.prompt, *request.said],
        "max_tokens": room(request, sampling),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "stop_token_ids": sorted(end_ids),
        "logprobs": 0,  # of the tokens that were drawn, and no others
        "return_token_ids": True,
    }
    return asked if seed is None else {**asked, "seed": seed}


def response(said: Any, limit: int, end_ids: Collection[int], where: str) -> Response:
    """What a reply to `body` brought, without what had been said before.

    Args:
        said   the JSON of the reply
        limit  the `max_tokens` that it was asked with
        where  the server, for errors

    Raises:
        RunError where the server does not give what is needed, and will not the next time.
        ValueError, KeyError, TypeError or AttributeError where the reply is broken.
    """
    (choice,) = said["choices"]
    finish = choice["finish_reason"]
    if finish not in ("stop", "length"):
        raise ValueError(f"the server gave the response up: {finish}")
    listed: Mapping[str, Any] = choice.get("logprobs") or {}
    tokens = _tokens(choice.get("token_ids"), listed.get("tokens"))
    if tokens is None:
        raise RunError(
            f"{where}: the reply has no token ids. vLLM gives them from 0.10.2 on, SGLang since it knows "
            "return_token_ids; start an older vLLM with --return-tokens-as-token-ids."
        )
    logprobs = listed.get("token_logprobs")
    if not isinstance(logprobs, list) or None in logprobs:
        raise RunError(
            f"{where}: the reply has no log-probabilities of its tokens. Serve the checkpoint with vLLM, SGLang or "
            "algorist serve."
        )
    if len(tokens) != len(logprobs) or not all(math.isfinite(one) for one in logprobs):
        raise ValueError(
            f"{len(tokens)} tokens with {len(logprobs)} log-probabilities, or with some that are no number"
        )
    if tokens and tokens[-1] in end_ids:
        finish = "stop"  # at the limit, too: vLLM says "length" there
    _require_whole(tokens, finish, limit, end_ids, where)
    return Response(tokens, tuple(map(float, logprobs)), finish)


def _tokens(ids: Any, marked: Any) -> tuple[int, ...] | None:
    """The ids of a response: listed, or in the place of its tokens' texts; None where they are in neither."""
    if isinstance(ids, list) and all(type(one) is int and one >= 0 for one in ids):
        return tuple(ids)
    if isinstance(marked, list) and all(isinstance(one, str) and one.startswith(_MARK) for one in marked):
        return tuple(int(one.removeprefix(_MARK)) for one in marked)
    return None


def _require_whole(tokens: tuple[int, ...], finish: str, limit: int, end_ids: Collection[int], where: str) -> None:
    """Raise RunError where a response ended neither at a token that ends one nor at the limit."""
    if finish == "length" and len(tokens) != limit:
        raise RunError(
            f"{where}: a response was cut after {len(tokens):,} tokens, {limit:,} were asked for. Start the server "
            "with a longer context, or lower max_tokens."
        )
    if finish == "stop" and (not tokens or tokens[-1] not in end_ids):
        last, ends = tokens[-1] if tokens else "none", ", ".join(map(str, sorted(end_ids)))
        raise RunError(
            f"{where}: a response ended with token {last}, one of {ends} was expected. Serve the folder of the "
            "checkpoint as it is, with its own tokenizer and generation_config.json."
        )
