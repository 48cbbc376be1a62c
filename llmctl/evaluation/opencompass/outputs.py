"""Results from OpenCompass' prediction and result files."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmctl.evaluation.scoring.extraction import extract_answer
from llmctl.types import EvalMode, EvalSample, SampleResult, SubjectPlan

Details = Mapping[str, Any]
NOTES = "llmctl"
"""Key of the entries that our inferencers add to a prediction."""
_ACCURACY_KEYS = ("accuracy", "score", "acc")
"""Names that evaluators use for the accuracy, in per cent."""
_ROUNDING = 0.02
"""Largest difference, in per cent, between equal accuracies."""
_PREDICTION_KEYS = ("pred", "predictions", "prediction")
_CORRECT_KEYS = ("correct", "is_correct")
_GOLD_KEYS = ("references", "refr", "answer")


def read_subject(
    subject: SubjectPlan, mode: EvalMode, predictions: Path, results: Path
) -> list[SampleResult]:
    """Return a result for each sample of a subject; a sample that the files lack has an error."""
    predicted, scored = _load(predictions), _load(results)
    details = _details(scored.get("details"))
    found = []
    for position, sample in enumerate(subject.questions):
        entry = predicted.get(str(position))
        if entry is None:
            error = "OpenCompass wrote no prediction for it"
            found.append(SampleResult.for_sample(sample, error))
        elif error := (notes := entry.get(NOTES, {})).get("error"):
            too_long = notes.get("too_long", False)
            found.append(replace(SampleResult.for_sample(sample, error), too_long=too_long))
        elif mode == "ppl":
            found.append(_ppl_result(sample, entry))
        else:
            found.append(_gen_result(sample, entry, details.get(str(position), {})))
    if any(sample.extraction == "judged" for sample in subject.questions):
        error = _accuracy_mismatch(scored, found)
        if error:
            return [SampleResult.for_sample(sample, error) for sample in subject.questions]
    return found


def _accuracy_mismatch(scored: Details, found: Sequence[SampleResult]) -> str:
    """Return why OpenCompass' score is not the accuracy of its details; empty if it is."""
    numbers = {key: value for key, value in scored.items() if isinstance(value, int | float)}
    accuracy = 100 * sum(result.correct for result in found) / len(found)
    score = next((numbers[key] for key in _ACCURACY_KEYS if key in numbers), None)
    if score is None:
        known = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        return f"OpenCompass scores it by {known or 'nothing'}, not by accuracy"
    if abs(score - accuracy) > _ROUNDING:
        return f"OpenCompass reports {score:.2f} %, but its details give {accuracy:.2f} %"
    return ""


def _ppl_result(sample: EvalSample, entry: Details) -> SampleResult:
    keys = [key for key in entry if key.startswith("label: ")]
    # OpenCompass' own labels may be numbers; their order is that of the sample.
    labels = sample.labels or tuple(key.removeprefix("label: ") for key in keys)
    losses = {label: float(entry[key]["PPL"]) for label, key in zip(labels, keys, strict=True)}
    prediction = labels[keys.index(f"label: {entry['prediction']}")]
    notes = entry.get(NOTES, {})
    return replace(
        SampleResult.for_sample(sample),
        prediction=prediction,
        correct=prediction == sample.gold,
        likelihoods=losses,
        truncated=notes.get("dropped", 0) > 0,
        shots=sample.shots - notes.get("dropped", 0),
        tokens=notes.get("tokens", 0),
        naive_tokens=notes.get("naive_tokens", 0),
    )


def _gen_result(sample: EvalSample, entry: Details, detail: Details) -> SampleResult:
    reply = str(entry["prediction"])
    notes = entry.get(NOTES, {})
    scored_by_opencompass = sample.extraction == "judged"
    answer = extract_answer(sample, reply)
    strict = str(_first_of(detail, _PREDICTION_KEYS, answer.strict))
    gold = _first_of(detail, _GOLD_KEYS, sample.gold)
    tokens = notes.get("tokens", 0)
    return replace(
        SampleResult.for_sample(sample),
        prediction=strict,
        correct=bool(_first_of(detail, _CORRECT_KEYS, strict == gold)),
        reply=reply,
        robust=None if scored_by_opencompass else answer.robust,
        robust_correct=None if scored_by_opencompass else answer.robust_correct,
        rule="" if scored_by_opencompass else answer.rule,
        truncated=notes.get("finish_reason") == "length" or notes.get("dropped", 0) > 0,
        shots=sample.shots - notes.get("dropped", 0),
        tokens=tokens - notes.get("cached_tokens", 0),
        naive_tokens=tokens,
    )


def _first_of(detail: Details, keys: Sequence[str], default: object) -> object:
    """Return the value of the first present key; some evaluators put it in a list."""
    value = next((detail[key] for key in keys if key in detail), default)
    return value[0] if isinstance(value, list) and value else value


def _load(file: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return loaded


def _details(details: Any) -> Details:
    """Return the details by position; some evaluators write them as a list."""
    if isinstance(details, list):
        return {str(position): detail for position, detail in enumerate(details)}
    return details or {}
