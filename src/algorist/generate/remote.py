"""The engine that samples at a server: any OpenAI-compatible one that serves a checkpoint of ours and tells token ids.

It is for evaluation and for the selection of prompts, beside `vllm serve runs/x/sft/checkpoint`, SGLang or `algorist
serve`. Hundreds of requests are in flight; what fails is asked again, after pauses that grow and by the server's own
word (generate/endpoints.py). A response that is given up halfway brings nothing: replies come whole.

What the log-probabilities mean is the server's business, and so is which weights it has. `require_same` asks before the
first use: it compares what the server says of a few responses with what the checkpoint says here. The recipe for each
server is in docs/engines.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import httpx
import torch

from algorist.errors import RunError
from algorist.generate import ids, server
from algorist.generate.endpoints import Endpoint, Lines, allow_files
from algorist.generate.sampling import Request, Response, Sampling, never
from algorist.generate.server import Refusal, Trouble
from algorist.model.batches import Document, lay_out
from algorist.model.policy import Policy
from algorist.numerics.address import key

_TRIES = 20  # of a request whose failures are its own
_CANARY_PROMPTS, _CANARY_TOKENS = 8, 64
_FIRST_WORD = 30.0  # seconds in which a server must say what it serves


@dataclass(frozen=True)
class Remote:
    """A server that holds the weights; they do not change."""

    url: str  # up to and including /v1
    model: str  # as the server knows it
    end_ids: frozenset[int]  # tokens that end a response
    concurrency: int = 128  # requests in flight
    seeded: bool = True  # send a seed with each request; some servers die of it
    timeout: float = 3600.0  # seconds for one request: long chains take long
    patience: float = 600.0  # seconds without any answer
    section: str = "evaluate"  # of the recipe, that names the server: where errors send the user
    key_env: str = server.KEY  # the environment variable that holds its key

    def stream(
        self, requests: Sequence[Request], sampling: Sampling, *, enough: Callable[[], bool] = never
    ) -> Iterator[tuple[int, Response]]:
        """Each response with the index of its request, as it finishes.

        Args:
            enough  asked after each response; once it says yes, what is in flight is cancelled and comes with what had
                    been said of it before this call, "unfinished"

        Raises:
            RunError where the server refuses a request, does not answer for longer than the patience, fails twenty
            times on one request, or gives no token ids or log-probabilities.
        """
        left = dict.fromkeys(range(len(requests)))
        done = [(i, request.over(sampling, self.end_ids)) for i, request in enumerate(requests)]
        found = [(i, _whole(requests[i], finish)) for i, finish in done if finish]
        allow_files(self.concurrency)
        run = _Run(self, requests, sampling, [i for i, finish in done if not finish])
        loop = asyncio.new_event_loop()
        told = False
        try:
            loop.run_until_complete(run.open())
            while left and not told:
                for index, response in found or loop.run_until_complete(run.some()):
                    del left[index]
                    yield index, response
                    told = told or enough()
                found = []
        finally:  # the consumer may stop listening, too
            loop.run_until_complete(run.close())
            loop.close()
        for index in left:
            yield index, _whole(requests[index], "unfinished")

    def hand_over(self, policy: Policy) -> None:
        """Raises RunError: nobody can give a server weights."""
        raise RunError(
            f"{server.shown(self.url)}: a server cannot be given the weights of a policy in training. Take the native "
            "engine or vllm."
        )

    def rest(self) -> None:
        """Nothing to do: the memory is the server's."""


class _Run:
    """One call of `stream`: a few workers, each of which asks for one response after another."""

    def __init__(self, remote: Remote, requests: Sequence[Request], sampling: Sampling, wanted: Sequence[int]) -> None:
        self.remote, self.requests, self.sampling = remote, requests, sampling
        self.waiting = iter(wanted)
        self.workers = min(remote.concurrency, len(wanted))
        self.secret = server.secret(remote.key_env)
        self.endpoint = Endpoint(remote.url, remote.key_env)
        self.lines = Lines(self.endpoint, self.secret, remote.timeout)
        self.found: list[tuple[int, Response]] = []
        self.error: BaseException | None = None
        self.tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        self.loop, self.wake = asyncio.get_running_loop(), asyncio.Event()
        self.tasks = [self.loop.create_task(self.work()) for _ in range(self.workers)]
        for task in self.tasks:
            task.add_done_callback(self.done)

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.lines.close()

    async def some(self) -> list[tuple[int, Response]]:
        """What has arrived, at least one. Raises what a worker died of, once everything else is out."""
        while not self.found:
            if self.error is not None:
                raise self.error
            self.wake.clear()
            await self.wake.wait()
        found, self.found = self.found, []
        return found

    async def work(self) -> None:
        for index in self.waiting:
            response = await self.answer(index)  # on a line of its own: `some` takes the list away meanwhile
            self.found.append((index, response))
            self.wake.set()

    def done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and self.error is None:
            self.error = error
        self.wake.set()

    async def answer(self, index: int) -> Response:
        """One response, however often it has to be asked for."""
        request, attempt, blamed = self.requests[index], 0, 0
        while True:
            await self.turn()
            began = self.loop.time()
            got = await self.post(request)
            now = self.loop.time()
            if isinstance(got, Response):
                self.endpoint.answered += 1
                self.endpoint.speaks(now)
                said = request.said + got.tokens, request.logprobs + got.logprobs
                return Response(*said, got.finish)
            if isinstance(got, Refusal):
                if got.of_question or not self.endpoint.answered:
                    raise RunError(server.refused(self.remote.url, got, self.remote.section))
                got = Trouble(f"status {got.status}: {got.words}")  # a gateway, or a key that ran out
            blamed += got.alive or self.endpoint.spoke_at > began
            self.endpoint.fails(now, got, began)
            if blamed >= _TRIES:
                raise RunError(
                    f"{self.endpoint.shown}: no usable answer to one request after {_TRIES} tries ({got.words}). The "
                    f"server's log says why; mend that or [{self.remote.section}], then run the same command again."
                )
            await asyncio.sleep(server.pause(attempt, 0.0, request.key))
            attempt += 1

    async def turn(self) -> None:
        """Wait until the server may have one request more. Raises RunError where it has been silent for too long."""
        endpoint, remote = self.endpoint, self.remote
        while True:
            now = self.loop.time()
            since = endpoint.failing_since
            if since is not None and not endpoint.in_flight and now - since > remote.patience:
                raise RunError(
                    f"{endpoint.shown}: no answer for {remote.patience:g} s ({endpoint.said}). Start the server or "
                    f"mend [{remote.section}] url, then run the same command again; what is finished is kept."
                )
            if endpoint.broken and now >= endpoint.paused_until:
                endpoint.reopens(now)
            if endpoint.in_flight < endpoint.room(now, remote.concurrency):
                return
            await asyncio.sleep(min(max(endpoint.paused_until - now, 0.1), 1.0))

    async def post(self, request: Request) -> Response | Trouble | Refusal:
        remote, endpoint = self.remote, self.endpoint
        # What was said before is part of the prompt for a server, whose generator begins anew.
        seed = key(request.key, "remote", len(request.said)) % 2**48 if remote.seeded else None
        asked = ids.body(remote.model, request, self.sampling, end_ids=remote.end_ids, seed=seed)
        endpoint.in_flight += 1
        try:
            async with asyncio.timeout(remote.timeout):  # of the whole: a server may drip for ever
                got = await self.lines.send("POST", ids.PATH, asked)
        except TimeoutError:
            return Trouble(f"no answer within {remote.timeout:g} s")
        except httpx.RequestError as error:
            return server.failure(error)
        finally:
            endpoint.in_flight -= 1
        read = partial(ids.response, limit=asked["max_tokens"], end_ids=remote.end_ids, where=endpoint.shown)
        return server.understood(got.status_code, got.headers, got.content, read, self.secret)


