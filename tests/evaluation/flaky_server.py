"""A server that answers A to everything, until it is told not to."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

StatusFor = Callable[[int, dict[str, Any]], int]
"""Number of the request from 1 and its body -> HTTP status; 0 hangs up."""


@contextmanager
def flaky_server(verdict: StatusFor, *, logprobs: list[float] | None = None) -> Iterator[str]:
    """Yield the address of a server whose completions have the given logprobs."""
    count, lock = 0, threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            nonlocal count
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                count += 1
                status = verdict(count, body)
            if status == 0:
                self.close_connection = True
                return
            answer: dict[str, Any] = {"error": {"message": "no", "code": None}}
            if status == 200:
                answer = _chat() if "messages" in body else _completion(body, logprobs)
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


def _chat() -> dict[str, Any]:
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": "A"},
    }
    usage = {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}
    return {"id": "1", "object": "chat.completion", "created": 1, "model": "m"} | {
        "choices": [choice],
        "usage": usage,
    }


def _completion(body: dict[str, Any], logprobs: list[float] | None) -> dict[str, Any]:
    told = None
    if logprobs is not None:
        told = {"token_logprobs": [None, *logprobs], "text_offset": [0, *range(1, 9)]}
    choices = [
        {"index": i, "text": text, "finish_reason": "length", "logprobs": told}
        for i, text in enumerate(body["prompt"])
    ]
    return {"id": "1", "object": "text_completion", "created": 1, "model": "m", "choices": choices}
