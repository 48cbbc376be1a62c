"""Configuration of `llmctl chat`; a field is an option and a key of the YAML file."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval

from llmctl.config.model import ModelConfig, ParserConfig
from llmctl.config.option import Option
from llmctl.types import DEFAULT_SAMPLING, SAMPLING_RANGES, SamplingParams


def _range(name: str) -> Interval:
    low, high = SAMPLING_RANGES[name]
    return Interval(ge=low, le=high)


_TEMPERATURE = f"the model's, else {DEFAULT_SAMPLING.temperature}"


@dataclass(frozen=True, kw_only=True)
class ChatConfig(ParserConfig, ModelConfig):
    """The settings of a chat."""

    base_url: Annotated[str | None, Option(variable="LLMCTL_BASE_URL")] = None
    """OpenAI-compatible server to use. --model is then the name of the model on that server."""
    api_key: Annotated[str | None, Option(variable="LLMCTL_API_KEY")] = None
    """API key of that server."""
    system: Annotated[str | None, Option(short="-s")] = None
    """System prompt."""

    max_tokens: Annotated[
        int | None, _range("max_new_tokens"), Option(default="what the context holds")
    ] = None
    """Maximum tokens of a reply."""
    temperature: Annotated[
        float | None, _range("temperature"), Option(short="-t", default=_TEMPERATURE)
    ] = None
    """Sampling temperature; 0 always takes the most likely token."""
    top_p: Annotated[float | None, _range("top_p")] = None
    """Sample from the most likely tokens with this total probability."""
    top_k: Annotated[int | None, _range("top_k")] = None
    """Sample from this number of most likely tokens; 0 is all."""
    seed: int | None = None
    """Seed of the sampling."""
    stop: tuple[str, ...] = ()
    """Text that ends the reply; may be repeated."""

    plain: bool = False
    """Write replies as the model returns them, without rendered Markdown."""
    stream: bool = True
    """Show a reply while it is generated."""
    think: bool = True
    """Show reasoning; otherwise fold it into one line."""
    stats: bool = False
    """Show speed, tokens and context usage after each reply."""
    save: bool = True
    """Save the conversation in llmctl's home folder."""

    def sampling(self) -> SamplingParams:
        """Return the sampling parameters; what is not set is `None`."""
        return SamplingParams(
            max_new_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            seed=self.seed,
            stop=self.stop or None,
        )
