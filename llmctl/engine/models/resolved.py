"""A model whose files are on this machine."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ModelSource = Literal["local", "hub", "package-index"]


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model, or an adapter with its base model, whose files are on this machine."""

    model_id: str
    """Catalogue name, hub id, or the name of the folder or file: the name for clients."""
    path: Path
    """Its folder."""
    gguf_file: str | None
    """Name of the file in `path`, if the model is one GGUF file."""
    source: ModelSource
    revision: str | None
    """Commit sha on the hub, or name and version on the package index."""
    base: "ResolvedModel | None" = None
    """The base model, if `path` is the folder of an adapter."""

    @property
    def full_model(self) -> "ResolvedModel":
        """The model with all weights: the base model of an adapter, otherwise the model itself."""
        return self.base or self

    @property
    def weights_path(self) -> Path:
        """The folder of its weights, or its GGUF file."""
        return self.path if self.gguf_file is None else self.path / self.gguf_file
