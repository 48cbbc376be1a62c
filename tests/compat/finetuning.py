"""Table of the model types that are fine-tuned, served with the adapter and merged.

Run `python -m tests.compat.finetuning [TYPE ...]`; all types take twenty minutes on two cores. Each
type is a random model of a few thousand parameters, trained for two steps with the default
settings. The numbers are the largest differences of log-probabilities in float32 from PEFT's model
with the adapter.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoConfig
from transformers.utils import logging

from llmctl.config.settings import Setting
from llmctl.engine.auto_model import auto_model_class
from llmctl.engine.hf_runner import HFRunner
from llmctl.errors import LlmctlError
from llmctl.services.finetuning.run import FinetuneRequest, finetune
from llmctl.services.merge import MergeOptions, merge
from llmctl.types import ModelSpec, ScoreRequest, TrainEvent, TrainStep
from tests.compat.architectures import build, causal_types
from tests.compat.table import write_table
from tests.tiny import byte_tokenizer

TEXT = tuple(b"say 3, it is 21")


def train(model_type: str, dtype: str, folder: Path, **settings: str) -> list[float]:
    """Save a tiny model to `folder/base`, train an adapter in `folder/adapter`; return losses."""
    base, data = folder / "base", folder / "rows.jsonl"
    build(model_type).save_pretrained(base)
    byte_tokenizer().save_pretrained(base)
    rows = [{"prompt": f"say {i}", "completion": f"it is {7 * i}"} for i in range(8)]
    data.write_text("\n".join(map(json.dumps, rows)))
    options = settings | {
        "model": str(base),
        "data": str(data),
        "output": str(folder / "adapter"),
        "max_steps": 2,
        "batch_size": 4,
        "learning_rate": 0.05,
        "dtype": dtype,
        "device": "cpu",
        "eval_fraction": 0,
    }
    losses: list[float] = []

    def listener(event: TrainEvent) -> None:
        if isinstance(event, TrainStep):
            losses.append(event.loss)

    chosen = {name: Setting(value, "option") for name, value in options.items()}
    finetune(FinetuneRequest(options=chosen, track=False), listener)
    return losses


def peft_logprobs(folder: Path) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities of TEXT by PEFT's model, without and with the adapter."""
    base = folder / "base"
    kind = auto_model_class(AutoConfig.from_pretrained(base))
    stock: Any = kind.from_pretrained(base, dtype=torch.float32)
    ids = torch.tensor(TEXT)
    found = []
    with torch.inference_mode():
        found.append(stock(ids[None], use_cache=False).logits[0])
        model = PeftModel.from_pretrained(stock, str(folder / "adapter")).eval()
        found.append(model(ids[None], use_cache=False).logits[0])
    before, after = (
        logits.log_softmax(-1)[:-1].gather(1, ids[1:, None]).squeeze(1) for logits in found
    )
    return before, after


def served_logprobs(model: Path, adapter: Path | None = None) -> Tensor:
    """Return the log-probabilities of TEXT by the engine."""
    chosen = None if adapter is None else str(adapter)
    with HFRunner(ModelSpec(str(model), adapter=chosen, device="cpu", dtype="float32")) as engine:
        engine.load()
        request = ScoreRequest(TEXT[:1], (TEXT[1:],), logprobs=0)
        score = engine.submit_scores([request]).result()[0][0]
    return torch.tensor([token.chosen.logprob for token in score.tokens])


def check(model_type: str, folder: Path) -> list[str]:
    """Return a row: type, steps, change by the adapter, differences served and merged."""
    losses = train(model_type, "float32", folder)
    before, after = peft_logprobs(folder)
    served = served_logprobs(folder / "base", folder / "adapter")
    cells = [f"{float((served - after).abs().max()):.0e}"]
    try:
        options = MergeOptions(
            adapter=str(folder / "adapter"), output=folder / "merged", dtype="float32"
        )
        merge(options)
        cells.append(f"{float((served_logprobs(folder / 'merged') - after).abs().max()):.0e}")
    except LlmctlError as error:
        cells.append(f"refused: {str(error)[-90:]}")
    return [
        model_type,
        f"{len(losses)} steps",
        f"{float((after - before).abs().max()):.1g}",
        *cells,
    ]


def main() -> None:
    """Check all types, or those named, and write the table."""
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    rows = []
    for model_type in sys.argv[1:] or causal_types():
        with tempfile.TemporaryDirectory() as folder:
            try:
                rows.append(check(model_type, Path(folder)))
            except Exception as error:
                what = (str(error).strip().splitlines() or [""])[0][:100].replace(folder, "")
                rows.append([model_type, f"{type(error).__name__}: {what}", "", "", ""])
        print(rows[-1], flush=True)
    if not sys.argv[1:]:
        header = ["type", "fine-tuned", "change", "served", "merged"]
        write_table("finetuning", header, rows, ["transformers", "peft", "torch"])


if __name__ == "__main__":
    main()
