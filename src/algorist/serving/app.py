"""The server: routes, errors, signals. starlette and uvicorn are the extra `serve`.

    POST /v1/chat/completions   POST /v1/completions   GET /v1/models   GET /health

There is no key: whoever reaches the port is answered, so it listens on this machine alone unless told otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any

from algorist.errors import RecipeError
from algorist.serving import wire
from algorist.serving.models import TOY, Model, Wanted, open_model
from algorist.serving.queue import CLOSING, Queue
from algorist.serving.wire import Refusal, Said
from algorist.toy import teacher

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

_LARGEST = 2**26  # bytes of a body: 64 MiB


def serve(
    model: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    precision: str = "float32",
    max_tokens_cap: int = 0,
    num_slots: int = 32,
    name: str = "",
) -> None:
    """Listen until Ctrl-C or SIGTERM.

    Args:
        model           a folder in the Hugging Face layout, a hub name, or "toy" for the toy world's teacher
        port            0 takes a free one; the first line printed says which
        precision       of matrix products: float32 or bfloat16
        max_tokens_cap  the longest response given, in tokens; 0: half the model's context, at most 4,096
        num_slots       sequences decoded together
        name            under which requests ask for the model; `model` unless given, toy-teacher for the toy

    Raises:
        RecipeError where the extra `serve` is missing, the model cannot be opened or the port is taken.
    """
    uvicorn = _uvicorn()
    with _listener(host, port) as listener:
        opened = open_model(model, precision=precision, max_tokens_cap=max_tokens_cap, num_slots=num_slots)
        at = f"http://{host}:{listener.getsockname()[1]}/v1"
        known = name or (teacher.MODEL if model == TOY else model)
        made = app(opened, known, closing=lambda: server.should_exit)
        server = uvicorn.Server(uvicorn.Config(made, log_level="warning", lifespan="on"))
        with _quiet_signals():
            print(f"Serving {known} at {at}. Ctrl-C stops.", flush=True)
            server.run(sockets=[listener])
    print(f"Stopped serving {known}.", flush=True)


def app(model: Model, name: str, *, closing: Callable[[], bool] = lambda: False) -> Starlette:
    """The application under which any ASGI server answers for `model`.

    Args:
        closing  says that the server stops: whoever waits is told so and not answered any more
    """
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    state = _State(model, name, closing)

    async def chat(request: Request) -> Response:
        return JSONResponse(await state.answer(request, chat=True))

    async def completions(request: Request) -> Response:
        return JSONResponse(await state.answer(request, chat=False))

    async def models(request: Request) -> Response:
        card = {"id": name, "object": "model", "created": state.started, "owned_by": "algorist"}
        return JSONResponse({"object": "list", "data": [card]})

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok", "waiting": len(state.queue.waiting), "running": state.queue.running})

    async def refuse(request: Request, error: Exception) -> Response:
        if not isinstance(error, Refusal):
            known = f"no route {request.method} {request.url.path}"
            error = Refusal(getattr(error, "status_code", 500), known)
        return JSONResponse(error.body(), error.status)

    routes = [
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/models", models),
        Route("/health", health),
    ]
    handlers: dict[Any, Any] = {Refusal: refuse, 404: refuse, 405: refuse}
    return Starlette(routes=routes, exception_handlers=handlers, lifespan=state.lifespan)


class _State:
    """What all requests share."""

    def __init__(self, model: Model, name: str, closing: Callable[[], bool]) -> None:
        self.model, self.name, self.closing = model, name, closing
        self.started = int(time.time())
        self.queue = Queue(model, closing)

    @contextlib.asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Run the queue while the server runs."""
        worker = asyncio.create_task(self.queue.work())
        try:
            yield
        finally:
            worker.cancel()

    async def answer(self, request: Request, *, chat: bool) -> dict[str, Any]:
        """The reply's body. Raises Refusal."""
        asked = wire.read(await _body(request), chat=chat)
        if asked.model != self.name:
            unknown = f"The model {asked.model} does not exist; this server has {self.name}."
            raise Refusal(404, unknown, field="model", code="model_not_found")
        if asked.choices * len(asked.prompts) > wire.MOST_CHOICES:
            raise Refusal(400, f"One request may ask for {wire.MOST_CHOICES} choices at most.", field="n")
        sampling = asked.sampling(self.model.default_tokens)
        prompts = [self.model.ready(prompt, sampling, asked) for prompt in asked.prompts]
        wanted = [
            Wanted(prompt, asked.seed + place * asked.choices + index, asked.stop, asked.logprobs)
            for place, prompt in enumerate(prompts)
            for index in range(asked.choices)
        ]
        if self.closing():
            raise Refusal(503, CLOSING)
        said = await _unless_gone(request, self.queue.answers(wanted, sampling))
        return wire.reply(asked, [(prompt.length, prompt.ids) for prompt in prompts], said)


async def _body(request: Request) -> object:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > _LARGEST:
            raise Refusal(413, f"The body is larger than {_LARGEST} bytes.")
        parts.append(part)
    try:
        return json.loads(b"".join(parts))
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"The body is no JSON ({error}).") from error


async def _unless_gone(request: Request, work: Awaitable[list[Said]]) -> list[Said]:
    """The result of `work`, which is given up when the client hangs up."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(request.receive())  # after the body, only the end of the connection comes
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Refusal(499, "The client has gone.")
        return working.result()
    finally:
        working.cancel()
        watching.cancel()


def _uvicorn() -> Any:
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ModuleNotFoundError as error:
        raise RecipeError(
            f"serve: {error.name} is not installed. Install the extra with pip install '.[serve]'."
        ) from error
    return uvicorn


@contextlib.contextmanager
def _listener(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(2048)
        except (OSError, OverflowError) as error:
            raise RecipeError(
                f"serve: cannot listen on {host}:{port} ({error}). Choose another --host or --port."
            ) from error
        yield listener


@contextlib.contextmanager
def _quiet_signals() -> Iterator[None]:
    """uvicorn stops in order at a signal and then raises it again; it has done its work by then."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
