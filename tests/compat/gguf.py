"""Comparison of the tokenizers of GGUF files with llama.cpp's, for docs/compatibility.md.

`python -m tests.compat.gguf LIBRARY FOLDER`: `libllama.so` of llama.cpp 0.5, whose tokenizer is
called through its C interface, and the folder `models` of its repository with vocabularies and
texts.
"""

import ctypes
import struct
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from llmctl.engine.loading.gguf.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer
from llmctl.engine.loading.gguf.tokenizer import read_tokenizer
from tests.compat.table import write_table

TEXTS = (
    "a  1",
    "In 2024,  3 caf\u00e9s sold 12.50 kg of\n    \u4f60\u597d don't <|x|>",
    "def f(x):\n\treturn x ** 2  # caf\u00e9\r\n\r\n'Ll 'll",
    "1234567 12 123 1,234,567.89",
    "HelloWorld camelCase XMLHttpRequest \u00c9cole\u00c0",
    "I'VE we'll I'M it's",
    "   lead",
    "trail   ",
    "\n\n\n x\n \n",
    "\u0645\u0631\u062d\u0628\u0627 \u0661\u0662\u0663",
    "\u0928\u092e\u0938\u094d\u0924\u0947",
    "\u3053\u3093\u306b\u3061\u306f\u30ab\u30bf \ud55c\uad6d\uc5b4 \u3105\u3106",
    "!!! ... -- == <= >= $5 +x ~y `z` |",
    "a.b.c,d;e:f/g\\h\ttab\t\tx",
    "e\u0301 combine a\u0308",
    "\U0001f642\U0001f642 emoji",
    "\u10e5\u10d0\u10e0 \u0540\u0561\u0575 \u0395\u03bb\u03bb \u0420\u0443\u0441",
    "\u00a0nbsp\u3000ideo x\u00b9\u00b2\u00b3\u00bd \u2167",
    "don\u2019t \u201cquotes\u201d\u2014dash\u2026",
    "test<sentinel:12> IMGIMGABZ",
)


class _ModelParameters(ctypes.Structure):
    """`llama_model_params`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("devices", "buffer_types")),
        *((f"number{i}", ctypes.c_int32) for i in range(5)),
        *((f"pointer{i}", ctypes.c_void_p) for i in range(4)),
        ("vocab_only", ctypes.c_bool),
        *((f"flag{i}", ctypes.c_bool) for i in range(5)),
    )


class LlamaCpp:
    """llama.cpp's tokenizer."""

    def __init__(self, library: Path) -> None:
        for name in ("libggml-base.so*", "libggml.*so*"):
            for file in library.parent.glob(name):
                ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)
        self._library = ctypes.CDLL(str(library))
        self._library.llama_model_default_params.restype = _ModelParameters
        load = self._library.llama_model_load_from_file
        load.argtypes, load.restype = [ctypes.c_char_p, _ModelParameters], ctypes.c_void_p
        vocabulary = self._library.llama_model_get_vocab
        vocabulary.argtypes, vocabulary.restype = [ctypes.c_void_p], ctypes.c_void_p
        self._library.llama_model_free.argtypes = [ctypes.c_void_p]
        self._library.llama_tokenize.argtypes = [
            ctypes.c_void_p,
            ctypes.c_char_p,
            ctypes.c_int32,
            ctypes.POINTER(ctypes.c_int32),
            ctypes.c_int32,
            ctypes.c_bool,
            ctypes.c_bool,
        ]

    def token_ids(self, file: Path) -> list[list[int]] | None:
        """Return the token ids of `TEXTS` without special tokens around them.

        `None` if this version does not know the pre-tokenizer.
        """
        parameters = self._library.llama_model_default_params()
        parameters.vocab_only = True
        model = self._library.llama_model_load_from_file(str(file).encode(), parameters)
        if not model:
            return None
        vocabulary = self._library.llama_model_get_vocab(model)
        found = []
        for text in TEXTS:
            data = text.encode()
            ids = (ctypes.c_int32 * (len(data) + 16))()
            count = self._library.llama_tokenize(
                vocabulary, data, len(data), ids, len(ids), False, True
            )
            found.append(list(ids[:count]))
        self._library.llama_model_free(model)
        return found


def _with_pre_tokenizer(source: Path, target: Path, name: str) -> None:
    """Copy a vocabulary with another value of `tokenizer.ggml.pre`."""
    data, key = source.read_bytes(), b"tokenizer.ggml.pre"
    start = data.index(struct.pack("<Q", len(key)) + key) + 8 + len(key) + 4
    (length,) = struct.unpack_from("<Q", data, start)
    value = struct.pack("<Q", len(name)) + name.encode()
    target.write_bytes(data[:start] + value + data[start + 8 + length :])


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def _pre_tokenizers(reference: LlamaCpp, vocabulary: Path) -> list[list[str]]:
    """Compare each name with the vocabulary of Llama 3, which has tokens of every shape."""
    groups: dict[PreTokenizer, list[str]] = defaultdict(list)
    for name, kind in PRE_TOKENIZERS.items():
        groups[kind].append(name)
    rows, unknown = [], []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vocabulary.gguf"
        for names in groups.values():
            different: set[str] = set()
            _with_pre_tokenizer(vocabulary, file, names[0])
            tokenizer = read_tokenizer(file)
            own = [_ids(tokenizer, text) for text in TEXTS]
            for name in names:
                _with_pre_tokenizer(vocabulary, file, name)
                if (expected := reference.token_ids(file)) is None:
                    unknown.append(name)
                    continue
                pairs = zip(TEXTS, own, expected, strict=True)
                different |= {text for text, one, other in pairs if one != other}
            known = [name for name in names if name not in unknown]
            if known:
                rows.append([", ".join(known), f"{len(TEXTS) - len(different)} of {len(TEXTS)}"])
    if unknown:
        rows.append([", ".join(unknown), "not in this version of llama.cpp"])
    return rows


def _vocabularies(folder: Path) -> list[list[str]]:
    """Compare with the ids of the models' own tokenizers, which are beside the vocabularies."""
    rows = []
    for texts in sorted(folder.glob("ggml-vocab-*.gguf.inp")):
        file = texts.with_suffix("")
        try:
            tokenizer = read_tokenizer(file)
        except ValueError:  # not of a language model
            continue
        with texts.open(encoding="utf-8", newline="") as stream:
            samples = stream.read().split("\n__ggml_vocab_test__\n")
        lines = texts.with_suffix(".out").read_text().splitlines()
        equal = [
            _ids(tokenizer, text) == [int(number) for number in line.split()]
            for text, line in zip(samples, lines, strict=False)  # the last text may be empty
        ]
        name = file.stem.removeprefix("ggml-vocab-")
        rows.append([name, f"{sum(equal)} of {len(equal)}"])
    return rows


def main() -> None:
    library, folder = Path(sys.argv[1]), Path(sys.argv[2])
    packages = ("transformers", "tokenizers")
    rows = _pre_tokenizers(LlamaCpp(library), folder / "ggml-vocab-llama-bpe.gguf")
    write_table("gguf-pre", ("`tokenizer.ggml.pre`", "texts with equal tokens"), rows, packages)
    rows = _vocabularies(folder)
    write_table("gguf-models", ("vocabulary", "texts with equal tokens"), rows, packages)


if __name__ == "__main__":
    main()
