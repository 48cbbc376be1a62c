"""LoRA adapters in a batch, compared with PEFT on each request alone."""

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
    "mamba": ("batched", {"state_size": 4}),
}
LORAS: dict[str, dict[str, dict[str, Any]]] = {
    "mamba": {"a": {"target_modules": ["in_proj"]}, "b": {"target_modules": ["x_proj"], "r": 2}},
    "": {
        "a": {"target_modules": ALL},
        # Different ranks and layers, and scaling by the square root of the rank.
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


@pytest.fixture(scope="module")
def llama_engine(tiny_folder: Path) -> Iterator[HFRunner]:
    with HFRunner(ModelSpec(str(tiny_folder), dtype="float32", device="cpu")) as engine:
        engine.load()
        yield engine


@pytest.fixture
def llama(llama_engine: HFRunner) -> Iterator[HFRunner]:
    """The engine of the module, without any adapter before and after a test."""
    yield llama_engine
    for name in llama_engine.adapters:
        llama_engine.begin_unload_adapter(name).result()


@pytest.fixture(scope="module")
def llama_loras(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("llama-loras")
    return {
        name: save_adapter(folder / name, tiny_folder, seed=seed, **config)
        for seed, (name, config) in enumerate(LORAS[""].items())
    }


def greedy(prompt: str, adapter: str | None = None, **params: Any) -> GenerationRequest:
    options = {"temperature": 0, "max_new_tokens": NEW_TOKENS, "ignore_eos": True} | params
    return GenerationRequest(prompt=prompt, adapter=adapter, sampling=SamplingParams(**options))


def ids_of(engine: HFRunner, requests: list[GenerationRequest]) -> list[list[int]]:
    streams = [engine.submit(request) for request in requests]
    return [
        [entry.chosen.token_id for chunk in stream for entry in chunk.logprobs]
        for stream in streams
    ]


class PeftReference:
    """The models of PEFT for the adapters of one base model, loaded once."""

    def __init__(self, base: Path, loras: dict[str, Path]) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self._base = base
        self._loras = loras
        self._models: dict[str | None, Any] = {}

    def model(self, adapter: str | None) -> Any:
        """Return the model with an adapter, or without one."""
        if adapter not in self._models:
            model: Any = AutoModelForCausalLM.from_pretrained(self._base, dtype=torch.float32)
            if adapter is not None:
                model = PeftModel.from_pretrained(model, str(self._loras[adapter])).eval()
            model.generation_config.eos_token_id = None
            self._models[adapter] = model
        return self._models[adapter]

    def generate(self, prompt: str, adapter: str | None) -> list[int]:
        """Return the ids of a greedy reply."""
        inputs = self.tokenizer(prompt, return_tensors="pt")
        output = self.model(adapter).generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS)
        ids: list[int] = output[0, inputs.input_ids.shape[1] :].tolist()
        return ids


@pytest.fixture(scope="module")
def reference(base: Path, loras: dict[str, Path]) -> PeftReference:
    return PeftReference(base, loras)


@pytest.fixture(scope="module")
def llama_reference(tiny_folder: Path, llama_loras: dict[str, Path]) -> PeftReference:
    return PeftReference(tiny_folder, llama_loras)


@pytest.mark.slow
def test_a_mixed_batch_equals_peft_for_every_request(
    engine: HFRunner, base: Path, reference: PeftReference
) -> None:
    assert engine.path == MODELS[base.name][0]
    assert engine.adapters == ("a", "b")
    names = [None, "b", "a", "a", None, "b", "a", None, "b"]
    prompts = ["ab" * (i % 3) + chr(97 + i) * (1 + 9 * (i % 4)) for i in range(len(names))]
    pairs = list(zip(prompts, names, strict=True))
    together = ids_of(engine, [greedy(prompt, name, logprobs=0) for prompt, name in pairs])
    expected = [reference.generate(prompt, name) for prompt, name in pairs]
    assert together == expected
    plain = [reference.generate(prompt, None) for prompt in prompts]
    assert sum(a != b for a, b in zip(plain, expected, strict=True)) >= 4


@pytest.mark.parametrize("continuations", [(" one",), (" one", " another", "x")])
def test_scores_equal_those_of_peft(
    engine: HFRunner, reference: PeftReference, continuations: tuple[str, ...]
) -> None:
    names = [None, "a", "b"]
    scores = engine.score([ScoreRequest("a text", continuations, adapter=n) for n in names])
    for name, own in zip(names, scores, strict=True):
        model = reference.model(name)
        for continuation, score in zip(continuations, own, strict=True):
            ids = reference.tokenizer("a text" + continuation, return_tensors="pt").input_ids
            with torch.inference_mode():
                logprobs = model(input_ids=ids).logits[0].log_softmax(-1)
            tail = len(continuation)
            wanted = logprobs[-tail - 1 : -1].gather(1, ids[0, -tail:, None]).sum()
            assert score.logprob == pytest.approx(float(wanted), rel=1e-3)


def test_a_prefix_is_reused_under_its_adapter_only(
    llama: HFRunner, llama_loras: dict[str, Path]
) -> None:
    for name, path in llama_loras.items():
        llama.load_adapter(name, str(path))

    def cached(adapter: str | None) -> int:
        return llama.generate(greedy("# a prompt of no other test", adapter)).usage.cached_tokens

    assert [cached(name) for name in ("a", "b", None)] == [0, 0, 0]
    assert all(cached(name) > 0 for name in ("a", "b", None))


def test_a_new_adapter_under_an_old_name_reuses_nothing(
    llama: HFRunner, llama_reference: PeftReference, llama_loras: dict[str, Path]
) -> None:
    llama.load_adapter("x", str(llama_loras["a"]))
    llama.generate(greedy("prompt", "x"))
    llama.begin_unload_adapter("x").result()
    llama.load_adapter("x", str(llama_loras["b"]))
    assert llama.generate(greedy("prompt", "x")).usage.cached_tokens == 0
    expected = llama_reference.generate("prompt", "b")
    assert ids_of(llama, [greedy("prompt", "x", logprobs=0)]) == [expected]


def test_adapters_are_loaded_and_unloaded_while_requests_run(
    llama: HFRunner, llama_loras: dict[str, Path]
) -> None:
    before = ids_of(llama, [greedy("running", logprobs=0, max_new_tokens=150)])
    stream = llama.submit(greedy("running", logprobs=0, max_new_tokens=150))
    for name, path in llama_loras.items():
        llama.load_adapter(name, str(path))
        llama.generate(greedy("beside", name))
        llama.begin_unload_adapter(name).result()
    assert [[e.chosen.token_id for chunk in stream for e in chunk.logprobs]] == before


def test_an_adapter_is_removed_after_its_last_request(
    llama: HFRunner, llama_reference: PeftReference, llama_loras: dict[str, Path]
) -> None:
    llama.load_adapter("a", str(llama_loras["a"]))
    expected = llama_reference.generate("long", "a")
    streams = [llama.submit(greedy("long", "a", logprobs=0, max_new_tokens=200)) for _ in range(3)]
    llama.begin_unload_adapter("a").result()
    assert llama.in_flight == 0
    for stream in streams:
        ids = [entry.chosen.token_id for chunk in stream for entry in chunk.logprobs]
        assert len(ids) == 200
        assert ids[:NEW_TOKENS] == expected
    with pytest.raises(RequestError, match=r"'a' does not exist. Loaded: none"):
        llama.submit(greedy("again", "a"))


def test_closing_ends_a_pending_unload_with_an_error(
    tiny_folder: Path, llama_loras: dict[str, Path]
) -> None:
    engine = HFRunner(ModelSpec(str(tiny_folder), dtype="float32", device="cpu"))
    engine.load()
    engine.load_adapter("a", str(llama_loras["a"]))
    stream = engine.submit(greedy("long", "a", max_new_tokens=240))
    next(iter(stream))
    caught: list[BaseException] = []

    def unload() -> None:
        try:
            engine.begin_unload_adapter("a").result()
        except EngineStoppedError as error:
            caught.append(error)

    waiting = threading.Thread(target=unload)
    waiting.start()
    while engine.adapters:
        waiting.join(0.001)
    engine.close()
    waiting.join(10)
    assert not waiting.is_alive()
    assert len(caught) == 1


def test_unknown_and_duplicate_adapter_names_are_refused(
    llama: HFRunner, llama_loras: dict[str, Path]
) -> None:
    llama.load_adapter("a", str(llama_loras["a"]))
    with pytest.raises(ConfigError, match="'a' is already loaded"):
        llama.load_adapter("a", str(llama_loras["b"]))
    calls: list[Callable[[], Any]] = [
        lambda: llama.submit(greedy("x", "unknown")),
        lambda: llama.score([ScoreRequest("x", ("y",), adapter="unknown")]),
        lambda: llama.begin_unload_adapter("unknown").result(),
    ]
    for call in calls:
        with pytest.raises(RequestError, match=r"'unknown' does not exist. Loaded: a") as caught:
            call()
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
def test_adapters_beyond_plain_lora_are_refused_with_a_hint(
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
        with pytest.raises(ConfigError, match=r"to this model|on another model"):
            llama.load_adapter("x", str(folder))
    smaller = save_tiny_model(tmp_path / "smaller", num_hidden_layers=1)
    folder = save_adapter(tmp_path / "lora-smaller", smaller, target_modules=["q_proj"])
    with pytest.raises(ConfigError, match="on another model"):
        llama.load_adapter("x", str(folder))


def test_folders_without_an_adapter_are_refused(
    llama: HFRunner, llama_loras: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"no adapter_config.json"):
        llama.load_adapter("x", str(tmp_path))
    config = json.loads((llama_loras["a"] / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"no adapter_model.safetensors"):
        llama.load_adapter("x", str(tmp_path))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ConfigError, match="cannot load the adapter"):
        llama.load_adapter("x", str(tmp_path))
    config["peft_type"] = "IA3"
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError):
        llama.load_adapter("x", str(tmp_path))


@pytest.mark.slow
def test_the_adapter_of_the_spec_applies_to_requests_without_an_adapter(
    base: Path, loras: dict[str, Path], reference: PeftReference
) -> None:
    spec = ModelSpec(str(base), dtype="float32", device="cpu", adapter=str(loras["a"]))
    with HFRunner(spec) as engine:
        engine.load()
        assert engine.path == MODELS[base.name][0]
        assert engine.adapters == ()
        engine.load_adapter("b", str(loras["b"]))
        got = ids_of(engine, [greedy("some text", name, logprobs=0) for name in (None, "b", None)])
    a, b = (reference.generate("some text", name) for name in "ab")
    assert got == [a, b, a]


@pytest.mark.parametrize("quant", ["4bit", "8bit"])
def test_a_quantised_model_supports_adapters(tmp_path: Path, quant: Any) -> None:
    base = save_tiny_model(tmp_path / "base", hidden_size=64, intermediate_size=128)
    lora = save_adapter(tmp_path / "lora", base, target_modules=ALL[:-1])
    with HFRunner(ModelSpec(str(base), dtype="float32", device="cpu", quant=quant)) as engine:
        engine.load()
        plain = engine.generate(greedy("some text")).choices[0].text
        engine.load_adapter("a", str(lora))
        texts = [engine.generate(greedy("some text", name)).choices[0].text for name in ("a", None)]
    assert texts[1] == plain != texts[0]


def test_refined_bfloat16_logits_include_an_adapted_head(
    llama: HFRunner, tiny_folder: Path, llama_loras: dict[str, Path]
) -> None:
    def likeliest(engine: HFRunner) -> tuple[int, float]:
        engine.load_adapter("a", str(llama_loras["a"]))
        request = greedy("abc", "a", max_new_tokens=1, logprobs=1)
        entry = engine.generate(request).choices[0].logprobs[0]
        return entry.top[0].token_id, entry.top[0].logprob

    with HFRunner(ModelSpec(str(tiny_folder), dtype="bfloat16", device="cpu")) as engine:
        engine.load()
        assert likeliest(engine) == pytest.approx(likeliest(llama), abs=0.1)
