"""Table of the adapters of PEFT: served, merged and exported numbers against PEFT's, unmerged.

Run `python -m tests.compat.adapters`; it takes about ten minutes on two cores.
"""

import io
import re
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from llmctl.errors import LlmctlError
from tests.adapter_kinds import KINDS, exported, merged, save, served
from tests.compat.architectures import build
from tests.compat.table import write_table
from tests.tiny import byte_tokenizer, save_gguf_model

SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"head_dim": 128},
    "gemma3_text": {"sliding_window": 8, "num_hidden_layers": 2},
}
MIXTURES = ("mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3")


def compare(expected: Tensor, measure: Callable[[], Tensor]) -> str:
    """Return the largest difference, or why the adapter is refused."""
    try:
        difference = float((measure() - expected).abs().max())
    except LlmctlError as error:
        reason = re.sub(r"\S*/", "", str(error)).split(": ", 1)[-1]
        return f"refused: {reason[:90]}"
    return f"{difference:.0e}" if difference < 1e-4 else f"**{difference:.1e}**"


def save_bases(root: Path) -> dict[str, list[Path]]:
    """Save the models, tied and untied; return those of dense models and of mixtures."""
    dense = [
        save_gguf_model(root / f"{name}-{tied}", name, tie_word_embeddings=tied, **options)
        for name, options in SHAPES.items()
        for tied in (True, False)
    ]
    mixtures = [root / name for name in MIXTURES]
    for folder in mixtures:
        build(folder.name).save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
    return {"dense": dense, "mixtures": mixtures}


def main() -> None:
    """Save, serve, merge and export an adapter of every kind on every model."""
    rows, failures = [], []
    with tempfile.TemporaryDirectory() as name, redirect_stderr(io.StringIO()):
        root = Path(name)
        bases = save_bases(root)
        for kind in KINDS:
            results: dict[str, set[str]] = {"served": set(), "merged": set(), "GGUF": set()}
            for base in bases["mixtures" if kind.startswith("experts: ") else "dense"]:
                folder = Path(tempfile.mkdtemp(dir=root))
                adapter = folder / "adapter"
                try:
                    expected = save(kind, base, adapter)
                except Exception as error:  # PEFT does not run on every shape
                    failures.append(f"{kind}, {base.name}: {type(error).__name__}")
                    continue
                measures = {
                    "served": partial(served, base, adapter),
                    "merged": partial(merged, base, adapter, folder / "merged"),
                }
                if base.name.startswith(("llama", "qwen3-")):
                    measures["GGUF"] = partial(exported, base, adapter, folder / "gguf")
                for what, measure in measures.items():
                    results[what].add(compare(expected, measure))
            rows.append([kind, *(", ".join(sorted(found)) for found in results.values())])
            print(rows[-1], flush=True)
    print("PEFT fails:", *failures, sep="\n")
    header = ["adapter", "served", "merged", "GGUF"]
    write_table("adapters", header, rows, ["peft", "transformers", "torch", "gguf"])


if __name__ == "__main__":
    main()
