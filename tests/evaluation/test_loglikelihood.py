import json
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmctl.engine.hf_runner import HFRunner
from llmctl.engine.loglikelihood import GroupScore, score_full_texts
from llmctl.errors import ContextLengthError
from llmctl.evaluation.benchmarks.prompts import CompletionPrompt, Doc
from llmctl.evaluation.engine_adapter import EngineAdapter
from llmctl.evaluation.runner import label_scores
from llmctl.types import EvalMode, EvalSample, ModelSpec

LETTERS = CompletionPrompt(
    head="Exam.\n",
    example="{question}\n{options}\nAnswer: {answer}\n\n",
    body="{question}\n{options}\nAnswer: ",
    ending="{label}",
)
WORDS = CompletionPrompt(example="", body="Q: {question}\nA:", ending=" {text}")


def questions(form: CompletionPrompt, count: int, shots: int = 1) -> list[EvalSample]:
    rows = [
        Doc(f"{n} and {n * n}?", "ABCD"[n % 4], (f"{n}", f"{n}{n}", "no", f"x{n}"), index=n)
        for n in range(count + shots)
    ]
    examples = rows[count:] if form.example else []
    return [form.question("sums", "sums", "sums", row, examples) for row in rows[:count]]


def by_transformers(
    folder: Path | str, asked: list[EvalSample], mode: EvalMode
) -> list[list[float]]:
    """Score text by text, each alone and whole, as a plain loop would."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = []
    for question in asked:
        start = len(tokenizer(question.context).input_ids)
        values = []
        for end in question.continuations:
            ids = torch.tensor([tokenizer(question.context + end).input_ids])
            with torch.no_grad():
                logits = model(ids).logits[0, :-1].log_softmax(-1)
            each = logits.gather(1, ids[0, 1:, None])[:, 0]
            if mode == "ppl":
                values.append(float(-each.sum() / ids.shape[1]))
            else:
                size = len(end.strip().encode()) if mode == "logprob_norm" else 1
                values.append(float(each[start - 1 :].sum() / size))
        found.append(values)
    return found


def ours(
    engine: HFRunner, asked: list[EvalSample], mode: EvalMode, batch: int
) -> list[list[float]]:
    outcomes = list(EngineAdapter(engine, batch).score(asked, whole=mode == "ppl"))
    found = []
    for question, outcome in zip(asked, outcomes, strict=True):
        assert isinstance(outcome, GroupScore)
        found.append(list(label_scores(question, mode, outcome).values()))
    return found


@pytest.mark.parametrize("mode", ["ppl", "logprob", "logprob_norm"])
@pytest.mark.parametrize("form", [LETTERS, WORDS], ids=["letters", "words"])
def test_scores_of_a_hundred_questions_equal_a_plain_loop_over_whole_texts(
    tiny: HFRunner, tiny_folder: Path, form: CompletionPrompt, mode: EvalMode
) -> None:
    asked = questions(form, 100)
    expected = by_transformers(tiny_folder, asked, mode)
    for mine, plain in zip(ours(tiny, asked, mode, 8), expected, strict=True):
        assert mine == pytest.approx(plain, rel=1e-5)
        assert mine.index(min(mine)) == plain.index(min(plain))


@pytest.mark.parametrize("form", [LETTERS, WORDS], ids=["letters", "words"])
def test_the_size_of_a_batch_changes_no_score(tiny: HFRunner, form: CompletionPrompt) -> None:
    asked = questions(form, 9)
    alone, together = ours(tiny, asked, "ppl", 1), ours(tiny, asked, "ppl", 9)
    for one, other in zip(alone, together, strict=True):
        assert one == pytest.approx(other, rel=1e-6)


def test_what_questions_share_is_billed_once(tiny: HFRunner) -> None:
    outcomes = list(EngineAdapter(tiny).score(questions(LETTERS, 8), whole=True))
    scored = [outcome for outcome in outcomes if isinstance(outcome, GroupScore)]
    assert scored[0].computed_tokens > 2 * scored[1].computed_tokens
    assert sum(s.uncached_tokens for s in scored) > 4 * sum(s.computed_tokens for s in scored)


def test_a_question_longer_than_the_context_fails_alone(tiny: HFRunner) -> None:
    asked = questions(WORDS, 3)
    long = WORDS.question("sums", "sums", "", Doc("x" * 400, "A", ("a", "b"), index=7), [])
    for whole in (True, False):
        outcomes = list(EngineAdapter(tiny).score([asked[0], long, asked[1]], whole=whole))
        kinds = [type(outcome) for outcome in outcomes]
        assert kinds == [GroupScore, ContextLengthError, GroupScore]


def test_one_option_that_begins_another_is_scored_too(tiny: HFRunner, tiny_folder: Path) -> None:
    asked = [WORDS.question("s", "s", "", Doc("How?", "A", ("by", "by car")), [])]
    assert ours(tiny, asked, "ppl", 1)[0] == pytest.approx(
        by_transformers(tiny_folder, asked, "ppl")[0], rel=1e-5
    )


@pytest.mark.real_model
def test_the_real_model_scores_as_transformers_does(smollm: HFRunner) -> None:
    from llmctl.engine.models import resolve

    folder = resolve.resolve_model("smollm2-135m").path
    for asked in (questions(LETTERS, 3, shots=2), questions(WORDS, 17)):
        for mine, plain in zip(
            ours(smollm, asked, "ppl", 8), by_transformers(folder, asked, "ppl"), strict=True
        ):
            assert mine == pytest.approx(plain, rel=1e-5)
            assert mine.index(min(mine)) == plain.index(min(plain))


GOLDEN = os.environ.get("LLMCTL_EXAM_GOLDEN")


@pytest.mark.real_model
@pytest.mark.skipif(not GOLDEN, reason="LLMCTL_EXAM_GOLDEN names no folder")
@pytest.mark.parametrize(
    ("file", "equal"),
    [
        ("oc_mmlu_anatomy_ppl_first8_bs1.json", True),
        ("oc_mmlu_anatomy_ppl_first8_bs4_padbug.json", False),
    ],
)
def test_the_values_are_opencompass_own_at_batch_size_1(
    smollm: HFRunner, file: str, equal: bool
) -> None:
    expected = json.loads((Path(GOLDEN or "") / file).read_text())
    labels = [f"label: {letter}" for letter in "ABCD"]
    groups = [[one[label]["prompt"] for label in labels] for one in expected.values()]
    close = []
    for one, outcome in zip(expected.values(), score_full_texts(smollm, groups), strict=True):
        assert isinstance(outcome, GroupScore)
        ours = [score.mean_loss for score in outcome.texts]
        close.append(ours == pytest.approx([one[label]["PPL"] for label in labels], rel=1e-5))
        if equal:
            assert "ABCD"[ours.index(min(ours))] == one["prediction"]
    assert all(close) is equal


def test_an_engine_of_its_own_is_not_closed(tiny_folder: Path) -> None:
    with HFRunner(ModelSpec(str(tiny_folder), dtype="float32", device="cpu")) as engine:
        engine.load()
        list(EngineAdapter(engine).score(questions(WORDS, 1), whole=True))
        assert engine.info().model_id
