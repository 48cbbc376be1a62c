"""The Transformers backend: checks requests, owns the model's thread, answers on streams."""

import gc
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

import torch

from llmctl.engine.base import BaseEngine
from llmctl.engine.batching.logprobs import TokenTexts
from llmctl.engine.batching.row import Row
from llmctl.engine.loading import LoadedModel, load_model
from llmctl.engine.serial import SerialWriter
from llmctl.engine.stream import GenerationStream
from llmctl.engine.text import incremental_decoder
from llmctl.errors import (
    ContextLengthError,
    EngineFailedError,
    EngineStoppedError,
    LlmctlError,
    OutOfMemoryError,
    RequestError,
    UnsupportedError,
)
from llmctl.types import (
    DEFAULT_SAMPLING,
    EngineInfo,
    GenerationChunk,
    GenerationRequest,
    Message,
    ModelSpec,
    ProgressCallback,
    SamplingParams,
    Score,
    ScoreRequest,
    Usage,
    check_text,
    ignore_progress,
)

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class _Job:
    """A request on its way through the engine thread."""

    def __init__(self, prompt_ids: list[int], rows: list[Row], stream: GenerationStream) -> None:
        self.prompt_ids = prompt_ids
        self.rows = rows
        self.stream = stream

    def emit(self, chunk: GenerationChunk) -> None:
        """Pass a row's chunk on; the one that ends the last row carries the usage."""
        if chunk.finish_reason is not None and all(row.finish_reason for row in self.rows):
            usage = Usage(len(self.prompt_ids), sum(len(row.output_ids) for row in self.rows))
            chunk = GenerationChunk(
                chunk.text, chunk.index, chunk.logprobs, chunk.finish_reason, usage
            )
        self.stream.put(chunk)


