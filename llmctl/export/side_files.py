"""What does a merged model need beside its weights? The small files of base and adapter."""

import shutil
from pathlib import Path

from llmctl.engine.models import model_folder, provenance, store
from llmctl.engine.models.adapter_metadata import ADAPTER_CONFIG

_OWN = ("tokenizer", "vocab", "merges", "special_tokens_map", "added_tokens", "chat_template")
"""How the names of a tokenizer's files begin."""
_LEFT = (
    "config.json",
    "model.safetensors.index.json",
    store.MANIFEST,
    provenance.PROVENANCE_FILE,
    ADAPTER_CONFIG,
)


def copy_side_files(base: Path, adapter: Path, target: Path) -> None:
    """Copy all but weights, config and notes: the tokenizer as the adapter was taught with it."""
    for name in model_folder.wanted_files(model_folder.file_names(base), allow_pickle=False):
        if not name.endswith(".safetensors") and name not in _LEFT:
            _copy(base / name, target)
    for name in sorted(model_folder.file_names(adapter)):
        if name.startswith((*_OWN, "generation_config")) or name.endswith((".model", ".tiktoken")):
            _copy(adapter / name, target)


def _copy(file: Path, target: Path) -> None:
    # Not the permissions: a cache may hold its files unwritable.
    shutil.copyfile(file, target / file.name)
