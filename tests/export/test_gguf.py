"""GGUF export: the file is read back as the same model, and unsupported models are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
)

from llmctl.engine.hf_runner import HFRunner
from llmctl.engine.loading.gguf.pre_tokenizers import PRE_TOKENIZERS
from llmctl.engine.loading.gguf.tokenizer import end_token_ids, read_tokenizer
from llmctl.errors import UnsupportedError
from llmctl.export.gguf import check_gguf_supported, write_gguf
from llmctl.export.ollama import write_modelfile
from llmctl.types import GenerationRequest, Message, ModelSpec, SamplingParams
from tests.tiny import CHATML, save_gguf_model, save_tiny_model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"tie_word_embeddings": False, "rope_theta": 5000.0}),
        ("qwen2", {}),
        # Transformers does not read the size of a head from a Qwen3 file, and takes 128.
        ("qwen3", {"head_dim": 128}),
        ("gemma3_text", {"sliding_window": 4, "num_hidden_layers": 6, "head_dim": 256}),
    ],
)
def test_the_file_gives_the_logits_tokens_and_template_of_the_folder(
    tmp_path: Path, kind: str, shape: dict[str, Any]
) -> None:
    folder = save_gguf_model(tmp_path / "tiny", kind, **shape)
    file = folder / "tiny.gguf"
    stages = set()
    write_gguf(folder, file, lambda progress: stages.add(progress.stage))
    assert stages == {"writing tiny.gguf", "reading tiny.gguf back"}
    ids = torch.tensor([[3, 77, 150, 290, 9]])
    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.float32)
    own = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.testing.assert_close(read(ids).logits, own(ids).logits, atol=1e-4, rtol=1e-4)
    fields = GGUFReader(file).fields
    assert fields["tokenizer.chat_template"].contents() == CHATML
    pre = {"llama": "smollm", "gemma3_text": "default"}.get(kind, "qwen2")
    assert fields["tokenizer.ggml.pre"].contents() == pre
    assert fields["tokenizer.ggml.eos_token_id"].contents() == 1
    with HFRunner(ModelSpec(str(file), device="cpu")) as engine:
        engine.load()
        tokens = AutoTokenizer.from_pretrained(folder)("it's 12 hellos").input_ids
        assert engine.count_tokens("it's 12 hellos") == len(tokens)
        request = GenerationRequest(
            (Message("user", "hello"),), sampling=SamplingParams(max_new_tokens=4)
        )
        assert engine.generate(request).choices


@pytest.mark.slow
def test_end_tokens_templates_and_unmerged_tokens_are_written_and_read_back(
    tmp_path: Path,
) -> None:
    folder = save_gguf_model(tmp_path / "tiny", "llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = {"default": CHATML, "tool_use": CHATML + "{{ tools }}"}
    PRE_TOKENIZERS["llama-bpe"].apply(tokenizer.backend_tokenizer)
    tokenizer.save_pretrained(folder)
    GenerationConfig(eos_token_id=[1, 2, 0]).save_pretrained(folder)
    file = folder / "tiny.gguf"
    write_gguf(folder, file)
    fields = GGUFReader(file).fields
    written = [
        fields[f"tokenizer.{name}"].contents()
        for name in ("ggml.pre", "ggml.eos_token_id", "ggml.eot_token_id", "ggml.eom_token_id")
    ]
    assert written == ["llama-bpe", 1, 2, 0]
    assert end_token_ids(file) >= {0, 1, 2}
    read = read_tokenizer(file)
    assert read.chat_template == tokenizer.chat_template
    text = "It's 2024, hello  world\n\n"
    assert read(text).input_ids == tokenizer(text).input_ids


@pytest.mark.slow
def test_more_end_tokens_than_the_format_has_are_refused(tmp_path: Path) -> None:
    folder = save_gguf_model(tmp_path / "tiny", "llama")
    GenerationConfig(eos_token_id=[1, 50, 51, 52]).save_pretrained(folder)
    with pytest.raises(UnsupportedError, match="no key for all tokens that end its replies"):
        write_gguf(folder, folder / "tiny.gguf")


@pytest.mark.parametrize(
    ("kind", "shape", "reason"),
    [
        ("olmo2", {}, "the architecture olmo2 is not one of"),
        ("gemma3_text", {"layer_types": ["full_attention"] * 2}, "its layer types is"),
        (
            "gemma3_text",
            {"head_dim": 256, "final_logit_softcapping": 30.0},
            "its limit of logits is 30",
        ),
        ("mistral", {"sliding_window": 32}, "sliding window attention"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "RoPE scaling",
        ),
    ],
)
def test_an_unsupported_model_is_refused_before_anything_is_written(
    tmp_path: Path, kind: str, shape: dict[str, Any], reason: str
) -> None:
    folder = save_gguf_model(tmp_path / "tiny", kind, **shape)
    with pytest.raises(UnsupportedError, match=reason) as caught:
        check_gguf_supported(folder)
    assert "convert_hf_to_gguf.py" in caught.value.hint


def test_an_unknown_pre_tokenizer_is_refused(tiny_folder: Path) -> None:
    with pytest.raises(UnsupportedError, match="pre-tokenizer has no known name"):
        check_gguf_supported(tiny_folder)


def test_a_file_that_cannot_be_read_back_is_deleted(tmp_path: Path) -> None:
    folder = save_gguf_model(tmp_path / "tiny", "qwen3", head_dim=8)
    with pytest.raises(UnsupportedError, match="read back"):
        write_gguf(folder, folder / "tiny.gguf")
    assert not (folder / "tiny.gguf").exists()


def test_a_modelfile_has_the_template_in_the_syntax_of_ollama(tmp_path: Path) -> None:
    default = (
        "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind<|im_end|>\n{% endif %}"
    )
    folder = save_tiny_model(
        tmp_path / "Bot",
        chat_template=default + CHATML,
        generation={"do_sample": True, "temperature": 0.3, "repetition_penalty": 1.1},
    )
    write_modelfile(folder, "Bot.gguf")
    assert (folder / "Modelfile").read_text().splitlines() == [
        "# ollama create bot -f Modelfile",
        "# ollama create bot -f Modelfile --quantize q4_K_M   is a quarter of the size",
        "FROM ./Bot.gguf",
        'TEMPLATE """{{- range .Messages }}<|im_start|>{{ .Role }}',
        "{{ .Content }}<|im_end|>",
        "{{ end }}<|im_start|>assistant",
        '"""',
        'SYSTEM """Be kind"""',
        'PARAMETER stop "<|im_end|>"',
        "PARAMETER temperature 0.3",
        "PARAMETER repeat_penalty 1.1",
    ]


@pytest.mark.parametrize(
    "template",
    [CHATML.replace("<|im_start|>", "<|turn|>"), CHATML + "{% if tools %}{{ tools }}{% endif %}"],
)
def test_a_template_that_is_not_plain_chatml_is_left_to_ollama(
    tmp_path: Path, template: str
) -> None:
    folder = save_tiny_model(tmp_path / "bot", chat_template=template)
    write_modelfile(folder, None)
    text = (folder / "Modelfile").read_text()
    assert "FROM ." in text.splitlines()
    assert "TEMPLATE" not in text
    assert "# The chat template is not plain ChatML" in text
