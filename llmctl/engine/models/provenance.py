"""The provenance file `llmctl.json` beside trained weights, and its checks.

Whatever llmctl trains has this file in its folder: the base model and the fingerprint of its
weights, the fingerprint of the chat template, the data and the run. Everything that loads the
weights compares it with the base model and the chat template in use.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Self

from llmctl.atomic_files import write_atomically
from llmctl.dataclass_json import from_json
from llmctl.engine.models import weight_files
from llmctl.engine.models.catalog import find_entry
from llmctl.engine.models.resolved import ResolvedModel
from llmctl.errors import ConfigError, ModelLoadError
from llmctl.types import DatasetRef

PROVENANCE_FILE = "llmctl.json"
SCHEMA = 1
_PACKAGES = ("llmctl", "torch", "transformers", "peft")


@dataclass(frozen=True, slots=True)
class BaseModelRef:
    """The model that was trained."""

    model: str
    """Value for `--model`: catalogue name, hub id, or absolute path."""
    source: str
    """Source of its files: `local`, `hub` or `package-index`."""
    revision: str | None
    """Commit sha on the hub, or name and version on the package index."""
    weights: str
    """Fingerprint of its weights, see `weight_files.fingerprint`."""

    @classmethod
    def of(cls, resolved: ResolvedModel) -> Self:
        """Describe a model whose files are on this machine."""
        path = resolved.weights_path
        return cls(
            model=str(path.resolve()) if resolved.source == "local" else resolved.model_id,
            source=resolved.source,
            revision=resolved.revision,
            weights=weight_files.fingerprint(path),
        )

    @property
    def repo(self) -> str | None:
        """Its hub id, which other tools understand; `None` for a local model."""
        if self.source == "local":
            return None
        entry = find_entry(self.model)
        return entry.repo if entry else self.model


@dataclass(frozen=True, slots=True)
class Provenance:
    """How the weights in a folder were made."""

    base: BaseModelRef
    template: str | None
    """`ChatTemplate.fingerprint` of the template used in training; `None`: plain text."""
    method: str
    """`lora`, `qlora`, `dora`, `full`, `dpo`, ..., as in `llmctl finetune --method`."""
    hyperparameters: Mapping[str, object] = field(default_factory=dict)
    """JSON values."""
    data: DatasetRef | None = None
    run_id: str | None = None
    """The training run."""
    model_id: str | None = None
    """The LoggedModel of these weights in the tracking store."""
    versions: Mapping[str, str] = field(default_factory=lambda: installed_versions())
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    """UTC, ISO 8601."""

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Return the provenance of a folder, or `None` if it has no file of it.

        Raises:
            ModelLoadError: the file exists and is not valid.
        """
        file = folder / PROVENANCE_FILE
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise _unreadable(file, str(error)) from error
        try:
            schema = values.pop("schema")
            if schema > SCHEMA:
                raise ModelLoadError(
                    f"{file} has schema {schema}, and this llmctl supports {SCHEMA}",
                    hint="pip install --upgrade llmctl",
                )
            return from_json(cls, values)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise _unreadable(file, str(error)) from error

    def write(self, folder: Path) -> None:
        """Write the file into a folder, atomically."""
        text = json.dumps({"schema": SCHEMA} | asdict(self), indent=2, ensure_ascii=False) + "\n"
        write_atomically(folder / PROVENANCE_FILE, text)


@dataclass(frozen=True, slots=True)
class ProvenanceCheck:
    """The result of a successful check."""

    model_id: str | None = None
    """The LoggedModel of the weights or of their adapter."""
    run_id: str | None = None
    """The tracked run that trained them."""
    notes: tuple[str, ...] = ()
    """Differences that the user should know, one sentence each."""


def check_provenance(
    resolved: ResolvedModel, *, adapter: str | None, template: str | None, template_chosen: bool
) -> ProvenanceCheck:
    """Compare the provenance of weights with how they are about to be used.

    Args:
        resolved: the model, with its base model if it is an adapter.
        adapter: folder of the adapter in use, which may be `resolved` itself.
        template: fingerprint of the chat template in use.
        template_chosen: the user has given that template explicitly.

    Raises:
        ConfigError: they were trained with another template, and this one was not given explicitly.
        ModelLoadError: the provenance file is not valid.
    """
    folder = resolved.path if adapter is None else Path(adapter).expanduser()
    origin = Provenance.read(folder)
    if origin is None:
        unknown = (
            f"{folder.name} has no {PROVENANCE_FILE}: "
            "its base weights and chat template are not known"
        )
        return ProvenanceCheck(notes=() if adapter is None else (unknown,))
    in_model_folder = folder == resolved.path
    notes = [
        check_chat_template(folder, template, chosen=template_chosen, own=in_model_folder),
        None
        if adapter is None
        else describe_base_mismatch(origin.base, resolved.full_model, folder.name),
    ]
    return ProvenanceCheck(
        origin.model_id, origin.run_id, tuple(note for note in notes if note is not None)
    )


def check_chat_template(
    folder: Path, used: str | None, *, chosen: bool = False, own: bool = False
) -> str | None:
    """Compare the chat template in use with the one that weights were trained with.

    Args:
        folder: of the weights.
        used: fingerprint of the chat template in use.
        chosen: the user has given the template explicitly.
        own: the template in use was read from `folder`.

    Returns:
        A note if they differ and the template was given explicitly.

    Raises:
        ConfigError: they differ, and the template was not given explicitly.
    """
    origin = Provenance.read(folder)
    if origin is None or origin.template in (None, used):
        return None
    difference = (
        f"{folder} was trained with the chat template {origin.template}, "
        f"and {used or 'none'} would be used"
    )
    if chosen:
        return f"{difference}, as --chat-template requires"
    fix = "restore the template of the training" if own else f"--model {folder} uses the one there"
    raise ConfigError(difference, hint=f"{fix}; --chat-template FILE selects one explicitly")


def describe_base_mismatch(trained: BaseModelRef, used: ResolvedModel, name: str) -> str | None:
    """Describe how the base model in use differs from the one in training; `None` if equal.

    Args:
        name: of the adapter, for the message.
    """
    current = BaseModelRef.of(used)
    if current.weights == trained.weights:
        return None
    if current.model != trained.model:
        return f"{name} was trained on {_in_full(trained)}, and this is {_in_full(current)}"
    return f"{name} was trained on {_in_full(trained)}; {_in_full(current)} has other weights"


def installed_versions() -> dict[str, str]:
    """Return the versions of the packages that determine an adapter."""
    versions = {}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def _in_full(base: BaseModelRef) -> str:
    return " ".join(part for part in (base.model, base.revision, f"[{base.weights}]") if part)


def _unreadable(file: Path, reason: str) -> ModelLoadError:
    return ModelLoadError(
        f"{file} cannot be read: {reason}",
        hint="move the file away to load the folder without these checks",
    )
