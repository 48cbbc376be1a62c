"""Downloads a hub snapshot. A process of its own, started by `hub`, which can stop it at once.

The hub's client looks up from its work every ten megabytes, and its threads outlive Ctrl-C.
It prints one JSON object a line: `{"done": bytes}` now and then, and in the end `{"path": ...}` or
`{"reason": ..., "hint": ...}`.
"""

import json
import sys
import time
from typing import Any

from llmctl.engine.models.hub import Hub
from llmctl.engine.subprocess_runner import exit_with_parent

_REPORT_SECONDS = 0.2


def _say(**message: object) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _counting_bar() -> Any:
    """Return a progress bar class for `huggingface_hub` that says how many bytes there are."""
    from huggingface_hub.utils.tqdm import tqdm

    said_at = 0.0

    class CountingBar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            self._counts_bytes = options.get("unit") == "B"
            super().__init__(*args, **options | {"disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            nonlocal said_at
            self.n += n or 0
            if self._counts_bytes and time.monotonic() - said_at > _REPORT_SECONDS:
                said_at = time.monotonic()
                _say(done=int(self.n))

    return CountingBar


def main() -> None:
    """Take the arguments of `snapshot_download` as one JSON object."""
    from huggingface_hub import snapshot_download

    exit_with_parent()
    request = json.loads(sys.argv[1])
    try:
        _say(path=snapshot_download(**request, tqdm_class=_counting_bar()))
    except Exception as error:
        failure = Hub.from_environment().explain(error, request["repo_id"], request["revision"])
        _say(reason=str(failure), hint=failure.hint)


if __name__ == "__main__":
    main()
