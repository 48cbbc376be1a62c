#!/usr/bin/env bash
# datasets 5.2.0 changes texts of a JSON Lines file once one row of the same field holds a list.
#
# A field with text in most rows and a list in one (a chat message that has content parts, a prompt
# that is a conversation) gets the feature type Json. Texts that happen to be JSON are then returned
# as JSON: "42" as the number 42, "null" as None, "007" as 7, "1e3" as 1000.0, and a quoted text
# loses its quotes. If the list comes in a later chunk of the file (10 MB by default), the field
# stays a string: the earlier rows are right, but every text of that later chunk gets quotes around
# it and the list becomes its JSON. No warning is given. Reading the lines with json.loads is exact.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q "datasets==5.2.0"
cd "$work"
HF_HOME="$work/hf" HF_HUB_OFFLINE=1 "$work/venv/bin/python" - 2>/dev/null <<'PY'
import json
from pathlib import Path

import datasets

texts = ["42", "null", "007", "1e3", '"Yes"', "plain"]
rows = [{"answer": text} for text in texts] + [{"answer": [{"type": "text", "text": "parts"}]}]
Path("mixed.jsonl").write_text("\n".join(map(json.dumps, rows)))


def read(**options):
    data = datasets.load_dataset("json", data_files="mixed.jsonl", split="train", **options)
    return data.features["answer"], [row["answer"] for row in data]


kind, whole = read()
print("datasets", datasets.__version__)
print("written:", [row["answer"] for row in rows])
print("read   :", whole, kind)
assert whole == [42, None, 7, 1000.0, "Yes", "plain", rows[-1]["answer"]], "changed"

late = [{"answer": "plain"}] * 40 + [rows[-1]] + [{"answer": "plain"}]
Path("mixed.jsonl").write_text("\n".join(map(json.dumps, late)))
kind, chunked = read(chunksize=400)
print("with the list in a later chunk:", chunked[0], "...", chunked[-2:], kind)
assert chunked[0] == "plain" and chunked[-1] == '"plain"', "changed"
PY
