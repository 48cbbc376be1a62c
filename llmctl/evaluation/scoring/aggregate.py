"""What do the answers amount to? Scores, their uncertainty, and what should make one wary."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from llmctl.evaluation.scoring.stats import standard_error, wilson
from llmctl.types import AggregateScore, BenchmarkPlan, BenchmarkScore, SampleResult, SubjectPlan

_ONE_LETTER = 0.8
"""Share of one letter from which the letter, not the question, seems to decide."""
_ENOUGH = 20
"""Answers from which such a share means something."""


def score_benchmark(plan: BenchmarkPlan, results: Iterable[SampleResult]) -> BenchmarkScore:
    """Sum up one suite.

    Args:
        plan: everything that was to be asked; what has no result counts as failed.
        results: of this suite; several of one question count by the last.
    """
    known = {result.key: result for result in results}
    subjects = {s.subject: _of(s.subject, s.title, [s], known) for s in plan.subjects}
    members: dict[str, list[SubjectPlan]] = {}
    for subject in plan.subjects:
        for category in subject.categories:
            members.setdefault(category, []).append(subject)
    answered = [r for r in known.values() if not r.error]
    letters = Counter(result.prediction for result in answered if result.prediction)
    labels = {label for s in plan.subjects for q in s.questions for label in q.labels}
    overall = _of(plan.suite, plan.suite, plan.subjects, known)
    counted = {label: letters[label] for label in sorted(labels)}
    return BenchmarkScore(
        suite=plan.suite,
        mode=plan.mode,
        shots=plan.shots,
        prompt_hash=plan.prompt_hash,
        data_hash=plan.data_hash,
        data_source=plan.data_source,
        chance=plan.chance,
        overall=overall,
        categories=tuple(_of(name, name, several, known) for name, several in members.items()),
        subjects=tuple(subjects.values()),
        letters=counted,
        warnings=tuple(_warnings(plan, overall, counted)),
        tokens=sum(result.tokens for result in answered),
        naive_tokens=sum(result.naive_tokens for result in answered),
    )


def _of(
    name: str,
    title: str,
    plans: Sequence[SubjectPlan],
    known: Mapping[tuple[str, str, int], SampleResult],
) -> AggregateScore:
    asked = [question.key for plan in plans for question in plan.questions]
    answered = [r for key in asked if (r := known.get(key)) is not None and not r.error]
    count, correct = len(answered), sum(result.correct for result in answered)
    low, high = wilson(correct, count)
    read = [result for result in answered if result.robust is not None]
    return AggregateScore(
        name=name,
        title=title,
        total=len(asked),
        answered=count,
        correct=correct,
        failed=len(asked) - count,
        unparsed=sum(result.robust == "" for result in read),
        truncated=sum(result.truncated for result in answered),
        accuracy=correct / count if count else None,
        stderr=standard_error(correct, count),
        low=low if count else None,
        high=high if count else None,
        macro=_macro(plans, known) if len(plans) > 1 else None,
        robust_accuracy=sum(bool(r.robust_correct) for r in read) / count if read else None,
    )


def _macro(
    plans: Sequence[SubjectPlan], known: Mapping[tuple[str, str, int], SampleResult]
) -> float | None:
    """Return the mean of the subjects' accuracies, of those that have one."""
    shares = []
    for plan in plans:
        answers = [known.get(question.key) for question in plan.questions]
        right = [result.correct for result in answers if result is not None and not result.error]
        if right:
            shares.append(sum(right) / len(right))
    return sum(shares) / len(shares) if shares else None


def _warnings(
    plan: BenchmarkPlan, overall: AggregateScore, letters: Mapping[str, int]
) -> Iterable[str]:
    """Say what should make a reader wary of a suite's number."""
    if overall.failed:
        yield f"{overall.failed} of {overall.total} questions have no answer and are left out"
    if overall.truncated:
        yield (
            f"{overall.truncated} replies ended by their limit"
            if plan.mode == "gen"
            else f"{overall.truncated} prompts were too long and lost examples"
        )
    if overall.unparsed:
        yield f"in {overall.unparsed} of {overall.answered} replies no answer was found"
    if overall.answered < _ENOUGH:
        return
    if not overall.correct:
        yield "every answer is wrong: look at some with `llmctl eval show`"
    assert overall.low is not None
    assert overall.high is not None
    if plan.chance is not None and overall.low <= plan.chance <= overall.high:
        yield f"no better than guessing, which gets {plan.chance:.0%} right"
    strict, robust = overall.accuracy, overall.robust_accuracy
    if strict is not None and robust is not None and abs(strict - robust) > 0.05:
        yield f"read with more care the same replies score {robust:.2%}, not {strict:.2%}"
    given = sum(letters.values())
    letter = max(letters, key=letters.__getitem__, default="")
    if given >= _ENOUGH and letters[letter] > _ONE_LETTER * given:
        cloze = "" if plan.mode != "ppl" else "; --mode logprob_norm asks for the text instead"
        yield f"{letter} is {letters[letter]} of {given} answers: its place decides{cloze}"
