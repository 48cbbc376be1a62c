"""Service of `llmctl models` with model files on disk and a fake hub."""

import json
from pathlib import Path

import pytest

from llmctl.config import DEFAULT_MODEL
from llmctl.engine.models.catalog import CATALOG
from llmctl.errors import ConfigError, ModelLoadError, ModelNotFoundError
from llmctl.services import models
from tests.engine.models.fake_sources import (
    COMMIT,
    TINY_CONFIG,
    FakeHub,
    isolate,
    model_files,
    safetensors_bytes,
    write_cached,
    write_files,
)

SMALL = "HuggingFaceTB/SmolLM2-135M-Instruct"
OTHER_COMMIT = "beef" * 10


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return isolate(tmp_path, monkeypatch)


def test_without_local_models_the_list_is_the_catalogue() -> None:
    cards = models.list_models()
    assert [card.model_id for card in cards] == [entry.name for entry in CATALOG]
    assert {card.state for card in cards} == {"available"}
    assert all(card.parameters and card.licence and card.note for card in cards)
    assert all(card.path is None and card.disk_bytes is None for card in cards)


def test_a_downloaded_catalogue_model_is_listed_once_with_data_from_its_files(home: Path) -> None:
    snapshot = write_cached(home / "hf", SMALL, model_files())
    (card,) = [card for card in models.list_models() if card.state == "downloaded"]
    assert (card.model_id, card.repo, card.source) == (DEFAULT_MODEL, SMALL, "hub")
    assert (card.path, card.revision) == (snapshot, COMMIT)
    assert card.disk_bytes == sum(len(content) for content in model_files().values())
    assert card.architecture == "LlamaForCausalLM"
    assert (card.context_length, card.vocab_size, card.dtype) == (64, 8, "bfloat16")
    assert (card.parameters, card.linear_parameters) == (72, 40)
    assert card.has_chat_template
    assert card.licence == "Apache-2.0"
    assert len(models.list_models()) == len(CATALOG)


def test_other_causal_models_of_store_and_cache_are_listed(home: Path) -> None:
    write_files(home / "llmctl/models/merged", model_files())
    write_cached(home / "hf", "owner/chatty", model_files())
    bert = model_files() | {"config.json": b'{"architectures": ["BertModel"]}'}
    write_cached(home / "hf", "owner/bert", bert)
    others = models.list_models()[len(CATALOG) :]
    assert [(card.model_id, card.source) for card in others] == [
        ("merged", "local"),
        ("owner/chatty", "hub"),
    ]


def test_an_unfinished_download_is_listed_as_partial(home: Path) -> None:
    files = model_files()
    del files["model.safetensors"]
    write_cached(home / "hf", SMALL, files)
    write_cached(home / "hf", "owner/name", files)
    partial = [card for card in models.list_models() if card.state == "partial"]
    assert [card.model_id for card in partial] == [DEFAULT_MODEL, "owner/name"]
    assert partial[0].parameters == CATALOG[0].parameters


def test_a_damaged_file_does_not_break_the_list(home: Path) -> None:
    broken = model_files() | {"model.safetensors": b"\xff" * 20, "tokenizer_config.json": b"["}
    write_cached(home / "hf", "owner/name", broken)
    assert models.list_models()[-1].parameters is None


def test_a_tied_matrix_that_is_stored_twice_is_counted_once(home: Path) -> None:
    shapes = {"embed": (8, 4), "lm_head.weight": (8, 4), "up": (6, 4)}
    files = model_files() | {"model.safetensors": safetensors_bytes(**shapes)}
    folder = write_files(home / "tied", files)
    assert models.show(str(folder)).parameters == 32 + 24
    config = json.dumps(TINY_CONFIG | {"tie_word_embeddings": False}).encode()
    folder = write_files(home / "untied", files | {"config.json": config})
    assert models.show(str(folder)).parameters == 32 + 32 + 24


def test_show_has_the_recommended_sampling_and_context_of_the_catalogue() -> None:
    card = models.show("lfm2.5-1.2b")
    assert card.context_length == 32768
    assert card.sampling == {
        "temperature": 0.1,
        "top_k": 50,
        "top_p": 0.1,
        "repetition_penalty": 1.05,
    }
    assert models.show("gpt-oss-20b").weight_memory == {"none": 13_761_264_768}


def test_show_gives_the_memory_of_a_catalogue_model_that_is_not_downloaded() -> None:
    card = models.show("Qwen3-8B")
    assert (card.model_id, card.state, card.repo) == ("qwen3-8b", "available", "Qwen/Qwen3-8B")
    assert card.weight_memory is not None
    assert card.weight_memory["none"] == 2 * 8_190_735_360
    # The usual size of this model in 4 bits on a GPU.
    assert 5.5e9 < card.weight_memory["4bit"] < 6.5e9
    assert 9e9 < card.weight_memory["8bit"] < 10e9


