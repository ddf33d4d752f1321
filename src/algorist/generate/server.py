"""An OpenAI-compatible server as a source of responses: how teachers and judges are asked. No torch here.

One request asks for all samples of a problem; several are in flight at once. A request that fails for a reason that
may pass (connection, 429, 5xx, broken answer) is sent again with growing pauses; one that the server refuses is an
error with the server's own words.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import httpx

from algorist.errors import RunError
from algorist.generate.sampling import Sampling

_PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before each new try


@dataclass(frozen=True)
class Answer:
    """One choice of a chat completion."""

    text: str
    finish: str  # "stop" or "length"


@dataclass(frozen=True)
class Server:
    """Where to ask, and for which model. The key comes from OPENAI_API_KEY and is never stored."""

    url: str
    model: str
    timeout: float = 3600.0  # seconds for one request: long chains take long
    transport: httpx.BaseTransport | None = None  # what stands in for the network
    section: str = "teacher"  # of the recipe, that names this server: where errors send the user

    def client(self) -> httpx.Client:
        """A connection pool to the server; use it as a context manager."""
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not (key.isascii() and key.isprintable()):  # the key itself is never shown
            raise RunError("OPENAI_API_KEY: holds a character that no key has. Set it again.")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        base = "http://in.process" if self.transport else self.url
        return httpx.Client(base_url=base, timeout=self.timeout, headers=headers, transport=self.transport)

    def ask(self, client: httpx.Client, content: str, sampling: Sampling, *, count: int, seed: int) -> list[Answer]:
        """`count` responses to one user message.

        Raises:
            RunError where the server refuses, or still fails after five more tries. Responses that a server did not
            give (some ignore n) are asked for again.
        """
        answers: list[Answer] = []
        while len(answers) < count:
            body = {
                "model": self.model,
                "messages": [{"role": "user", "content": content}],
                "n": count - len(answers),
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "max_tokens": sampling.max_tokens,
                "seed": seed + len(answers),
            }
            answers += self._post(client, body)[: count - len(answers)]
        return answers

    def _post(self, client: httpx.Client, body: dict[str, Any]) -> list[Answer]:
        problem = ""
        for pause in (*_PAUSES, 0.0):
            asked = 0.0
            try:
                reply = client.post("/chat/completions", json=body)
                if 400 <= reply.status_code < 500 and reply.status_code != 429:
                    words = reply.text[:200]
                    refused = f"the server refused ({reply.status_code}: {words})"
                    raise RunError(f"{self.url}: {refused}. Mend [{self.section}].")
                if reply.status_code == 200:
                    return _answers(reply.json())
                problem, asked = f"status {reply.status_code}", _retry_after(reply)
            except (httpx.TransportError, ValueError, KeyError, TypeError, AttributeError) as error:
                problem = f"{type(error).__name__}: {error}"
            time.sleep(min(max(asked, pause), 60.0))
        raise RunError(
            f"{self.url}: no usable answer after {len(_PAUSES) + 1} tries ({problem}). "
            f"Start the server or mend [{self.section}] url, then run the same command again; what is finished is kept."
        )


def _retry_after(reply: httpx.Response) -> float:
    """Seconds that the server asked to wait, 0 where it did not."""
    text = reply.headers.get("retry-after", "")
    return float(text) if text.isdigit() else 0.0


def _answers(reply: dict[str, Any]) -> list[Answer]:
    """The choices of a reply; thoughts that a server returns apart are put back in front of the answer."""
    found = []
    for choice in reply["choices"]:
        message = choice["message"]
        text = message.get("content") or ""
        thought = message.get("reasoning_content") or message.get("reasoning") or ""
        if not isinstance(text, str) or not isinstance(thought, str):
            raise ValueError("the content of a choice is no text")
        if thought:
            text = f"<think>\n{thought}\n</think>\n{text}"
        text = text.encode("utf-8", "replace").decode("utf-8")  # half an emoji, cut at max_tokens, is no text
        found.append(Answer(text, "length" if choice.get("finish_reason") == "length" else "stop"))
    if not found:
        raise ValueError("the reply has no choices")
    return found
