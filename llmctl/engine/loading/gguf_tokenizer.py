"""Reads the tokenizer out of a GGUF file, with a part that Transformers leaves behind."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_SPLITS_DIGITS = frozenset({"smollm", "starcoder", "refact", "command-r"})
"""Values of `tokenizer.ggml.pre` whose tokenizers take every digit for itself (llama.cpp's
`llama_vocab` pre-tokenizer types)."""


def read_tokenizer(gguf: Path) -> Any:
    """Return the file's tokenizer as Transformers' own class.

    Transformers (5.23) takes any byte-level BPE in a GGUF for GPT-2's and does not look at
    `tokenizer.ggml.pre`: "a  1" would come out in other tokens than the model was taught.
    """
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    with _alone(gguf) as file:
        tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    kind = GGUFReader(gguf).fields.get("tokenizer.ggml.pre")
    if kind is not None and kind.contents() in _SPLITS_DIGITS:
        backend = tokenizer.backend_tokenizer
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer]
        )
    return tokenizer


@contextmanager
def _alone(gguf: Path) -> Iterator[Path]:
    """Lend a link to the file in a folder of its own.

    Where a `tokenizer.json` lies beside the file Transformers (5.23) reads that in its place, and
    leaves the chat template out.
    """
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / gguf.name
        try:
            link.symlink_to(gguf.resolve())
        except OSError:  # Windows, for most people
            link = gguf
        yield link
