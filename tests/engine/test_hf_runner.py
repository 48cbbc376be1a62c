import gc
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmctl.engine.hf_runner import HFRunner
from llmctl.engine.stream import collect_result
from llmctl.errors import (
    ConfigError,
    ContextLengthError,
    EngineFailedError,
    EngineStoppedError,
    ModelLoadError,
    OutOfMemoryError,
    RequestError,
)
from llmctl.types import (
    GenerationRequest,
    Message,
    ModelSpec,
    SamplingParams,
    ScoreRequest,
)
from tests.tiny import save_tiny_model


def ask(prompt: str = "hello", **sampling: Any) -> GenerationRequest:
    return GenerationRequest(
        (Message("user", prompt),), sampling=SamplingParams(**{"max_new_tokens": 20, **sampling})
    )


def plain_model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def test_greedy_text_equals_that_of_transformers(tiny: HFRunner, tiny_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    prompt = tokenizer("Once upon", return_tensors="pt")
    expected = plain_model(tiny_folder).generate(**prompt, do_sample=False, max_new_tokens=20)
    reply = tokenizer.decode(expected[0, prompt.input_ids.shape[1] :], skip_special_tokens=True)
    result = tiny.generate(
        GenerationRequest(
            prompt="Once upon", sampling=SamplingParams(temperature=0, max_new_tokens=20)
        )
    )
    assert isinstance(reply, str)
    assert result.choices[0].text == reply.rstrip("\ufffd")


def test_streamed_text_equals_the_whole_text(tiny: HFRunner) -> None:
    with tiny.submit(ask(temperature=0)) as stream:
        chunks = list(stream)
    assert "".join(c.text for c in chunks) == tiny.generate(ask(temperature=0)).choices[0].text
    assert [c.finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 20


def test_equal_seeds_repeat_and_others_differ(tiny: HFRunner) -> None:
    texts = [tiny.generate(ask(temperature=1, seed=s)).choices[0].text for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_seed_zero_is_a_seed(tiny: HFRunner) -> None:
    texts = {tiny.generate(ask(temperature=1, seed=0)).choices[0].text for _ in range(3)}
    assert len(texts) == 1


def test_several_choices_of_one_seed_differ_and_count_the_prompt_once(tiny: HFRunner) -> None:
    result = tiny.generate(ask(temperature=1, seed=3, n=3))
    assert len({choice.text for choice in result.choices}) == 3
    assert result.usage.completion_tokens == 60
    assert result.usage.prompt_tokens == tiny.count_tokens([Message("user", "hello")])


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HFRunner]:
    """An engine whose model has a generation config of its own."""
    generation = {"eos_token_id": [257, 5], "do_sample": True, "top_k": 1, "temperature": 0.6}
    folder = save_tiny_model(tmp_path_factory.mktemp("models") / "m", generation=generation)
    with HFRunner(ModelSpec(str(folder), device="cpu")) as engine:
        engine.load()
        yield engine


def test_each_eos_token_of_the_model_ends_the_reply(configured: HFRunner) -> None:
    result = configured.generate(ask(temperature=0, logit_bias=((5, 100.0),)))
    assert result.choices[0].finish_reason == "stop"
    assert result.choices[0].text == ""
    assert result.usage.completion_tokens == 1
    ignoring = configured.generate(ask(temperature=0, logit_bias=((5, 100.0),), ignore_eos=True))
    assert ignoring.usage.completion_tokens == 20


def test_sampling_defaults_of_the_model_apply_unless_overridden(configured: HFRunner) -> None:
    texts = [configured.generate(ask()).choices[0].text for _ in range(3)]
    free = [configured.generate(ask(top_k=0, temperature=2.0)).choices[0].text for _ in range(3)]
    assert len(set(texts)) == 1
    assert len(set(free)) > 1


def test_logprobs_equal_those_of_transformers(tiny: HFRunner, tiny_folder: Path) -> None:
    request = GenerationRequest(
        prompt="abc",
        # Log-probabilities are those of the raw distribution, without the bias.
        sampling=SamplingParams(
            temperature=0, logprobs=3, max_new_tokens=5, logit_bias=((7, 2.0),), ignore_eos=True
        ),
    )
    entries = tiny.generate(request).choices[0].logprobs
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    ids = tokenizer("abc").input_ids + [e.chosen.token_id for e in entries]
    with torch.inference_mode():
        logits = plain_model(tiny_folder)(torch.tensor([ids])).logits[0]
    expected = logits[2:-1].log_softmax(-1)
    assert len(entries) == 5
    for entry, row in zip(entries, expected, strict=True):
        assert entry.chosen.logprob == pytest.approx(float(row[entry.chosen.token_id]), abs=1e-4)
        values, top = row.topk(3)
        assert [t.token_id for t in entry.top] == top.tolist()
        assert [t.logprob for t in entry.top] == pytest.approx(values.tolist(), abs=1e-4)


def test_scores_equal_those_of_transformers(tiny: HFRunner, tiny_folder: Path) -> None:
    scores = tiny.score([ScoreRequest("ab", ("cd", "x")), ScoreRequest("", ("ab",))])
    model, tokenizer = plain_model(tiny_folder), AutoTokenizer.from_pretrained(tiny_folder)

    def logprob(text: str, tail: int) -> float:
        ids = tokenizer(text).input_ids
        with torch.inference_mode():
            table = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        return sum(float(table[i - 1, ids[i]]) for i in range(len(ids) - tail, len(ids)))

    assert scores[0][0].logprob == pytest.approx(logprob("abcd", 2), abs=1e-4)
    assert scores[0][1].logprob == pytest.approx(logprob("abx", 1), abs=1e-4)
    assert scores[1][0].logprob == pytest.approx(logprob("ab", 1), abs=1e-4)
    assert [s.token_count for s in (*scores[0], *scores[1])] == [2, 1, 1]


def test_is_greedy_agrees_with_greedy_decoding(tiny: HFRunner) -> None:
    greedy = tiny.generate(
        GenerationRequest(
            prompt="ab",
            sampling=SamplingParams(temperature=0, max_new_tokens=1, logprobs=0, ignore_eos=True),
        )
    )
    likeliest = greedy.choices[0].logprobs[0].chosen.token_id
    other = (likeliest + 1) % 200
    ids = tuple(AutoTokenizer.from_pretrained(tiny.spec.model)("ab").input_ids)
    scores = tiny.score([ScoreRequest(ids, ((likeliest,), (other,)))])[0]
    assert [s.is_greedy for s in scores] == [True, False]


def test_a_prompt_beyond_the_context_is_rejected_with_both_numbers(tiny: HFRunner) -> None:
    with pytest.raises(ContextLengthError, match=r"256 tokens.*resulted in \d{3} tokens"):
        tiny.submit(ask("x" * 400))


def test_the_reply_is_limited_by_the_context(tiny: HFRunner) -> None:
    result = tiny.generate(ask("x" * 200, max_new_tokens=5000, ignore_eos=True, temperature=0))
    assert result.usage.total_tokens == 256
    assert result.choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (GenerationRequest(prompt=(1, 9999)), "prompt"),
        (GenerationRequest(prompt=()), "prompt"),
        (GenerationRequest(prompt="a", sampling=SamplingParams(logit_bias=((9999, 1.0),))), None),
    ],
)
def test_invalid_token_ids_and_empty_prompts_are_rejected(
    tiny: HFRunner, request_: GenerationRequest, param: str | None
) -> None:
    with pytest.raises(RequestError) as caught:
        tiny.submit(request_)
    assert caught.value.param == (param or "logit_bias")


