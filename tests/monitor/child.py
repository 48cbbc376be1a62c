"""A tracked command that tests run as a child process: `python -m ... KIND [RUN_ID]`.

It prints the id of its run, then logs a metric every 20 ms.
"""

import sys
import time

from llmctl.monitor import open_tracker, tracked
from llmctl.types import RunStart


def main(kind: str, *arguments: str) -> None:
    start = RunStart("finetune", "tiny", resume_run_id=arguments[0] if arguments else None)

    def warn(text: str) -> None:
        sys.stderr.write(f"{text}\n")

    with tracked(open_tracker(start, warn=warn)) as tracker:
        sys.stdout.write(f"{tracker.run_id}\n")
        sys.stdout.flush()
        if kind == "crash":
            raise ZeroDivisionError("the loss is NaN")
        for step in range(100 if kind == "short" else 5000):
            tracker.log_metrics({"train/loss": 1 / (step + 1)}, step=step)
            time.sleep(0.0 if kind == "short" else 0.02)


if __name__ == "__main__":
    main(*sys.argv[1:])
