"""The Transformers backend: a model in this process, and the thread that runs it."""

import atexit
import itertools
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import torch

from llmctl.engine.base import (
    BaseEngine,
    SupportsAdapters,
    SupportsEmbed,
    SupportsScore,
    SupportsTokenize,
)
from llmctl.engine.batching.executor import choose_executor
from llmctl.engine.batching.forward.threads import release_openmp_threads
from llmctl.engine.batching.sampling.grammar import GrammarCompiler, GrammarMatcher
from llmctl.engine.batching.sampling.logprobs import TokenBytes
from llmctl.engine.batching.sampling.reasoning import ReasoningMatcher, reasoning_budget
from llmctl.engine.batching.sampling.sampler import SequenceSampler
from llmctl.engine.batching.sampling.speculation import PromptLookup
from llmctl.engine.batching.scoring import no_token_logprobs, top_token_logprobs
from llmctl.engine.batching.sequence import OutputState, RequestState, ScheduledSequence
from llmctl.engine.batching.worker import EngineWorker
from llmctl.engine.chat.detokenize import incremental_decoder
from llmctl.engine.chat.response_parser import ResponseFormat, ResponseParserFactory, check_names
from llmctl.engine.chat.template import RenderOptions
from llmctl.engine.input_encoder import InputEncoder
from llmctl.engine.loading.adapters import read_adapter, warn_of_other_tokenizer
from llmctl.engine.loading.load import LoadedModel, load_model
from llmctl.engine.models import provenance
from llmctl.engine.stream import GenerationStream
from llmctl.errors import ConfigError, EngineStoppedError, RequestError
from llmctl.types import (
    DEFAULT_SAMPLING,
    EngineInfo,
    EngineState,
    GenerationRequest,
    Grammar,
    Message,
    ModelSpec,
    Progress,
    ProgressCallback,
    SamplingParams,
    Score,
    ScoreRequest,
    ignore_progress,
)

_log = logging.getLogger(__name__)


