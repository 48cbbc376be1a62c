"""Direct preference optimisation: loss, result, resume and refused settings."""

import importlib.util
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from llmctl.data.tokenized.storage import TokenSequence
from llmctl.engine.hf_runner import HFRunner
from llmctl.engine.models.provenance import Provenance
from llmctl.errors import ConfigError, MissingDependencyError
from llmctl.types import ModelSpec, ScoreRequest
from tests.adapters import save_trained_adapter
from tests.train.conftest import EventRecorder, FinishedRun, RunFinetune

pytest.importorskip("trl")

QUESTION, BETTER, WORSE = "Name a colour.", "blue", "a colour is a thing of which I know nothing"


SHORT: dict[str, Any] = {"method": "dpo", "max_steps": 4, "save_every": 2, "eval_every": 2}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    with file.open("w", encoding="utf-8") as out:
        for number in range(32):
            row = {
                "prompt": f"{QUESTION} ({number})",
                "chosen": BETTER + "!" * (number % 3),
                "rejected": WORSE + "." * (number % 5),
            }
            out.write(json.dumps(row) + "\n")
    return file


@pytest.fixture(scope="module")
def short_run(finish_run: Callable[..., FinishedRun], pairs: Path) -> FinishedRun:
    """A run with the settings `SHORT` and a micro-batch of 8."""
    return finish_run(**SHORT, data=str(pairs), micro_batch_size=8)


def likelihood_gap(engine: HFRunner) -> float:
    """Return the log-likelihood per token of the better answer minus that of the worse one."""
    prompt = f"<|im_start|>user\n{QUESTION} (7)<|im_end|>\n<|im_start|>assistant\n"
    request = ScoreRequest(prompt, (BETTER, WORSE))
    ((better, worse),) = engine.score([request])
    return better.logprob / better.token_count - worse.logprob / worse.token_count


@pytest.mark.slow
def test_the_chosen_reply_becomes_more_likely_and_the_folder_is_an_adapter(
    run_finetune: RunFinetune, pairs: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    recorder = EventRecorder()
    settings = {"method": "dpo", "data": str(pairs), "learning_rate": 5e-3, "dpo_beta": 0.5}
    report = run_finetune(recorder, **settings, max_steps=12)
    assert report.losses[0][1] == pytest.approx(math.log(2), abs=1e-3)
    assert report.losses[-1][1] < 0.3
    assert dict(report.eval_losses)[0] == pytest.approx(math.log(2), abs=1e-3)
    assert report.eval_losses[-1][1] < 0.5
    assert recorder.plan.rows + recorder.plan.eval_rows == 32
    output = tmp_path / "out"
    provenance = Provenance.read(output)
    assert provenance is not None
    assert provenance.method == "dpo"
    with safe_open(output / "adapter_model.safetensors", framework="pt") as file:
        names = list(file.keys())
    assert names
    assert not any(".ref" in name for name in names)
    gaps = []
    for model in (tiny_folder, output):
        with HFRunner(ModelSpec(str(model), dtype="float32", device="cpu")) as engine:
            engine.load()
            gaps.append(likelihood_gap(engine))
    assert gaps[1] > gaps[0] + 0.1


@pytest.mark.slow
def test_the_loss_does_not_depend_on_the_micro_batch(
    run_finetune: RunFinetune, pairs: Path, short_run: FinishedRun
) -> None:
    recorder = EventRecorder()
    run_finetune(recorder, **SHORT, data=str(pairs), micro_batch_size=1)
    assert recorder.losses == pytest.approx(short_run.recorder.losses, abs=1e-5)
    assert recorder.evals == pytest.approx(short_run.recorder.evals, abs=1e-5)


@pytest.mark.slow
def test_an_interrupted_run_is_resumed_with_the_same_losses(
    run_finetune: RunFinetune, pairs: Path, short_run: FinishedRun
) -> None:
    first, rest = EventRecorder(), EventRecorder()

    def interrupt(event: Any) -> None:
        if getattr(event, "step", None) == 3 and hasattr(event, "grad_norm"):
            raise KeyboardInterrupt

    first.on_event = interrupt
    with pytest.raises(KeyboardInterrupt):
        run_finetune(first, **SHORT, data=str(pairs))
    run_finetune(rest, request={"resume": True})
    assert list(rest.losses) == [3, 4]
    for step, loss in rest.losses.items():
        assert loss == pytest.approx(short_run.recorder.losses[step], abs=1e-5)


def test_a_pair_becomes_two_rows_the_chosen_ones_first() -> None:
    def sample(*ids: int, loss_mask: int) -> TokenSequence:
        return TokenSequence(np.array(ids, np.int32), np.arange(len(ids)) >= loss_mask)

    pairs = [
        (sample(5, 6, 7, loss_mask=2), sample(5, 6, loss_mask=1)),
        (sample(8, 9, loss_mask=1), sample(8, 1, 2, 3, loss_mask=1)),
    ]
    from llmctl.train.dpo import PreferenceCollator

    batch = PreferenceCollator(pad_id=0)(pairs)
    assert batch["input_ids"].tolist() == [
        [5, 6, 7, 0],
        [8, 9, 0, 0],
        [5, 6, 0, 0],
        [8, 1, 2, 3],
    ]
    assert batch["completion_mask"].tolist() == [
        [0, 0, 1, 0],
        [0, 1, 0, 0],
        [0, 1, 0, 0],
        [0, 1, 1, 1],
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"packing": True}, "does not support packing"),
        ({"fsdp": "full_shard"}, "does not support FSDP"),
    ],
)
def test_settings_that_dpo_does_not_support_are_refused(
    run_finetune: RunFinetune, pairs: Path, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_finetune(method="dpo", data=str(pairs), **settings)


def test_an_adapter_is_refused_with_the_command_that_merges_it(
    run_finetune: RunFinetune, pairs: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    adapter = save_trained_adapter(tmp_path / "v1", tiny_folder, target_modules=["q_proj"])
    with pytest.raises(ConfigError, match="is an adapter") as caught:
        run_finetune(method="dpo", data=str(pairs), model=str(adapter))
    assert "llmctl models merge" in caught.value.hint


def test_without_trl_the_error_has_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)  # as if it were not installed
    spec = importlib.util.find_spec("llmctl.train.dpo")
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(MissingDependencyError) as caught:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert caught.value.hint == "pip install 'llmctl[dpo]'"
