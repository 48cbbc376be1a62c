"""Where do the weights in a folder come from? Reads and writes the `llmctl.json` beside them.

Whatever llmctl teaches a model lies with a note of how: the base model and a print of its weights,
the print of the chat template, the data, the run. Everything that loads the weights compares the
note with what it would use, so that a model is never asked in another form than it learnt.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

from llmctl.engine.models import weight_files
from llmctl.engine.models.catalog import find_entry
from llmctl.errors import ConfigError, ModelLoadError
from llmctl.types import DatasetRef

if TYPE_CHECKING:
    from llmctl.engine.models.resolve import ResolvedModel

PROVENANCE_FILE = "llmctl.json"
SCHEMA = 1
_LIBRARIES = ("llmctl", "torch", "transformers", "peft")
_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class BaseModelRef:
    """The model that was taught."""

    model: str
    """What `--model` takes: catalogue name, hub id, or absolute path."""
    source: str
    """Where its files came from: `local`, `hub` or `package-index`."""
    revision: str | None
    """Commit sha on the hub, or name and version on the package index."""
    weights: str
    """Their print, as `weight_files.fingerprint` makes it."""

    @classmethod
    def of(cls, found: "ResolvedModel") -> Self:
        """Describe a model whose files are here."""
        file = found.path if found.gguf_file is None else found.path / found.gguf_file
        return cls(
            model=str(file.resolve()) if found.source == "local" else found.model_id,
            source=found.source,
            revision=found.revision,
            weights=weight_files.fingerprint(file),
        )

    @property
    def repo(self) -> str | None:
        """Its hub id, which other tools understand; `None` where it has none."""
        if self.source == "local":
            return None
        entry = find_entry(self.model)
        return entry.repo if entry else self.model


@dataclass(frozen=True, slots=True)
class Provenance:
    """How the weights in a folder came to be."""

    base: BaseModelRef
    template: str | None
    """`ChatTemplate.fingerprint` of the form in which it learnt; `None`: plain text."""
    method: str
    """`lora`, `qlora`, `dora`, `full`, `dpo`, ..., as `llmctl finetune --method` has it."""
    hyperparameters: Mapping[str, object] = field(default_factory=lambda: _NOTHING)
    """What JSON can hold."""
    data: DatasetRef | None = None
    run_id: str | None = None
    """The run that taught it."""
    model_id: str | None = None
    """The LoggedModel that the tracking store knows it as."""
    versions: Mapping[str, str] = field(default_factory=lambda: installed_versions())
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    """UTC, ISO 8601."""

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Return the note in a folder, or `None` where another tool made it.

        Raises:
            ModelLoadError: it is there and cannot be understood.
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
                    f"{file} has schema {schema}, and this llmctl knows {SCHEMA}",
                    hint="pip install --upgrade llmctl",
                )
            base = BaseModelRef(**_known(BaseModelRef, values.pop("base")))
            data = values.pop("data", None)
            return cls(
                base=base,
                data=None if data is None else DatasetRef(**_known(DatasetRef, data)),
                **_known(cls, values),
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise _unreadable(file, str(error)) from error

    def write(self, folder: Path) -> None:
        """Write the note beside the weights, whole or not at all."""
        values = {"schema": SCHEMA} | {f.name: _plain(getattr(self, f.name)) for f in fields(self)}
        written = folder / f".{PROVENANCE_FILE}.{os.getpid()}"
        try:
            written.write_text(
                json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
            )
            written.replace(folder / PROVENANCE_FILE)
        finally:
            written.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class ProvenanceCheck:
    """What is known of weights that were found fit to be used."""

    model_id: str | None = None
    """The LoggedModel that they are, or that their adapter is."""
    notes: tuple[str, ...] = ()
    """What a person should know, a sentence each."""


def check_provenance(
    found: "ResolvedModel", *, adapter: str | None, template: str | None, template_chosen: bool
) -> ProvenanceCheck:
    """Compare how weights came to be with how they are about to be used.

    Args:
        found: the model, with its base where it is an adapter.
        adapter: folder of the adapter that goes on it, be it `found` itself.
        template: print of the chat template that would be used.
        template_chosen: a person gave that template for this very use.

    Raises:
        ConfigError: they learnt with another template, and nobody chose this one.
        ModelLoadError: the note beside them cannot be understood.
    """
    folder = found.path if adapter is None else Path(adapter).expanduser()
    note = Provenance.read(folder)
    if note is None:
        unknown = f"{folder.name} has no {PROVENANCE_FILE}: its base weights and chat template are "
        return ProvenanceCheck(notes=() if adapter is None else (unknown + "not known",))
    told = [
        check_chat_template(folder, template, chosen=template_chosen, own=folder == found.path),
        None if adapter is None else describe_base_mismatch(note.base, found.whole, folder.name),
    ]
    return ProvenanceCheck(note.model_id, tuple(text for text in told if text is not None))


def check_chat_template(
    folder: Path, used: str | None, *, chosen: bool = False, own: bool = False
) -> str | None:
    """Compare the chat template that would be used with the one that weights learnt with.

    Args:
        chosen: a person gave the template for this very use.
        own: it lies in `folder` itself.

    Returns:
        What a person should know, if anything.

    Raises:
        ConfigError: they differ, and nobody chose so.
    """
    note = Provenance.read(folder)
    if note is None or note.template in (None, used):
        return None
    differ = (
        f"{folder} learnt with the chat template {note.template}, "
        f"and {used or 'none'} would be used"
    )
    if chosen:
        return f"{differ}, as --chat-template asks"
    way = (
        "put back the one it learnt with" if own else f"--model {folder} takes the one saved there"
    )
    raise ConfigError(differ, hint=f"{way}; --chat-template FILE says which one you mean")


def describe_base_mismatch(taught: BaseModelRef, found: "ResolvedModel", name: str) -> str | None:
    """Say how a model differs from the one that was taught; `None` if it does not."""
    here = BaseModelRef.of(found)
    if here.weights == taught.weights:
        return None
    if here.model != taught.model:
        return f"{name} was taught on {_in_full(taught)}, and this is {_in_full(here)}"
    return f"{name} was taught on other weights than these {_in_full(here)}: {_in_full(taught)}"


def installed_versions() -> dict[str, str]:
    """Return the releases of what makes an adapter what it is."""
    found = {}
    for name in _LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _in_full(base: BaseModelRef) -> str:
    return " ".join(part for part in (base.model, base.revision, f"[{base.weights}]") if part)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModelRef | DatasetRef):
        return asdict(value)
    return dict(value) if isinstance(value, Mapping) else value


def _known(kind: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what a later release of the same schema says besides."""
    names = {f.name for f in fields(kind)}
    return {name: value for name, value in values.items() if name in names}


def _unreadable(file: Path, reason: str) -> ModelLoadError:
    return ModelLoadError(
        f"{file} cannot be read: {reason}",
        hint="without it the folder loads too, unchecked: move it away if you know what it holds",
    )
