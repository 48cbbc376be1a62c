"""Settings of an evaluation and their defaults.

A field is a key of the YAML file and an option of `llmctl eval`; its docstring is the option's
help.
"""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Lt, MinLen

from llmctl.config.model import DEFAULT_MODEL, ModelConfig
from llmctl.config.option import Option
from llmctl.errors import ConfigError
from llmctl.types import EvalBackend, EvalMode

_Count = Annotated[int, Ge(1)]


@dataclass(frozen=True, kw_only=True)
class EvalSelection:
    """Which samples of a benchmark are evaluated, and how they are prompted."""

    mode: EvalMode | None = None
    """ppl compares the full text with each option; logprob and logprob_norm only the option's text,
    which suits small models; gen generates a reply. [default: the benchmark's own]"""
    shots: Annotated[int, Ge(0)] | None = None
    """Few-shot examples in each prompt. [default: the benchmark's own]"""
    subjects: tuple[str, ...] = ()
    """Subject or category, such as law or stem; may be repeated. [default: all]"""
    limit: _Count | None = None
    """Maximum number of samples per subject."""
    seed: Annotated[int, Ge(0), Lt(2**32)] | None = None
    """Select the limited samples at random with this seed. [default: the first ones]"""
    max_new_tokens: _Count | None = None
    """Maximum tokens of a reply in mode gen. [default: the benchmark's own]"""


@dataclass(frozen=True, kw_only=True)
class EvalConfig(EvalSelection, ModelConfig):
    """The settings of one evaluation."""

    dataset: Annotated[tuple[str, ...], MinLen(1), Option(short="-d")]
    """Benchmark: a name from `llmctl eval list`, or a .csv or .jsonl file of your own; may be
    repeated."""
    model: Annotated[str, Option(short="-m", aliases=("model_path",), variable="LLMCTL_MODEL")] = (
        DEFAULT_MODEL
    )
    """Model to evaluate: catalogue name, hub id (owner/name[@revision]), folder of a model or an
    adapter, or .gguf file. With --base-url, the server's name of the model; LLMCTL_MODEL is then
    ignored."""
    base_url: str | None = None
    """Evaluate a model behind this OpenAI-compatible server, such as http://127.0.0.1:8000/v1."""
    api_key: Annotated[str | None, Option(variable="LLMCTL_API_KEY")] = None
    """API key of that server."""
    judge_base_url: str | None = None
    """OpenAI-compatible server of the judge model, which scores rows of your own benchmarks with
    match judge."""
    judge_model: str | None = None
    """Name of the judge model on its server. [default: its only model]"""
    judge_api_key: Annotated[str | None, Option(variable="LLMCTL_JUDGE_API_KEY")] = None
    """API key of the judge's server."""
    backend: EvalBackend = "native"
    """Evaluation code: native (llmctl's own) or opencompass."""
    batch_size: _Count = 8
    """Samples per batch in the other modes; it does not change the scores."""
    data_dir: str | None = None
    """Folder with benchmark data, searched before the store."""
    output: Annotated[str | None, Option(short="-o")] = None
    """Results folder. [default: a new one in the store]"""

    def __post_init__(self) -> None:
        if self.base_url is not None and self.adapter is not None:
            raise ConfigError(
                "--adapter applies to a local model, and --base-url names a server",
                hint="serve the adapter there, and name it with --model",
            )
        if len({*self.dataset}) < len(self.dataset):
            raise ConfigError("a dataset is named twice", hint="name each once")