class HFRunner(BaseEngine, SupportsTokenize, SupportsScore, SupportsEmbed, SupportsAdapters):
    """One Transformers model and the one thread that runs it.

    Attributes:
        spec: the model to load, and how.
        path: how the model runs; set by `load`.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self._loaded: LoadedModel | None = None
        self._worker: EngineWorker | None = None
        self._streams: set[GenerationStream] = set()
        # Key of each adapter by its name. A key is never reused, so a cached prefix never belongs
        # to another adapter. `None` names the adapter of the spec, for requests that name none.
        self._adapters: dict[str | None, str] = {}
        self._adapter_numbers = itertools.count()
        # Guards _streams, _adapters and _closing, which submit, close and the engine thread use. A
        # request must be queued before the unloading of its adapter can be.
        self._lock = threading.Lock()
        self._closing = False

    def load(self, progress: ProgressCallback = ignore_progress) -> None:
        check_names(self.spec.tool_call_parser, self.spec.reasoning_parser)
        loaded = load_model(self.spec, progress)
        progress(Progress(f"choosing how to run {loaded.info.model_id}"))
        self._token_bytes = TokenBytes(loaded.tokenizer)
        self._responses = ResponseParserFactory(
            loaded.tokenizer,
            loaded.template,
            tool_call_parser=self.spec.tool_call_parser,
            reasoning_parser=self.spec.reasoning_parser,
        )
        self._grammars = GrammarCompiler(loaded.tokenizer, loaded.vocab_size, loaded.eos_ids)
        chosen = choose_executor(
            loaded.model,
            self._token_bytes,
            loaded.plan,
            quant=loaded.info.quant,
            kv_quant=self.spec.limits.kv_quant,
        )
        self.path = chosen.path
        if loaded.adapter is not None:
            self._adapters[None] = ""
            chosen.executor.put_adapter("", read_adapter(loaded.adapter, loaded.model))
        info = replace(
            loaded.info,
            execution_path=chosen.path,
            execution_reason=chosen.reason,
            response_formats=self._responses.names if loaded.template else None,
            notes=loaded.info.notes + chosen.notes,
        )
        self._loaded = replace(loaded, info=info)
        release_openmp_threads()  # the worker thread creates its own
        self._worker = EngineWorker(chosen.executor)
        # A thread inside torch at the exit of the interpreter crashes the process.
        atexit.register(self.close)

    @property
    def _ready(self) -> LoadedModel:
        if self._loaded is None or self._closing:
            raise EngineStoppedError("the engine is not running")
        return self._loaded

    @property
    def _inputs(self) -> InputEncoder:
        loaded = self._ready
        return InputEncoder(loaded.tokenizer, loaded.vocab_size, loaded.info.context_length)

    @property
    def _running_worker(self) -> EngineWorker:
        """The engine thread, which accepts work while the caller holds the lock."""
        if self._worker is None or self._closing:
            raise EngineStoppedError("the engine is not running")
        return self._worker

    def submit(self, request: GenerationRequest) -> GenerationStream:
        loaded = self._ready
        prompt_ids, prompt_text = self._prompt(request)
        params = request.sampling.with_defaults(loaded.sampling_defaults).with_defaults(
            DEFAULT_SAMPLING
        )
        grammar = self._responses.grammar(request) or self._strict_grammar(request)
        if grammar is not None:
            params = replace(params, grammar=grammar)
        self._inputs.check_ids([i for i, _ in params.logit_bias or ()], "logit_bias")
        self._inputs.check_ids(params.stop_token_ids or (), "stop_token_ids")
        left = self._inputs.tokens_left(
            len(prompt_ids), "messages" if request.messages else "prompt"
        )
        limit = left if params.max_new_tokens is None else min(params.max_new_tokens, left)
        stream = GenerationStream(request.request_id)
        state = RequestState(prompt_ids, stream)
        response = self._responses.format(request, prompt_text)
        sequences = [
            self._sequence(i, state, params, limit, response) for i in range(params.n or 1)
        ]
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

    def _strict_grammar(self, request: GenerationRequest) -> Grammar | None:
        """Return the grammar of calls of strict tools, `None` if it cannot be enforced."""
        grammar = self._responses.strict_grammar(request)
        if grammar is not None:
            try:
                self._grammars.compile(grammar)
            except RequestError as error:
                # The call is not required: clients ask for strict arguments by default.
                _log.warning("the arguments of strict tools are not enforced: %s", error)
                return None
        return grammar

    def _forget(self, stream: GenerationStream) -> None:
        with self._lock:
            self._streams.discard(stream)

    def _sequence(
        self,
        index: int,
        state: RequestState,
        params: SamplingParams,
        limit: int,
        response: ResponseFormat,
    ) -> ScheduledSequence:
        loaded = self._ready
        end_ids = {*(params.stop_token_ids or ()), *(() if params.ignore_eos else loaded.eos_ids)}
        output = OutputState(
            index,
            state.prompt_ids,
            params,
            limit,
            end_ids,
            incremental_decoder(loaded.tokenizer, response.kept_tokens),
            state.emit,
            response.new_parser(),
        )
        grammar = params.grammar
        matcher: GrammarMatcher | ReasoningMatcher | None = None
        if grammar is not None:
            matcher = self._grammars.compile(grammar)
            if response.reasoning is not None:
                budget = limit if grammar.optional else reasoning_budget(limit)
                matcher = ReasoningMatcher(matcher, response.reasoning, loaded.eos_ids, budget)
        sampler = SequenceSampler(params, state.prompt_ids, index, end_ids=end_ids, matcher=matcher)
        return ScheduledSequence(
            state, output, sampler, lookup=PromptLookup() if sampler.plain_greedy else None
        )

    def _prompt(self, request: GenerationRequest) -> tuple[list[int], str]:
        """Return the prompt's token ids, and its text if it was rendered from messages."""
        if request.messages:
            template = self._ready.template
            options = RenderOptions(
                tools=request.tools if template.supports_tools else (),
                continue_final_message=request.continue_final_message,
                template_kwargs=request.template_kwargs,
            )
            rendered = template.render(self._responses.messages(request), options)
            return rendered.ids, rendered.text
        assert request.prompt is not None
        ids = self.tokenize(request.prompt)
        if not ids:
            raise RequestError("the prompt is empty: give at least one token", param="prompt")
        return ids, ""

    def tokenize(self, text: str | Sequence[int], *, add_special_tokens: bool = True) -> list[int]:
        return self._inputs.tokenize(text, add_special_tokens=add_special_tokens)

    def detokenize(self, ids: Sequence[int]) -> str:
        return self._inputs.detokenize(ids)

    def submit_scores(self, requests: Sequence[ScoreRequest]) -> Future[list[tuple[Score, ...]]]:
        encoded = [
            [self._inputs.encode_pair(request.context, c) for c in request.continuations]
            for request in requests
        ]
        with self._lock:
            batch = [
                (
                    pairs,
                    self._adapter_key(request.adapter),
                    no_token_logprobs
                    if request.logprobs is None
                    else top_token_logprobs(self._token_bytes, request.logprobs),
                )
                for request, pairs in zip(requests, encoded, strict=True)
            ]
            return self._running_worker.score(batch)

    def submit_embeddings(
        self, texts: Sequence[str | Sequence[int]], adapter: str | None = None
    ) -> Future[list[tuple[float, ...]]]:
        encoded = [self.tokenize(text) for text in texts]
        for ids in encoded:
            if not ids:
                raise RequestError("a text is empty: give at least one token", param="input")
            self._inputs.tokens_left(len(ids) - 1, "input")
        with self._lock:
            return self._running_worker.embed(encoded, self._adapter_key(adapter))

    @property
    def adapters(self) -> tuple[str, ...]:
        with self._lock:
            return tuple(name for name in self._adapters if name is not None)

    def load_adapter(self, name: str, path: str) -> None:
        loaded = self._ready
        duplicate = ConfigError(
            f"an adapter named {name!r} is already loaded", hint="unload it first"
        )
        if name in self.adapters:
            raise duplicate
        if loaded.has_static_adapter:
            raise ConfigError(
                f"the adapter {name!r} cannot be combined with the one in the model's weights",
                hint="serve the base model, or merge that adapter into it first",
            )
        provenance.check_chat_template(Path(path).expanduser(), loaded.template.fingerprint)
        adapter = read_adapter(path, loaded.model)
        warn_of_other_tokenizer(path, loaded.tokenizer)
        key = f"{name}#{next(self._adapter_numbers)}"
        with self._lock:
            change = self._running_worker.change_adapter(key, adapter)
        change.result()
        with self._lock:
            if self._adapters.setdefault(name, key) == key:
                return
            change = self._running_worker.change_adapter(key, None)
        change.result()
        raise duplicate

    def begin_unload_adapter(self, name: str) -> Future[None]:
        with self._lock:
            key = self._adapter_key(name)
            assert key is not None
            change = self._running_worker.change_adapter(key, None)
            del self._adapters[name]
        return change

    def _adapter_key(self, name: str | None) -> str | None:
        """Return the executor's key of an adapter. The caller holds the lock."""
        if name is not None and name not in self._adapters:
            names = ", ".join(known for known in self._adapters if known is not None)
            raise RequestError(
                f"The adapter {name!r} does not exist. Loaded: {names or 'none'}.", param="adapter"
            )
        return self._adapters.get(name)

    def count_tokens(self, text: str | Sequence[Message]) -> int:
        if isinstance(text, str):
            return len(self.tokenize(text))
        return len(self._ready.template.render(text).ids)

    def count_prompt(self, request: GenerationRequest) -> int:
        return len(self._prompt(request)[0])

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
            was_closing, self._closing = self._closing, True
            open_streams = list(self._streams)
        if was_closing or self._worker is None:
            return
        atexit.unregister(self.close)
        for stream in open_streams:
            stream.fail(EngineStoppedError("the engine was closed before the reply ended"))
            stream.cancel()
        self._worker.stop()
        self._loaded = self._worker = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
