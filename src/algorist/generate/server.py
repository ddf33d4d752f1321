"""The protocol of OpenAI-compatible servers: what is sent, how a reply is read, and what may be tried again.

All of it is here, as pure functions: `body` makes a request, `outcome` reads what came back as one of three things.

    Reply     the choices of a response, with what the server says it cost
    Trouble   what may pass: time-outs, 408, 425, 429, 5xx, a broken reply. It is asked again, later
    Refusal   what will not: every other status. It carries the server's own words

`Server` asks one question at a time from any thread; generate/fleet.py keeps hundreds in flight at many servers. Where
prompts and responses are token ids, generate/ids.py says what is sent and how it is read. There is no torch here.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Literal, TypeVar

import httpx

from algorist.errors import RunError
from algorist.generate.sampling import Sampling
from algorist.numerics.address import key as address_key

Protocol = Literal["chat", "completion"]
Read = TypeVar("Read")
PATHS: Mapping[Protocol, str] = {"chat": "/chat/completions", "completion": "/completions"}
KEY = "OPENAI_API_KEY"  # the environment variable that holds the key, unless another one is named
LONGEST_WAIT = 300.0  # seconds that a server may make us wait with Retry-After
SHORTEST_SECRET = 12  # characters; servers without keys are given words such as EMPTY, which occur in answers

_PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before each new try
_AGAIN = (408, 425, 429)  # and 5xx
_CROWDED = (429, 503)
_CUT = ("length", "max_tokens", "content_filter")
_BROKEN_OFF = ("abort", "error")  # the server gave up in the middle: no sample
_WORDS = 300  # characters of a server's words that are shown


@dataclass(frozen=True)
class Choice:
    """One response."""

    text: str
    finish: str  # "stop" or "length"
    num_tokens: int = 0  # of the response, 0 where the server does not say it for this one alone


@dataclass(frozen=True)
class Reply:
    """What one request brought, at least one choice."""

    choices: tuple[Choice, ...]
    prompt_tokens: int = 0  # of the request, as the server counts them; 0 where it does not say
    completion_tokens: int = 0  # of all choices together


@dataclass(frozen=True)
class Trouble:
    """A failure that may pass."""

    words: str
    wait: float = 0.0  # seconds that the server asks for
    crowded: bool = False  # it is too many requests that it suffers from
    alive: bool = False  # the server spoke: it is this request that it cannot answer


@dataclass(frozen=True)
class Refusal:
    """A status that will be the same next time."""

    status: int
    words: str

    @property
    def of_question(self) -> bool:
        """Another question may be answered: this one is too long, or holds what the server does not take."""
        return self.status in (400, 413, 422)


def body(
    protocol: Protocol, model: str, content: str, sampling: Sampling, *, count: int, seed: int | None
) -> dict[str, Any]:
    """The JSON of a request for `count` responses to one user message, or to a bare prompt.

    A seed is sent only where there is one: some servers die of it.
    """
    said = {"messages": [{"role": "user", "content": content}]} if protocol == "chat" else {"prompt": content}
    asked = {
        "model": model,
        **said,
        "n": count,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
    }
    return asked if seed is None else {**asked, "seed": seed}


def outcome(
    status: int, headers: Mapping[str, str], content: bytes, protocol: Protocol, secret: str = ""
) -> Reply | Trouble | Refusal:
    """What a response means. `secret` is blacked out wherever the server repeats it."""
    return understood(status, headers, content, lambda said: _reply(said, protocol), secret)


def understood(
    status: int, headers: Mapping[str, str], content: bytes, read: Callable[[Any], Read], secret: str = ""
) -> Read | Trouble | Refusal:
    """`outcome` for whoever has `read` make something else of the JSON of an answer.

    What `read` raises at a broken reply is Trouble: ValueError, KeyError, TypeError, AttributeError.
    """
    if len(secret) >= SHORTEST_SECRET:
        content = content.replace(secret.encode(), b"***")
    if status == 200:
        try:
            return read(json.loads(content))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            return Trouble(f"a reply that cannot be read ({type(error).__name__}: {_short(str(error))})", alive=True)
    if status in _AGAIN or status >= 500 or status < 300:
        return Trouble(f"status {status}", _retry_after(headers), status in _CROWDED, alive=status == 500)
    if status < 400:
        return Refusal(status, f"it sends elsewhere: {_short(headers.get('location', ''))}")
    return Refusal(status, _spoken(content))


def failure(error: Exception) -> Trouble:
    """What an error of the connection means, in the words of what is behind it."""
    cause: BaseException = error
    while behind := cause.__cause__ or cause.__context__:
        cause = behind
    text = _short(str(cause) or str(error))
    return Trouble(f"{type(error).__name__}: {text}" if text else type(error).__name__)


def pause(attempt: int, wait: float, *address: object) -> float:
    """Seconds to wait after failed try number `attempt`, counted from 0: exponential, its jitter drawn by address.

    Twice the time for each try up to the longest pause, times 0.5 to 1; never shorter than what the server asked for.
    """
    return max(min(wait, LONGEST_WAIT), _PAUSES[min(attempt, len(_PAUSES) - 1)] * jitter(attempt, *address))


def jitter(*address: object) -> float:
    """A number from 0.5 to 1 that depends on the address alone, so that not all come back at the same moment."""
    return 0.5 + 0.5 * address_key("jitter", *address) / 2**63


def secret(name: str = KEY) -> str:
    """The key in the environment variable `name`, empty where there is none. Never stored, shown or logged.

    Raises RunError where it holds a character that no header takes.
    """
    found = os.environ.get(name, "").strip()
    if not (found.isascii() and found.isprintable()):  # the key itself is never shown
        raise RunError(f"{name}: holds a character that no key has. Set it again.")
    return found


def authorisation(found: str) -> dict[str, str]:
    """The headers that carry a key."""
    return {"Authorization": f"Bearer {found}"} if found else {}


@dataclass(frozen=True)
class Server:
    """One server asked question by question: how a judge is asked. The key comes from the environment."""

    url: str  # up to and including /v1
    model: str
    timeout: float = 3600.0  # seconds for one request: long chains take long
    section: str = "judge"  # of the recipe, that names this server: where errors send the user
    key_env: str = KEY
    protocol: Protocol = field(default="chat")

    def client(self) -> httpx.Client:
        """A connection pool to the server; use it as a context manager."""
        headers = authorisation(secret(self.key_env))
        return httpx.Client(base_url=self.url, timeout=self.timeout, headers=headers)

    def ask(self, client: httpx.Client, content: str, sampling: Sampling, *, seed: int | None = None) -> str:
        """One response to one user message; may be called from several threads.

        Raises RunError where the server refuses, or still fails after five more tries.
        """
        asked = body(self.protocol, self.model, content, sampling, count=1, seed=seed)
        problem = ""
        for attempt in range(len(_PAUSES) + 1):
            got = self._post(client, asked)
            if isinstance(got, Reply):
                return got.choices[0].text
            if isinstance(got, Refusal):
                raise RunError(refused(self.url, got, self.section))
            problem = got.words
            if attempt < len(_PAUSES):
                time.sleep(pause(attempt, got.wait, content))
        raise RunError(
            f"{shown(self.url)}: no usable answer after {len(_PAUSES) + 1} tries ({problem}). Start the server or "
            f"mend [{self.section}] url, then run the same command again; what is finished is kept."
        )

    def _post(self, client: httpx.Client, asked: Mapping[str, Any]) -> Reply | Trouble | Refusal:
        try:
            got = client.post(PATHS[self.protocol], json=asked)
        except httpx.RequestError as error:
            return failure(error)
        return outcome(got.status_code, got.headers, got.content, self.protocol, secret(self.key_env))


def refused(url: str, refusal: Refusal, section: str) -> str:
    """The message of an error that a refusal is."""
    return f"{shown(url)}: the server refused ({refusal.status}: {refusal.words}). Mend [{section}]."


def shown(url: str) -> str:
    """An address as it may be shown and stored: without user, password and query."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return "?"
    return str(parsed.copy_with(username=None, password=None, query=None, fragment=None))


