"""Adapters of every kind have PEFT's numbers when served and when merged, or are refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llmctl.engine.hf_runner import HFRunner
from llmctl.engine.loading.adapters import unsupported_per_request
from llmctl.errors import ConfigError
from llmctl.types import GenerationRequest, ModelSpec, SamplingParams
from tests.adapter_kinds import LORA, logprobs, merged, save, served
from tests.compat.architectures import build
from tests.tiny import byte_tokenizer, save_tiny_model

REFUSED = {"init: pissa_niter_4": "from random numbers"}
NOT_MERGED = {"lora_bias": "has biases"}
GROWN = "grown vocabulary, modules_to_save"
ALWAYS_TESTED = {"embed_tokens", "lm_head", GROWN, "layer_replication"}


@pytest.fixture(scope="module", params=["tied", "untied"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / request.param
    return save_tiny_model(folder, tie_word_embeddings=request.param == "tied")


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[] if kind in ALWAYS_TESTED else [pytest.mark.slow])
        for kind in LORA
        if kind not in REFUSED
    ],
)
def test_an_adapter_has_the_numbers_of_peft(base: Path, kind: str, tmp_path: Path) -> None:
    expected = save(kind, base, tmp_path / "adapter")
    assert served(base, tmp_path / "adapter") == pytest.approx(expected, abs=1e-4)
    if kind in NOT_MERGED:
        with pytest.raises(ConfigError, match=NOT_MERGED[kind]):
            merged(base, tmp_path / "adapter", tmp_path / "merged")
    else:
        assert merged(base, tmp_path / "adapter", tmp_path / "merged") == pytest.approx(
            expected, abs=1e-4
        )


@pytest.mark.parametrize("kind", [*REFUSED, "IA3", "prompt tuning"])
def test_an_adapter_without_a_meaning_here_is_refused(
    base: Path, kind: str, tmp_path: Path
) -> None:
    save(kind, base, tmp_path / "adapter")
    with pytest.raises(ConfigError, match=REFUSED.get(kind, "only LoRA adapters")) as caught:
        served(base, tmp_path / "adapter")
    assert "save_pretrained" in str(caught.value.hint)


def test_repeated_layers_generate_the_same_text_with_a_cache(base: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    save("layer_replication", base, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    peft_model = PeftModel.from_pretrained(model, str(tmp_path)).eval()
    ids = torch.tensor([[72, 101, 108, 108]])
    with torch.inference_mode():
        for _ in range(12):  # without a cache
            following = peft_model(ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat([ids, following], dim=1)
    spec = ModelSpec(str(base), adapter=str(tmp_path), device="cpu", dtype="float32")
    with HFRunner(spec) as engine:
        engine.load()
        sampling = SamplingParams(temperature=0, max_new_tokens=12, ignore_eos=True, logprobs=0)
        prompt = tuple(ids[0, :4].tolist())
        stream = engine.submit(GenerationRequest(prompt=prompt, sampling=sampling))
        found = [entry.chosen.token_id for chunk in stream for entry in chunk.logprobs]
    assert found == ids[0, 4:].tolist()


def test_an_adapter_brings_its_own_tokenizer_and_template(base: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from llmctl.engine.loading.load import load_model

    save(GROWN, base, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.chat_template = "{{ messages[0]['content'] }}<a>"
    tokenizer.save_pretrained(tmp_path)
    loaded = load_model(ModelSpec(str(base), adapter=str(tmp_path), device="cpu", dtype="float32"))
    assert len(loaded.tokenizer("<a>").input_ids) == 1
    assert (
        loaded.info.template_fingerprint
        != load_model(ModelSpec(str(base), device="cpu", dtype="float32")).info.template_fingerprint
    )


@pytest.mark.slow
def test_an_adapter_of_single_experts_is_added_to_the_fused_ones(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    model = build("qwen3_moe")
    model.save_pretrained(base)
    byte_tokenizer().save_pretrained(base)
    weights, parameters = {}, dict(model.named_parameters())
    torch.manual_seed(1)
    for layer in range(model.config.num_hidden_layers):
        experts = f"model.layers.{layer}.mlp.experts"
        down = parameters[f"{experts}.down_proj"].data
        width = down.shape[-1]
        gate, up = parameters[f"{experts}.gate_up_proj"].data.split(width, dim=1)
        for name, matrices in (("gate_proj", gate), ("up_proj", up), ("down_proj", down)):
            for number, matrix in enumerate(matrices):
                first, second = 0.3 * torch.randn(4, matrix.shape[1]), torch.randn(len(matrix), 4)
                matrix += 2 * second @ first  # with the scaling, alpha / r
                key = f"base_model.model.{experts}.{number}.{name}"
                weights[f"{key}.lora_A.weight"] = first
                weights[f"{key}.lora_B.weight"] = second
    adapter.mkdir()
    save_file(weights, adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8}
    targets = ["gate_proj", "up_proj", "down_proj"]
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"target_modules": targets}))
    expected = logprobs(model)
    assert served(base, adapter) == pytest.approx(expected, abs=1e-4)
    assert merged(base, adapter, tmp_path / "merged") == pytest.approx(expected, abs=1e-4)


def test_patterns_that_match_the_same_layer_are_logged(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save("linear layers", base, tmp_path)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    config["alpha_pattern"] = {"layers.0.self_attn.q_proj": 4, "q_proj": 16, "v_proj": 2}
    path.write_text(json.dumps(config))
    assert unsupported_per_request(str(tmp_path)) is None
    (record,) = caplog.records
    assert "'q_proj' and 'layers.0.self_attn.q_proj' of alpha_pattern" in record.getMessage()
