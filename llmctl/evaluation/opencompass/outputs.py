"""What did OpenCompass find? Its prediction and result files, read by ourselves."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmctl.evaluation.scoring.extraction import extract_answer
from llmctl.types import EvalMode, EvalSample, SampleResult, SubjectPlan

Details = Mapping[str, Any]
NOTES = "llmctl"
"""Under which our inferencers add to a prediction."""
_SHARES = ("accuracy", "score", "acc")
"""Names that evaluators have for the share of right answers, in per cent."""
_ROUNDING = 0.02
_PREDICTED = ("pred", "predictions", "prediction")
_CORRECT = ("correct", "is_correct")
_GOLD = ("references", "refr", "answer")


def read_subject(
    subject: SubjectPlan, mode: EvalMode, predictions: Path, results: Path
) -> list[SampleResult]:
    """Make a result of each question of a subject; one that the files lack has an error."""
    predicted, told = _load(predictions), _load(results)
    details = _details(told.get("details"))
    found = []
    for place, question in enumerate(subject.questions):
        entry = predicted.get(str(place))
        if entry is None:
            found.append(failed_result(question, "OpenCompass wrote no prediction for it"))
        elif error := (notes := entry.get(NOTES, {})).get("error"):
            found.append(
                replace(failed_result(question, error), too_long=notes.get("too_long", False))
            )
        elif mode == "ppl":
            found.append(_chosen(question, entry))
        else:
            found.append(_written(question, entry, details.get(str(place), {})))
    why = _no_share(told, found) if any(q.extraction == "judged" for q in subject.questions) else ""
    return [failed_result(q, why) for q in subject.questions] if why else found


def _no_share(told: Details, found: Sequence[SampleResult]) -> str:
    """Say why OpenCompass' number is not the share of right answers that the details give."""
    numbers = {k: v for k, v in told.items() if isinstance(v, int | float)}
    share = 100 * sum(result.correct for result in found) / len(found)
    score = next((numbers[name] for name in _SHARES if name in numbers), None)
    if score is None:
        known = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        return f"OpenCompass scores it by {known or 'nothing'}, which is no right or wrong"
    if abs(score - share) > _ROUNDING:
        return f"OpenCompass says {score:.2f} %, and its details {share:.2f} %"
    return ""


def failed_result(question: EvalSample, error: str) -> SampleResult:
    """Return the result of a question that has no answer."""
    return SampleResult(
        question.suite,
        question.subject,
        question.index,
        question.fingerprint,
        question.gold,
        error=error,
    )


def _chosen(question: EvalSample, entry: Details) -> SampleResult:
    told = [key for key in entry if key.startswith("label: ")]
    # OpenCompass' own labels may be numbers; the order is that of the question.
    names = question.labels or tuple(key.removeprefix("label: ") for key in told)
    losses = {name: float(entry[key]["PPL"]) for name, key in zip(names, told, strict=True)}
    prediction = names[told.index(f"label: {entry['prediction']}")]
    notes = entry.get(NOTES, {})
    return SampleResult(
        question.suite,
        question.subject,
        question.index,
        question.fingerprint,
        question.gold,
        prediction=prediction,
        correct=prediction == question.gold,
        likelihoods=losses,
        truncated=notes.get("dropped", 0) > 0,
        shots=question.shots - notes.get("dropped", 0),
        tokens=notes.get("tokens", 0),
        naive_tokens=notes.get("naive_tokens", 0),
    )


def _written(question: EvalSample, entry: Details, detail: Details) -> SampleResult:
    reply = str(entry["prediction"])
    notes = entry.get(NOTES, {})
    judged = question.extraction == "judged"
    read = extract_answer(question, reply)
    strict = str(_told(detail, _PREDICTED, read.strict))
    correct = bool(_told(detail, _CORRECT, strict == _told(detail, _GOLD, question.gold)))
    naive = notes.get("tokens", 0)
    return SampleResult(
        question.suite,
        question.subject,
        question.index,
        question.fingerprint,
        question.gold,
        prediction=strict,
        correct=correct,
        reply=reply,
        robust=None if judged else read.robust,
        robust_correct=None if judged else read.robust_correct,
        rule="" if judged else read.rule,
        truncated=notes.get("finish_reason") == "length" or notes.get("dropped", 0) > 0,
        shots=question.shots - notes.get("dropped", 0),
        tokens=naive - notes.get("cached_tokens", 0),
        naive_tokens=naive,
    )


def _told(detail: Details, names: Sequence[str], otherwise: object) -> object:
    """Return what a detail says by whichever of its names; some evaluators put it in a list."""
    found = next((detail[name] for name in names if name in detail), otherwise)
    return found[0] if isinstance(found, list) and found else found


def _load(file: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return loaded


def _details(details: Any) -> Details:
    """OpenCompass writes a mapping by question for some evaluators, a list for others."""
    if isinstance(details, list):
        return {str(place): detail for place, detail in enumerate(details)}
    return details or {}
