"""Requests of several adapters share a batch, and each gets the text PEFT would give it alone."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmctl.engine.hf_runner import HFRunner
from llmctl.errors import ConfigError, EngineStoppedError, RequestError
from llmctl.types import GenerationRequest, ModelSpec, SamplingParams, ScoreRequest
from tests.adapters import save_adapter
from tests.tiny import save_tiny_model

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]
NEW_TOKENS = 12

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("fused", {}),
    "gemma3_text": ("batched", {"sliding_window": 8, "num_hidden_layers": 6}),
    "mamba": ("serial", {"state_size": 4}),
}
LORAS: dict[str, dict[str, dict[str, Any]]] = {
    "mamba": {"a": {"target_modules": ["in_proj"]}, "b": {"target_modules": ["x_proj"], "r": 2}},
    "": {
        "a": {"target_modules": ALL},
        # Ranks and layers of its own, and a scaling by the root of the rank.
        "b": {
            "target_modules": ["q_proj", "v_proj", "up_proj"],
            "r": 3,
            "use_rslora": True,
            "rank_pattern": {"v_proj": 5},
            "alpha_pattern": {"up_proj": 3},
            "layers_to_transform": [1],
        },
    },
}


@pytest.fixture(scope="module", params=MODELS)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    name: str = request.param
    folder = tmp_path_factory.mktemp("base") / name
    return save_tiny_model(folder, model_type=name, **MODELS[name][1])


@pytest.fixture(scope="module")
def loras(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("loras")
    kinds = LORAS.get(base.name, LORAS[""])
    return {
        name: save_adapter(folder / name, base, seed=seed, **config)
        for seed, (name, config) in enumerate(kinds.items())
    }


@pytest.fixture(scope="module")
def engine(base: Path, loras: dict[str, Path]) -> Iterator[HFRunner]:
    with HFRunner(ModelSpec(str(base), dtype="float32", device="cpu")) as engine:
        engine.load()
        for name, path in loras.items():
            engine.load_adapter(name, str(path))
        yield engine


@pytest.fixture
def llama(tiny_folder: Path) -> Iterator[HFRunner]:
    with HFRunner(ModelSpec(str(tiny_folder), dtype="float32", device="cpu")) as engine:
        engine.load()
        yield engine


@pytest.fixture(scope="module")
def llama_loras(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("llama-loras")
    return {
        name: save_adapter(folder / name, tiny_folder, seed=seed, **config)
        for seed, (name, config) in enumerate(LORAS[""].items())
    }


def ask(prompt: str, adapter: str | None = None, **params: Any) -> GenerationRequest:
    options = {"temperature": 0, "max_new_tokens": NEW_TOKENS, "ignore_eos": True} | params
    return GenerationRequest(prompt=prompt, adapter=adapter, sampling=SamplingParams(**options))


def ids_of(engine: HFRunner, requests: list[GenerationRequest]) -> list[list[int]]:
    streams = [engine.submit(request) for request in requests]
    return [
        [entry.chosen.token_id for chunk in stream for entry in chunk.logprobs]
        for stream in streams
    ]


def peft_model(base: Path, lora: Path | None) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return model if lora is None else PeftModel.from_pretrained(model, str(lora)).eval()


def generated(model: Any, base: Path, prompt: str) -> list[int]:
    inputs = AutoTokenizer.from_pretrained(base)(prompt, return_tensors="pt")
    model.generation_config.eos_token_id = None
    output = model.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS)
    ids: list[int] = output[0, inputs.input_ids.shape[1] :].tolist()
    return ids


def test_a_mixed_batch_gives_every_request_what_peft_gives_it_alone(
    engine: HFRunner, base: Path, loras: dict[str, Path]
) -> None:
    assert engine.path == MODELS[base.name][0]
    assert engine.adapters == ("a", "b")
    names = [None, "b", "a", "a", None, "b", "a", None, "b"]
    prompts = ["ab" * (i % 3) + chr(97 + i) * (1 + 9 * (i % 4)) for i in range(len(names))]
    pairs = list(zip(prompts, names, strict=True))
    together = ids_of(engine, [ask(prompt, name, logprobs=0) for prompt, name in pairs])
    models = {name: peft_model(base, loras.get(name or "")) for name in {*names}}
    expected = [generated(models[name], base, prompt) for prompt, name in pairs]
    assert together == expected
    alone = [generated(models[None], base, prompt) for prompt in prompts]
    assert sum(a != b for a, b in zip(alone, expected, strict=True)) >= 4


@pytest.mark.parametrize("continuations", [(" one",), (" one", " another", "x")])
def test_scores_are_those_of_the_adapter(
    engine: HFRunner, base: Path, loras: dict[str, Path], continuations: tuple[str, ...]
) -> None:
    names = [None, "a", "b"]
    scores = engine.score([ScoreRequest("a text", continuations, adapter=n) for n in names])
    tokenizer = AutoTokenizer.from_pretrained(base)
    for name, own in zip(names, scores, strict=True):
        model = peft_model(base, loras.get(name or ""))
        for continuation, score in zip(continuations, own, strict=True):
            ids = tokenizer("a text" + continuation, return_tensors="pt").input_ids
            with torch.inference_mode():
                logprobs = model(input_ids=ids).logits[0].log_softmax(-1)
            tail = len(continuation)
            wanted = logprobs[-tail - 1 : -1].gather(1, ids[0, -tail:, None]).sum()
            assert score.logprob == pytest.approx(float(wanted), rel=1e-3)


def test_what_is_computed_under_an_adapter_is_reused_under_it_alone(
    llama: HFRunner, llama_loras: dict[str, Path]
) -> None:
    for name, path in llama_loras.items():
        llama.load_adapter(name, str(path))

    def cached(adapter: str | None) -> int:
        return llama.generate(ask("the same prompt for all", adapter)).usage.cached_tokens

    assert [cached(name) for name in ("a", "b", None)] == [0, 0, 0]
    assert all(cached(name) > 0 for name in ("a", "b", None))


def test_another_adapter_under_an_old_name_starts_afresh(
    llama: HFRunner, tiny_folder: Path, llama_loras: dict[str, Path]
) -> None:
    llama.load_adapter("x", str(llama_loras["a"]))
    llama.generate(ask("prompt", "x"))
    llama.unload_adapter("x")
    llama.load_adapter("x", str(llama_loras["b"]))
    assert llama.generate(ask("prompt", "x")).usage.cached_tokens == 0
    expected = generated(peft_model(tiny_folder, llama_loras["b"]), tiny_folder, "prompt")
    assert ids_of(llama, [ask("prompt", "x", logprobs=0)]) == [expected]


def test_adapters_come_and_go_while_others_run(
    llama: HFRunner, llama_loras: dict[str, Path]
) -> None:
    before = ids_of(llama, [ask("running", logprobs=0, max_new_tokens=150)])
    stream = llama.submit(ask("running", logprobs=0, max_new_tokens=150))
    for name, path in llama_loras.items():
        llama.load_adapter(name, str(path))
        llama.generate(ask("beside", name))
        llama.unload_adapter(name)
    assert [[e.chosen.token_id for chunk in stream for e in chunk.logprobs]] == before


def test_an_adapter_leaves_when_its_last_request_has_ended(
    llama: HFRunner, tiny_folder: Path, llama_loras: dict[str, Path]
) -> None:
    llama.load_adapter("a", str(llama_loras["a"]))
    expected = generated(peft_model(tiny_folder, llama_loras["a"]), tiny_folder, "long")
    streams = [llama.submit(ask("long", "a", logprobs=0, max_new_tokens=200)) for _ in range(3)]
    llama.unload_adapter("a")
    assert llama.in_flight == 0
    for stream in streams:
        ids = [entry.chosen.token_id for chunk in stream for entry in chunk.logprobs]
        assert len(ids) == 200
        assert ids[:NEW_TOKENS] == expected
    with pytest.raises(RequestError, match=r"'a' does not exist. Loaded: none"):
        llama.submit(ask("again", "a"))


def test_closing_answers_whoever_waits_for_an_adapter_to_leave(
    llama: HFRunner, llama_loras: dict[str, Path]
) -> None:
    llama.load_adapter("a", str(llama_loras["a"]))
    stream = llama.submit(ask("long", "a", max_new_tokens=240))
    next(iter(stream))
    caught: list[BaseException] = []

    def unload() -> None:
        try:
            llama.unload_adapter("a")
        except EngineStoppedError as error:
            caught.append(error)

    waiting = threading.Thread(target=unload)
    waiting.start()
    while llama.adapters:
        waiting.join(0.001)
    llama.close()
    waiting.join(10)
    assert not waiting.is_alive()
    assert len(caught) == 1


def test_names_that_are_unknown_or_taken_are_refused(
    llama: HFRunner, llama_loras: dict[str, Path]
) -> None:
    llama.load_adapter("a", str(llama_loras["a"]))
    with pytest.raises(ConfigError, match="'a' is loaded already"):
        llama.load_adapter("a", str(llama_loras["b"]))
    asked: list[Callable[[], Any]] = [
        lambda: llama.submit(ask("x", "nobody")),
        lambda: llama.score([ScoreRequest("x", ("y",), adapter="nobody")]),
        lambda: llama.unload_adapter("nobody"),
    ]
    for ask_for_nobody in asked:
        with pytest.raises(RequestError, match=r"'nobody' does not exist. Loaded: a") as caught:
            ask_for_nobody()
        assert caught.value.param == "adapter"


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens"),
        ({"bias": "lora_only"}, "biases"),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora'"),
    ],
)
def test_more_than_low_rank_matrices_is_refused_with_the_way_out(
    llama: HFRunner, tiny_folder: Path, tmp_path: Path, config: dict[str, Any], reason: str
) -> None:
    options: dict[str, Any] = {"target_modules": ["q_proj"]} | config
    folder = save_adapter(tmp_path / "lora", tiny_folder, **options)
    with pytest.raises(ConfigError, match=reason) as caught:
        llama.load_adapter("x", str(folder))
    assert "merge" in caught.value.hint
    assert llama.adapters == ()


def test_an_adapter_of_another_model_is_refused(llama: HFRunner, tmp_path: Path) -> None:
    shapes: list[dict[str, Any]] = [{"hidden_size": 64}, {"num_hidden_layers": 4}]
    for at, shape in enumerate(shapes):
        other = save_tiny_model(tmp_path / f"other{at}", **shape)
        folder = save_adapter(tmp_path / f"lora{at}", other, target_modules=["q_proj", "o_proj"])
        with pytest.raises(ConfigError, match=r"on this model|on another model"):
            llama.load_adapter("x", str(folder))
    smaller = save_tiny_model(tmp_path / "smaller", num_hidden_layers=1)
    folder = save_adapter(tmp_path / "lora-smaller", smaller, target_modules=["q_proj"])
    with pytest.raises(ConfigError, match="on another model"):
        llama.load_adapter("x", str(folder))


def test_folders_that_hold_no_adapter_are_refused(
    llama: HFRunner, llama_loras: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"no adapter_config.json"):
        llama.load_adapter("x", str(tmp_path))
    config = json.loads((llama_loras["a"] / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"no adapter_model.safetensors"):
        llama.load_adapter("x", str(tmp_path))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ConfigError, match="cannot put"):
        llama.load_adapter("x", str(tmp_path))
    config["peft_type"] = "IA3"
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError):
        llama.load_adapter("x", str(tmp_path))


def test_the_adapter_of_the_spec_is_under_every_request_that_names_none(
    base: Path, loras: dict[str, Path]
) -> None:
    spec = ModelSpec(str(base), dtype="float32", device="cpu", adapter=str(loras["a"]))
    with HFRunner(spec) as engine:
        engine.load()
        assert engine.path == MODELS[base.name][0]
        assert engine.adapters == ()
        engine.load_adapter("b", str(loras["b"]))
        got = ids_of(engine, [ask("some text", name, logprobs=0) for name in (None, "b", None)])
    a, b = (generated(peft_model(base, loras[name]), base, "some text") for name in "ab")
    assert got == [a, b, a]


@pytest.mark.parametrize("quant", ["4bit", "8bit"])
def test_a_quantised_model_carries_adapters(tmp_path: Path, quant: Any) -> None:
    base = save_tiny_model(tmp_path / "base", hidden_size=64, intermediate_size=128)
    lora = save_adapter(tmp_path / "lora", base, target_modules=ALL[:-1])
    with HFRunner(ModelSpec(str(base), dtype="float32", device="cpu", quant=quant)) as engine:
        engine.load()
        plain = engine.generate(ask("some text")).choices[0].text
        engine.load_adapter("a", str(lora))
        texts = [engine.generate(ask("some text", name)).choices[0].text for name in ("a", None)]
    assert texts[1] == plain != texts[0]


def test_an_adapted_head_counts_among_the_likeliest_tokens_in_bfloat16(
    tiny_folder: Path, llama_loras: dict[str, Path]
) -> None:
    likelihoods = {}
    for dtype in ("float32", "bfloat16"):
        with HFRunner(ModelSpec(str(tiny_folder), dtype=dtype, device="cpu")) as engine:
            engine.load()
            engine.load_adapter("a", str(llama_loras["a"]))
            request = ask("abc", "a", max_new_tokens=1, logprobs=1)
            entry = engine.generate(request).choices[0].logprobs[0]
            likelihoods[dtype] = entry.top[0].token_id, entry.top[0].logprob
    assert likelihoods["bfloat16"] == pytest.approx(likelihoods["float32"], abs=0.1)
