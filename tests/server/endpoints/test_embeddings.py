"""`/v1/embeddings`: unit vectors that do not depend on the batch."""

from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch
from transformers import AutoModelForCausalLM

from llmctl.engine.hf_runner import HFRunner
from llmctl.types import ModelSpec
from tests.server.servers import error_body, running_server, send_request
from tests.tiny import save_tiny_model


@pytest.fixture(scope="module", params=["llama", "gpt_neox", "mamba"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> HFRunner:
    more: dict[str, Any] = {
        "gpt_neox": {"num_key_value_heads": 4},
        "mamba": {"state_size": 4},
    }.get(request.param, {})
    folder = save_tiny_model(
        tmp_path_factory.mktemp("models") / "m", model_type=request.param, **more
    )
    engine = HFRunner(ModelSpec(str(folder), device="cpu", dtype="float32"))
    engine.load()
    return engine


def test_a_vector_is_the_mean_of_the_last_hidden_states(engine: HFRunner) -> None:
    texts = ["hello", "a somewhat longer text", "hello"]
    model = AutoModelForCausalLM.from_pretrained(engine.spec.model, dtype=torch.float32)
    for text, vector in zip(texts, engine.embed(texts), strict=True):
        with torch.inference_mode():
            ids = torch.tensor([engine.tokenize(text)])
            states = model.base_model(ids).last_hidden_state[0].mean(0)
        expected = (states / states.norm()).tolist()
        assert vector == pytest.approx(expected, abs=1e-4)


def test_formats_and_dimensions(tiny_folder: Path) -> None:
    with HFRunner(ModelSpec(str(tiny_folder), device="cpu", dtype="float32")) as engine:
        engine.load()
        model = engine.info().model_id
        with (
            running_server(engine) as url,
            openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
        ):
            # The client requests base64 by default.
            packed = client.embeddings.create(model=model, input=["ab", "c"])
            plain = client.embeddings.create(model=model, input="ab", encoding_format="float")
            short = client.embeddings.create(model=model, input="ab", dimensions=4)
            many = client.embeddings.create(model=model, input=["c"] * 300)
        assert packed.usage.prompt_tokens == 3
        assert packed.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-6)
        assert len(many.data) == 300
        assert np.linalg.norm(short.data[0].embedding) == pytest.approx(1, abs=1e-5)
        assert len(short.data[0].embedding) == 4


def test_a_text_that_cannot_be_embedded_is_refused(tiny: HFRunner) -> None:
    model = tiny.info().model_id
    for body, param in (
        ({"input": ""}, "input"),
        ({"input": "x" * 5000}, "input"),
        ({"input": "x", "dimensions": 5000}, "dimensions"),
    ):
        reply = send_request(tiny, "POST", "/v1/embeddings", json={"model": model} | body)
        assert reply.status_code == 400
        assert error_body(reply)["param"] == param
