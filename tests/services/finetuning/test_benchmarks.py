import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from llmctl.config.evaluation import EvalSelection
from llmctl.config.settings import Setting
from llmctl.engine.models.provenance import Provenance
from llmctl.errors import ConfigError
from llmctl.evaluation.benchmarks.custom_benchmark import load_custom_benchmark
from llmctl.evaluation.plan import plan_benchmark
from llmctl.monitor.read.runs import open_runs
from llmctl.services.evaluation.request import EvalObserver
from llmctl.services.evaluation.results import compare_evaluations, read_samples
from llmctl.services.evaluation.run import EvalRequest, evaluate
from llmctl.services.finetuning.run import FinetuneRequest, finetune
from llmctl.types import TrainNote, TrainReport
from tests.evaluation.benchmark_files import write_custom_benchmark

pytestmark = pytest.mark.usefixtures("own_store")


def write_training_rows(benchmark: Path, file: Path) -> Path:
    """Write every question of a benchmark with its answer as training rows."""
    plan = plan_benchmark(
        load_custom_benchmark(benchmark), benchmark.parent, EvalSelection(mode="gen")
    )
    rows = [
        {"instruction": question.messages[-1].content, "output": question.gold}
        for subject in plan.subjects
        for question in subject.questions
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows * 8), encoding="utf-8")
    return file


def train(model: Path, benchmark: Path, output: Path, **more: Any) -> TrainReport:
    notes: list[str] = []
    report = run_finetune(settings(model, benchmark, output) | more, notes.append)
    assert len([note for note in notes if note.startswith("benchmarks ")]) == 2
    return report


def settings(model: Path, benchmark: Path, output: Path) -> dict[str, object]:
    return {
        "model": str(model),
        "data": str(write_training_rows(benchmark, benchmark.parent / "training.jsonl")),
        "output": str(output),
        "eval": (str(benchmark),),
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


def run_finetune(
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


@pytest.mark.slow
def test_training_on_a_benchmark_improves_its_score_in_report_and_tracking_store(
    tiny_folder: Path, tmp_path: Path
) -> None:
    benchmark, output = write_custom_benchmark(tmp_path), tmp_path / "trained"
    report = train(tiny_folder, benchmark, output)
    (comparison,) = report.exams
    assert comparison.questions == 12
    assert comparison.second >= comparison.first + 0.5
    assert comparison.low > 0
    assert (output / "benchmarks" / "report.html").stat().st_size > 10_000

    # An evaluation of the adapter by itself gives the same comparison.
    again = tmp_path / "again"
    chosen = {
        "dataset": (str(benchmark),),
        "model": str(output),
        "mode": "gen",
        "output": str(again),
    }
    options = {name: Setting(value, "option") for name, value in chosen.items()}
    evaluate(
        EvalRequest(options={**options, "dtype": Setting("float32", "option")}), EvalObserver()
    )
    separate = compare_evaluations(str(output / "benchmarks" / "before"), str(again)).comparisons[0]
    assert (separate.first, separate.second) == (comparison.first, comparison.second)
    assert len(read_samples(str(again), wrong=True)) == round(12 * (1 - comparison.second))

    with open_runs(None) as store:
        runs = {run.run_id: run for run in store.runs()}
    run = runs[report.run_id or ""]
    assert run.metrics["eval/colours/difference"] == pytest.approx(
        comparison.second - comparison.first
    )
    assert run.metrics["eval/colours/difference_low"] == pytest.approx(comparison.low)
    children = [run for run in runs.values() if run.parent_run_id == report.run_id]
    assert [run.kind for run in children] == ["eval"] * 3


@pytest.mark.slow
def test_a_run_stopped_in_the_benchmarks_after_training_resumes_them(
    tiny_folder: Path, tmp_path: Path
) -> None:
    notes: list[str] = []

    def interrupt(note: str) -> None:
        notes.append(note)
        if note.startswith("benchmarks after"):
            raise KeyboardInterrupt

    benchmark, output = write_custom_benchmark(tmp_path), tmp_path / "trained"
    chosen = settings(tiny_folder, benchmark, output) | {"max_steps": 2}
    with pytest.raises(KeyboardInterrupt):
        run_finetune(chosen, interrupt)
    assert f"--resume --output {output}`" in notes[-1]
    (output / "benchmarks").rename(output / "exams")  # the name in earlier releases
    published = Provenance.read(output)
    report = run_finetune({"output": str(output)}, notes.append, resume=True)
    stages = [note.split()[1] for note in notes if note.startswith("benchmarks ")]
    assert stages == ["before", "after", "after"]
    resumed = Provenance.read(output)
    assert published
    assert resumed
    assert resumed.model_id == published.model_id is not None
    (comparison,) = report.exams
    assert comparison.questions == 12
    assert (output / "exams" / "report.html").exists()
    assert not (output / "benchmarks").exists()
    with open_runs(None) as store:
        (run,) = [run for run in store.runs() if run.kind == "finetune"]
    assert run.status == "finished"
    assert run.metrics["eval/colours/difference"] == pytest.approx(
        comparison.second - comparison.first
    )


def test_an_unknown_benchmark_is_refused_before_the_training(
    tiny_folder: Path, tmp_path: Path
) -> None:
    benchmark = write_custom_benchmark(tmp_path)
    with pytest.raises(ConfigError, match="unknown benchmark 'cevil'"):
        train(tiny_folder, benchmark, tmp_path / "trained", eval=("cevil",))
    assert not (tmp_path / "trained" / "run.lock.json").exists()
