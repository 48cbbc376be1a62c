"""Another program that sits an exam, as a child of `exam_speed.py`; runs in that program's Python.

    python exam_rivals.py opencompass|lm-eval REQUEST.json

It loads the model once. Then for each line on its standard input it scores all questions and writes
`{"seconds": ..., "answers": [...]}`. The request has `model` (a folder), `dtype`, `batch` (of
lm-eval; 0 tries several and keeps the best) and `questions`, each `[context, endings]`.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

Question = tuple[str, list[str]]
Sit = Callable[[], list[int]]
TRIED = (1, 2, 4, 8, 16, 32)


def opencompass(request: dict[str, Any]) -> Sit:
    """OpenCompass' own HuggingFace model at batch size 1, which is what its scores are made with.

    Transformers 5 has no `batch_encode_plus` any more; that line is put back.
    """
    from opencompass.models import HuggingFaceBaseModel
    from transformers import PreTrainedTokenizerBase

    setattr(PreTrainedTokenizerBase, "batch_encode_plus", PreTrainedTokenizerBase.__call__)  # noqa: B010
    model = HuggingFaceBaseModel(
        request["model"], model_kwargs={"dtype": request["dtype"], "device_map": "cpu"}
    )

    def sit() -> list[int]:
        answers = []
        for context, ends in request["questions"]:
            losses = [float(model.get_ppl([context + end])[0]) for end in ends]
            answers.append(losses.index(min(losses)))
        return answers

    return sit


def lm_eval(request: dict[str, Any]) -> Sit:
    """lm-evaluation-harness' `hf` model, which shares a forward among answers of one token."""
    instance = import_module("lm_eval.api.instance").Instance
    harness = import_module("lm_eval.models.huggingface").HFLM

    def asked(questions: Sequence[Question]) -> list[Any]:
        # It wants the space between context and answer on the answer's side.
        return [
            instance(
                "loglikelihood",
                {},
                (context.rstrip(" "), f" {end}" if context.endswith(" ") else end),
                index,
            )
            for context, ends in questions
            for index, end in enumerate(ends)
        ]

    def made(batch: int) -> Any:
        return harness(
            pretrained=request["model"], dtype=request["dtype"], batch_size=batch, device="cpu"
        )

    everything = asked(request["questions"])
    best = request["batch"] or _fastest(made, asked(request["questions"][:4]))
    model = made(best)

    def sit() -> list[int]:
        values = [one for one, _ in model.loglikelihood(everything, disable_tqdm=True)]
        answers, at = [], 0
        for _, ends in request["questions"]:
            own = values[at : at + len(ends)]
            answers.append(own.index(max(own)))
            at += len(ends)
        return answers

    return sit


def _fastest(made: Callable[[int], Any], some: list[Any]) -> int:
    took = {}
    for batch in TRIED:
        model = made(batch)
        model.loglikelihood(some[:1], disable_tqdm=True)
        begin = time.perf_counter()
        model.loglikelihood(some, disable_tqdm=True)
        took[batch] = time.perf_counter() - begin
    best = min(took, key=took.__getitem__)
    print(f"lm-eval is fastest with batches of {best}", file=sys.stderr)
    return best


def main() -> None:
    name, file = sys.argv[1:]
    request = json.loads(Path(file).read_text(encoding="utf-8"))
    told, sys.stdout = sys.stdout, sys.stderr  # whatever the program prints is no answer
    sit = {"opencompass": opencompass, "lm-eval": lm_eval}[name](request)
    print(json.dumps({"ready": name}), file=told, flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        answers = sit()
        seconds = time.perf_counter() - begin
        print(json.dumps({"seconds": seconds, "answers": answers}), file=told, flush=True)


if __name__ == "__main__":
    main()
