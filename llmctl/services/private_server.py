"""A loaded engine behind a server that nobody else can use: loopback, a free port, a random key."""

import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from llmctl.config import ServeConfig
from llmctl.engine.base import BaseEngine
from llmctl.evaluation.backend import ModelUnderTest, ServerModel
from llmctl.server.app import create_app
from llmctl.server.run import Server, bind, socket_url

HOST = "127.0.0.1"
MAX_BODY_BYTES = 256 * 2**20
"""The texts of a whole subject come in one request."""
MAX_QUEUE = 4096


@contextmanager
def endpoint_for(candidate: ModelUnderTest) -> Iterator[ServerModel]:
    """Yield who sits an exam as an address: an engine is served, a server has one."""
    if isinstance(candidate, ServerModel):
        yield candidate
        return
    with serve_privately(candidate) as endpoint:
        yield endpoint


@contextmanager
def serve_privately(engine: BaseEngine) -> Iterator[ServerModel]:
    """Serve an engine, which stays the caller's, for as long as the context lasts.

    Besides what every server has it answers `/v1/score`.
    """
    key = secrets.token_urlsafe(32)
    options = ServeConfig(
        api_keys=(key,),
        log_requests=False,
        max_queue=MAX_QUEUE,
        max_body_bytes=MAX_BODY_BYTES,
    )
    sock = bind(HOST, 0)
    server = Server(
        create_app(engine, options, scoring=True),
        on_deadline=lambda: None,
        drain_s=0,
    )
    thread = threading.Thread(
        target=server.run, args=([sock],), name="llmctl-private-server", daemon=True
    )
    thread.start()
    try:
        yield ServerModel(f"{socket_url(sock)}/v1", engine.info().model_id, key)
    finally:
        server.should_exit = True
        thread.join()
