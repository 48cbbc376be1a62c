"""What is measured, and how? The settings of one benchmark run. Standard library only."""

from dataclasses import dataclass

from llmctl.bench.prompts import PromptSet
from llmctl.errors import ConfigError
from llmctl.types import ModelSpec


@dataclass(frozen=True, slots=True)
class BenchConfig:
    """What every side is asked, alike."""

    prompts: tuple[PromptSet, ...] = ("short",)
    concurrency: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Streams at a time, one level after the other."""
    requests: int = 2
    """Conversations per stream and level."""
    warmup: int = 1
    """Conversations per side and prompt set that are not measured."""
    rounds: int = 1
    max_tokens: int = 64
    temperature: float = 0.0
    ignore_eos: bool = True
    """Every reply has `reply_limit` tokens."""
    seed: int = 0
    """Of the prompts; another one makes them new to every prefix cache."""

    def __post_init__(self) -> None:
        if not self.concurrency or min(self.concurrency) < 1:
            raise ConfigError("concurrency levels are whole numbers from 1 on, such as 1,2,4")
        for name in ("requests", "rounds", "max_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True, slots=True)
class BenchServer:
    """An OpenAI-compatible server to measure."""

    base_url: str
    label: str
    model: str | None = None
    """The server's name of it; `None` is the first one it lists."""
    api_key: str | None = None
    pid: int | None = None
    """Its process, whose memory is watched."""


@dataclass(frozen=True, slots=True)
class BenchEngine:
    """The engine in this process, without any HTTP, to measure."""

    spec: ModelSpec
    label: str
