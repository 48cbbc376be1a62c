"""Tests of the default model in the user's store, from its real source."""

import json
import math
from typing import Any

import pytest

from llmctl.config import DEFAULT_MODEL
from llmctl.engine.models.catalog import CATALOG
from llmctl.engine.models.resolve import resolve_model
from llmctl.engine.models.resolved import ResolvedModel
from llmctl.engine.models.store import Manifest
from llmctl.services import models

pytestmark = pytest.mark.real_model


@pytest.fixture(scope="module")
def resolved() -> ResolvedModel:
    return resolve_model(DEFAULT_MODEL)


def test_the_manifest_names_the_source(resolved: ResolvedModel) -> None:
    if resolved.source != "package-index":
        pytest.skip("this machine has it from the hub")
    manifest = Manifest.read(resolved.path)
    wheel = CATALOG[0].wheel
    assert manifest is not None
    assert wheel is not None
    assert (manifest.name, manifest.repo) == (DEFAULT_MODEL, CATALOG[0].repo)
    assert (manifest.revision, manifest.sha256) == (wheel.requirement, wheel.sha256)
    assert manifest.licence == "Apache-2.0"
    assert manifest.bytes == sum(manifest.files.values()) > CATALOG[0].weight_bytes


def test_the_metadata_equals_that_of_the_catalogue(resolved: ResolvedModel) -> None:
    info = models.show(resolved.model_id)
    assert info.state == "downloaded"
    assert (info.parameters, info.linear_parameters) == (
        CATALOG[0].parameters,
        CATALOG[0].linear_parameters,
    )
    assert (info.context_length, info.vocab_size) == (8192, 49152)


def test_the_tokenizer_and_template_are_those_of_the_model(resolved: ResolvedModel) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(resolved.path)
    special = tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token
    assert special == ("<|im_start|>", "<|im_end|>", "<|im_end|>", "<|endoftext|>")
    assert tokenizer.eos_token_id == 2
    assert json.loads((resolved.path / "generation_config.json").read_text())["eos_token_id"] == 2
    assert tokenizer.model_max_length == 8192
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer("hi")["input_ids"] == tokenizer("hi", add_special_tokens=False)["input_ids"]
    # Each digit alone, and set apart before words are.
    assert tokenizer.tokenize("in  2024") == ["in", "ĠĠ", "2", "0", "2", "4"]


def test_the_converted_weights_predict_english_text(reference_smollm: tuple[Any, Any]) -> None:
    import torch

    model, tokenizer = reference_smollm
    text = (
        "The Pythagorean theorem states that in a right triangle, the square of the length of the "
        "hypotenuse is equal to the sum of the squares of the lengths of the other two sides."
    )
    ids = tokenizer(text, return_tensors="pt").input_ids
    with torch.inference_mode():
        loss = model(ids, labels=ids).loss.item()
    # Measured: 2.3. With the rotary halves of each head in the other order: 11.
    assert math.exp(loss) < 4
