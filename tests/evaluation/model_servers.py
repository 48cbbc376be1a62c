"""HTTP servers with OpenAI's API that give scripted answers and failures."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ScriptedAnswer = Callable[[str, dict[str, Any]], dict[str, Any] | int | str]
"""From path and body to the response: JSON, the status of a failure, or text. Status 413 has the
code of a prompt that is too long; 0 closes the connection. Text that begins with `<` is HTML."""
StatusFor = Callable[[int, dict[str, Any]], int]
"""From the number of the request, from 1, and its body to the status; 0 closes the connection."""


@contextmanager
def scripted_server(answer: ScriptedAnswer) -> Iterator[str]:
    """Run a server in a thread; yield its base URL, with `/v1`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            answered = answer(self.path.removeprefix("/v1"), body)
            if answered == 0:
                self.close_connection = True
                return
            status = answered if isinstance(answered, int) else 200
            if isinstance(answered, int):
                code = "context_length_exceeded" if status == 413 else None
                answered = {"error": {"message": f"scripted failure {status}", "code": code}}
            text = answered if isinstance(answered, str) else json.dumps(answered)
            content = text.encode()
            self.send_response(status)
            kind = "text/html" if text.startswith("<") else "application/json"
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128
        daemon_threads = True

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def flaky_server(status_for: StatusFor, *, logprobs: list[float] | None = None) -> Iterator[str]:
    """Run a server that answers every chat with A and every completion with the logprobs."""
    count, lock = 0, threading.Lock()

    def answer(_: str, body: dict[str, Any]) -> dict[str, Any] | int:
        nonlocal count
        with lock:
            count += 1
            status = status_for(count, body)
        if status != 200:
            return status
        return chat_reply("A") if "messages" in body else _completion(body, logprobs)

    with scripted_server(answer) as url:
        yield url


def chat_reply(text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [choice],
        "usage": usage,
    }


def _completion(body: dict[str, Any], logprobs: list[float] | None) -> dict[str, Any]:
    held = None
    if logprobs is not None:
        held = {
            "token_logprobs": [None, *logprobs],
            "text_offset": [*range(len(logprobs) + 1)],
        }
    choices = [
        {"index": index, "text": text, "finish_reason": "length", "logprobs": held}
        for index, text in enumerate(body["prompt"])
    ]
    return {"id": "1", "object": "text_completion", "created": 1, "model": "m", "choices": choices}
