"""What does training read: examples as token sequences, every row accounted for."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from llmctl.data import digests
from llmctl.data.formats import turn_order
from llmctl.data.tokenized import assistant_spans, cache, loss_mask, storage
from llmctl.data.tokenized import build as preparing
from llmctl.data.tokenized.build import OverlongPolicy, TokenizeOptions, tokenize_examples
from llmctl.data.tokenized.report import AffectedRows, TokenizeReport
from llmctl.data.tokenized.storage import PairDataset, TokenDataset, TokenSequence
from llmctl.engine.chat import control_tokens, tokenize
from llmctl.engine.chat import template as template_module
from llmctl.engine.chat.template import ChatTemplate
from llmctl.types import DatasetRef, Example, ProgressCallback, ignore_progress

__all__ = [
    "AffectedRows",
    "OverlongPolicy",
    "PairDataset",
    "TokenDataset",
    "TokenSequence",
    "TokenizeOptions",
    "TokenizeReport",
    "TokenizedDataset",
    "build_dataset",
]

_CODE = (
    loss_mask,
    preparing,
    assistant_spans,
    digests,
    turn_order,
    storage,
    control_tokens,
    template_module,
    tokenize,
)
"""The modules on whose source the sequences depend."""
_REPORT = "report.json"


@dataclass(frozen=True, slots=True)
class TokenizedDataset:
    """Token sequences to learn from, and to be measured by."""

    train: TokenDataset
    eval: TokenDataset | None
    """`None` where nothing is held out."""
    report: TokenizeReport


def build_dataset(
    examples: Callable[[], Iterable[Example]],
    template: ChatTemplate,
    stop_ids: Sequence[int],
    options: TokenizeOptions,
    *,
    dataset: DatasetRef,
    progress: ProgressCallback = ignore_progress,
) -> TokenizedDataset:
    """Tokenise and mask `examples()`, or find the result in the cache.

    Every reply that is learnt ends with a token at which the server stops, which is checked on
    every sequence; after the last one a sequence has no further token.

    Args:
        examples: called only where the cache has no answer; its rows are read once, as a stream.
        stop_ids: the tokens at which the server ends a reply (`LoadedModel.eos_ids`).
        dataset: which rows they are; its `digest` is part of the cache's key.

    Raises:
        ConfigError: replies do not end with a token of `stop_ids`.
        TemplateError: the model has no chat template and a row is a conversation.
        DataError: nothing is left to learn.
    """
    key = _key(template, stop_ids, options, dataset)

    def build(folder: Path) -> None:
        report = tokenize_examples(
            examples(),
            template,
            frozenset(stop_ids),
            options,
            folder,
            total=dataset.rows,
            progress=progress,
        )
        report.write(folder / _REPORT)

    # Samples name the lines they come from, which are those of one file.
    source = hashlib.sha256(dataset.source.encode()).hexdigest()[:8]
    folder, found = cache.get_or_build(f"{key}-{source}", build, progress)
    report = TokenizeReport.read(folder / _REPORT, key=key, cached=found)
    held = TokenDataset(folder, held_out=True) if report.eval_sequences else None
    return TokenizedDataset(TokenDataset(folder, held_out=False), held, report)


def _key(
    template: ChatTemplate, stop_ids: Sequence[int], options: TokenizeOptions, dataset: DatasetRef
) -> str:
    parts = {
        "rows": dataset.digest,
        "template": template.fingerprint,
        "tokenizer": template.tokens.fingerprint,
        "stop_ids": sorted(stop_ids),
        "options": asdict(options),
        "libraries": [version(name) for name in ("transformers", "tokenizers")],
        "code": _code_digest(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _code_digest() -> str:
    digest = hashlib.sha256()
    for module in _CODE:
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()
