"""Saved random adapters, strong enough to change every text."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmctl.engine.chat.template import ChatTemplate
from llmctl.engine.models import resolve
from llmctl.engine.models.provenance import BaseModelRef, Provenance
from llmctl.types import DatasetRef

DATA = DatasetRef("manners.jsonl", "/somewhere/manners.jsonl", "ab" * 32, 200, "messages")


def save_adapter(
    folder: Path, base: Path, seed: int = 1, strength: float = 0.5, **config: Any
) -> Path:
    """Save an adapter in PEFT's format, without other files."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    options: dict[str, Any] = {"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM"}
    adapted = get_peft_model(model, LoraConfig(**(options | config)))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                parameter.normal_(std=strength)
            elif "magnitude" in name or "modules_to_save" in name:
                parameter.mul_(1 + strength * torch.rand_like(parameter))
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def save_trained_adapter(
    folder: Path, base: Path, model_id: str | None = None, **options: Any
) -> Path:
    """Save an adapter with the tokenizer and metadata that `llmctl finetune` saves with it."""
    save_adapter(folder, base, **options)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.save_pretrained(folder)
    Provenance(
        base=BaseModelRef.of(resolve.resolve_model(str(base))),
        template=ChatTemplate.of(tokenizer).fingerprint,
        method="lora",
        hyperparameters={"rank": 4, "learning_rate": 2e-4},
        data=DATA,
        run_id="5eed",
        model_id=model_id,
    ).write(folder)
    return folder
