"""Configuration of `llmctl bench` and the two sides that it may name.

A field of `BenchConfig` is an option and a key of the YAML file.
"""

from dataclasses import dataclass, field
from random import SystemRandom
from typing import Annotated, Any, Final, Literal, get_args

from annotated_types import Ge

from llmctl.config.model import ModelConfig
from llmctl.config.option import Option
from llmctl.errors import ConfigError
from llmctl.types import ApiEndpoint, ModelSpec

PromptSet = Literal["short", "long", "shared", "multiturn"]
PROMPT_SETS: Final[tuple[PromptSet, ...]] = get_args(PromptSet)


def _parse_levels(text: str) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise ValueError("not a list of numbers, such as 1,2,4") from None


@dataclass(frozen=True, kw_only=True)
class BenchConfig(ModelConfig):
    """The settings of a benchmark of one or two servers, or of a model in this process."""

    base_url: str | None = None
    """OpenAI-compatible server to measure over HTTP."""
    vs: str | None = None
    """Second server, measured in turns with the first one."""
    vs_model: str | None = None
    """Name of the model on the server of --vs."""
    api_key: Annotated[str | None, Option(variable="LLMCTL_API_KEY")] = None
    """API key of the servers."""
    prompts: Literal[PromptSet, "all"] = "short"
    """Prompt set: short chat; long, of 1,000 words and more; shared, long with a common prefix;
    multiturn, a second turn after a long first one."""
    concurrency: Annotated[
        tuple[int, ...], Option(short="-c", metavar="N,N,...", parse=_parse_levels)
    ] = (1, 2, 4, 8, 16)
    """Concurrent streams, one level after the other."""
    requests: Annotated[int, Ge(1)] = 2
    """Conversations per stream at each level."""
    warmup: Annotated[int, Ge(0)] = 1
    """Conversations before the measurement."""
    rounds: Annotated[int | None, Ge(1), Option(default="1, with --vs 3")] = None
    """Repetitions of the measurement, whose medians are shown."""
    max_tokens: Annotated[int, Ge(1)] = 64
    """Tokens of every reply."""
    temperature: Annotated[float, Ge(0), Option(short="-t")] = 0.0
    """Sampling temperature; 0 takes the most likely token."""
    ignore_eos: bool = True
    """Request replies of equal length. OpenAI's own servers reject the field."""
    seed: Annotated[int, Option(default="random")] = field(
        default_factory=lambda: SystemRandom().randrange(10**6)
    )
    """Seed of the prompts; a server may have cached the prompts of an earlier seed."""
    pid: tuple[int, ...] = ()
    """Process id of the server, to sample its memory; repeated, that of --vs."""
    label: tuple[str, ...] = ()
    """Name of the first side in the results; repeated, of the second one."""
    plot: str | None = None
    """PNG file for a plot of the results."""

    def __post_init__(self) -> None:
        if not self.concurrency or min(self.concurrency) < 1:
            raise ConfigError("concurrency levels must be at least 1, such as 1,2,4")

    @property
    def prompt_sets(self) -> tuple[PromptSet, ...]:
        return PROMPT_SETS if self.prompts == "all" else (self.prompts,)

    @property
    def round_count(self) -> int:
        """Rounds; by default three for two servers: their median ignores one disturbed round."""
        return self.rounds or (1 if self.vs is None else 3)

    def measurement(self) -> dict[str, Any]:
        """Return the settings that the figures depend on, apart from the sides."""
        names = ("concurrency", "requests", "warmup", "max_tokens", "temperature", "ignore_eos")
        return {
            "prompts": self.prompt_sets,
            "rounds": self.round_count,
            **{name: getattr(self, name) for name in (*names, "seed")},
        }


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
