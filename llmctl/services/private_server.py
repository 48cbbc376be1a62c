"""A local engine behind a private server: loopback address, free port, random key."""

import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from llmctl.config import ServeConfig
from llmctl.engine.base import BaseEngine
from llmctl.server.app import create_app
from llmctl.server.run import Server, bind, socket_url
from llmctl.types import ApiEndpoint

HOST = "127.0.0.1"
MAX_BODY_BYTES = 256 * 2**20
"""One request can hold the texts of a whole subject."""
MAX_QUEUE = 4096


@contextmanager
def serve_privately(engine: BaseEngine) -> Iterator[ApiEndpoint]:
    """Serve an engine as long as the context lasts, with `/v1/loglikelihoods`; it stays open."""
    key = secrets.token_urlsafe(32)
    config = ServeConfig(
        api_keys=(key,),
        log_requests=False,
        max_queue=MAX_QUEUE,
        max_body_bytes=MAX_BODY_BYTES,
    )
    sock = bind(HOST, 0)
    server = Server(
        create_app(engine, config, scoring=True),
        on_deadline=lambda: None,
        drain_s=0,
    )
    thread = threading.Thread(
        target=server.run, args=([sock],), name="llmctl-private-server", daemon=True
    )
    thread.start()
    try:
        yield ApiEndpoint(f"{socket_url(sock)}/v1", engine.info().model_id, key)
    finally:
        server.should_exit = True
        thread.join()
