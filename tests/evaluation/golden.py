"""Real benchmark data, and what OpenCompass 0.5.4 computed for it.

The data may not be distributed with this project. LLMCTL_EXAM_DATA names a folder with `ceval` and
`mmlu`, LLMCTL_EXAM_GOLDEN one with the files of OpenCompass.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

DATA, GOLDEN = (os.environ.get(f"LLMCTL_EXAM_{name}") for name in ("DATA", "GOLDEN"))
with_data = pytest.mark.skipif(
    not (DATA and GOLDEN), reason="LLMCTL_EXAM_DATA and LLMCTL_EXAM_GOLDEN are not set"
)


def golden(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((Path(GOLDEN or "") / name).read_text(encoding="utf-8"))
    return content
