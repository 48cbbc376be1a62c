import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from llmctl.config.settings import Setting
from llmctl.engine.models.provenance import Provenance
from llmctl.errors import ConfigError
from llmctl.evaluation.benchmarks.custom_benchmark import load_custom_benchmark
from llmctl.evaluation.plan import EvalSelection, plan_benchmark
from llmctl.monitor.read.runs import open_runs
from llmctl.services.evaluation.request import SILENT_OBSERVER
from llmctl.services.evaluation.results import compare_evaluations, read_samples
from llmctl.services.evaluation.run import EvalRequest, evaluate
from llmctl.services.finetuning.run import FinetuneRequest, finetune
from llmctl.types import TrainNote, TrainReport
from tests.evaluation.benchmark_files import write_custom_benchmark


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "store").mkdir()
    shutil.copy(empty_store, tmp_path / "store")
    monkeypatch.setenv("LLMCTL_HOME", str(tmp_path / "store"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def lessons(exam: Path, file: Path) -> Path:
    """Write every question of an exam with its answer, as a model may learn it."""
    plan = plan_benchmark(load_custom_benchmark(exam), exam.parent, EvalSelection(mode="gen"))
    rows = [
        {"instruction": question.messages[-1].content, "output": question.gold}
        for subject in plan.subjects
        for question in subject.questions
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows * 8), encoding="utf-8")
    return file


def teach(model: Path, exam: Path, output: Path, **more: Any) -> TrainReport:
    notes: list[str] = []
    report = ask(settings(model, exam, output) | more, notes.append)
    assert len([note for note in notes if note.startswith("benchmarks ")]) == 2
    return report


def settings(model: Path, exam: Path, output: Path) -> dict[str, object]:
    return {
        "model": str(model),
        "data": str(lessons(exam, exam.parent / "lessons.jsonl")),
        "output": str(output),
        "eval": (str(exam),),
        "eval_mode": "gen",
        "dtype": "float32",
        "device": "cpu",
        "rank": 16,
        "learning_rate": 1e-2,
        "max_steps": 60,
        "epochs": 100,
        "eval_fraction": 0.0,
        "samples": 0,
    }


def ask(
    chosen: Mapping[str, object], noted: Callable[[str], None], *, resume: bool = False
) -> TrainReport:
    """Run `llmctl finetune`."""
    options = {name: Setting(value, "option") for name, value in chosen.items()}
    report = finetune(
        FinetuneRequest(options=options, resume=resume),
        lambda event: noted(event.text) if isinstance(event, TrainNote) else None,
    )
    assert isinstance(report, TrainReport)
    return report


def test_an_adapter_that_was_taught_an_exam_does_better_in_it_all_the_way_to_the_record(
    tiny_folder: Path, tmp_path: Path
) -> None:
    exam, output = write_custom_benchmark(tmp_path), tmp_path / "taught"
    report = teach(tiny_folder, exam, output)
    (found,) = report.exams
    assert found.questions == 12
    assert found.second >= found.first + 0.5
    assert found.low > 0
    assert (output / "benchmarks" / "report.html").stat().st_size > 10_000

    # The same by hand: eval of the adapter, then compare with the base.
    again = tmp_path / "again"
    chosen = {"dataset": (str(exam),), "model": str(output), "mode": "gen", "output": str(again)}
    options = {name: Setting(value, "option") for name, value in chosen.items()}
    evaluate(
        EvalRequest(options={**options, "dtype": Setting("float32", "option")}), SILENT_OBSERVER
    )
    by_hand = compare_evaluations(str(output / "benchmarks" / "before"), str(again)).comparisons[0]
    assert (by_hand.first, by_hand.second) == (found.first, found.second)
    assert len(read_samples(str(again), wrong=True)) == round(12 * (1 - found.second))

    with open_runs(None) as store:
        runs = {run.run_id: run for run in store.runs()}
    taught = runs[report.run_id or ""]
    assert taught.metrics["eval/colours/difference"] == pytest.approx(found.second - found.first)
    assert taught.metrics["eval/colours/difference_low"] == pytest.approx(found.low)
    children = [run for run in runs.values() if run.parent_run_id == report.run_id]
    assert [run.kind for run in children] == ["eval"] * 3


def test_a_run_that_is_stopped_in_the_exam_afterwards_goes_on_with_it(
    tiny_folder: Path, tmp_path: Path
) -> None:
    notes: list[str] = []

    def impatient(note: str) -> None:
        notes.append(note)
        if note.startswith("benchmarks after"):
            raise KeyboardInterrupt

    exam, output = write_custom_benchmark(tmp_path), tmp_path / "taught"
    chosen = settings(tiny_folder, exam, output) | {"max_steps": 2}
    with pytest.raises(KeyboardInterrupt):
        ask(chosen, impatient)
    assert f"--resume --output {output}`" in notes[-1]
    (output / "benchmarks").rename(output / "exams")  # the name in earlier releases
    known = Provenance.read(output)
    report = ask({"output": str(output)}, notes.append, resume=True)
    told = [note.split()[1] for note in notes if note.startswith("benchmarks ")]
    assert told == ["before", "after", "after"]
    now = Provenance.read(output)
    assert known
    assert now
    assert now.model_id == known.model_id is not None
    (found,) = report.exams
    assert found.questions == 12
    assert (output / "exams" / "report.html").exists()
    assert not (output / "benchmarks").exists()
    with open_runs(None) as store:
        (taught,) = [run for run in store.runs() if run.kind == "finetune"]
    assert taught.status == "finished"
    assert taught.metrics["eval/colours/difference"] == pytest.approx(found.second - found.first)


def test_an_exam_that_is_not_there_is_said_before_anything_is_taught(
    tiny_folder: Path, tmp_path: Path
) -> None:
    exam = write_custom_benchmark(tmp_path)
    with pytest.raises(ConfigError, match="unknown benchmark 'cevil'"):
        teach(tiny_folder, exam, tmp_path / "taught", eval=("cevil",))
    assert not (tmp_path / "taught" / "run.lock.json").exists()
