"""How fast is an exam sat? Questions per second: ours, lm-evaluation-harness, a plain loop.

    python tests/benchmarks/exam_speed.py --data-dir FOLDER --suite mmlu --subjects anatomy

The sides take turns, `--rounds` times, on the same prompts in the same number type. The plain loop
is one forward pass for each label of each question, as OpenCompass' stock model does at batch size
1. lm-evaluation-harness (`pip install lm_eval`) is left out where it is not installed; it is given
the prompts as a list of requests, so that its own reading of data does not count.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from llmctl.engine import catalog
from llmctl.engine.hf_runner import HFRunner
from llmctl.evaluation.engine_sitter import EngineSitter
from llmctl.evaluation.locate import locate
from llmctl.evaluation.planning import Wanted, plan_suite
from llmctl.evaluation.suites import find_suite
from llmctl.types import ModelSpec, SuitePlan

Side = Callable[[], object]


def ours(engine: HFRunner, plan: SuitePlan) -> Side:
    def sit() -> None:
        for subject in plan.subjects:
            list(EngineSitter(engine).score(subject.questions, whole=True))

    return sit


def plain_loop(folder: Path, dtype: str, plan: SuitePlan) -> Side:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))

    def sit() -> None:
        for subject in plan.subjects:
            for question in subject.questions:
                for end in question.continuations:
                    ids = torch.tensor([tokenizer(question.context + end).input_ids])
                    with torch.inference_mode():
                        logits = model(ids).logits[0, :-1].float()
                    torch.nn.functional.cross_entropy(logits, ids[0, 1:])

    return sit


def lm_eval(folder: Path, dtype: str, batch_size: int, plan: SuitePlan) -> Side | None:
    try:
        instance = import_module("lm_eval.api.instance").Instance
        harness = import_module("lm_eval.models.huggingface").HFLM
    except ImportError:
        return None
    model = harness(pretrained=str(folder), dtype=dtype, batch_size=batch_size, device="cpu")
    requests = [
        # It wants the space between context and answer on the answer's side.
        instance(
            "loglikelihood",
            {},
            (question.context.rstrip(" "), f" {end}" if question.context.endswith(" ") else end),
            index,
        )
        for subject in plan.subjects
        for question in subject.questions
        for index, end in enumerate(question.continuations)
    ]
    return lambda: model.loglikelihood(requests, disable_tqdm=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--suite", default="mmlu")
    parser.add_argument("--subjects", nargs="*", default=["anatomy"])
    parser.add_argument("--limit", type=int)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lm-eval-batch", type=int, default=8)
    parser.add_argument("--skip", nargs="*", default=[], help="names of sides to leave out")
    given = parser.parse_args()
    suite = find_suite(given.suite)
    wanted = Wanted(mode="ppl", subjects=tuple(given.subjects), limit=given.limit)
    plan = plan_suite(suite, locate(suite, given.data_dir), wanted)
    folder = catalog.resolve(given.model).path
    spec = ModelSpec(given.model, dtype=given.dtype, device="cpu")
    others: dict[str, Side | None] = {
        "plain loop": plain_loop(folder, given.dtype, plan),
        "lm-eval": lm_eval(folder, given.dtype, given.lm_eval_batch, plan),
    }
    running = {n: s for n, s in others.items() if s is not None and n not in given.skip}
    seconds: dict[str, list[float]] = {name: [] for name in ("llmctl", *running)}
    for _ in range(given.rounds):
        # A new engine each time: what an earlier round left in its cache would be a gift.
        with HFRunner(spec) as engine:
            engine.load()
            seconds["llmctl"].append(timed(ours(engine, plan)))
        for name, side in running.items():
            seconds[name].append(timed(side))
        for name, times in seconds.items():
            print(f"{name:<12} {plan.question_count / times[-1]:8.2f} questions/s", flush=True)
    medians = {n: plan.question_count / statistics.median(s) for n, s in seconds.items()}
    print(f"\n{plan.suite}, {plan.question_count} questions, {plan.shots} shots, {given.dtype}")
    for name, rate in medians.items():
        print(f"{name:<12} {rate:8.2f} questions/s   {medians['llmctl'] / rate:6.2f}x")


def timed(side: Side) -> float:
    begin = time.perf_counter()
    side()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
