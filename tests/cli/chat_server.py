"""Where the chats of tests happen: a scripted server, a home of their own, terminals."""

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
    "fail": ["It began ", EngineFailedError("the card fell off the bus")],
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
    """Where the chats of a test happen."""

    engine: ScriptedEngine
    url: str
    home: Path

    def chat(self, *words: str, columns: int = 80, rows: int = 24, **env: str) -> Terminal:
        words = ("chat", "--base-url", self.url, *words)
        return Terminal(*words, columns=columns, rows=rows, LLMCTL_HOME=str(self.home), **env)

    @property
    def asked(self) -> list[tuple[str, str]]:
        """The messages of the last request."""
        return [(m.role, m.content) for m in self.engine.requests[-1].messages]
