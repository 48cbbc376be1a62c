"""How does another model or adapter take over in the middle, without losing the one that works?"""

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
    """Changes who answers in a session.

    Args:
        spec: how the first model was loaded; another one is loaded alike.
        endpoint: the server, where the models are others'.
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
        """Names of models that could answer."""
        engine = self._session.engine
        if isinstance(engine, SupportsModelList):
            return engine.models
        return tuple(entry.name for entry in CATALOG)

    def to_model(self, name: str, progress: ProgressCallback = ignore_progress) -> None:
        """Let another model answer, without adapter.

        Raises:
            LlmctlError: it cannot be had; the old one answers as before.
        """
        if self._endpoint is not None:
            self._to_served(replace(self._endpoint, model=name), progress)
            return
        spec = replace(self._spec, model=name, revision=None, adapter=None, chat_template=None)
        # All that can be known beforehand: files missing or damaged, no network, a wrong name.
        resolve.resolve_model(name, allow_pickle=spec.allow_pickle, progress=progress)
        self._reload(spec, progress)

    def _to_served(self, endpoint: ApiEndpoint, progress: ProgressCallback) -> None:
        engine = create_engine(endpoint)
        engine.load(progress)
        old, self._session.engine = self._session.engine, engine
        self._session.adapter, self._endpoint = None, endpoint
        if old is not None:
            old.close()

    def to_adapter(self, name: str | None, progress: ProgressCallback = ignore_progress) -> None:
        """Let the model answer with an adapter: a folder's, or a server's by name; `None` is none.

        Raises:
            LlmctlError: it does not fit or is not there; all stays as it was.
        """
        session, engine = self._session, self._session.active_engine
        if name is None or name in engine.adapters:
            if name is None and self._spec.adapter is not None:
                self._reload(replace(self._spec, adapter=None), progress)
            session.adapter = name
            return
        if self._endpoint is not None:
            known = ", ".join(engine.adapters) or "none"
            raise ConfigError(f"the server has no adapter {name!r}", hint=f"it has: {known}")
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise ConfigError(f"there is no folder {name}", hint="name the folder of an adapter")
        if self._spec.adapter is not None:
            # The first one is in the weights; it has to go before another can come.
            self._reload(replace(self._spec, adapter=str(folder)), progress)
            return
        loaded = str(folder.resolve())
        if loaded not in engine.adapters:
            require(engine, SupportsAdapters).load_adapter(loaded, loaded)
        session.adapter = loaded

    def _reload(self, spec: ModelSpec, progress: ProgressCallback) -> None:
        """Load another model in place of the one that is there, which comes back if that fails.

        The old one goes first: few cards hold two, and memory is planned by what is free.
        """
        session = self._session
        if session.engine is not None:
            session.engine.close()
            session.engine = None
        engine = create_engine(spec)
        try:
            engine.load(progress)
        except BaseException as error:  # Ctrl-C too
            engine.close()
            old = create_engine(self._spec)
            with suppress(LlmctlError):
                old.load(progress)
                session.engine = old
            if session.engine is None and isinstance(error, LlmctlError):
                error.hint = f"{error.hint}; the old model is gone too: /model NAME".lstrip("; ")
            raise
        session.engine, session.adapter, self._spec = engine, None, spec
