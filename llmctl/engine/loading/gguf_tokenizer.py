"""Loading of the tokenizer of a GGUF file, with the pre-tokenizer that Transformers ignores."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_SPLITS_DIGITS = frozenset({"smollm", "starcoder", "refact", "command-r"})
"""Values of `tokenizer.ggml.pre` whose tokenizers split off every digit (llama.cpp's
`llama_vocab` pre-tokenizer types)."""


def read_tokenizer(gguf: Path) -> Any:
    """Return the file's tokenizer as a Transformers class.

    Transformers (5.23) treats every byte-level BPE in a GGUF file as GPT-2's and ignores
    `tokenizer.ggml.pre`: "a  1" would get other tokens than in training.
    """
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    with _isolated(gguf) as file:
        tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    kind = GGUFReader(gguf).fields.get("tokenizer.ggml.pre")
    if kind is not None and kind.contents() in _SPLITS_DIGITS:
        backend = tokenizer.backend_tokenizer
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer]
        )
    return tokenizer


@contextmanager
def _isolated(gguf: Path) -> Iterator[Path]:
    """Provide a link to the file in a folder of its own.

    If there is a `tokenizer.json` beside the file, Transformers (5.23) reads that instead, without
    the chat template.
    """
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / gguf.name
        try:
            link.symlink_to(gguf.resolve())
        except OSError:  # Windows without developer mode
            link = gguf
        yield link
