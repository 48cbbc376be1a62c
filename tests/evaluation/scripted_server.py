"""A real small HTTP server that answers exams as it is told, and fails as it is told."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ScriptedAnswer = Callable[[str, dict[str, Any]], dict[str, Any] | int | str]
"""Of a path and a body: the reply, or the status of a failure, of which 413 says that the prompt is
too long; 0 hangs up without a word. A text is sent as it is: as JSON, or as a page if it begins
with `<`."""


def chat_reply(text: str) -> dict[str, Any]:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 1}}


@contextmanager
def scripted_server(answer: ScriptedAnswer) -> Iterator[str]:
    """Run the server in a thread; yield its base URL, `/v1` included."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            reply = answer(self.path.removeprefix("/v1"), body)
            if reply == 0:
                self.close_connection = True
                return
            status = reply if isinstance(reply, int) else 200
            code = "context_length_exceeded" if status == 413 else None
            failure = {"error": {"message": f"told to fail with {status}", "code": code}}
            told = failure if isinstance(reply, int) else reply
            text = told if isinstance(told, str) else json.dumps(told)
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
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
