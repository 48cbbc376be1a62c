"""How a command gets its tracker."""

import os
from collections.abc import Callable
from typing import Final

from llmctl.monitor.base import NullTracker, Tracker
from llmctl.monitor.store import sqlite_path, store_uri
from llmctl.types import ProgressCallback, RunStart, ignore_progress

_FILE_WAIT_S: Final = 60.0
"""How long a command waits for its run to be in a store on the disk, before it goes on without,"""
_SERVER_WAIT_S: Final = 5.0
"""and on a server."""


def open_tracker(
    start: RunStart,
    *,
    tracking_uri: str | None = None,
    enabled: bool = True,
    warn: Callable[[str], None],
    progress: ProgressCallback = ignore_progress,
) -> Tracker:
    """Begin the record of a command, and look after what dead ones left behind.

    Args:
        tracking_uri: the store; None takes `MLFLOW_TRACKING_URI`, else SQLite in llmctl's folder.
        enabled: False remembers nothing, and so does any process but the first of several (`RANK`).
        warn: told in a line when the store fails, and what became of the record. It may be called
            from another thread.

    Raises:
        ConfigError: the store's address cannot be used. Nothing else is raised: a store that does
            not answer is told to `warn`, and the record waits for it.
    """
    if not enabled or os.environ.get("RANK", "0") not in ("", "0"):
        return NullTracker()
    uri = store_uri(tracking_uri)
    from llmctl.monitor.mlflow_logger import MLflowLogger

    tracker = MLflowLogger(start, uri, warn=warn, progress=progress)
    tracker.wait_until_open(_SERVER_WAIT_S if sqlite_path(uri) is None else _FILE_WAIT_S)
    return tracker
