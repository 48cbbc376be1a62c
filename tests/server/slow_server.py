"""Process that runs `serve` with a slow fake engine, to receive signals.

Usage: python -m tests.server.slow_server SECONDS_PER_REPLY DRAIN_SECONDS
"""

import sys
import threading

from llmctl.config import ServeConfig
from llmctl.engine.stream import GenerationStream
from llmctl.services.serve import serve
from llmctl.types import EngineInfo, GenerationRequest, ModelSpec
from tests.fakes import FakeEngine


class SlowEngine(FakeEngine):
    def __init__(self, _: ModelSpec) -> None:
        self.release = threading.Event()
        super().__init__(hold=self.release)

    def submit(self, request: GenerationRequest) -> GenerationStream:
        timer = threading.Timer(float(sys.argv[1]), self.release.set)
        timer.daemon = True
        timer.start()
        return super().submit(request)

    def close(self) -> None:
        super().close()
        sys.stdout.write("engine closed\n")


def announce(url: str, _: EngineInfo) -> None:
    sys.stdout.write(f"{url}\n")
    sys.stdout.flush()


def main() -> int:
    config = ServeConfig(port=0, drain_s=float(sys.argv[2]), log_requests=False)
    ended_by = serve(ModelSpec("fake-model"), config, announce, engine_factory=SlowEngine)
    sys.stdout.write(f"ended by {ended_by.name if ended_by else 'nothing'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
