"""Configuration of the `llmctl data` commands; a field is an option and a key of the YAML file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Le

from llmctl.config.model import DEFAULT_MODEL, spec_from_config
from llmctl.config.option import Option
from llmctl.errors import ConfigError
from llmctl.types import ModelSpec

MAX_KEPT_ERRORS = 1000
"""Row errors to keep without --all."""


@dataclass(frozen=True, kw_only=True)
class ReadConfig:
    """How rows are read."""

    column: Annotated[Mapping[str, str], Option(metavar="NAME=YOURS")] = field(default_factory=dict)
    """Name of a column in your files, such as output=reply; may be repeated."""
    format: Annotated[str | None, Option(default="detected for each row")] = None
    """Format of every row: alpaca, sharegpt, messages, prompt-completion, preference or text."""
    all_errors: Annotated[bool, Option(name="all")] = False
    """Print every row error, not only the first ones."""

    @property
    def max_kept_errors(self) -> int | None:
        return None if self.all_errors else MAX_KEPT_ERRORS


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig(ReadConfig):
    """The tokenizer that counts tokens, beside how rows are read."""

    model: Annotated[
        str | None,
        Option(
            short="-m",
            variable="LLMCTL_MODEL",
            default="the default model, if it is on this machine",
        ),
    ] = None
    """Model whose tokenizer and chat template count tokens."""
    chat_template: str | None = None
    """Jinja file to use instead of the model's chat template."""
    trust_remote_code: bool = False
    """Run Python code of the model repository."""

    def model_spec(self) -> ModelSpec | None:
        """Return the model whose tokenizer counts, or `None` if none is chosen.

        Raises:
            ConfigError: a chat template or remote code is given without a model.
        """
        if self.model is None:
            if self.chat_template is not None or self.trust_remote_code:
                raise ConfigError(
                    "--chat-template and --trust-remote-code need a model", hint="add --model NAME"
                )
            return None
        return spec_from_config(self)


@dataclass(frozen=True, kw_only=True)
class CheckConfig(TokenizerConfig):
    """The settings of `llmctl data check`."""

    eval_file: tuple[str, ...] = ()
    """Held-out examples, which are checked for leakage too; may be repeated."""
    max_length: Annotated[int | None, Ge(1), Option(default="the model's context")] = None
    """Maximum tokens of a row."""


@dataclass(frozen=True, kw_only=True)
class ShowConfig(TokenizerConfig):
    """The settings of `llmctl data show`."""

    model: Annotated[str, Option(short="-m", variable="LLMCTL_MODEL")] = DEFAULT_MODEL
    """Model whose tokenizer and chat template are used."""

    def model_spec(self) -> ModelSpec:
        """Return the model whose tokenizer is used."""
        return spec_from_config(self)


@dataclass(frozen=True, kw_only=True)
class WriteConfig(ReadConfig):
    """How rows are written."""

    on_error: Literal["fail", "skip"] = "fail"
    """Write nothing if a row is invalid, or skip such rows."""
    overwrite: bool = False
    """Replace existing files."""


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(WriteConfig):
    """The settings of `llmctl data convert`."""

    output: Annotated[str, Option(short="-o")]
    """File to write: .jsonl, .json, .csv, .tsv or .parquet (also .gz)."""
    to: str
    """Format to write: messages, sharegpt, alpaca, prompt-completion, preference or text."""


@dataclass(frozen=True, kw_only=True)
class SplitConfig(WriteConfig):
    """The settings of `llmctl data split`."""

    train: str
    """File for the training rows."""
    eval: str
    """File for the held-out rows."""
    fraction: Annotated[float, Ge(0), Le(1)] = 0.1
    """Share of the prompts that are held out."""
    seed: int = 0
    """Seed of the split."""


@dataclass(frozen=True, kw_only=True)
class MergeConfig(WriteConfig):
    """The settings of `llmctl data merge`."""

    output: Annotated[str, Option(short="-o")]
    """File to write: .jsonl, .json, .csv, .tsv or .parquet (also .gz)."""
    to: Annotated[str | None, Option(default="the format of each row")] = None
    """Format of all rows."""
    seed: int = 0
    """Seed of the sampling by weight."""


@dataclass(frozen=True, kw_only=True)
class CleanConfig(TokenizerConfig):
    """The settings of `llmctl data clean`, beside those of its rules."""

    output: Annotated[str | None, Option(short="-o")] = None
    """File for the kept rows: .jsonl, .json, .csv, .tsv or .parquet (also .gz). The removed rows
    and the report are written beside it."""
    only: Annotated[tuple[str, ...], Option(metavar="RULE")] = ()
    """Apply only this rule; may be repeated."""
    skip: Annotated[tuple[str, ...], Option(metavar="RULE")] = ()
    """Do not apply this rule; may be repeated."""
    rule: Annotated[tuple[str, ...], Option(metavar="RULE[=ACTION]")] = ()
    """Action of a rule: off, report, change or remove; may be repeated."""
    set: Annotated[tuple[str, ...], Option(metavar="[RULE.]THRESHOLD=VALUE")] = ()
    """Threshold of a rule, such as max-tokens=2048 or keep=zh,en; may be repeated."""
    redact: bool = False
    """Replace personal data by <EMAIL>, <PHONE>, ... in every column."""
    model: Annotated[
        str | None, Option(short="-m", default=f"{DEFAULT_MODEL}, where a rule needs it")
    ] = None
    """Model whose tokenizer and chat template count tokens."""
    on_error: Literal["fail", "skip"] = "skip"
    """Write nothing if a row is invalid, or skip such rows."""
    overwrite: bool = False
    """Replace existing files."""
    workers: Annotated[int | None, Ge(1), Option(default="one per core, 1 for small files")] = None
    """Worker processes."""
    strict: bool = False
    """Exit with code 1 if any rule matches."""
    track: bool = False
    """Record this run in the tracking store, which takes some seconds."""
