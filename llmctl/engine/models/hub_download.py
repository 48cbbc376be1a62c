"""The process that downloads a hub snapshot, started by `hub`.

A process can be stopped at once; the threads of the hub's client outlive Ctrl-C. It prints one JSON
object per line: `{"done": bytes}` while it downloads, at the end `{"path": ...}` or
`{"reason": ..., "hint": ...}`.
"""

import json
import sys
import time
from typing import Any

from llmctl.engine.models.hub import Hub
from llmctl.engine.subprocess_runner import exit_with_parent

_REPORT_SECONDS = 0.2


def _report(**message: object) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _counting_bar() -> Any:
    """Return a progress bar class for `huggingface_hub` that reports the number of bytes."""
    from huggingface_hub.utils.tqdm import tqdm

    reported_at = 0.0

    class CountingBar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            self._counts_bytes = options.get("unit") == "B"
            super().__init__(*args, **options | {"disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            nonlocal reported_at
            self.n += n or 0
            if self._counts_bytes and time.monotonic() - reported_at > _REPORT_SECONDS:
                reported_at = time.monotonic()
                _report(done=int(self.n))

    return CountingBar


def main() -> None:
    """Run with the arguments of `snapshot_download` as one JSON object."""
    from huggingface_hub import snapshot_download

    exit_with_parent()
    request = json.loads(sys.argv[1])
    try:
        _report(path=snapshot_download(**request, tqdm_class=_counting_bar()))
    except Exception as error:
        failure = Hub.from_environment().translate_error(
            error, request["repo_id"], request["revision"]
        )
        _report(reason=str(failure), hint=failure.hint)


if __name__ == "__main__":
    main()
