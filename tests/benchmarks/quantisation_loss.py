"""Mean loss of a model on conversations, by quantisation and type.

Run `python -m tests.benchmarks.quantisation_loss MODEL FILE.jsonl`: rows with `prompt` and
`response`, of which the first 150 are rendered with the model's template and cut at 512 tokens.
Results are in nats per token.
"""

import json
import sys

import torch
import torch.nn.functional as F  # noqa: N812  its name everywhere

from llmctl.engine.batching.executor import choose_executor
from llmctl.engine.batching.forward.packed import BatchItem
from llmctl.engine.chat.template import RenderOptions
from llmctl.engine.loading.load import load_model
from llmctl.types import DType, Message, ModelSpec, Quant

_ROWS = 150
_TOKENS = 512
_SETTINGS: tuple[tuple[Quant, DType], ...] = (
    ("none", "float32"),
    ("none", "float16"),
    ("none", "auto"),
    ("8bit", "auto"),
    ("4bit", "auto"),
)


def mean_loss(model: str, rows: list[dict[str, str]], quant: Quant, dtype: DType) -> float:
    """Return the mean loss per token, by the forward pass of the engine."""
    loaded = load_model(ModelSpec(model, quant=quant, dtype=dtype, device="cpu"))
    chosen = choose_executor(loaded.model, None, loaded.plan, quant=quant, kv_quant="none")  # type: ignore[arg-type]
    executor = chosen.executor
    forward, pool = executor._forward, executor._pool  # type: ignore[attr-defined]
    total, count = 0.0, 0
    for row in rows:
        turns = Message("user", row["prompt"]), Message("assistant", row["response"])
        options = RenderOptions(add_generation_prompt=False)
        ids = loaded.template.render(turns, options).ids[:_TOKENS]
        cache = pool.acquire(ids, None, len(ids))
        cache.truncate(0)
        logits = forward.run([BatchItem(cache, ids, tuple(range(len(ids) - 1)))])
        targets = torch.tensor(ids[1:])
        total += float(F.cross_entropy(logits.float(), targets, reduction="sum"))
        count += len(targets)
        pool.release(cache, discard=True)
    return total / count


def main() -> None:
    """Print a line for each setting."""
    model, path = sys.argv[1:]
    with open(path, encoding="utf-8") as file:
        rows = [json.loads(line) for _, line in zip(range(_ROWS), file, strict=False)]
    for quant, dtype in _SETTINGS:
        print(quant, dtype, round(mean_loss(model, rows, quant, dtype), 4), flush=True)


if __name__ == "__main__":
    main()
