"""A real HTTP server on localhost, for tests of what speaks to servers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

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
