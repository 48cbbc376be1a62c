"""Fakes of slow components, which behave like them and record their calls."""

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

from llmctl.engine.base import BaseEngine, SupportsScore, SupportsTokenize
from llmctl.engine.chat.response_delta import ResponseDelta
from llmctl.engine.stream import GenerationStream
from llmctl.errors import EngineStoppedError, LlmctlError
from llmctl.monitor import Tracker
from llmctl.types import (
    DatasetContext,
    DatasetRef,
    EngineInfo,
    EngineState,
    GenerationChunk,
    GenerationRequest,
    Message,
    ProgressCallback,
    RequestTrace,
    RunStatus,
    Score,
    ScoreRequest,
    ToolCall,
    Usage,
    ignore_progress,
)

TOOL_CALLS = (ToolCall("add", '{"a": 1}', "call_1"), ToolCall("look_up", "{}", "call_2"))
TOOL_CALL_CHUNKS = (
    ToolCall("add", '{"a"', "call_1"),
    ToolCall("add", ": 1}", "call_1"),
    TOOL_CALLS[1],
)
"""The same calls as streamed parts."""


class FakeEngine(BaseEngine, SupportsTokenize, SupportsScore):
    """Answers every request with the given pieces, one thread per request.

    Args:
        pieces: texts or deltas of the reply.
        reject: raised by `submit`.
        fail: ends the stream after the pieces.
        hold: while not set, keeps every reply open after its first piece, until cancelled.
    """

    def __init__(
        self,
        pieces: Sequence[str | ResponseDelta] = ("Hel", "lo"),
        *,
        reject: LlmctlError | None = None,
        fail: LlmctlError | None = None,
        hold: threading.Event | None = None,
    ) -> None:
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
        called = False
        for position, piece in enumerate(self.pieces):
            part = ResponseDelta(piece) if isinstance(piece, str) else piece
            calls = () if part.call is None else (part.call,)
            called |= bool(calls)
            for index in range(choices):
                stream.put(
                    GenerationChunk(part.text, index, reasoning=part.reasoning, tool_calls=calls)
                )
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
                GenerationChunk(
                    "",
                    index,
                    finish_reason="tool_calls" if called else "stop",
                    usage=usage if last else None,
                )
            )
        stream.finish()

    def submit_scores(self, requests: Sequence[ScoreRequest]) -> Future[list[tuple[Score, ...]]]:
        done: Future[list[tuple[Score, ...]]] = Future()
        done.set_result([tuple(Score(-1.0, 1, True) for _ in r.continuations) for r in requests])
        return done

    def count_tokens(self, text: str | Sequence[Message]) -> int:
        return len(text) if isinstance(text, str) else sum(len(m.content) for m in text)

    def count_prompt(self, request: GenerationRequest) -> int:
        return self.count_tokens(request.messages) + sum(len(t.name) for t in request.tools)

    def tokenize(self, text: str | Sequence[int], *, add_special_tokens: bool = True) -> list[int]:
        if not isinstance(text, str):
            return list(text)
        return [0] * add_special_tokens + [ord(character) for character in text]

    def detokenize(self, ids: Sequence[int]) -> str:
        return "".join(chr(i) for i in ids if i)

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

    def state(self) -> EngineState:
        if self.closed:
            raise EngineStoppedError("the engine is closed")
        return EngineState(True, 0.0, running=self.in_flight, waiting=0, max_rows=4)

    @property
    def in_flight(self) -> int:
        return sum(not stream.ended for stream in self.streams)


class RecordingTracker(Tracker):
    """Records all calls in lists and mappings."""

    run_id: str | None = "0" * 32

    def __init__(self) -> None:
        self.params: dict[str, object] = {}
        self.points: list[tuple[str, float, int]] = []
        """Name, value and step, in order."""
        self.model_metrics: dict[str, dict[str, float]] = {}
        self.tags: dict[str, str] = {}
        self.texts: dict[str, str] = {}
        self.artifacts: list[tuple[Path, str]] = []
        self.datasets: list[tuple[DatasetRef, DatasetContext]] = []
        self.models: dict[str, Path] = {}
        """Folders of logged models, by id."""
        self.used: list[str] = []
        self.traces: list[RequestTrace] = []
        self.status: RunStatus = "running"
        self.error = ""

    def log_params(self, params: Mapping[str, object]) -> None:
        self.params |= params

    def log_metrics(
        self, metrics: Mapping[str, float], *, step: int = 0, model_id: str | None = None
    ) -> None:
        self.points += [(name, value, step) for name, value in metrics.items()]
        if model_id is not None:
            self.model_metrics.setdefault(model_id, {}).update(metrics)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self.tags |= tags

    def log_artifact(self, path: Path, folder: str = "") -> None:
        self.artifacts.append((path, folder))

    def log_text(self, text: str, file: str) -> None:
        self.texts[file] = text

    def log_dataset(self, dataset: DatasetRef, context: DatasetContext) -> None:
        self.datasets.append((dataset, context))

    def log_model(
        self,
        name: str,
        folder: Path,
        tags: Mapping[str, str] | None = None,  # noqa: ARG002  a fake
    ) -> str | None:
        model_id = f"m-{name}"
        self.models[model_id] = folder
        return model_id

    def use_model(self, model_id: str) -> None:
        self.used.append(model_id)

    def log_trace(self, trace: RequestTrace) -> None:
        self.traces.append(trace)

    def end(self, status: RunStatus, error: str = "") -> None:
        if self.status == "running":
            self.status, self.error = status, error
