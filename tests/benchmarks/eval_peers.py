"""Another evaluation program as a child of `eval_speed.py`; runs in that program's Python.

    python eval_peers.py opencompass|lm-eval REQUEST.json

It loads the model once. For each line on its standard input it scores all questions and writes
`{"seconds": ..., "answers": [...]}`. The request has `model` (a folder), `dtype`, `batch` (of
lm-eval; 0 tries several and keeps the fastest) and `questions`, each `[context, continuations]`.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

Question = tuple[str, list[str]]
Evaluate = Callable[[], list[int]]
BATCH_SIZES = (1, 2, 4, 8, 16, 32)


def opencompass(request: dict[str, Any]) -> Evaluate:
    """OpenCompass' HuggingFace model at batch size 1, with which its scores are published.

    Transformers 5 removed `batch_encode_plus`, which it calls; it is added again.
    """
    from opencompass.models import HuggingFaceBaseModel
    from transformers import PreTrainedTokenizerBase

    setattr(PreTrainedTokenizerBase, "batch_encode_plus", PreTrainedTokenizerBase.__call__)  # noqa: B010  mypy knows no such name
    model = HuggingFaceBaseModel(
        request["model"], model_kwargs={"dtype": request["dtype"], "device_map": "cpu"}
    )

    def evaluate() -> list[int]:
        answers = []
        for context, continuations in request["questions"]:
            losses = [float(model.get_ppl([context + text])[0]) for text in continuations]
            answers.append(losses.index(min(losses)))
        return answers

    return evaluate


def lm_eval(request: dict[str, Any]) -> Evaluate:
    """The `hf` model of lm-evaluation-harness, which shares a forward among one-token answers."""
    instance = import_module("lm_eval.api.instance").Instance
    harness = import_module("lm_eval.models.huggingface").HFLM

    def instances(questions: Sequence[Question]) -> list[Any]:
        # It expects the space between context and continuation in the continuation.
        return [
            instance(
                "loglikelihood",
                {},
                (context.rstrip(" "), f" {text}" if context.endswith(" ") else text),
                index,
            )
            for context, continuations in questions
            for index, text in enumerate(continuations)
        ]

    def load(batch: int) -> Any:
        return harness(
            pretrained=request["model"], dtype=request["dtype"], batch_size=batch, device="cpu"
        )

    all_instances = instances(request["questions"])
    batch = request["batch"] or _fastest_batch(load, instances(request["questions"][:4]))
    model = load(batch)

    def evaluate() -> list[int]:
        values = [one for one, _ in model.loglikelihood(all_instances, disable_tqdm=True)]
        answers, start = [], 0
        for _, continuations in request["questions"]:
            own = values[start : start + len(continuations)]
            answers.append(own.index(max(own)))
            start += len(continuations)
        return answers

    return evaluate


def _fastest_batch(load: Callable[[int], Any], instances: list[Any]) -> int:
    seconds = {}
    for batch in BATCH_SIZES:
        model = load(batch)
        model.loglikelihood(instances[:1], disable_tqdm=True)
        started = time.perf_counter()
        model.loglikelihood(instances, disable_tqdm=True)
        seconds[batch] = time.perf_counter() - started
    fastest = min(seconds, key=seconds.__getitem__)
    print(f"lm-eval is fastest at batch size {fastest}", file=sys.stderr)
    return fastest


def main() -> None:
    name, file = sys.argv[1:]
    request = json.loads(Path(file).read_text(encoding="utf-8"))
    answers_to, sys.stdout = sys.stdout, sys.stderr  # output of the program itself is not an answer
    evaluate = {"opencompass": opencompass, "lm-eval": lm_eval}[name](request)
    print(json.dumps({"ready": name}), file=answers_to, flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        answers = evaluate()
        seconds = time.perf_counter() - started
        print(json.dumps({"seconds": seconds, "answers": answers}), file=answers_to, flush=True)


if __name__ == "__main__":
    main()
