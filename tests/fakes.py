"""Working stand-ins for parts that are slow to build: they behave, and record what they saw."""

import threading
from collections.abc import Sequence

from llmctl.engine.base import BaseEngine
from llmctl.engine.stream import GenerationStream
from llmctl.errors import EngineStoppedError, LlmctlError
from llmctl.types import (
    EngineInfo,
    GenerationChunk,
    GenerationRequest,
    Message,
    ModelSpec,
    ProgressCallback,
    Score,
    ScoreRequest,
    Usage,
    ignore_progress,
)


class FakeEngine(BaseEngine):
    """Says the given pieces to every request, one thread per request.

    `reject` is raised by `submit`; `fail` ends the stream after the pieces; `hold`, while set and
    not yet released, keeps every reply open after its first piece (until cancelled).
    """

    def __init__(
        self,
        pieces: Sequence[str] = ("Hel", "lo"),
        *,
        reject: LlmctlError | None = None,
        fail: LlmctlError | None = None,
        hold: threading.Event | None = None,
    ) -> None:
        super().__init__(ModelSpec("fake-model"))
        self.pieces = tuple(pieces)
        self.reject = reject
        self.fail = fail
        self.hold = hold
        self.requests: list[GenerationRequest] = []
        self.streams: list[GenerationStream] = []
        self.closed = False

    def load(self, progress: ProgressCallback = ignore_progress) -> None:
        pass

    def submit(self, request: GenerationRequest) -> GenerationStream:
        if self.reject is not None:
            raise self.reject
        if self.closed:
            raise EngineStoppedError("the engine is closed")
        stream = GenerationStream(request.request_id)
        self.requests.append(request)
        self.streams.append(stream)
        threading.Thread(target=self._answer, args=(request, stream), daemon=True).start()
        return stream

    def _answer(self, request: GenerationRequest, stream: GenerationStream) -> None:
        choices = request.sampling.n or 1
        for position, piece in enumerate(self.pieces):
            for index in range(choices):
                stream.put(GenerationChunk(piece, index))
            if position == 0 and self.hold is not None:
                while not self.hold.wait(0.01):
                    if stream.cancelled or self.closed:
                        stream.finish()
                        return
        if self.fail is not None:
            stream.fail(self.fail)
            return
        usage = Usage(prompt_tokens=7, completion_tokens=choices * len(self.pieces))
        for index in range(choices):
            last = index == choices - 1
            stream.put(
                GenerationChunk("", index, finish_reason="stop", usage=usage if last else None)
            )
        stream.finish()

    def score(self, requests: Sequence[ScoreRequest]) -> list[tuple[Score, ...]]:
        return [tuple(Score(-1.0, 1, True) for _ in r.continuations) for r in requests]

    def count_tokens(self, text: str | Sequence[Message]) -> int:
        return len(text) if isinstance(text, str) else sum(len(m.content) for m in text)

    def info(self) -> EngineInfo:
        if self.closed:
            raise EngineStoppedError("the engine is closed")
        return EngineInfo(
            model_id="fake-model",
            backend="fake",
            device="cpu",
            dtype="float32",
            quant="none",
            context_length=128,
            parameter_count=1,
            weight_bytes=4,
            has_chat_template=True,
            template_fingerprint="0" * 16,
        )

    def close(self) -> None:
        self.closed = True

    @property
    def in_flight(self) -> int:
        return sum(not stream.ended for stream in self.streams)
