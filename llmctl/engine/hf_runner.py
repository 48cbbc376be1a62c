"""The Transformers backend: checks requests, owns the model's thread, answers on streams."""

import atexit
import gc
import itertools
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import torch

from llmctl.engine.base import BaseEngine
from llmctl.engine.batching.executor import choose_executor
from llmctl.engine.batching.forward.threads import release_openmp_threads
from llmctl.engine.batching.output_state import OutputState
from llmctl.engine.batching.sampling.grammar import GrammarCompiler
from llmctl.engine.batching.sampling.logprobs import TokenBytes
from llmctl.engine.batching.sampling.sampler import SequenceSampler
from llmctl.engine.batching.sampling.speculation import PromptLookup
from llmctl.engine.batching.scoring import no_token_logprobs, top_token_logprobs
from llmctl.engine.batching.sequence import RequestState, ScheduledSequence
from llmctl.engine.batching.worker import EngineWorker
from llmctl.engine.chat.detokenize import incremental_decoder
from llmctl.engine.chat.response_parser import ResponseParserFactory
from llmctl.engine.loading.adapters import read_adapter
from llmctl.engine.loading.load import LoadedModel, load_model
from llmctl.engine.models import provenance
from llmctl.engine.stream import GenerationStream
from llmctl.errors import ConfigError, ContextLengthError, EngineStoppedError, RequestError
from llmctl.types import (
    DEFAULT_SAMPLING,
    EngineInfo,
    EngineState,
    GenerationRequest,
    Message,
    ModelSpec,
    Progress,
    ProgressCallback,
    SamplingParams,
    Score,
    ScoreRequest,
    check_unicode,
    ignore_progress,
)


