"""Table of the adapters of PEFT: served and merged numbers against PEFT's own, unmerged.

Run `python -m tests.compat.adapters`; it takes about five minutes on two cores.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from llmctl.errors import LlmctlError
from tests.adapter_kinds import KINDS, merged, save, served
from tests.compat.table import write_table
from tests.tiny import save_tiny_model

SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {},
    "gemma3_text": {"sliding_window": 8, "num_hidden_layers": 2},
}


def compare(expected: Tensor, measure: Callable[[], Tensor]) -> str:
    """Return the largest difference, or why the adapter is refused."""
    try:
        difference = float((measure() - expected).abs().max())
    except LlmctlError as error:
        return f"refused: {str(error).split(': ', 1)[-1].split('/')[-1][:70]}"
    return f"{difference:.0e}" if difference < 1e-4 else f"**{difference:.1e}**"


def main() -> None:
    """Save, serve and merge an adapter of every kind on every shape, tied and untied."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for kind in KINDS:
            results: dict[str, set[str]] = {"served": set(), "merged": set()}
            for model_type, options in SHAPES.items():
                for tied in (True, False):
                    base = root / f"{model_type}-{tied}"
                    if not base.exists():
                        save_tiny_model(
                            base, model_type=model_type, tie_word_embeddings=tied, **options
                        )
                    folder = Path(tempfile.mkdtemp(dir=root))
                    adapter = folder / "adapter"
                    try:
                        expected = save(kind, base, adapter)
                    except Exception as error:  # PEFT does not run on every shape
                        print(kind, model_type, "PEFT fails:", type(error).__name__, flush=True)
                        continue
                    results["served"].add(
                        compare(expected, lambda b=base, a=adapter: served(b, a))  # type: ignore[misc]
                    )
                    results["merged"].add(
                        compare(
                            expected,
                            lambda b=base, a=adapter, f=folder: merged(b, a, f / "merged"),  # type: ignore[misc]
                        )
                    )
            rows.append([kind, *(", ".join(sorted(found)) for found in results.values())])
            print(rows[-1], flush=True)
    header = ["adapter", "served", "merged"]
    write_table("adapters", header, rows, ["peft", "transformers", "torch"])


if __name__ == "__main__":
    main()
