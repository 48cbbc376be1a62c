"""The native backend: evaluates each subject through an engine or a server."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from llmctl.engine.base import BaseEngine
from llmctl.engine.loglikelihood import GROUPS_PER_BATCH, GroupScore
from llmctl.errors import ContextLengthError, LlmctlError
from llmctl.evaluation.logprob_support import check_engine
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
    """Evaluates samples with the engine's own scoring and generation."""

    def __init__(self, batch_size: int = GROUPS_PER_BATCH, judge: Judge | None = None) -> None:
        self._batch_size = batch_size
        self._judge = judge

    def run(
        self,
        plans: Sequence[BenchmarkPlan],
        engine: BaseEngine,
        on_result: ResultCallback,
        progress: ProgressCallback,  # noqa: ARG002  results are the progress
    ) -> list[SampleResult]:
        """Evaluate every sample, as `Backend.run`."""
        require_judge(plans, has_judge=self._judge is not None)
        if any(plan.mode != "gen" for plan in plans):
            check_engine(engine)
        adapter = ModelAdapter(engine, self._batch_size)
        results = []
        for plan in plans:
            for subject in plan.subjects:
                evaluated = evaluate_subject(adapter, plan, subject)
                for result in apply_judge(self._judge, subject, evaluated):
                    on_result(result)
                    results.append(result)
        return results


def evaluate_subject(
    adapter: ModelAdapter, plan: BenchmarkPlan, subject: SubjectPlan
) -> Iterator[SampleResult]:
    """Evaluate the samples of one subject; yield each result as soon as it exists.

    A sample whose prompt is too long is retried with fewer examples after the others.
    """
    planned = {sample.index: sample for sample in subject.questions}
    samples = subject.questions
    while samples:
        shortened = []
        for sample, outcome in zip(samples, _outcomes(adapter, plan, samples), strict=True):
            if isinstance(outcome, ContextLengthError):
                shorter = sample.with_fewer_examples()
                if shorter is not None:
                    shortened.append(shorter)
                    continue
            original = planned[sample.index]
            yield replace(
                _result(sample, plan.mode, outcome),
                fingerprint=original.fingerprint,
                truncated=sample.shots < original.shots
                or (isinstance(outcome, Generation) and outcome.truncated),
            )
        samples = tuple(shortened)


def _outcomes(
    adapter: ModelAdapter, plan: BenchmarkPlan, samples: Sequence[EvalSample]
) -> Iterator[GroupScore | Generation | LlmctlError]:
    if plan.mode == "gen":
        return adapter.generate_until(samples, plan.max_new_tokens)
    return adapter.loglikelihoods(samples, full_text=plan.mode == "ppl")


def _result(
    sample: EvalSample, mode: EvalMode, outcome: GroupScore | Generation | LlmctlError
) -> SampleResult:
    result = SampleResult.for_sample(sample)
    if isinstance(outcome, LlmctlError):
        too_long = isinstance(outcome, ContextLengthError)
        return replace(result, error=str(outcome), too_long=too_long)
    if isinstance(outcome, Generation):
        answer = extract_answer(sample, outcome.text)
        return replace(
            result,
            prediction=answer.strict,
            correct=answer.correct,
            reply=outcome.text,
            robust=answer.robust,
            robust_correct=answer.robust_correct,
            rule=answer.rule,
            tokens=outcome.computed_tokens,
            naive_tokens=outcome.total_tokens,
        )
    values = label_scores(sample, mode, outcome)
    best = min if mode == "ppl" else max
    prediction = best(sample.labels, key=values.__getitem__)
    return replace(
        result,
        prediction=prediction,
        correct=prediction == sample.gold,
        likelihoods=values,
        tokens=outcome.computed_tokens,
        naive_tokens=outcome.uncached_tokens,
    )


def label_scores(sample: EvalSample, mode: EvalMode, scored: GroupScore) -> dict[str, float]:
    """Return the score of each label, as in `SampleResult.likelihoods`."""
    values = {}
    for label, text, score in zip(sample.labels, sample.continuations, scored.texts, strict=True):
        if mode == "ppl":
            values[label] = score.mean_loss
        elif mode == "logprob_norm":
            values[label] = score.logprob / max(1, len(text.strip().encode()))
        else:
            values[label] = score.logprob
    return values
