"""The model specification of each command's config."""

from dataclasses import fields
from typing import Any

import pytest

from llmctl.config import EvalConfig, ServeConfig, TrainConfig
from llmctl.config.chat import ChatConfig
from llmctl.config.data import CheckConfig, ShowConfig
from llmctl.config.model import LOAD_OPTIONS, ModelConfig
from llmctl.errors import ConfigError
from llmctl.types import MemoryLimits, ModelSpec

LOADED: dict[str, Any] = {
    "model": "owner/name",
    "quant": "4bit",
    "device": "cpu",
    "dtype": "bfloat16",
    "chat_template": "chat.jinja",
    "trust_remote_code": True,
    "allow_pickle": True,
}
PARSERS = {"tool_call_parser": "hermes", "reasoning_parser": "deepseek_r1"}


@pytest.mark.parametrize(
    ("config", "more"),
    [
        (ModelConfig, {"adapter": "lora"}),
        (ChatConfig, {"adapter": "lora", **PARSERS}),
        (EvalConfig, {"adapter": "lora", "dataset": ("ceval",)}),
        (TrainConfig, {"data": ("rows.jsonl",), "output": "out", "method": "qlora"}),
    ],
)
def test_every_setting_of_the_model_is_in_its_specification(
    config: type[Any], more: dict[str, Any]
) -> None:
    assert {*LOADED, *PARSERS, "adapter"} == {"model", *LOAD_OPTIONS}
    named = {name: more[name] for name in LOAD_OPTIONS & more.keys()}
    assert config(**LOADED, **more).model_spec() == ModelSpec(**LOADED, **named)


def test_a_server_adds_its_limits_and_unnamed_adapter() -> None:
    config = ServeConfig(**LOADED, adapter=("a=one", "two"), context_length=512, max_rows=3)
    limits = MemoryLimits(context_length=512, max_rows=3)
    assert config.model_spec() == ModelSpec(**LOADED, adapter="two", limits=limits)


def test_training_quantizes_the_weights_as_its_method_says() -> None:
    lora, qlora = (
        TrainConfig(data=("rows.jsonl",), output="out", method=method).model_spec().quant
        for method in ("lora", "qlora")
    )
    assert (lora, qlora) == ("none", "4bit")


def test_tokenizer_commands_load_no_weights_settings() -> None:
    names = {field.name for field in fields(CheckConfig)} & {"quant", "device", "dtype"}
    assert names == set()
    config = CheckConfig(model="m", chat_template="t.jinja", trust_remote_code=True)
    expected = ModelSpec("m", chat_template="t.jinja", trust_remote_code=True)
    assert (
        config.model_spec()
        == ShowConfig(model="m", chat_template="t.jinja", trust_remote_code=True).model_spec()
        == expected
    )
    assert CheckConfig().model_spec() is None
    with pytest.raises(ConfigError, match="need a model"):
        CheckConfig(trust_remote_code=True).model_spec()
