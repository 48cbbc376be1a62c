"""Which questions and answers does a page hold? All; a text that many share is held once."""

import json
from collections.abc import Sequence
from typing import Any

from llmctl.evaluation.results.loaded_run import LoadedRun
from llmctl.types import EvalSample, SampleResult


def samples_json(names: Sequence[str], runs: Sequence[LoadedRun]) -> str:
    """Return the questions as JSON that can stand in a `<script>` of a page.

    `{"runs": [name], "texts": [text], "questions": [question]}`; a question is
    `[suite, subject, index, prompt, endings, gold, [answer or null for each run]]`, where prompt is
    a list of `[role, number of text]` and endings are `[label, number of text]`.
    """
    texts: dict[str, int] = {}

    def number(text: str) -> int:
        return texts.setdefault(text, len(texts))

    keys = list(dict.fromkeys(key for run in runs for key in run.results))
    questions = []
    for key in keys:
        question = next((run.questions[key] for run in runs if key in run.questions), None)
        answers = [run.results.get(key) for run in runs]
        gold = next(answer.gold for answer in answers if answer is not None)
        prompt = [] if question is None else [[r, number(t)] for r, t in _turns(question)]
        endings = [] if question is None else [[n, number(t)] for n, t in _endings(question)]
        told = [None if answer is None else _answer(answer) for answer in answers]
        questions.append([*key, prompt, endings, gold, told])
    content = {"runs": list(names), "texts": list(texts), "questions": questions}
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    # In JSON these three stand in strings alone. Escaped, nothing in them can end the script.
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _turns(question: EvalSample) -> list[tuple[str, str]]:
    if question.messages:
        return [(message.role, message.content or "") for message in question.messages]
    gap = question.gap if question.examples else ""
    parts = (question.head, *question.examples, gap + question.body)
    return [("", part) for part in parts if part]


def _endings(question: EvalSample) -> list[tuple[str, str]]:
    ends = question.continuations or question.options
    return list(zip(question.labels, ends, strict=False))


def _answer(result: SampleResult) -> dict[str, Any]:
    told: dict[str, Any] = {"said": result.prediction, "right": result.correct}
    if result.likelihoods:
        told["values"] = [float(f"{value:.6g}") for value in result.likelihoods.values()]
    for name in ("reply", "robust", "rule", "error", "truncated"):
        if value := getattr(result, name):
            told[name] = value
    return told