def served_model(url: str, *, checkpoint: str, section: str = "evaluate", key_env: str = server.KEY) -> str:
    """The name under which a server knows the only model that it has.

    Args:
        checkpoint  what it should serve, for errors

    Raises:
        RunError where nobody answers, or the server has no model or several.
    """
    where = server.shown(url)
    headers = server.authorisation(server.secret(key_env))
    try:
        got = httpx.get(f"{url.rstrip('/')}/models", headers=headers, timeout=_FIRST_WORD)
        found = [str(one["id"]) for one in got.json()["data"]] if got.status_code == 200 else []
        words = f"status {got.status_code}" if got.status_code != 200 else f"it has {', '.join(found) or 'none'}"
    except httpx.RequestError as error:
        words = server.failure(error).words
        raise RunError(
            f"{where}: nobody answers ({words}). Serve {checkpoint} there, or mend [{section}] url."
        ) from None
    except (ValueError, KeyError, TypeError):
        found, words = [], "a reply that cannot be read"
    if len(found) != 1:
        raise RunError(
            f"{where}: one model was expected ({words}). Serve {checkpoint} there, or mend [{section}] url and model."
        )
    return found[0]


@torch.no_grad()
def require_same(
    remote: Remote,
    policy: Policy,
    prompts: Sequence[tuple[int, ...]],
    *,
    temperature: float,
    limit: float,
    checkpoint: str,
) -> float:
    """The canary: mean |server - checkpoint| of log-probabilities, in nats per token, over a few short responses.

    The server samples at the temperature of the work, without top_p; at 0, where every token is certain and nothing
    would be told apart, at 1.

    Args:
        prompts      token ids of prompts of the work, of which the shortest are asked
        temperature  of the work
        limit        the largest mean that passes
        checkpoint   what `policy` is, for errors

    Raises:
        RunError where the mean is above the limit, with both figures.
    """
    temperature = temperature or 1.0
    shortest = sorted(set(prompts), key=lambda prompt: (len(prompt), prompt))[:_CANARY_PROMPTS]
    asked = [Request(prompt, key("canary", prompt)) for prompt in shortest]
    given = [one for _, one in sorted(remote.stream(asked, Sampling(temperature, 1.0, _CANARY_TOKENS)))]
    documents = [Document.of(one.prompt + said.tokens, len(one.prompt)) for one, said in zip(asked, given, strict=True)]
    rows = lay_out(documents).to(policy.device)
    told = torch.tensor([value for said in given for value in said.logprobs], device=policy.device)

    def gap(at: float) -> float:
        return float((policy.logprobs(rows, temperature=at)[rows.weights > 0] - told).abs().mean())

    found = gap(temperature)
    if found <= limit:
        return found
    where = server.shown(remote.url)
    if temperature != 1.0 and gap(1.0) <= limit:
        raise RunError(
            f"{where}: its log-probabilities are those at temperature 1, not at {temperature:g}. Start vLLM with "
            "--logprobs-mode processed_logprobs, SGLang without SGLANG_RETURN_ORIGINAL_LOGPROB."
        )
    raise RunError(
        f"{where}: log-probabilities of {len(told)} tokens lie {found:.2g} nats from those of {checkpoint}, at most "
        f"{limit:g} was expected. Serve that checkpoint and in the precision of [model], or raise "
        f"[{remote.section}] max_logprob_gap."
    )


def _whole(request: Request, finish: str) -> Response:
    """A request's response as it came here."""
    return Response(request.said, request.logprobs, finish)
