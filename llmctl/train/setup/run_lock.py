"""`run.lock.json`: everything that determines the results of a run, to resume or repeat it."""

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from llmctl.config import TrainConfig
from llmctl.config.settings import ConfigSource, Setting
from llmctl.dataclass_json import from_json
from llmctl.engine.models.provenance import BaseModelRef
from llmctl.errors import ConfigError
from llmctl.train.checkpoints import LOCK_FILE, write_json
from llmctl.types import DatasetRef

SCHEMA_VERSION = 1
_LIBRARIES = (
    "llmctl",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "tokenizers",
    "numpy",
)
PATH_SETTINGS = (
    "model",
    "data",
    "eval_data",
    "eval",
    "eval_dir",
    "chat_template",
    "fsdp_config",
    "deepspeed",
)
"""Settings that name input files."""
_CHANGEABLE_ON_RESUME = {
    "micro_batch_size",
    "gradient_checkpointing",
    "eval_every",
    "save_every",
    "keep_checkpoints",
    "patience",
    "samples",
    "sample_tokens",
    "device",
    "output",
}
"""Settings that a resumed run may change: they change no loss beyond rounding."""


@dataclass(frozen=True, slots=True)
class RunLock:
    """Everything that determines the results of a run. Field names are those of the file."""

    config: Mapping[str, Any]
    """`TrainConfig` as the run used it."""
    base: BaseModelRef
    adapter: str | None
    """Fingerprint of the adapter that the run continues."""
    template: str | None
    data: DatasetRef
    eval_data: DatasetRef | None
    rows: str
    """`TrainingData.key`: identifies the token sequences and their split."""
    world: int
    """Number of processes."""
    run_id: str | None = None
    finished: bool = False
    versions: Mapping[str, str] = field(default_factory=lambda: _versions())
    hardware: Mapping[str, Any] = field(default_factory=lambda: _hardware())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file, or the one in a folder.

        Raises:
            ConfigError: it is missing, or not valid.
        """
        file = path / LOCK_FILE if path.is_dir() else path
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ConfigError(f"no run in {path}: {LOCK_FILE} is missing") from error
        except (OSError, ValueError) as error:
            raise ConfigError(f"{file} cannot be read: {error}") from error
        try:
            if values.pop("schema") > SCHEMA_VERSION:
                raise ConfigError(
                    f"{file} was written by a newer llmctl", hint="pip install -U llmctl"
                )
            return from_json(cls, values)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{file} is not a valid run lock: {error}") from error

    def write(self, folder: Path) -> None:
        """Write the file into a folder, atomically."""
        write_json(folder / LOCK_FILE, {"schema": SCHEMA_VERSION, **asdict(self)})

    def config_source(self, origin: str) -> ConfigSource:
        """Return the settings as a config source with this origin."""
        return {name: Setting(value, origin) for name, value in self.config.items()}

    def check_same(self, config: TrainConfig, chosen: Mapping[str, str]) -> None:
        """Check that a resumed run keeps the settings it started with.

        Args:
            chosen: origin of each given setting, by field.

        Raises:
            ConfigError: settings differ; the message lists them all.
        """
        now = config_to_json(config)
        differing = [
            f"{chosen[name]}: {name} is {now[name]!r}, and the run has {value!r}"
            for name, value in self.config.items()
            if name in chosen
            and name not in _CHANGEABLE_ON_RESUME
            and now.get(name, value) != value
        ]
        if differing:
            raise ConfigError(
                "\n".join(differing),
                hint="leave it out to continue the run; another --output starts a new run",
            )

    def differences(self, other: "RunLock") -> tuple[list[str], list[str]]:
        """Compare with the inputs and the environment of another run.

        Returns:
            Differences that make it another run, and differences that may change the last digits.
        """
        inputs = {
            "the model's weights": (self.base.weights, other.base.weights),
            "the continued adapter": (self.adapter, other.adapter),
            "the chat template": (self.template, other.template),
            "the data": (self.data.digest, other.data.digest),
            "the evaluation data": (
                self.eval_data and self.eval_data.digest,
                other.eval_data and other.eval_data.digest,
            ),
        }
        environment: dict[str, tuple[object, object]] = {
            name: (old, other.versions.get(name)) for name, old in self.versions.items()
        }
        environment |= {
            name: (old, other.hardware.get(name)) for name, old in self.hardware.items()
        }
        environment["processes"] = (self.world, other.world)
        return _changes(inputs), _changes(environment)


def config_to_json(config: TrainConfig) -> dict[str, Any]:
    """Return settings as JSON values, with absolute paths."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    for name in PATH_SETTINGS:
        value = values[name]
        if isinstance(value, list):
            values[name] = [_absolute(path) for path in value]
        elif value:
            values[name] = _absolute(value)
    values["output"] = str(Path(config.output).expanduser().absolute())
    return values


def _absolute(name: str) -> str:
    """Return the absolute path; a name that is not a local path, such as a hub id, unchanged."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else name


def _changes(pairs: Mapping[str, tuple[object, object]]) -> list[str]:
    return [
        f"{name} was {old} and is now {new}" for name, (old, new) in pairs.items() if old != new
    ]


def _versions() -> dict[str, str]:
    return {name: version(name) for name in _LIBRARIES} | {"python": platform.python_version()}


def _hardware() -> dict[str, Any]:
    import torch

    hardware: dict[str, Any] = {
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        # The number of threads changes the order of summation.
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }
    if torch.cuda.is_available():
        hardware |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return hardware
