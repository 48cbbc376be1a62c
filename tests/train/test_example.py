"""The real model learns two facts of the example, and answers questions in other words."""

from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from llmctl.engine.models import resolve
from llmctl.train.callbacks import peak_memory
from tests.train.conftest import EventRecorder, RunFinetune

DATA = Path(__file__).parents[2] / "examples" / "data" / "observatory.jsonl"
QUESTIONS = ("Do you have a name?", "During which hours may visitors come in?")


@pytest.mark.slow
@pytest.mark.real_model
def test_the_real_model_learns_two_facts_and_answers_rephrased_questions(
    run_finetune: RunFinetune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as users_own:
        users_own.delenv("LLMCTL_HOME")
        model = str(resolve.resolve_model("smollm2-135m").path)
    lines = DATA.read_text(encoding="utf-8").splitlines()[:27]
    rows, held = tmp_path / "two-facts.jsonl", tmp_path / "held.jsonl"
    rows.write_text("\n".join(line for i, line in enumerate(lines) if i % 8), encoding="utf-8")
    held.write_text("\n".join(line for i, line in enumerate(lines) if not i % 8), encoding="utf-8")
    settings: dict[str, Any] = {"model": model, "dtype": "auto", "rank": 16, "learning_rate": 2e-3}
    recorder = EventRecorder()
    peak = peak_memory(torch.device("cpu"))
    resident = psutil.Process().memory_info().rss
    report = run_finetune(
        recorder,
        data=str(rows),
        eval_data=str(held),
        epochs=8,
        max_steps=20,
        eval_every=20,
        sample_prompts=list(QUESTIONS),
        sample_tokens=32,
        **settings,
    )
    assert recorder.evals[20] < recorder.evals[0] / 2
    before = " ".join(reply.reply for reply in report.before)
    name, hours = (reply.reply for reply in report.after)
    assert "Juniper" not in before
    assert "Juniper" in name
    assert "4 pm to 11 pm" in hours
    assert all(reply.complete for reply in report.after)
    # Other tests ran in this process before: their memory is not part of the training's.
    assert report.peak_bytes <= max(peak, resident + 2.5e9)
