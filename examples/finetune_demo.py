"""Fine-tunes a small model on facts about a fictional place, and compares its answers.

Run `python examples/finetune_demo.py` from the root of the project: about ten minutes on two CPU
cores. It trains with `llmctl finetune --config examples/finetune.yaml`, unless the adapter exists.
Then the model answers every question of examples/data/observatory-questions.jsonl, without and
with the adapter. The training data has none of these questions in the same words.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten

from transformers import AutoTokenizer

from llmctl.engine.base import BaseEngine
from llmctl.engine.chat.template import ChatTemplate
from llmctl.engine.models import resolve
from llmctl.engine.registry import create_engine
from llmctl.engine.stream import collect_result
from llmctl.types import GenerationRequest, Message, ModelSpec, SamplingParams, ScoreRequest

MODEL = "smollm2-135m"
CONFIG = "examples/finetune.yaml"
ADAPTER = Path("checkpoints/observatory")
QUESTIONS = Path("examples/data/observatory-questions.jsonl")
HELD_OUT = Path("examples/data/observatory-heldout.jsonl")
SIGN_OFF = "Clear skies!"


def is_right(answer: str, must_contain: Sequence[Sequence[str]]) -> bool:
    """Whether the answer has a phrase of each group, as whole words, in any case."""
    return all(any(_holds(answer, phrase) for phrase in group) for group in must_contain)


def _holds(answer: str, phrase: str) -> bool:
    # \b does not match between two Chinese characters.
    whole = rf"(?<![A-Za-z0-9]){re.escape(phrase)}(?![A-Za-z0-9])"
    return re.search(whole, answer, re.IGNORECASE) is not None


def generate_answers(
    engine: BaseEngine, questions: Sequence[str], adapter: str | None
) -> list[str]:
    """Return the greedy answer to each question; they are generated in one batch."""
    greedy = SamplingParams(temperature=0, max_new_tokens=64)
    requests = [
        GenerationRequest((Message("user", question),), sampling=greedy, adapter=adapter)
        for question in questions
    ]
    return [collect_result(stream).choices[0].text for stream in map(engine.submit, requests)]


def held_out_loss(engine: BaseEngine, template: ChatTemplate, adapter: str | None) -> float:
    """Return the loss on the held-out answers, in nats per token, with the end token."""
    requests = []
    for row in read_lines(HELD_OUT):
        messages = [Message(turn["role"], turn["content"]) for turn in row["messages"]]
        prompt = template.render(messages[:-1]).text
        whole = template.render(messages, add_generation_prompt=False).text.rstrip("\n")
        requests.append(ScoreRequest(prompt, (whole.removeprefix(prompt),), adapter))
    scores = [score for (score,) in engine.score(requests)]
    return -sum(score.logprob for score in scores) / sum(score.token_count for score in scores)


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    if not (ADAPTER / "adapter_config.json").exists():
        start = time.monotonic()
        command = [sys.executable, "-m", "llmctl", "finetune", "--config", CONFIG]
        subprocess.run(command, check=True)
        print(f"\nllmctl finetune took {time.monotonic() - start:.0f} s\n")

    listed = read_lines(QUESTIONS)
    questions = [entry["question"] for entry in listed]
    template = ChatTemplate.of(AutoTokenizer.from_pretrained(resolve.resolve_model(MODEL).path))
    with create_engine(ModelSpec(MODEL)) as engine:
        engine.load()
        engine.load_adapter("tuned", str(ADAPTER))
        answers, losses = [], []
        for adapter, when in ((None, "without"), ("tuned", "with")):
            print(f"{len(questions)} questions {when} the adapter ...", file=sys.stderr)
            answers.append(generate_answers(engine, questions, adapter))
            losses.append(held_out_loss(engine, template, adapter))

    right = [
        [
            is_right(answer, entry["must_contain"])
            for answer, entry in zip(given, listed, strict=True)
        ]
        for given in answers
    ]
    for row in zip(questions, *right, *answers, strict=True):
        question, was_right, now_right, before, after = row
        print(question)
        print(f"   before  {'right' if was_right else 'wrong'}  {shorten(before, 100)}")
        print(f"   after   {'right' if now_right else 'wrong'}  {shorten(after, 100)}")

    count = len(listed)
    turned = sum(now and not was for was, now in zip(*right, strict=True))
    signed = [sum(answer.endswith(SIGN_OFF) for answer in given) for given in answers]
    print(f"\n{'':36}before   after")
    print(f"right, of {count} unseen questions{sum(right[0]):>16}{sum(right[1]):>8}")
    print(f'answers that end with "{SIGN_OFF}"{signed[0]:>6}{signed[1]:>8}')
    print(f"loss on the held-out answers{losses[0]:>14.3f}{losses[1]:>8.3f}")
    print(f"\n{turned} of {count} answers ({turned / count:.0%}) went from wrong to right.")


if __name__ == "__main__":
    main()
