"""What can be chosen of an exam, and what it is where nobody chooses.

A field is at once a key of the YAML file and an option of `llmctl eval`; its docstring is the
option's help.
"""

from dataclasses import dataclass
from typing import Annotated, Final

from annotated_types import Ge, Lt, MinLen

from llmctl.config.model import DEFAULT_MODEL
from llmctl.errors import ConfigError
from llmctl.types import DType, EvalBackend, EvalMode, Quant

SETTING_ALIASES: Final = {"model_path": "model"}
"""Other names that are understood, for those who come from other tools."""

_Count = Annotated[int, Ge(1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalConfig:
    """The settings of one evaluation."""

    dataset: Annotated[tuple[str, ...], MinLen(1)]
    """Exam: a name that `llmctl eval list` has, or a .csv or .jsonl file of your own; may be
    repeated."""
    model: str = DEFAULT_MODEL
    """Model that sits it: catalogue name, hub id (owner/name[@revision]), folder of a model or an
    adapter, or .gguf file. With --base-url, the name that the server knows."""
    base_url: str | None = None
    """OpenAI-compatible server that answers in place of a model of ours, such as
    http://127.0.0.1:8000/v1."""
    api_key: str | None = None
    """Key for that server."""
    judge_base_url: str | None = None
    """OpenAI-compatible server whose model says whether replies are right, where rows of an exam of
    your own have match judge."""
    judge_model: str | None = None
    """The judge's name on its server. [default: its only model]"""
    judge_api_key: str | None = None
    """Key for the judge's server."""
    backend: EvalBackend = "native"
    """Who builds the prompts and judges: native (this program) or opencompass."""
    mode: EvalMode | None = None
    """ppl compares the whole text with each option; logprob and logprob_norm the option's words
    alone, which suits small models; gen lets the model write. [default: the exam's own]"""
    shots: Annotated[int, Ge(0)] | None = None
    """Solved examples before each question. [default: the exam's own]"""
    subjects: tuple[str, ...] = ()
    """Subject or category, such as law or stem; may be repeated. [default: all]"""
    limit: _Count | None = None
    """Questions of each subject at most."""
    seed: Annotated[int, Ge(0), Lt(2**32)] | None = None
    """Draw the limited questions at random, the same for the same seed. [default: the first]"""
    max_new_tokens: _Count | None = None
    """Longest reply in mode gen. [default: the exam's own]"""
    batch_size: _Count = 8
    """Questions handed to the engine at once in the other modes; the scores do not depend on it."""
    data_dir: str | None = None
    """Folder to look for exams in, before the store."""
    output: str | None = None
    """Folder for the results. [default: a new one in the store]"""

    quant: Quant = "none"
    """Weights in 4 bits (NF4; on a CPU groups of 32) or 8 bits (LLM.int8)."""
    dtype: DType = "auto"
    """Number type to compute in."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    adapter: str | None = None
    """Folder of a LoRA adapter to put on the model."""
    chat_template: str | None = None
    """Jinja file used in place of the model's chat template."""
    trust_remote_code: bool = False
    """Run Python code that the model brings along."""
    allow_pickle: bool = False
    """Also read .bin weights, which can run code."""

    def __post_init__(self) -> None:
        if self.base_url is not None and self.adapter is not None:
            raise ConfigError(
                "--adapter puts a folder on a model of ours, and --base-url names a server",
                hint="serve the adapter there, and name it with --model",
            )
        if self.judge_base_url is None and (self.judge_model or self.judge_api_key):
            raise ConfigError("the judge has no server", hint="--judge-base-url URL")
        if len({*self.dataset}) < len(self.dataset):
            raise ConfigError("a dataset is named twice", hint="name each once")
