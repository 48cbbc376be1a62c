"""Fused LoRA and CPU attention have the results and gradients of PEFT and SDPA."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llmctl.train.kernels import attention
from llmctl.train.kernels.lora import use_fused_lora
from tests.tiny import save_tiny_model


def adapted(folder: Path, *, attn: str = "sdpa", **options: Any) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attn
    )
    config: Any = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | options
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **config)).train()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.1, generator=generator)
    return model


def loss_and_gradients(model: Any, **inputs: Any) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(0)
    ids = torch.randint(0, 256, (3, 24))
    loss = model(input_ids=ids, labels=ids, **inputs).loss
    model.zero_grad()
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters() if p.grad is not None]


def assert_same(model: Any, other: Any, **inputs: Any) -> None:
    loss, gradients = loss_and_gradients(model, **inputs)
    expected, others = loss_and_gradients(other, **inputs)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    assert gradients
    for ours, theirs in zip(gradients, others, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"target_modules": ["q_proj"]}])
@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_fused_lora_has_the_gradients_of_peft(
    tmp_path: Path, model_type: str, options: dict[str, Any]
) -> None:
    folder = save_tiny_model(tmp_path, model_type=model_type)
    model = adapted(folder, **options)
    assert use_fused_lora(model)
    assert_same(model, adapted(folder, **options))


def test_dora_and_dropout_are_not_fused(tiny_folder: Path) -> None:
    assert not use_fused_lora(adapted(tiny_folder, use_dora=True))
    assert not use_fused_lora(adapted(tiny_folder, lora_dropout=0.5))


def test_a_disabled_adapter_has_no_effect(tiny_folder: Path) -> None:
    model = adapted(tiny_folder)
    use_fused_lora(model)
    ids = torch.arange(9)[None]
    with model.disable_adapter():
        off = model(input_ids=ids).logits
    on = model(input_ids=ids).logits
    assert not torch.allclose(on, off)
    assert torch.equal(off, model.unload()(input_ids=ids).logits)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_cpu_attention_has_the_gradients_of_sdpa(tmp_path: Path, model_type: str) -> None:
    folder = save_tiny_model(tmp_path, model_type=model_type)
    assert_same(adapted(folder, attn=attention.register()), adapted(folder))


def test_cpu_attention_isolates_packed_samples(tiny_folder: Path) -> None:
    positions = torch.cat([torch.arange(10), torch.arange(14)]).expand(3, -1)
    own, expected = adapted(tiny_folder, attn=attention.register()), adapted(tiny_folder)
    assert_same(own, expected, position_ids=positions, use_cache=False)


def test_cpu_attention_handles_padding_like_sdpa(tiny_folder: Path) -> None:
    mask = torch.ones(3, 24, dtype=torch.long)
    mask[1, :9] = 0
    own, expected = adapted(tiny_folder, attn=attention.register()), adapted(tiny_folder)
    assert_same(own, expected, attention_mask=mask)
