"""The process that converts a GGUF file to a model folder, started by `package_index`.

In a process of its own, the progress bars that Transformers always prints do not reach the
terminal, and all memory is freed at its end.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

from llmctl.engine.loading.gguf.reader import FastGGUFReader
from llmctl.engine.loading.gguf.tokenizer import end_token_ids, read_tokenizer
from llmctl.engine.subprocess_runner import exit_with_parent

_PROBE = "In 2024,  3 caf\u00e9s sold 12.50 kg of\n    \u4f60\u597d don't <|x|>"


def convert(gguf: Path, target: Path) -> None:
    """Write bfloat16 safetensors, tokenizer, chat template and generation settings to `target`."""
    FastGGUFReader(gguf)  # rejects an invalid file before the slow imports
    import torch

    from llmctl.engine.loading.weights import read_original_weights

    model = read_original_weights(gguf, torch.bfloat16)
    tokenizer = read_tokenizer(gguf)
    ends = end_token_ids(gguf)
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.generation_config.update(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=sorted(ends) if len(ends) > 1 else tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    _check_tokenizer(tokenizer, target, model.generation_config.eos_token_id)
    # safetensors writes files that only their owner can read.
    for file in target.glob("*.safetensors"):
        shutil.copymode(target / "config.json", file)


def _check_tokenizer(tokenizer: Any, target: Path, ends: int | list[int]) -> None:
    """Raise `ValueError` if the saved tokenizer differs from the one that was read."""
    from transformers import AutoTokenizer, GenerationConfig

    saved: Any = AutoTokenizer.from_pretrained(target)
    eos = GenerationConfig.from_pretrained(target).eos_token_id
    for what, before, after in (
        ("special tokens", tokenizer.special_tokens_map, saved.special_tokens_map),
        ("chat template", tokenizer.chat_template, saved.chat_template),
        ("vocabulary", len(tokenizer), len(saved)),
        ("tokens", tokenizer(_PROBE)["input_ids"], saved(_PROBE)["input_ids"]),
        ("end-of-text ids", ends, eos),
    ):
        if before != after:
            raise ValueError(f"saving changed the tokenizer: {what} {before!r} became {after!r}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("gguf", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    exit_with_parent()
    convert(arguments.gguf, arguments.target)


if __name__ == "__main__":
    main()
