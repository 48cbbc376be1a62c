"""The default model, the settings with which a model is loaded, and its specification."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any

from llmctl.config.option import Option
from llmctl.types import DType, ModelSpec, Quant

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

DEFAULT_MODEL = "smollm2-135m"


@dataclass(frozen=True, kw_only=True)
class LoadConfig:
    """How a model is loaded, without an adapter."""

    model: Annotated[str, Option(short="-m", variable="LLMCTL_MODEL")] = DEFAULT_MODEL
    """Catalogue name, hub id (owner/name[@revision]), folder, or .gguf file."""
    quant: Annotated[Quant, Option(variable="LLMCTL_QUANT")] = "none"
    """Quantize the weights to 4 bits (NF4; on a CPU groups of 32) or 8 bits (LLM.int8)."""
    device: Annotated[str, Option(variable="LLMCTL_DEVICE")] = "auto"
    """Device: auto, cpu, cuda, cuda:1 or mps."""
    dtype: DType = "auto"
    """Data type of the computation."""
    chat_template: str | None = None
    """Jinja file to use instead of the model's chat template."""
    trust_remote_code: bool = False
    """Run Python code of the model repository."""
    allow_pickle: bool = False
    """Also load .bin weights, which can run code."""


@dataclass(frozen=True, kw_only=True)
class ParserConfig:
    """How the responses of a model are read."""

    tool_call_parser: Annotated[
        str | None, Option(metavar="NAME", default="by the chat template")
    ] = None
    """Format of the model's tool calls, such as hermes or qwen3_coder (docs/tools.md); none reads
    no calls."""
    reasoning_parser: Annotated[
        str | None, Option(metavar="NAME", default="by the chat template")
    ] = None
    """Format of the model's reasoning, such as think; none leaves it in the answer."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig(LoadConfig):
    """How a model is loaded, with at most one adapter."""

    adapter: str | None = None
    """Folder of a LoRA adapter to load with the model."""

    def model_spec(self) -> ModelSpec:
        """Return the model to load."""
        return spec_from_config(self)


def spec_from_config(config: "DataclassInstance", **settings: Any) -> ModelSpec:
    """Return the model that a config names, with the fields that both dataclasses have.

    Args:
        config: a config dataclass with a field `model`.
        settings: fields of `ModelSpec`, in place of those of the config.

    Raises:
        ConfigError: a value is invalid.
    """
    common = {field.name for field in fields(config)} & {field.name for field in fields(ModelSpec)}
    values = {name: getattr(config, name) for name in common - settings.keys()}
    return ModelSpec(**values, **settings)


LOAD_OPTIONS = frozenset(
    {
        "quant",
        "device",
        "dtype",
        "adapter",
        "chat_template",
        "tool_call_parser",
        "reasoning_parser",
        "trust_remote_code",
        "allow_pickle",
    }
)
"""Fields that only apply to a model in this process, not to a server."""
