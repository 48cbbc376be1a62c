"""Fixtures of the command line tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.chat_server import SCRIPT, ChatServer
from tests.cli.scripted_engine import ScriptedEngine
from tests.server.servers import running_server


@pytest.fixture
def chat_server(tmp_path: Path) -> Iterator[ChatServer]:
    engine = ScriptedEngine(SCRIPT)
    with running_server(engine, served_names=("alias",)) as url:
        yield ChatServer(engine, url, tmp_path / "home")