def _reply(said: Any, protocol: Protocol) -> Reply:
    """The choices of a reply; those that the server broke off are no samples."""
    given = said["choices"]
    choices = [choice for choice in given if choice.get("finish_reason") not in _BROKEN_OFF]
    if not choices:
        raise ValueError("it has no choices")
    usage = said.get("usage") or {}
    spent = _count(usage.get("completion_tokens"))
    alone = spent if len(given) == 1 else 0
    return Reply(
        tuple(Choice(_text(one, protocol), _finish(one), _own_tokens(one) or alone) for one in choices),
        _count(usage.get("prompt_tokens")),
        spent,
    )


def _text(choice: Mapping[str, Any], protocol: Protocol) -> str:
    """What was said; thoughts that a server returns apart are put back in front of it."""
    if protocol == "chat":
        message = choice["message"]
        text = message.get("content") or ""
        thought = message.get("reasoning_content") or message.get("reasoning") or ""
    else:
        text, thought = choice["text"] or "", ""
    if not isinstance(text, str) or not isinstance(thought, str):
        raise ValueError("the content of a choice is no text")
    if thought and "<think>" not in text:
        text = f"<think>\n{thought}\n</think>\n{text}"
    return text.encode("utf-8", "replace").decode("utf-8")  # half an emoji, cut at max_tokens, is no text


def _finish(choice: Mapping[str, Any]) -> str:
    """ "length" for what was cut from outside, "stop" for everything else."""
    return "length" if choice.get("finish_reason") in _CUT else "stop"


def _own_tokens(choice: Mapping[str, Any]) -> int:
    """Tokens of one choice, where the server lists them (vLLM's token_ids, or log-probs); else 0."""
    listed = choice.get("token_ids")
    if not listed and isinstance(logprobs := choice.get("logprobs"), dict):
        listed = logprobs.get("content") or logprobs.get("tokens")
    return len(listed) if isinstance(listed, list) else 0


def _count(value: Any) -> int:
    return value if type(value) is int and 0 <= value < 2**53 else 0


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the server asks to wait, given as such or as a date by its own clock; 0 where it does not ask."""
    text = headers.get("retry-after", "").strip()
    if text.replace(".", "", 1).isdecimal() and len(text) < 20:
        return float(text)
    until = _seconds(text)
    return max(0.0, until - (_seconds(headers.get("date", "")) or time.time())) if until else 0.0


def _seconds(date: str) -> float:
    """Seconds since 1970 of an HTTP date, 0 where it is none."""
    try:
        found = parsedate_to_datetime(date)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0.0


def _spoken(content: bytes) -> str:
    """A server's own words: the message of its JSON where it has one, else how the body begins."""
    text = content[:100_000].decode("utf-8", "replace")
    try:
        said = json.loads(text)
        inner = said.get("error", said)
        found = inner if isinstance(inner, str) else inner.get("message") or inner.get("detail")
        text = found if isinstance(found, str) else text
    except (ValueError, AttributeError, RecursionError):
        pass
    return _short(text)


def _short(text: str) -> str:
    """On one line, printable, and not too long."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text[: 4 * _WORDS]).split())
    return line if len(line) <= _WORDS else f"{line[: _WORDS - 1]}…"
