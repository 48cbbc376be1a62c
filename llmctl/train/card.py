"""The model card of trained weights, `README.md`.

The metadata block is YAML as the Hugging Face hub reads it (hub-docs, modelcard.md).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

from llmctl.engine.models.catalog import CATALOG
from llmctl.engine.models.provenance import Provenance

CardKind = Literal["adapter", "merged", "model"]

_LICENCES: Final = {
    "Apache-2.0": "apache-2.0",
    "MIT": "mit",
    "Llama 3.2 Community": "llama3.2",
}
"""Licence in the catalogue -> its hub id."""
_RELATIONS: Final[Mapping[CardKind, str]] = {
    "adapter": "adapter",
    "merged": "finetune",
    "model": "finetune",
}
_EMPTY: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class FinetuneCard:
    """Content of the model card of an adapter, a merged model or a fully fine-tuned model."""

    name: str
    kind: CardKind
    """`merged` and `model` are whole models; `model` is one after full fine-tuning."""
    origin: Provenance
    metrics: Mapping[str, float] = field(default_factory=lambda: _EMPTY)
    """Value by display name."""
    counts: Mapping[str, int] = field(default_factory=lambda: _EMPTY)
    """Counts of the data by display name, such as rows and tokens."""
    samples: Sequence[tuple[str, str, str]] = ()
    """Prompt, reply of the base model, and reply of the trained model."""
    remarks: Sequence[str] = ()
    """Further sentences for the limits section."""

    def write(self, folder: Path) -> None:
        """Write `README.md` into a folder."""
        (folder / "README.md").write_text(self.text(), encoding="utf-8", errors="backslashreplace")

    def text(self) -> str:
        sections = [self._metadata(), f"# {self.name}", self._summary(), self._usage()]
        sections += [self._training(), self._evaluation(), self._samples(), self._limitations()]
        return "\n\n".join(section for section in sections if section) + "\n"

    def _metadata(self) -> str:
        base = self.origin.base
        data = self.origin.data
        values: dict[str, object] = {
            "base_model": base.repo,
            "base_model_relation": _RELATIONS[self.kind] if base.repo else None,
            "library_name": "peft" if self.kind == "adapter" else "transformers",
            "pipeline_tag": "text-generation",
            "license": self._licence(),
            "tags": ["llmctl", self.origin.method],
            "datasets": [data.source] if data and _is_hub_id(data.source) else None,
        }
        lines = [
            f"{key}: {json.dumps(value, ensure_ascii=False)}"
            for key, value in values.items()
            if value is not None
        ]
        return "\n".join(["---", *lines, "---"])

    def _licence(self) -> str | None:
        entry = next((e for e in CATALOG if e.repo == self.origin.base.repo), None)
        return _LICENCES.get(entry.licence) if entry else None

    def _summary(self) -> str:
        base, method = self.origin.base, self.origin.method
        named = f"[{base.repo}](https://huggingface.co/{base.repo})" if base.repo else base.model
        if self.kind == "adapter":
            return f"An adapter for {named}, trained with `llmctl finetune --method {method}`."
        if self.kind == "merged":
            return (
                f"{named} merged with an adapter: trained with "
                f"`llmctl finetune --method {method}`, merged with `llmctl models merge`."
            )
        return f"{named}, fine-tuned with `llmctl finetune --method {method}`."

    def _usage(self) -> str:
        lines = ["## Use", "", "```bash", f"llmctl chat --model {self.name}"]
        lines += [f"llmctl serve --model {self.name}   # an OpenAI-compatible server", "```", ""]
        kind, library = ("AutoPeftModelForCausalLM", "peft")
        if self.kind != "adapter":
            kind, library = ("AutoModelForCausalLM", "transformers")
        lines += [
            "```python",
            f"from {library} import {kind}",
            "from transformers import AutoTokenizer",
            "",
            f'model = {kind}.from_pretrained("{self.name}")',
            f'tokenizer = AutoTokenizer.from_pretrained("{self.name}")',
            "```",
        ]
        if self.origin.template is not None:
            lines += ["", "It expects the chat template in this folder, which it was trained with."]
        return "\n".join(lines)

    def _training(self) -> str:
        origin, data = self.origin, self.origin.data
        rows = {
            "base model": " ".join(filter(None, (origin.base.model, origin.base.revision))),
            "fingerprint of its weights": origin.base.weights,
            "method": origin.method,
            **{name.replace("_", " "): value for name, value in origin.hyperparameters.items()},
            "data": f"{data.name}, {data.rows:,} rows, sha256 {data.digest[:16]}" if data else None,
            **{name: f"{count:,}" for name, count in self.counts.items()},
            "chat template": origin.template,
            "run": origin.run_id,
            "created": origin.created,
            "versions": ", ".join(f"{name} {number}" for name, number in origin.versions.items()),
        }
        return "## Training\n\n" + _table(("", ""), rows.items())

    def _evaluation(self) -> str:
        if not self.metrics:
            return ""
        rows = [(name, f"{value:.4g}") for name, value in self.metrics.items()]
        return "## Evaluation\n\n" + _table(("", ""), rows)

    def _samples(self) -> str:
        if not self.samples:
            return ""
        return "## Samples\n\n" + _table(("prompt", "before", "after"), self.samples)

    def _limitations(self) -> str:
        remarks = [
            "It has the errors and biases of its base model, and can reproduce the training data "
            "wrongly.",
            "It has not been evaluated for harmful content. Test it on your own prompts before "
            "others depend on it.",
            *self.remarks,
        ]
        if self._licence() is None:
            remarks.append("The licence is that of the base model.")
        return "\n".join(["## Limitations", "", *(f"- {remark}" for remark in remarks)])


def _table(header: Sequence[str], rows: object) -> str:
    lines = [header, ["---"] * len(header)]
    lines += [row for row in rows if row[-1] is not None]  # type: ignore[attr-defined]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def _is_hub_id(source: str) -> bool:
    return source.count("/") == 1 and not source.startswith((".", "/", "~"))
