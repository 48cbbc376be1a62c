"""Switch of the model or the adapter during a chat; a failed switch restores the former one."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from llmctl.engine.base import SupportsAdapters, SupportsModelList, require
from llmctl.engine.models import resolve
from llmctl.engine.models.catalog import CATALOG
from llmctl.engine.registry import create_engine
from llmctl.errors import ConfigError, LlmctlError
from llmctl.services.chat.session import ChatSession
from llmctl.types import ApiEndpoint, ModelSpec, ProgressCallback, ignore_progress


class ModelSwitcher:
    """Changes the model or the adapter of a session.

    Args:
        spec: how the first model was loaded; later ones are loaded with the same options.
        endpoint: the server, if the models are remote.
    """

    def __init__(
        self,
        session: ChatSession,
        spec: ModelSpec,
        endpoint: ApiEndpoint | None = None,
    ) -> None:
        self._session = session
        self._spec = spec
        self._endpoint = endpoint

    @property
    def adapter(self) -> str | None:
        """The adapter that the model was loaded with."""
        return self._spec.adapter

    def models(self) -> tuple[str, ...]:
        """Return the names of available models."""
        engine = self._session.engine
        if isinstance(engine, SupportsModelList):
            return engine.models
        return tuple(entry.name for entry in CATALOG)

    def switch_model(self, name: str, progress: ProgressCallback = ignore_progress) -> None:
        """Switch to another model, without an adapter.

        Raises:
            LlmctlError: the model cannot be loaded; the former one stays active.
        """
        if self._endpoint is not None:
            self._switch_served_model(replace(self._endpoint, model=name), progress)
            return
        spec = replace(self._spec, model=name, revision=None, adapter=None, chat_template=None)
        # Report missing files, a wrong name or no network before the current model is unloaded.
        resolve.resolve_model(name, allow_pickle=spec.allow_pickle, progress=progress)
        self._reload(spec, progress)

    def _switch_served_model(self, endpoint: ApiEndpoint, progress: ProgressCallback) -> None:
        engine = create_engine(endpoint)
        engine.load(progress)
        old, self._session.engine = self._session.engine, engine
        self._session.adapter, self._endpoint = None, endpoint
        if old is not None:
            old.close()

    def switch_adapter(
        self, name: str | None, progress: ProgressCallback = ignore_progress
    ) -> None:
        """Switch to an adapter, given by folder or by its name on the server; `None` is none.

        Raises:
            LlmctlError: the adapter does not exist or does not fit; nothing has changed.
        """
        session, engine = self._session, self._session.active_engine
        if name is None or name in engine.adapters:
            if name is None and self._spec.adapter is not None:
                self._reload(replace(self._spec, adapter=None), progress)
            session.adapter = name
            return
        if self._endpoint is not None:
            names = ", ".join(engine.adapters) or "none"
            raise ConfigError(f"the server has no adapter {name!r}", hint=f"available: {names}")
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise ConfigError(f"there is no folder {name}", hint="name the folder of an adapter")
        if self._spec.adapter is not None:
            # An adapter given at start is part of the loaded model: load it anew with the other.
            self._reload(replace(self._spec, adapter=str(folder)), progress)
            return
        path = str(folder.resolve())
        if path not in engine.adapters:
            require(engine, SupportsAdapters).load_adapter(path, path)
        session.adapter = path

    def _reload(self, spec: ModelSpec, progress: ProgressCallback) -> None:
        """Replace the loaded model; load the former one again if that fails.

        The former model is unloaded first: few GPUs hold two, and memory is planned by what is
        free.
        """
        session = self._session
        if session.engine is not None:
            session.engine.close()
            session.engine = None
        engine = create_engine(spec)
        try:
            engine.load(progress)
        except BaseException as error:  # KeyboardInterrupt too
            engine.close()
            old = create_engine(self._spec)
            with suppress(LlmctlError):
                old.load(progress)
                session.engine = old
            if session.engine is None and isinstance(error, LlmctlError):
                error.hint = f"{error.hint}; no model is loaded now: /model NAME".lstrip("; ")
            raise
        session.engine, session.adapter, self._spec = engine, None, spec
