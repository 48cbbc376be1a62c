"""How does an engine of ours sit an exam? What questions share is computed once."""

from collections.abc import Iterator, Sequence
from itertools import islice

from llmctl.engine.base import BaseEngine
from llmctl.engine.loglikelihood import (
    GROUPS_PER_BATCH,
    GroupScore,
    score_continuations,
    score_full_texts,
)
from llmctl.engine.stream import GenerationStream, collect_result
from llmctl.errors import EngineStoppedError, LlmctlError
from llmctl.evaluation.model_adapter import Generation
from llmctl.types import EvalSample, GenerationRequest, SamplingParams

_IN_FLIGHT = 64
"""Replies that are asked for ahead of the one that is waited for."""


class EngineAdapter:
    """Puts an engine behind the `ModelAdapter` interface; does not own it."""

    def __init__(self, engine: BaseEngine, batch_size: int = GROUPS_PER_BATCH) -> None:
        self._engine = engine
        self._batch_size = batch_size

    def score(
        self, questions: Sequence[EvalSample], *, whole: bool
    ) -> Iterator[GroupScore | LlmctlError]:
        if whole:
            texts = [tuple(q.context + end for end in q.continuations) for q in questions]
            return score_full_texts(self._engine, texts, batch=self._batch_size)
        asked = [(q.context, q.continuations) for q in questions]
        return score_continuations(self._engine, asked, batch=self._batch_size)

    def write(
        self, questions: Sequence[EvalSample], max_new_tokens: int
    ) -> Iterator[Generation | LlmctlError]:
        sampling = SamplingParams(
            temperature=0.0, max_new_tokens=max_new_tokens, repetition_penalty=1.0
        )
        templated = self._engine.info().has_chat_template
        waiting: list[GenerationStream | LlmctlError] = []
        left = iter(questions)
        try:
            while True:
                for question in islice(left, _IN_FLIGHT - len(waiting)):
                    waiting.append(self._submit(question, sampling, templated))
                if not waiting:
                    return
                yield _reply(waiting.pop(0))
        finally:
            for stream in waiting:
                if isinstance(stream, GenerationStream):
                    stream.cancel()

    def _submit(
        self, question: EvalSample, sampling: SamplingParams, templated: bool
    ) -> GenerationStream | LlmctlError:
        try:
            if templated:
                request = GenerationRequest(messages=question.messages, sampling=sampling)
            else:
                request = GenerationRequest(prompt=join_messages(question), sampling=sampling)
            return self._engine.submit(request)
        except EngineStoppedError:
            raise
        except LlmctlError as error:
            return error


def join_messages(question: EvalSample) -> str:
    """Return a conversation as text for a model without a template, as OpenCompass joins it."""
    return "\n".join(message.content or "" for message in question.messages)


def _reply(stream: GenerationStream | LlmctlError) -> Generation | LlmctlError:
    if isinstance(stream, LlmctlError):
        return stream
    try:
        result = collect_result(stream)
    except EngineStoppedError:
        raise
    except LlmctlError as error:
        return error
    choice, usage = result.choices[0], result.usage
    return Generation(
        choice.text,
        choice.finish_reason == "length",
        usage.total_tokens - usage.cached_tokens,
        usage.total_tokens,
    )
