import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmctl.engine.hf_runner import HFRunner
from llmctl.engine.loglikelihood import GroupScore, score_full_texts
from llmctl.engine.models import resolve
from llmctl.errors import ContextLengthError
from llmctl.evaluation.benchmarks.prompts import CompletionPrompt, Doc
from llmctl.evaluation.model_adapter import ModelAdapter
from llmctl.evaluation.runner import label_scores
from llmctl.types import EvalMode, EvalSample, ModelSpec
from tests.evaluation.golden import GOLDEN

LETTERS = CompletionPrompt(
    head="Exam.\n",
    example="{question}\n{options}\nAnswer: {answer}\n\n",
    body="{question}\n{options}\nAnswer: ",
    ending="{label}",
)
TEXTS = CompletionPrompt(example="", body="Q: {question}\nA:", ending=" {text}")
both_prompts = pytest.mark.parametrize("prompt", [LETTERS, TEXTS], ids=["letters", "texts"])


def make_samples(prompt: CompletionPrompt, count: int, shots: int = 1) -> list[EvalSample]:
    docs = [
        Doc(f"{n} and {n * n}?", "ABCD"[n % 4], (f"{n}", f"{n}{n}", "no", f"x{n}"), index=n)
        for n in range(count + shots)
    ]
    examples = docs[count:] if prompt.example else []
    return [prompt.render("sums", "sums", "sums", doc, examples) for doc in docs[:count]]


def reference_scores(
    folder: Path | str, samples: list[EvalSample], mode: EvalMode
) -> list[list[float]]:
    """Score every text by itself with Transformers."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    scores = []
    for sample in samples:
        start = len(tokenizer(sample.context).input_ids)
        values = []
        for text in sample.continuations:
            ids = torch.tensor([tokenizer(sample.context + text).input_ids])
            with torch.no_grad():
                logits = model(ids).logits[0, :-1].log_softmax(-1)
            logprobs = logits.gather(1, ids[0, 1:, None])[:, 0]
            if mode == "ppl":
                values.append(float(-logprobs.sum() / ids.shape[1]))
            else:
                size = len(text.strip().encode()) if mode == "logprob_norm" else 1
                values.append(float(logprobs[start - 1 :].sum() / size))
        scores.append(values)
    return scores


def adapter_scores(
    engine: HFRunner, samples: list[EvalSample], mode: EvalMode, batch: int
) -> list[list[float]]:
    outcomes = ModelAdapter(engine, batch).loglikelihoods(samples, full_text=mode == "ppl")
    scores = []
    for sample, outcome in zip(samples, outcomes, strict=True):
        assert isinstance(outcome, GroupScore)
        scores.append(list(label_scores(sample, mode, outcome).values()))
    return scores


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ppl", "logprob", "logprob_norm"])
@both_prompts
def test_scores_equal_those_of_each_text_by_itself(
    tiny: HFRunner, tiny_folder: Path, prompt: CompletionPrompt, mode: EvalMode
) -> None:
    samples = make_samples(prompt, 40)
    expected = reference_scores(tiny_folder, samples, mode)
    for values, reference in zip(adapter_scores(tiny, samples, mode, 8), expected, strict=True):
        assert values == pytest.approx(reference, rel=1e-5)
        assert values.index(min(values)) == reference.index(min(reference))


@both_prompts
def test_the_batch_size_changes_no_score(tiny: HFRunner, prompt: CompletionPrompt) -> None:
    samples = make_samples(prompt, 9)
    single, batched = (adapter_scores(tiny, samples, "ppl", size) for size in (1, 9))
    for one, other in zip(single, batched, strict=True):
        assert one == pytest.approx(other, rel=1e-6)


def test_tokens_of_a_shared_prefix_are_counted_once(tiny: HFRunner) -> None:
    outcomes = list(ModelAdapter(tiny).loglikelihoods(make_samples(LETTERS, 8), full_text=True))
    scored = [outcome for outcome in outcomes if isinstance(outcome, GroupScore)]
    assert scored[0].computed_tokens > 2 * scored[1].computed_tokens
    assert sum(s.uncached_tokens for s in scored) > 4 * sum(s.computed_tokens for s in scored)


@pytest.mark.parametrize("full_text", [True, False])
def test_a_sample_longer_than_the_context_fails_alone(tiny: HFRunner, full_text: bool) -> None:
    samples = make_samples(TEXTS, 3)
    long = TEXTS.render("sums", "sums", "", Doc("x" * 400, "A", ("a", "b"), index=7), [])
    outcomes = ModelAdapter(tiny).loglikelihoods(
        [samples[0], long, samples[1]], full_text=full_text
    )
    kinds = [type(outcome) for outcome in outcomes]
    assert kinds == [GroupScore, ContextLengthError, GroupScore]


def test_an_option_that_is_a_prefix_of_another_is_scored(tiny: HFRunner, tiny_folder: Path) -> None:
    samples = [TEXTS.render("s", "s", "", Doc("How?", "A", ("by", "by car")), [])]
    assert adapter_scores(tiny, samples, "ppl", 1)[0] == pytest.approx(
        reference_scores(tiny_folder, samples, "ppl")[0], rel=1e-5
    )


@pytest.mark.slow
@pytest.mark.real_model
def test_scores_of_the_real_model_equal_those_of_transformers(smollm: HFRunner) -> None:
    folder = resolve.resolve_model("smollm2-135m").path
    for samples in (make_samples(LETTERS, 2, shots=2), make_samples(TEXTS, 9)):
        for values, reference in zip(
            adapter_scores(smollm, samples, "ppl", 8),
            reference_scores(folder, samples, "ppl"),
            strict=True,
        ):
            assert values == pytest.approx(reference, rel=1e-5)
            assert values.index(min(values)) == reference.index(min(reference))


@pytest.mark.real_model
@pytest.mark.skipif(not GOLDEN, reason="LLMCTL_EXAM_GOLDEN is not set")
@pytest.mark.parametrize(
    ("file", "equal"),
    [
        ("oc_mmlu_anatomy_ppl_first8_bs1.json", True),
        ("oc_mmlu_anatomy_ppl_first8_bs4_padbug.json", False),
    ],
)
def test_scores_are_those_of_opencompass_at_batch_size_1(
    smollm: HFRunner, file: str, equal: bool
) -> None:
    expected = json.loads((Path(GOLDEN or "") / file).read_text())
    labels = [f"label: {letter}" for letter in "ABCD"]
    groups = [[one[label]["prompt"] for label in labels] for one in expected.values()]
    close = []
    for one, outcome in zip(expected.values(), score_full_texts(smollm, groups), strict=True):
        assert isinstance(outcome, GroupScore)
        losses = [score.mean_loss for score in outcome.texts]
        close.append(losses == pytest.approx([one[label]["PPL"] for label in labels], rel=1e-5))
        if equal:
            assert "ABCD"[losses.index(min(losses))] == one["prediction"]
    assert all(close) is equal


def test_the_engine_stays_open(tiny_folder: Path) -> None:
    with HFRunner(ModelSpec(str(tiny_folder), dtype="float32", device="cpu")) as engine:
        engine.load()
        list(ModelAdapter(engine).loglikelihoods(make_samples(TEXTS, 1), full_text=True))
        assert engine.info().model_id
