import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmctl.engine.models import resolve
from llmctl.engine.models.provenance import (
    PROVENANCE_FILE,
    BaseModelRef,
    Provenance,
    check_chat_template,
    describe_base_mismatch,
)
from llmctl.engine.models.weight_files import fingerprint
from llmctl.errors import ConfigError, ModelLoadError
from tests.adapters import DATA

BASE = BaseModelRef("owner/name", "hub", "c0ffee", "0123456789abcdef")
PROVENANCE = Provenance(BASE, "feedfeedfeedfeed", "lora", {"rank": 16}, DATA, "run", "model")


def test_a_written_file_is_read_back(tmp_path: Path) -> None:
    PROVENANCE.write(tmp_path)
    assert Provenance.read(tmp_path) == PROVENANCE
    assert [path.name for path in tmp_path.iterdir()] == [PROVENANCE_FILE]
    assert {"llmctl", "torch", "transformers", "peft"} <= set(PROVENANCE.versions)
    assert Provenance.read(tmp_path / "elsewhere") is None


def test_fields_of_a_later_release_are_ignored(tmp_path: Path) -> None:
    PROVENANCE.write(tmp_path)
    values = json.loads((tmp_path / PROVENANCE_FILE).read_text())
    values["moon"] = values["data"]["moon"] = values["base"]["moon"] = "full"
    (tmp_path / PROVENANCE_FILE).write_text(json.dumps(values))
    assert Provenance.read(tmp_path) == PROVENANCE


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "cannot be read"), ("[]", "cannot be read"), ('{"schema": 9}', "schema 9")],
)
def test_an_invalid_file_is_a_load_error(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / PROVENANCE_FILE).write_text(text)
    with pytest.raises(ModelLoadError, match=message):
        Provenance.read(tmp_path)


def test_another_chat_template_is_rejected_unless_given_explicitly(tmp_path: Path) -> None:
    PROVENANCE.write(tmp_path)
    assert check_chat_template(tmp_path, PROVENANCE.template) is None
    for used in ("beefbeefbeefbeef", None):
        with pytest.raises(ConfigError, match="trained with the chat template feedfeed") as caught:
            check_chat_template(tmp_path, used)
        assert "--chat-template" in caught.value.hint
        assert "as --chat-template requires" in str(
            check_chat_template(tmp_path, used, chosen=True)
        )


def test_weights_trained_on_plain_text_accept_any_template(tmp_path: Path) -> None:
    replace(PROVENANCE, template=None).write(tmp_path)
    assert check_chat_template(tmp_path, "beefbeefbeefbeef") is None


def test_the_fingerprint_depends_on_the_values_and_not_on_the_files(
    tiny_folder: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(tiny_folder, tmp_path / "copy"))
    weights = load_file(copy / "model.safetensors")
    names = sorted(weights)
    (copy / "model.safetensors").unlink()
    for number, part in enumerate((names[:5], names[5:])):
        file = copy / f"model-0000{number + 1}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, file)
    assert fingerprint(copy) == fingerprint(tiny_folder)
    weights[names[-1]] = weights[names[-1]] * 1.01
    save_file({name: weights[name] for name in names[5:]}, file)
    assert fingerprint(copy) != fingerprint(tiny_folder)


def test_a_mismatch_names_both_models(tiny_folder: Path, tmp_path: Path) -> None:
    resolved = resolve.resolve_model(str(tiny_folder))
    trained = BaseModelRef.of(resolved)
    assert trained.model == str(tiny_folder)
    assert describe_base_mismatch(trained, resolved, "v1") is None
    moved = resolve.resolve_model(str(shutil.copytree(tiny_folder, tmp_path / "moved")))
    assert describe_base_mismatch(trained, moved, "v1") is None
    weights = load_file(moved.path / "model.safetensors")
    save_file(
        {n: t.to(torch.bfloat16) for n, t in weights.items()}, moved.path / "model.safetensors"
    )
    mismatch = describe_base_mismatch(trained, moved, "v1")
    assert mismatch is not None
    assert str(tiny_folder) in mismatch
    assert str(moved.path) in mismatch
