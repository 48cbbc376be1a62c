"""Log-likelihoods and generations of samples from an engine, local or behind a server."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from llmctl.engine.base import BaseEngine
from llmctl.engine.loglikelihood import (
    GROUPS_PER_BATCH,
    GroupScore,
    score_continuations,
    score_full_texts,
)
from llmctl.engine.openai.batch_client import OpenAIBatchClient
from llmctl.engine.stream import GenerationStream, collect_result
from llmctl.errors import EngineStoppedError, LlmctlError
from llmctl.types import EvalSample, GenerationRequest, SamplingParams

_MAX_IN_FLIGHT = 64
"""Requests that are submitted before the first one has ended."""


@dataclass(frozen=True, slots=True)
class Generation:
    """Generated text of one sample."""

    text: str
    truncated: bool
    """It ended at the token limit."""
    computed_tokens: int
    """Tokens of prompt and reply that no cache held."""
    total_tokens: int
    """Tokens of prompt and reply."""


class ModelAdapter:
    """Evaluates samples with an engine, which it does not own.

    Each method yields one outcome per sample, in order; an error in place of an outcome concerns
    only that sample.
    """

    def __init__(self, engine: BaseEngine, batch_size: int = GROUPS_PER_BATCH) -> None:
        self._engine = engine
        self._batch_size = batch_size

    def loglikelihoods(
        self, samples: Sequence[EvalSample], *, full_text: bool
    ) -> Iterator[GroupScore | LlmctlError]:
        """Yield a score for the text of every label.

        Args:
            samples: of one subject, so that they share their examples.
            full_text: score all tokens of the text, not only those of the continuation.

        Raises:
            EngineStoppedError: the engine or server stopped.
        """
        engine = self._engine
        if full_text:
            texts = [tuple(s.context + text for text in s.continuations) for s in samples]
            if isinstance(engine, OpenAIBatchClient):
                return engine.score_full_texts(texts)
            return score_full_texts(engine, texts, batch=self._batch_size)
        groups = [(sample.context, sample.continuations) for sample in samples]
        if isinstance(engine, OpenAIBatchClient):
            return engine.score_continuations(groups)
        return score_continuations(engine, groups, batch=self._batch_size)

    def generate_until(
        self, samples: Sequence[EvalSample], max_new_tokens: int
    ) -> Iterator[Generation | LlmctlError]:
        """Yield a reply to every sample, by greedy decoding.

        Raises:
            EngineStoppedError: the engine or server stopped.
        """
        info = self._engine.info()
        sampling = SamplingParams(
            temperature=0.0,
            max_new_tokens=max_new_tokens,
            # Overrides the model's default. OpenAI's API has no such field.
            repetition_penalty=None if info.backend == "openai" else 1.0,
        )
        pending: list[GenerationStream | LlmctlError] = []
        remaining = iter(samples)
        try:
            while True:
                for sample in islice(remaining, _MAX_IN_FLIGHT - len(pending)):
                    pending.append(self._submit(sample, sampling, info.has_chat_template))
                if not pending:
                    return
                yield _generation(pending.pop(0))
        finally:
            for stream in pending:
                if isinstance(stream, GenerationStream):
                    stream.cancel()

    def _submit(
        self, sample: EvalSample, sampling: SamplingParams, has_chat_template: bool
    ) -> GenerationStream | LlmctlError:
        try:
            if has_chat_template:
                request = GenerationRequest(messages=sample.messages, sampling=sampling)
            else:
                request = GenerationRequest(prompt=join_messages(sample), sampling=sampling)
            return self._engine.submit(request)
        except EngineStoppedError:
            raise
        except LlmctlError as error:
            return error


def join_messages(sample: EvalSample) -> str:
    """Return the messages as text for a model without a chat template, as OpenCompass does."""
    return "\n".join(message.content or "" for message in sample.messages)


def _generation(stream: GenerationStream | LlmctlError) -> Generation | LlmctlError:
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