def test_cancel_ends_the_request(tiny: HFRunner) -> None:
    stream = tiny.submit(ask(max_new_tokens=200, ignore_eos=True, temperature=0))
    stream.cancel()
    with pytest.raises(EngineStoppedError):
        collect_result(stream)
    assert tiny.generate(ask(temperature=0)).usage.completion_tokens == 20
    assert tiny.in_flight == 0


def test_a_failing_request_does_not_affect_others(tmp_path: Path) -> None:
    # The tokenizer has tokens that the embedding of this model lacks.
    folder = save_tiny_model(tmp_path / "m", vocab_size=100, pad_token_id=None)
    with HFRunner(ModelSpec(str(folder), device="cpu")) as engine:
        engine.load()
        good = GenerationRequest(prompt="abc", sampling=SamplingParams(max_new_tokens=3))
        bad = GenerationRequest(prompt="你好", sampling=SamplingParams(max_new_tokens=3))
        streams = [engine.submit(request) for request in (good, bad, good)]
        assert collect_result(streams[0]).usage.completion_tokens == 3
        with pytest.raises(EngineFailedError):
            collect_result(streams[1])
        assert collect_result(streams[2]).usage.completion_tokens == 3


def test_an_exception_of_a_listener_does_not_affect_others(tiny: HFRunner) -> None:
    def broken(_: Any) -> None:
        raise RuntimeError("the event loop is gone")

    tiny.submit(ask(temperature=0)).listen(broken)
    assert tiny.generate(ask(temperature=0)).choices[0].finish_reason == "length"


