"""Settings and sides of a benchmark run."""

from dataclasses import dataclass

from llmctl.bench.prompts import PromptSet
from llmctl.errors import ConfigError
from llmctl.types import ApiEndpoint, ModelSpec


@dataclass(frozen=True, slots=True)
class BenchConfig:
    """Settings of a run, the same for every side."""

    prompts: tuple[PromptSet, ...] = ("short",)
    concurrency: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Concurrent streams, one level after the other."""
    requests: int = 2
    """Conversations per stream and level."""
    warmup: int = 1
    """Conversations per side and prompt set before the measurement."""
    rounds: int = 1
    max_tokens: int = 64
    temperature: float = 0.0
    ignore_eos: bool = True
    """Every reply has `max_tokens` tokens."""
    seed: int = 0
    """Seed of the prompts; a new one gives prompts that no prefix cache holds."""

    def __post_init__(self) -> None:
        if not self.concurrency or min(self.concurrency) < 1:
            raise ConfigError("concurrency levels must be at least 1, such as 1,2,4")
        for name in ("requests", "rounds", "max_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True, slots=True)
class BenchServer:
    """A model on an OpenAI-compatible server to measure."""

    endpoint: ApiEndpoint
    label: str
    pid: int | None = None
    """Process id of the server, to measure its memory."""


@dataclass(frozen=True, slots=True)
class BenchEngine:
    """An engine in this process to measure, without HTTP."""

    spec: ModelSpec
    label: str
