"""Scoring of free-form replies by a judge model, for answers that no text rule can compare."""

import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import Final

from llmctl.engine.base import BaseEngine
from llmctl.errors import ConfigError, LlmctlError, RequestError
from llmctl.evaluation.scoring.robust import strip_reasoning
from llmctl.types import (
    BenchmarkPlan,
    EvalSample,
    GenerationRequest,
    Message,
    SampleResult,
    SamplingParams,
    SubjectPlan,
)

_CONCURRENCY: Final = 8
_SAMPLING: Final = SamplingParams(temperature=0.0, max_new_tokens=1024)
"""The limit includes the judge's reasoning."""
_PROMPT: Final = """\
You compare a student's answer with the right answer to a question.

Question: {question}
Right answer: {gold}
Student's answer: {reply}

Does the student's answer say the same as the right answer? Its wording does not matter. Answer \
with one word: CORRECT or INCORRECT."""


class Judge:
    """Lets a model decide whether replies are correct. May be used from several threads."""

    def __init__(self, engine: BaseEngine) -> None:
        self._engine = engine

    def is_correct(self, sample: EvalSample, reply: str) -> bool:
        """Return the verdict.

        Raises:
            LlmctlError: the judge did not answer, or its answer is not a verdict.
        """
        question = sample.messages[-1].content or ""
        text = _PROMPT.format(question=question, gold=sample.gold, reply=reply)
        request = GenerationRequest(messages=(Message("user", text),), sampling=_SAMPLING)
        try:
            verdict = self._engine.generate(request).choices[0].text
        except LlmctlError as error:
            raise RequestError(f"the judge model failed: {error}") from error
        words = re.findall(r"\b(IN)?CORRECT\b", strip_reasoning(verdict).upper())
        if len(set(words)) != 1:
            raise RequestError(f"the judge's verdict is unclear: {verdict[:200]!r}")
        return not words[0]


def apply_judge(
    judge: Judge | None, subject: SubjectPlan, results: Iterable[SampleResult]
) -> Iterator[SampleResult]:
    """Yield the results in order, those with `match` `judge` with the judge's verdict.

    A reply without a verdict becomes a sample without an answer.
    """
    samples = {s.index: s for s in subject.questions if s.extraction == "judge"}
    if not samples or judge is None:
        yield from results
        return

    def with_verdict(result: SampleResult) -> SampleResult:
        sample = samples.get(result.index)
        if sample is None or result.error:
            return result
        try:
            correct = judge.is_correct(sample, result.reply or "")
        except LlmctlError as error:
            return replace(result, error=str(error))
        return replace(result, correct=correct, robust=None, robust_correct=None, rule="judge")

    remaining = iter(results)
    with ThreadPoolExecutor(_CONCURRENCY) as pool:
        while batch := list(islice(remaining, _CONCURRENCY)):
            yield from pool.map(with_verdict, batch)


def require_judge(plans: Iterable[BenchmarkPlan], *, has_judge: bool) -> None:
    """Raise `ConfigError` if a sample needs a judge and there is none."""
    needs_judge = any(
        sample.extraction == "judge"
        for plan in plans
        for subject in plan.subjects
        for sample in subject.questions
    )
    if needs_judge and not has_judge:
        raise ConfigError(
            "the benchmark has rows with match judge, but no judge model is given",
            hint="--judge-base-url URL [--judge-model NAME]: the server of a judge model",
        )