def test_requests_of_several_threads_get_their_own_replies(tiny: HFRunner) -> None:
    alone = {p: tiny.generate(ask(p, temperature=0)).choices[0].text for p in ("a", "b", "c", "d")}
    together: dict[str, str] = {}

    def run(prompt: str) -> None:
        together[prompt] = tiny.generate(ask(prompt, temperature=0)).choices[0].text

    threads = [threading.Thread(target=run, args=(p,)) for p in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_close_ends_all_requests_with_an_error_and_frees_the_model(tiny_folder: Path) -> None:
    engine = HFRunner(ModelSpec(str(tiny_folder), device="cpu"))
    engine.load()
    assert engine._loaded is not None
    model = weakref.ref(engine._loaded.model)
    streams = [
        engine.submit(ask(max_new_tokens=200, ignore_eos=True, temperature=0)) for _ in range(3)
    ]
    gc.disable()  # reference counting must suffice: the next model needs the memory
    try:
        engine.close()
        for stream in streams:
            with pytest.raises(EngineStoppedError):
                collect_result(stream)
        assert model() is None
    finally:
        gc.enable()
    with pytest.raises(EngineStoppedError):
        engine.submit(ask())
    engine.close()


@pytest.mark.parametrize("quant", ["4bit", "8bit"])
def test_quantised_weights_run_on_a_cpu(tmp_path: Path, quant: Any) -> None:
    # 100 is not a multiple of the block size of bitsandbytes' fast 4-bit kernel.
    folder = save_tiny_model(tmp_path / "m", intermediate_size=100)
    with HFRunner(ModelSpec(str(folder), quant=quant, device="cpu")) as engine:
        engine.load()
        assert engine.generate(ask(temperature=0)).usage.completion_tokens == 20
        assert engine.info().quant == quant


def test_a_model_that_does_not_fit_is_rejected_before_loading(
    tmp_path: Path,
) -> None:
    folder = save_tiny_model(tmp_path / "m")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(
        config.replace('"intermediate_size": 64', '"intermediate_size": 3000000000')
    )
    started = time.monotonic()
    with pytest.raises(OutOfMemoryError, match="GiB free") as caught:
        HFRunner(ModelSpec(str(folder), device="cpu")).load()
    assert "--quant 4bit" in caught.value.hint
    assert time.monotonic() - started < 30


def test_invalid_weights_are_a_load_error(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelLoadError):
        HFRunner(ModelSpec(str(folder), device="cpu")).load()


def test_a_missing_device_is_a_config_error(tiny_folder: Path) -> None:
    with pytest.raises(ConfigError, match="cuda:7"):
        HFRunner(ModelSpec(str(tiny_folder), device="cuda:7")).load()
