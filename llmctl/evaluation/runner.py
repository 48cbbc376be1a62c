"""How does our own code ask an exam? Subject by subject, each question once."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from llmctl.engine.base import BaseEngine
from llmctl.engine.loglikelihood import GROUPS_PER_BATCH, GroupScore
from llmctl.errors import ContextLengthError, LlmctlError
from llmctl.evaluation.backend import ModelUnderTest
from llmctl.evaluation.engine_adapter import EngineAdapter
from llmctl.evaluation.model_adapter import Generation, ModelAdapter
from llmctl.evaluation.scoring.extraction import extract_answer
from llmctl.evaluation.scoring.judge import Judge, apply_judge, require_judge
from llmctl.types import (
    BenchmarkPlan,
    EvalMode,
    EvalSample,
    ProgressCallback,
    ResultCallback,
    SampleResult,
    SubjectPlan,
)


class NativeBackend:
    """Asks through the engine, or an endpoint, without any other program."""

    def __init__(self, batch_size: int = GROUPS_PER_BATCH, judge: Judge | None = None) -> None:
        self._batch_size = batch_size
        self._judge = judge

    def run(
        self,
        plans: Sequence[BenchmarkPlan],
        candidate: ModelUnderTest,
        on_result: ResultCallback,
        progress: ProgressCallback,  # noqa: ARG002  the results are the progress
    ) -> list[SampleResult]:
        """Ask every question, as `Backend.run` says."""
        require_judge(self._judge, plans)
        sitter = model_adapter_for(candidate, {plan.mode for plan in plans}, self._batch_size)
        results = []
        for plan in plans:
            for subject in plan.subjects:
                for result in apply_judge(
                    self._judge, subject, evaluate_subject(sitter, plan, subject)
                ):
                    on_result(result)
                    results.append(result)
        return results


def model_adapter_for(
    candidate: ModelUnderTest, modes: set[EvalMode], batch_size: int = GROUPS_PER_BATCH
) -> ModelAdapter:
    """Put a candidate behind the one interface.

    Raises:
        ConfigError: it cannot be asked in one of the modes.
    """
    if isinstance(candidate, BaseEngine):
        return EngineAdapter(candidate, batch_size)
    from llmctl.evaluation.endpoint_adapter import EndpointAdapter

    sitter = EndpointAdapter(candidate)
    if modes - {"gen"}:
        sitter.check_likelihoods()
    return sitter


def evaluate_subject(
    sitter: ModelAdapter, plan: BenchmarkPlan, subject: SubjectPlan
) -> Iterator[SampleResult]:
    """Ask the questions of one subject; yield each result as soon as it is there.

    Questions that are too long come last, with as many examples as fit.
    """
    asked = subject.questions
    shots = {question.index: question.shots for question in asked}
    prints = {question.index: question.fingerprint for question in asked}
    while asked:
        too_long = []
        for question, outcome in zip(asked, _outcomes(sitter, plan, asked), strict=True):
            if isinstance(outcome, ContextLengthError):
                shortened = question.with_fewer_examples()
                if shortened is not None:
                    too_long.append(shortened)
                    continue
            yield replace(
                _result(question, plan.mode, outcome),
                fingerprint=prints[question.index],
                truncated=question.shots < shots[question.index]
                or (isinstance(outcome, Generation) and outcome.cut),
            )
        asked = tuple(too_long)


def _outcomes(
    sitter: ModelAdapter, plan: BenchmarkPlan, questions: Sequence[EvalSample]
) -> Iterator[GroupScore | Generation | LlmctlError]:
    if plan.mode == "gen":
        return sitter.write(questions, plan.max_new_tokens)
    return sitter.score(questions, whole=plan.mode == "ppl")


def _result(
    question: EvalSample, mode: EvalMode, outcome: GroupScore | Generation | LlmctlError
) -> SampleResult:
    suite, subject, index = question.key
    result = SampleResult(
        suite, subject, index, question.fingerprint, question.gold, shots=question.shots
    )
    if isinstance(outcome, LlmctlError):
        too_long = isinstance(outcome, ContextLengthError)
        return replace(result, error=str(outcome), too_long=too_long)
    if isinstance(outcome, Generation):
        verdict = extract_answer(question, outcome.text)
        return replace(
            result,
            prediction=verdict.strict,
            correct=verdict.correct,
            reply=outcome.text,
            robust=verdict.robust,
            robust_correct=verdict.robust_correct,
            rule=verdict.rule,
            tokens=outcome.computed_tokens,
            naive_tokens=outcome.whole,
        )
    values = label_scores(question, mode, outcome)
    best = min if mode == "ppl" else max
    prediction = best(question.labels, key=values.__getitem__)
    return replace(
        result,
        prediction=prediction,
        correct=prediction == question.gold,
        likelihoods=values,
        tokens=outcome.computed_tokens,
        naive_tokens=outcome.uncached_tokens,
    )


def label_scores(question: EvalSample, mode: EvalMode, scored: GroupScore) -> dict[str, float]:
    """Return by label the number that decides, as `SampleResult.likelihoods` has it."""
    values = {}
    for label, end, score in zip(
        question.labels, question.continuations, scored.texts, strict=True
    ):
        if mode == "ppl":
            values[label] = score.mean_loss
        elif mode == "logprob_norm":
            values[label] = score.logprob / max(1, len(end.strip().encode()))
        else:
            values[label] = score.logprob
    return values
