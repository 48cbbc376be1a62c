"""A model learns from pairs which answer is the better one, measured from where it began."""

import importlib
import json
import math
import sys
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
from tests.adapters import save_trained_adapter as teach_adapter
from tests.train.conftest import EventRecorder, RunFinetune

pytest.importorskip("trl")

QUESTION, BETTER, WORSE = "Name a colour.", "blue", "a colour is a thing of which I know nothing"


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    file = tmp_path / "pairs.jsonl"
    with file.open("w", encoding="utf-8") as out:
        for number in range(32):
            row = {
                "prompt": f"{QUESTION} ({number})",
                "chosen": BETTER + "!" * (number % 3),
                "rejected": WORSE + "." * (number % 5),
            }
            out.write(json.dumps(row) + "\n")
    return file


def likelihood_gap(engine: HFRunner) -> float:
    """How much likelier the better answer is, in nats."""
    asked = f"<|im_start|>user\n{QUESTION} (7)<|im_end|>\n<|im_start|>assistant\n"
    request = ScoreRequest(asked, (BETTER, WORSE))
    ((better, worse),) = engine.score([request])
    return better.logprob / better.token_count - worse.logprob / worse.token_count


def test_the_better_answer_becomes_likelier_and_the_folder_is_a_model(
    teach: RunFinetune, pairs: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    watched = EventRecorder()
    settings = {"method": "dpo", "data": str(pairs), "learning_rate": 5e-3, "dpo_beta": 0.5}
    report = teach(watched, **settings, max_steps=12)
    assert report.losses[0][1] == pytest.approx(math.log(2), abs=1e-3)
    assert report.losses[-1][1] < 0.3
    assert dict(report.eval_losses)[0] == pytest.approx(math.log(2), abs=1e-3)
    assert report.eval_losses[-1][1] < 0.5
    assert watched.plan.rows + watched.plan.eval_rows == 32
    output = tmp_path / "out"
    note = Provenance.read(output)
    assert note is not None
    assert note.method == "dpo"
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


def test_the_loss_does_not_depend_on_the_micro_batch(
    teach: RunFinetune, pairs: Path, tmp_path: Path
) -> None:
    settings = {"method": "dpo", "data": str(pairs), "max_steps": 3, "eval_every": 3}
    runs = []
    for micro in (1, 8):
        watched = EventRecorder()
        teach(watched, **settings, micro_batch_size=micro, output=tmp_path / f"by{micro}")
        runs.append(watched)
    assert runs[0].losses == pytest.approx(runs[1].losses, abs=1e-5)
    assert runs[0].evals == pytest.approx(runs[1].evals, abs=1e-5)


def test_a_run_that_was_broken_off_goes_on_with_the_same_losses(
    teach: RunFinetune, pairs: Path, tmp_path: Path
) -> None:
    settings = {"method": "dpo", "data": str(pairs), "max_steps": 6, "save_every": 3}
    whole, first, rest = EventRecorder(), EventRecorder(), EventRecorder()
    teach(whole, **settings, output=tmp_path / "whole")

    def break_off(event: Any) -> None:
        if getattr(event, "step", None) == 4 and hasattr(event, "grad_norm"):
            raise KeyboardInterrupt

    first.on_event = break_off
    with pytest.raises(KeyboardInterrupt):
        teach(first, **settings)
    teach(rest, request={"resume": True})
    for step, loss in rest.losses.items():
        assert loss == pytest.approx(whole.losses[step], abs=1e-5)


def test_a_pair_becomes_two_rows_the_better_ones_first() -> None:
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
def test_what_pairs_cannot_be_learnt_with_is_refused(
    teach: RunFinetune, pairs: Path, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        teach(method="dpo", data=str(pairs), **settings)


def test_an_adapter_is_merged_before_it_learns_from_pairs(
    teach: RunFinetune, pairs: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    adapter = teach_adapter(tmp_path / "v1", tiny_folder, target_modules=["q_proj"])
    with pytest.raises(ConfigError, match="is an adapter") as caught:
        teach(method="dpo", data=str(pairs), model=str(adapter))
    assert "llmctl models merge" in caught.value.hint


def test_without_the_extra_the_line_that_installs_it_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.delitem(sys.modules, "llmctl.train.dpo", raising=False)
    with pytest.raises(MissingDependencyError) as caught:
        importlib.import_module("llmctl.train.dpo")
    assert caught.value.hint == "pip install 'llmctl[dpo]'"
