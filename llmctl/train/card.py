"""What should a person know of weights that were taught? Writes the model card, `README.md`.

The head is YAML as the Hugging Face hub reads it (hub-docs, modelcard.md); below it plain text.
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
"""The hub's names of the licences in the catalogue."""
_RELATIONS: Final[Mapping[CardKind, str]] = {
    "adapter": "adapter",
    "merged": "finetune",
    "model": "finetune",
}
_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class FinetuneCard:
    """What a model card says."""

    name: str
    kind: CardKind
    """`merged` and `model` are whole models; `model` had all its weights taught."""
    origin: Provenance
    metrics: Mapping[str, float] = field(default_factory=lambda: _NOTHING)
    """By what a person calls them."""
    counts: Mapping[str, int] = field(default_factory=lambda: _NOTHING)
    """Of the data, such as rows and tokens that were learnt."""
    samples: Sequence[tuple[str, str, str]] = ()
    """Question, the base model's answer, and the answer now."""
    remarks: Sequence[str] = ()
    """What else should be known, a sentence each."""

    def write(self, folder: Path) -> None:
        """Write `README.md`."""
        (folder / "README.md").write_text(self.text(), encoding="utf-8")

    def text(self) -> str:
        parts = [self._head(), f"# {self.name}", self._what(), self._use()]
        parts += [self._taught(), self._measured(), self._answers(), self._limits()]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _head(self) -> str:
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

    def _what(self) -> str:
        base, method = self.origin.base, self.origin.method
        named = f"[{base.repo}](https://huggingface.co/{base.repo})" if base.repo else base.model
        if self.kind == "adapter":
            return f"An adapter for {named}, taught with `llmctl finetune --method {method}`."
        if self.kind == "merged":
            return (
                f"{named} with an adapter in its weights, taught with "
                f"`llmctl finetune --method {method}` and merged with `llmctl models merge`."
            )
        return f"{named}, all of its weights taught with `llmctl finetune --method {method}`."

    def _use(self) -> str:
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
            lines += ["", "It learnt with the chat template that lies beside it and expects it."]
        return "\n".join(lines)

    def _taught(self) -> str:
        origin, data = self.origin, self.origin.data
        rows = {
            "base model": " ".join(filter(None, (origin.base.model, origin.base.revision))),
            "print of its weights": origin.base.weights,
            "method": origin.method,
            **{name.replace("_", " "): value for name, value in origin.hyperparameters.items()},
            "data": f"{data.name}, {data.rows:,} rows, sha256 {data.digest[:16]}" if data else None,
            **{name: f"{count:,}" for name, count in self.counts.items()},
            "chat template": origin.template,
            "run": origin.run_id,
            "made": origin.created,
            "with": ", ".join(f"{name} {number}" for name, number in origin.versions.items()),
        }
        return "## How it was taught\n\n" + _table(("", ""), rows.items())

    def _measured(self) -> str:
        if not self.metrics:
            return ""
        rows = [(name, f"{value:.4g}") for name, value in self.metrics.items()]
        return "## Measured\n\n" + _table(("", ""), rows)

    def _answers(self) -> str:
        if not self.samples:
            return ""
        return "## Before and after\n\n" + _table(("question", "before", "now"), self.samples)

    def _limits(self) -> str:
        remarks = [
            "What it was not taught it knows from its base model, with that model's mistakes and "
            "leanings; facts it was taught it can still mix up.",
            "Nobody has checked it for harmful answers. Try it on your own questions before others "
            "depend on it.",
            *self.remarks,
        ]
        if self._licence() is None:
            remarks.append("The licence is that of the base model.")
        return "\n".join(["## Limits", "", *(f"- {remark}" for remark in remarks)])


def _table(heads: Sequence[str], rows: object) -> str:
    lines = [heads, ["---"] * len(heads)]
    lines += [row for row in rows if row[-1] is not None]  # type: ignore[attr-defined]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def _is_hub_id(source: str) -> bool:
    return source.count("/") == 1 and not source.startswith((".", "/", "~"))