def test_show_describes_folders_and_gguf_files(home: Path) -> None:
    card = models.show(str(write_files(home / "mine", model_files())))
    assert (card.model_id, card.source, card.parameters) == ("mine", "local", 72)
    (home / "x.gguf").write_bytes(b"GGUF")
    card = models.show(str(home / "x.gguf"))
    assert (card.model_id, card.disk_bytes, card.path) == ("x", 4, home / "x.gguf")
    assert card.weight_memory is None


def test_show_of_a_hub_model_that_is_not_downloaded_hints_at_pull() -> None:
    with pytest.raises(ModelNotFoundError, match="owner/name is not on this machine") as caught:
        models.show("owner/name")
    assert "llmctl models pull owner/name" in caught.value.hint


def test_show_refuses_a_folder_without_a_model_and_an_unknown_name(home: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"lacks config\.json"):
        models.show(str(home))
    with pytest.raises(ModelNotFoundError, match="unknown model name 'nonsense'"):
        models.show("nonsense")


def test_pull_downloads_and_describes_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeHub("owner/name", model_files()) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        stages: list[str] = []
        card = models.pull("owner/name", lambda report: stages.append(report.stage))
        hub.shutdown()
    assert (card.model_id, card.state, card.revision) == ("owner/name", "downloaded", COMMIT)
    assert stages[0] == f"asking {hub.endpoint} for owner/name"
    assert models.pull("owner/name") == card


def test_pull_deletes_leftovers_of_interrupted_downloads(home: Path) -> None:
    write_files(home / "llmctl/models/.aside/dead/x", model_files())
    write_cached(home / "hf", "owner/name", model_files())
    models.pull("owner/name")
    assert list((home / "llmctl/models/.aside").iterdir()) == []


def test_remove_deletes_a_model_from_store_and_cache(home: Path) -> None:
    stored = write_files(home / f"llmctl/models/{DEFAULT_MODEL}", model_files())
    snapshot = write_cached(home / "hf", SMALL, model_files())
    removal = models.remove(DEFAULT_MODEL.upper())
    size = sum(len(content) for content in model_files().values())
    assert removal.model_id == DEFAULT_MODEL
    assert removal.paths == (stored, snapshot)
    assert 2 * size <= removal.freed_bytes <= 2 * size + 1000
    assert not stored.exists()
    assert not snapshot.exists()
    assert models.list_models()[0].state == "available"


def test_remove_can_delete_a_single_revision(home: Path) -> None:
    old = write_cached(home / "hf", "owner/name", model_files(), OTHER_COMMIT, "v1")
    new = write_cached(home / "hf", "owner/name", model_files())
    assert models.remove("owner/name@v1").paths == (old,)
    assert new.joinpath("model.safetensors").is_file()
    assert models.remove(f"owner/name@{COMMIT[:8]}").paths == (new,)


def test_remove_deletes_a_partial_download(home: Path) -> None:
    write_cached(home / "hf", "owner/name", {"config.json": b"{}"})
    blobs = home / "hf/hub/models--owner--name/blobs"
    (blobs / "abc.incomplete").write_bytes(b"half")
    models.remove("owner/name")
    assert not blobs.exists()


def test_remove_does_not_follow_a_symlink_out_of_the_cache(home: Path) -> None:
    write_cached(home / "elsewhere", "owner/name", model_files())
    (home / "hf/hub").mkdir(parents=True)
    target = home / "elsewhere/hub/models--owner--name"
    (home / "hf/hub/models--owner--name").symlink_to(target)
    models.remove("owner/name")
    assert (target / "refs/main").exists()


@pytest.mark.parametrize("name", ["qwen3-8b", "owner/name", "nonsense", "..", "../models"])
def test_remove_refuses_a_model_that_is_not_on_this_machine(name: str) -> None:
    with pytest.raises((ModelNotFoundError, ConfigError)):
        models.remove(name)


@pytest.mark.parametrize("revision", ["v9", "", "c", COMMIT[:6]])
def test_remove_refuses_an_unknown_or_ambiguous_revision(home: Path, revision: str) -> None:
    snapshot = write_cached(home / "hf", "owner/name", model_files())
    with pytest.raises(ModelNotFoundError, match=f"owner/name@{revision} is not in"):
        models.remove(f"owner/name@{revision}")
    assert snapshot.is_dir()


def test_remove_refuses_a_folder_outside_the_store(home: Path) -> None:
    folder = write_files(home / "mine", model_files())
    with pytest.raises(ConfigError, match="is a path; only downloaded models are removed"):
        models.remove(str(folder))
    assert folder.is_dir()
