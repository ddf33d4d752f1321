"""Real HTTP servers on localhost, for tests of what speaks to servers."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

# path, headers in lower case, body → status, headers, text
Answerer = Callable[[str, dict[str, str], bytes], tuple[int, Mapping[str, str], str]]


class _Listening(ThreadingHTTPServer):
    request_queue_size = 64  # with the usual 5, some of many connections at once wait a second for their turn


@contextmanager
def listening(answer: Answerer) -> Iterator[str]:
    """The address, up to and including /v1, at which `answer` answers POST requests, each in a thread of its own."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            lowered = {name.lower(): value for name, value in self.headers.items()}
            status, headers, text = answer(self.path, lowered, body)
            self.send_response(status)
            for name, value in {"content-type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    with _Listening(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


@dataclass(frozen=True)
class Said:
    """What a crowded server does with one request."""

    text: str = ""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    after: float = 0.0  # seconds
    cut: int | None = None  # characters of the text after which the line goes dead


@dataclass
class Crowded:
    """A server for hundreds of connections at once; `answer(path, headers, body)` says what it does with each."""

    answer: Callable[[str, dict[str, str], Any], Said]
    url: str = ""
    in_flight: int = 0
    most: int = 0  # in flight at once
    connections: int = 0

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError), closing(writer):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                first, *rest = head.strip().split("\r\n")
                headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in rest)}
                raw = await reader.readexactly(int(headers.get("content-length", 0)))
                self.in_flight += 1
                self.most = max(self.most, self.in_flight)
                said = self.answer(first.split(" ")[1], headers, json.loads(raw) if raw else None)
                try:
                    await asyncio.sleep(said.after)
                finally:
                    self.in_flight -= 1
                body = said.text.encode()
                lines = {"content-type": "application/json", "content-length": str(len(body)), **said.headers}
                told = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
                writer.write(f"HTTP/1.1 {said.status} X\r\n{told}\r\n".encode() + body[: said.cut])
                await writer.drain()
                if said.cut is not None:
                    break


@contextmanager
def crowded(answer: Callable[[str, dict[str, str], Any], Said], port: int = 0) -> Iterator[Crowded]:
    """A listening `Crowded`, in a thread of its own; when the block ends all its connections break."""
    here = Crowded(answer)
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(here.converse, "127.0.0.1", port, backlog=1024))
    here.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield here
    finally:

        async def end() -> None:
            server.close()
            own = asyncio.current_task()
            others = [task for task in asyncio.all_tasks() if task is not own]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await asyncio.sleep(0.01)  # for their connections to close

        asyncio.run_coroutine_threadsafe(end(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def checkpoint(folder: Path, seed: int = 0) -> Path:
    """A small random Phi-3 with the toy world's tokenizer, whose distributions are far from flat."""
    import torch  # most of what is served here needs none

    from algorist.toy import base, words

    tokenizer = words.tokenizer()
    model = base.model(len(tokenizer), 0, hidden_size=32, num_layers=2, num_heads=4, mlp_size=48, context=256)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for parameter in model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.25)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