class HFRunner(BaseEngine):
    """One Transformers model and the one thread that runs it."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self._loaded: LoadedModel | None = None
        self._worker: EngineWorker | None = None
        self._streams: set[GenerationStream] = set()
        # By name; a key is never used again, nor is then what was computed under it. `None` names
        # the adapter of the spec, for requests that name none.
        self._adapters: dict[str | None, str] = {}
        self._adapter_numbers = itertools.count()
        # Guards _streams, _adapters and _closing: submit, close and the engine thread all touch
        # them, and a request must be in line before the adapter it was given can be told to go.
        self._lock = threading.Lock()
        self._closing = False

    def load(self, progress: ProgressCallback = ignore_progress) -> None:
        loaded = load_model(self.spec, progress)
        progress(Progress(f"trying how {loaded.info.model_id} runs best here"))
        self._texts = TokenBytes(loaded.tokenizer)
        self._replies = ResponseParserFactory(loaded.tokenizer, loaded.template)
        self._grammars = GrammarCompiler(loaded.tokenizer, loaded.vocab_size, loaded.eos_ids)
        executor, self.path, notes = choose_executor(
            loaded.model,
            self._texts,
            loaded.plan,
            quant=loaded.info.quant,
            kv_quant=self.spec.limits.kv_quant,
        )
        if loaded.adapter is not None:
            self._adapters[None] = ""
            executor.put_adapter("", read_adapter(loaded.adapter, loaded.model))
        info = replace(loaded.info, notes=loaded.info.notes + notes)
        self._loaded = replace(loaded, info=info)
        release_openmp_threads()  # the worker gets one of its own
        self._worker = EngineWorker(executor)
        # A thread that is inside torch while the interpreter goes away brings the process down.
        atexit.register(self.close)

    @property
    def _ready(self) -> LoadedModel:
        if self._loaded is None or self._closing:
            raise EngineStoppedError("the engine is not running")
        return self._loaded

    @property
    def _running_worker(self) -> EngineWorker:
        """The engine thread, which takes work as long as the lock is held."""
        if self._worker is None or self._closing:
            raise EngineStoppedError("the engine is not running")
        return self._worker

    def submit(self, request: GenerationRequest) -> GenerationStream:
        loaded = self._ready
        prompt_ids = self._prompt_ids(request)
        params = request.sampling.with_defaults(loaded.sampling_defaults).with_defaults(
            DEFAULT_SAMPLING
        )
        if (forced := self._replies.grammar(request)) is not None:
            params = replace(params, grammar=forced)
        self._check_token_ids([i for i, _ in params.logit_bias or ()], "logit_bias")
        self._check_token_ids(params.stop_token_ids or (), "stop_token_ids")
        room = self._room(len(prompt_ids), "messages" if request.messages else "prompt")
        limit = room if params.max_new_tokens is None else min(params.max_new_tokens, room)
        stream = GenerationStream(request.request_id)
        state = RequestState(prompt_ids, stream)
        sequences = [self._sequence(i, state, request, params, limit) for i in range(params.n or 1)]
        state.outputs += [sequence.output for sequence in sequences]
        stream.on_end(self._forget)
        with self._lock:
            worker = self._running_worker
            key = self._adapter_key(request.adapter)
            for sequence in sequences:
                sequence.adapter = key
            self._streams.add(stream)
            worker.add(sequences)
        return stream

    def _forget(self, stream: GenerationStream) -> None:
        with self._lock:
            self._streams.discard(stream)

    def _sequence(
        self,
        index: int,
        state: RequestState,
        request: GenerationRequest,
        params: SamplingParams,
        limit: int,
    ) -> ScheduledSequence:
        loaded = self._ready
        reader, skip_special_tokens = self._replies.reader(request, state.prompt_ids)
        end_ids = {*(params.stop_token_ids or ()), *(() if params.ignore_eos else loaded.eos_ids)}
        output = OutputState(
            index,
            state.prompt_ids,
            params,
            limit,
            end_ids,
            incremental_decoder(loaded.tokenizer, skip_special_tokens=skip_special_tokens),
            state.emit,
            reader,
        )
        grammar = params.grammar
        matcher = None if grammar is None else self._grammars.compile(grammar)
        sampler = SequenceSampler(params, state.prompt_ids, index, end_ids=end_ids, matcher=matcher)
        return ScheduledSequence(
            state, output, sampler, lookup=PromptLookup() if sampler.plain_greedy else None
        )

    def _prompt_ids(self, request: GenerationRequest) -> list[int]:
        if request.messages:
            template = self._ready.template
            return template.encode(
                self._replies.messages(request),
                tools=request.tools if template.supports_tools else (),
                continue_final_message=request.continue_final_message,
                template_kwargs=request.template_kwargs,
            )
        assert request.prompt is not None
        ids = self._encode(request.prompt)
        if not ids:
            raise RequestError("the prompt is empty: give at least one token", param="prompt")
        return ids

    def _encode(self, text: str | Sequence[int]) -> list[int]:
        """Tokenise raw text, with the BOS token where the tokenizer adds one."""
        if isinstance(text, str):
            check_unicode(text, param="prompt")
            ids: list[int] = self._ready.tokenizer(text, verbose=False).input_ids
            return ids
        self._check_token_ids(text, "prompt")
        return list(text)

    def tokenize(self, text: str | Sequence[int], *, add_special_tokens: bool = True) -> list[int]:
        if add_special_tokens or not isinstance(text, str):
            return self._encode(text)
        check_unicode(text, param="prompt")
        tokenizer = self._ready.tokenizer
        ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return ids

    def detokenize(self, ids: Sequence[int]) -> str:
        self._check_token_ids(ids, "tokens")
        text: str = self._ready.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
        return text

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

    def submit_scores(self, requests: Sequence[ScoreRequest]) -> Future[list[tuple[Score, ...]]]:
        encoded = [
            [self._encode_pair(request.context, c) for c in request.continuations]
            for request in requests
        ]
        with self._lock:
            asked = [
                (
                    pairs,
                    self._adapter_key(request.adapter),
                    no_token_logprobs
                    if request.logprobs is None
                    else top_token_logprobs(self._texts, request.logprobs),
                )
                for request, pairs in zip(requests, encoded, strict=True)
            ]
            return self._running_worker.score(asked)

    def submit_embeddings(
        self, texts: Sequence[str | Sequence[int]], adapter: str | None = None
    ) -> Future[list[tuple[float, ...]]]:
        encoded = [self._encode(text) for text in texts]
        for ids in encoded:
            if not ids:
                raise RequestError("a text is empty: give at least one token", param="input")
            self._room(len(ids) - 1, "input")
        with self._lock:
            return self._running_worker.embed(encoded, self._adapter_key(adapter))

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

    @property
    def adapters(self) -> tuple[str, ...]:
        with self._lock:
            return tuple(name for name in self._adapters if name is not None)

    def load_adapter(self, name: str, path: str) -> None:
        loaded = self._ready
        taken = ConfigError(f"an adapter named {name!r} is loaded already", hint="unload it first")
        if name in self.adapters:
            raise taken
        if loaded.has_static_adapter:
            raise ConfigError(
                f"the adapter {name!r} would come on top of the one in the model's weights",
                hint="serve the base model, or merge that adapter into it first",
            )
        provenance.check_chat_template(Path(path), loaded.template.fingerprint)
        adapter = read_adapter(path, loaded.model)
        key = f"{name}#{next(self._adapter_numbers)}"
        with self._lock:
            change = self._running_worker.change_adapter(key, adapter)
        change.result()
        with self._lock:
            if self._adapters.setdefault(name, key) == key:
                return
            change = self._running_worker.change_adapter(key, None)
        change.result()
        raise taken

    def begin_unload_adapter(self, name: str) -> Future[None]:
        with self._lock:
            key = self._adapter_key(name)
            assert key is not None
            change = self._running_worker.change_adapter(key, None)
            del self._adapters[name]
        return change

    def _adapter_key(self, name: str | None) -> str | None:
        """Return what the executor calls an adapter. The caller holds the lock."""
        if name is not None and name not in self._adapters:
            names = ", ".join(known for known in self._adapters if known is not None)
            raise RequestError(
                f"The adapter {name!r} does not exist. Loaded: {names or 'none'}.", param="adapter"
            )
        return self._adapters.get(name)

    def count_tokens(self, text: str | Sequence[Message]) -> int:
        if isinstance(text, str):
            return len(self._encode(text))
        return len(self._ready.template.encode(text))

    def count_prompt(self, request: GenerationRequest) -> int:
        return len(self._prompt_ids(request))

    def info(self) -> EngineInfo:
        return self._ready.info

    def state(self) -> EngineState:
        with self._lock:
            return self._running_worker.state()

    @property
    def in_flight(self) -> int:
        worker = self._worker
        return len(self._streams) + (0 if worker is None else worker.task_count)

    def close(self) -> None:
        with self._lock:
            already, self._closing = self._closing, True
            open_streams = list(self._streams)
        if already or self._worker is None:
            return
        atexit.unregister(self.close)
        for stream in open_streams:
            stream.fail(EngineStoppedError("the engine was closed before the reply ended"))
            stream.cancel()
        self._worker.stop()
        self._loaded = self._worker = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
