"""Is a reply right, says another model? For answers that no rule of text can compare."""

import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import Final

from llmctl.errors import ConfigError, LlmctlError, RequestError
from llmctl.evaluation.backend import ServerModel
from llmctl.evaluation.endpoint_adapter import EndpointAdapter
from llmctl.evaluation.scoring.extraction import strip_reasoning
from llmctl.types import BenchmarkPlan, EvalSample, Message, SampleResult, SubjectPlan

_AT_ONCE: Final = 8
_LONGEST: Final = 1024
"""Tokens of a verdict, thoughts before it included."""
_ASK: Final = """\
You compare a student's answer with the right answer to a question.

Question: {question}
Right answer: {gold}
Student's answer: {reply}

Does the student's answer say the same as the right answer? Its wording does not matter. Answer \
with one word: CORRECT or INCORRECT."""


class Judge:
    """Asks a server whether replies are right. May be used from many threads."""

    def __init__(self, place: ServerModel) -> None:
        self.place = place
        self._sitter = EndpointAdapter(place)

    def is_right(self, question: EvalSample, reply: str) -> bool:
        """Return the verdict.

        Raises:
            LlmctlError: there is none; the message says what the judge said.
        """
        asked = question.messages[-1].content or ""
        text = _ASK.format(question=asked, gold=question.gold, reply=reply)
        put = replace(question, messages=(Message("user", text),))
        (outcome,) = self._sitter.write([put], _LONGEST)  # raises where nobody answers
        if isinstance(outcome, LlmctlError):
            raise RequestError(f"the judge: {outcome}") from outcome
        words = re.findall(r"\b(IN)?CORRECT\b", strip_reasoning(outcome.text).upper())
        if len(set(words)) != 1:
            raise RequestError(f"the judge's verdict cannot be read: {outcome.text[:200]!r}")
        return not words[0]


def apply_judge(
    judge: Judge | None, subject: SubjectPlan, results: Iterable[SampleResult]
) -> Iterator[SampleResult]:
    """Yield results with the judge's verdict where the row wants one, several asked at a time.

    A reply without a verdict is a question without an answer.
    """
    questions = {q.index: q for q in subject.questions if q.extraction == "judge"}
    if not questions or judge is None:
        yield from results
        return

    def verdict(result: SampleResult) -> SampleResult:
        question = questions.get(result.index)
        if question is None or result.error:
            return result
        try:
            right = judge.is_right(question, result.reply or "")
        except LlmctlError as error:
            return replace(result, error=str(error))
        return replace(result, correct=right, robust=None, robust_correct=None, rule="judge")

    left = iter(results)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        while some := list(islice(left, _AT_ONCE)):
            yield from pool.map(verdict, some)


def require_judge(judge: Judge | None, plans: Iterable[BenchmarkPlan]) -> None:
    """Raise `ConfigError` where a row wants a judge, and nobody judges."""
    wants = any(
        question.extraction == "judge"
        for plan in plans
        for subject in plan.subjects
        for question in subject.questions
    )
    if wants and judge is None:
        raise ConfigError(
            "the exam has rows with match judge, and nobody judges",
            hint="--judge-base-url URL [--judge-model NAME]: the server of another model",
        )
