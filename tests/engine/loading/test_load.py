"""Models of a kind that the engine does not run."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from transformers import AutoConfig

from llmctl.engine.loading.load import load_model, path_from_files
from llmctl.errors import ModelLoadError
from llmctl.types import ModelSpec
from tests.tiny import save_tiny_model


@pytest.mark.parametrize("model_type", ["t5", "bart"])
def test_encoder_decoders_are_refused_with_a_way_out(model_type: str, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "m")
    AutoConfig.for_model(model_type).save_pretrained(folder)
    with pytest.raises(ModelLoadError, match=rf"\({model_type}\) is an encoder-decoder") as caught:
        load_model(ModelSpec(str(folder), device="cpu"))
    assert "llmctl models list" in caught.value.hint
    path, reason = path_from_files(str(folder))
    assert path is None
    assert "encoder-decoder" in reason


@pytest.mark.skipif(find_spec("timm") is not None, reason="timm is installed")
def test_a_package_that_a_checkpoint_needs_is_named(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "m")
    AutoConfig.for_model("gemma3n").save_pretrained(folder)
    with pytest.raises(ModelLoadError, match="requires the timm library") as caught:
        load_model(ModelSpec(str(folder), device="cpu"))
    assert "pip install timm" in caught.value.hint
