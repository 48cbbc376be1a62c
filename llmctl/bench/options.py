"""Options of `llmctl bench`; a field is an option and a key of the YAML file."""

from dataclasses import dataclass
from random import SystemRandom
from typing import Annotated, Final, Literal

from annotated_types import Ge

from llmctl.bench.config import BenchConfig
from llmctl.bench.prompts import PROMPT_SETS, PromptSet
from llmctl.config.model import ModelConfig
from llmctl.config.option import Option

_DEFAULT: Final = BenchConfig()
ROUNDS_OF_TWO: Final = 3
"""Default rounds for two servers: the median of three ignores one disturbed round."""


def _parse_levels(text: str) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise ValueError("not a list of numbers, such as 1,2,4") from None


@dataclass(frozen=True, kw_only=True)
class BenchOptions(ModelConfig):
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
    ] = _DEFAULT.concurrency
    """Concurrent streams, one level after the other."""
    requests: Annotated[int, Ge(1)] = _DEFAULT.requests
    """Conversations per stream at each level."""
    warmup: Annotated[int, Ge(0)] = _DEFAULT.warmup
    """Conversations before the measurement."""
    rounds: Annotated[
        int | None, Ge(1), Option(default=f"{_DEFAULT.rounds}, with --vs {ROUNDS_OF_TWO}")
    ] = None
    """Repetitions of the measurement, whose medians are shown."""
    max_tokens: Annotated[int, Ge(1)] = _DEFAULT.max_tokens
    """Tokens of every reply."""
    temperature: Annotated[float, Ge(0), Option(short="-t")] = _DEFAULT.temperature
    """Sampling temperature; 0 takes the most likely token."""
    ignore_eos: bool = _DEFAULT.ignore_eos
    """Request replies of equal length. OpenAI's own servers reject the field."""
    seed: Annotated[int | None, Option(default="random")] = None
    """Seed of the prompts; a server may have cached the prompts of an earlier seed."""
    pid: tuple[int, ...] = ()
    """Process id of the server, to sample its memory; repeated, that of --vs."""
    label: tuple[str, ...] = ()
    """Name of the first side in the results; repeated, of the second one."""
    plot: str | None = None
    """PNG file for a plot of the results."""

    def bench_config(self) -> BenchConfig:
        """Return what is measured, with a random seed if none is chosen."""
        rounds = self.rounds or (_DEFAULT.rounds if self.vs is None else ROUNDS_OF_TWO)
        return BenchConfig(
            prompts=PROMPT_SETS if self.prompts == "all" else (self.prompts,),
            concurrency=self.concurrency,
            requests=self.requests,
            warmup=self.warmup,
            rounds=rounds,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            ignore_eos=self.ignore_eos,
            seed=self.seed if self.seed is not None else SystemRandom().randrange(10**6),
        )