class HFRunner(BaseEngine):
    """One Transformers model and the one thread that runs it."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self._loaded: LoadedModel | None = None
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._streams: set[GenerationStream] = set()
        # Guards _streams and _closing: submit, close and the engine thread all touch them.
        self._lock = threading.Lock()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="llmctl-engine", daemon=True)

    def load(self, progress: ProgressCallback = ignore_progress) -> None:
        loaded = load_model(self.spec, progress)
        self._texts = TokenTexts(loaded.tokenizer)
        self._writer = SerialWriter(loaded.model, self._texts)
        self._loaded = loaded
        self._thread.start()

    @property
    def _ready(self) -> LoadedModel:
        if self._loaded is None or self._closing:
            raise EngineStoppedError("the engine is not running")
        return self._loaded

    def submit(self, request: GenerationRequest) -> GenerationStream:
        loaded = self._ready
        if request.adapter is not None:
            raise UnsupportedError("adapters per request are not supported", param="adapter")
        prompt_ids = self._prompt_ids(request)
        params = request.sampling.over(loaded.sampling_defaults).over(DEFAULT_SAMPLING)
        self._check_token_ids([i for i, _ in params.logit_bias or ()], "logit_bias")
        room = self._room(len(prompt_ids), "messages" if request.messages else "prompt")
        limit = room if params.max_new_tokens is None else min(params.max_new_tokens, room)
        stream = GenerationStream(request.request_id)
        job = _Job(prompt_ids, [], stream)
        job.rows += [self._row(i, job, params, limit) for i in range(params.n or 1)]
        with self._lock:
            if self._closing:
                raise EngineStoppedError("the engine is closing")
            self._streams.add(stream)
            self._work.put(lambda: self._answer(job))
        return stream

    def _row(self, index: int, job: _Job, params: SamplingParams, limit: int) -> Row:
        loaded = self._ready
        ends = (*params.stop_token_ids,) if params.stop_token_ids else ()
        return Row(
            index,
            job.prompt_ids,
            params,
            limit,
            ends if params.ignore_eos else (*ends, *loaded.eos_ids),
            incremental_decoder(loaded.tokenizer),
            job.emit,
        )

    def _prompt_ids(self, request: GenerationRequest) -> list[int]:
        if request.messages:
            return self._ready.template.encode(request.messages)
        assert request.prompt is not None
        ids = self._encode(request.prompt)
        if not ids:
            raise RequestError("the prompt is empty: give at least one token", param="prompt")
        return ids

    def _encode(self, text: str | Sequence[int]) -> list[int]:
        """Tokenise raw text, with the BOS token where the tokenizer adds one."""
        if isinstance(text, str):
            check_text(text, param="prompt")
            ids: list[int] = self._ready.tokenizer(text, verbose=False).input_ids
            return ids
        self._check_token_ids(text, "prompt")
        return list(text)

    def _check_token_ids(self, ids: Sequence[int], param: str) -> None:
        size = self._ready.vocab_size
        for token_id in ids:
            if not 0 <= token_id < size:
                raise RequestError(
                    f"token id {token_id} is outside the vocabulary of {size}", param=param
                )

    def _room(self, prompt_tokens: int, param: str) -> int:
        limit = self._ready.info.context_length
        if prompt_tokens >= limit:
            raise ContextLengthError(
                f"This model's maximum context length is {limit} tokens. However, your {param} "
                f"resulted in {prompt_tokens} tokens. Please reduce the length of the {param}.",
                param=param,
            )
        return limit - prompt_tokens

    def score(self, requests: Sequence[ScoreRequest]) -> list[tuple[Score, ...]]:
        encoded = [
            [self._encode_pair(request.context, c) for c in request.continuations]
            for request in requests
        ]
        return self._on_engine_thread(
            lambda: [tuple(self._score_one(ids, tail) for ids, tail in pairs) for pairs in encoded]
        )

    def _encode_pair(
        self, context: str | tuple[int, ...], continuation: str | tuple[int, ...]
    ) -> tuple[list[int], int]:
        """Return the ids of both together, and how many of them are the continuation."""
        head = self._encode(context)
        if isinstance(context, str) and isinstance(continuation, str):
            ids = self._encode(context + continuation)
        else:
            ids = head + self._encode(continuation)
        # Without a BOS and a context, the first token has nothing to be predicted from.
        head_length = max(len(head), 1)
        if len(ids) <= head_length:
            raise RequestError(
                f"nothing to score: {continuation!r} adds no token to its context",
                param="continuations",
            )
        self._room(len(ids) - 1, "prompt")
        return ids, len(ids) - head_length

    def _score_one(self, ids: list[int], tail: int) -> Score:
        logits = self._writer.score([(ids, tail)])[0]
        targets = torch.tensor(ids[-tail:], device=logits.device)
        chosen = logits.log_softmax(-1).gather(1, targets.unsqueeze(1))
        greedy = bool((logits.argmax(-1) == targets).all())
        return Score(float(chosen.sum()), tail, greedy)

    def count_tokens(self, text: str | Sequence[Message]) -> int:
        if isinstance(text, str):
            return len(self._encode(text))
        return len(self._ready.template.encode(text))

    def info(self) -> EngineInfo:
        return self._ready.info

    @property
    def in_flight(self) -> int:
        return len(self._streams)

    def close(self) -> None:
        with self._lock:
            already, self._closing = self._closing, True
            for stream in self._streams:
                stream.cancel()
        if already or self._loaded is None:
            return
        self._work.put(None)
        self._thread.join()
        self._loaded = None
        del self._writer
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _run(self) -> None:
        """The engine thread: the only one that runs the model."""
        while (work := self._work.get()) is not None:
            work()

    def _on_engine_thread(self, work: Callable[[], _T]) -> _T:
        """Run `work` in the engine thread, in turn, and return what it returns or raises."""
        future: Future[_T] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(_as_ours(error))

        with self._lock:
            if self._closing:
                raise EngineStoppedError("the engine is closing")
            self._work.put(run)
        return future.result()

    def _answer(self, job: _Job) -> None:
        stream = job.stream
        try:
            for row in job.rows:
                if stream.cancelled:
                    break
                self._writer.write(row, lambda: stream.cancelled)
            if self._closing and not all(row.finish_reason for row in job.rows):
                stream.fail(EngineStoppedError("the engine was closed before the reply ended"))
        except BaseException as error:
            # This request fails alone; the thread lives for the others.
            _log.exception("request %s failed", stream.request_id)
            stream.fail(_as_ours(error))
        finally:
            stream.finish()
            with self._lock:
                self._streams.discard(stream)


def _as_ours(error: BaseException) -> LlmctlError:
    """Wrap what broke in the engine thread, with its cause."""
    if isinstance(error, LlmctlError):
        return error
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        wrapped: LlmctlError = OutOfMemoryError(
            "memory ran out while this request ran", hint="shorten the prompt or the reply"
        )
    else:
        wrapped = EngineFailedError(f"the engine failed on this request: {error}")
    wrapped.__cause__ = error
    return wrapped
