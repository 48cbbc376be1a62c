"""A server with a scripted engine, and terminals with `llmctl chat` connected to it."""

import threading
from dataclasses import dataclass
from pathlib import Path

from llmctl.engine.chat.response_delta import ResponseDelta
from llmctl.errors import EngineFailedError
from tests.cli.scripted_engine import ScriptedEngine, Step
from tests.cli.terminal import Terminal

NEVER_SET = threading.Event()
POEM = "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。"
TABLE = "| 名字 | n |\n| --- | --- |\n| 猫 | 1 |\n| dog | 22 |\n"
SCRIPT: dict[str, list[Step]] = {
    "slow": ["Once upon ", "a time ", NEVER_SET],
    "mute": [NEVER_SET],
    "fail": ["It began ", EngineFailedError("the GPU fell off the bus")],
    "think": [
        ResponseDelta(reasoning="Two and two, "),
        ResponseDelta(reasoning="hm."),
        "It is **four**.",
    ],
    "raw think": ["<thi", "nk>\nLet me ", "see.\n</th", "ink>\n\nSeven."],
    "poem": ["# 春晓\n\n", *POEM * 4, "\n\n", *TABLE, "\nDone."],
    "code": ["Here:\n\n```python\n", "def f():\n", "    return 1\n", "```\n", "It ", "works."],
    "long": [f"Line {n} of many.\n" for n in range(1, 61)],
    "evil": ["red \x1b[31malert\x1b[2J and <b>html</b>"],
}


@dataclass
class ChatServer:
    """The scripted server and the home folder of the chats of one test."""

    engine: ScriptedEngine
    url: str
    home: Path

    def chat(
        self,
        *words: str,
        stdout: Path | None = None,
        columns: int = 80,
        rows: int = 24,
        **env: str,
    ) -> Terminal:
        """Start `llmctl chat` with these arguments and environment variables."""
        words = ("chat", "--base-url", self.url, *words)
        home = str(self.home)
        return Terminal(*words, stdout=stdout, columns=columns, rows=rows, LLMCTL_HOME=home, **env)

    @property
    def last_messages(self) -> list[tuple[str, str]]:
        """Role and content of the messages of the last request."""
        return [(m.role, m.content) for m in self.engine.requests[-1].messages]
