"""The `llmctl finetune` command."""

import json
import os
import signal
from pathlib import Path

import pytest

from llmctl.cli.app import main
from tests.cli.process import RunningCommand, error_lines, run_in_process, run_process

pytestmark = pytest.mark.usefixtures("own_store")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    lines = [{"instruction": f"Say {n}.", "output": f"{n}, gladly."} for n in range(40)]
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return file


@pytest.fixture
def settings(tiny_folder: Path, rows: Path, tmp_path: Path) -> Path:
    file = tmp_path / "finetune.yaml"
    file.write_text(
        f"model_path: {tiny_folder}\n"
        f"data_path: {rows}\n"
        f"output_dir: {tmp_path / 'out'}\n"
        "dtype: float32\n"
        "device: cpu\n"
        "batch_size: 8\n"
        "learning_rate: 1e-3\n"
        "eval_fraction: 0.2\n"
        "samples: 1\n"
        "sample_tokens: 4\n"
    )
    return file


def fails(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["finetune", *words])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def interrupt_at_first_step(process: RunningCommand) -> list[str]:
    """Press Ctrl-C after the first step; return the lines of stderr."""
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("step 1/"):
            process.send_signal(signal.SIGINT)
    return lines


@pytest.mark.slow
def test_finetune_from_file_and_options_is_tracked(settings: Path, tmp_path: Path) -> None:
    done = run_in_process(
        "finetune", "-c", str(settings), "--rank", "2", "--max-steps", "3", "--json"
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["steps"] == 3
    assert report["run_id"]
    output = done.stderr
    assert "rank" in output
    assert "option" in output
    assert "finetune.yaml:7" in output  # source of the learning rate
    assert "step 3/3  loss" in output
    assert "held-out loss" in output
    assert "\x1b" not in output
    assert (tmp_path / "out" / "curves.png").stat().st_size > 1000
    shown = run_in_process("runs", "show", report["run_id"][:8])
    assert "finished" in shown.stdout
    assert "train/loss" in shown.stdout


def test_all_invalid_settings_are_reported_with_their_source(
    settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.write_text(settings.read_text() + "rnak: 8\nepochs: 0\nmethod: lola\n")
    assert fails("-c", str(settings), "--seed", "-1") == 2
    output = capsys.readouterr().err
    assert "finetune.yaml:11: there is no setting rnak; did you mean rank?" in output
    assert "finetune.yaml:12: epochs is 0" in output
    assert "finetune.yaml:13: method is 'lola'" in output
    assert "--seed is -1" in output


def test_missing_data_file_is_reported_first(
    settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fails("-c", str(settings), "--data", "nowhere.jsonl") == 2
    assert "there is no file nowhere.jsonl" in capsys.readouterr().err


def test_data_without_rows_is_reported_with_a_hint(
    settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    assert fails("-c", str(settings), "--data", str(empty)) == 1
    output = capsys.readouterr().err
    assert "the file has no rows" in output
    assert "--on-error" not in output
    assert fails("-c", str(settings), "--data", os.devnull) == 2
    output = capsys.readouterr().err
    assert f"{os.devnull} is not a regular file" in output
    assert "did you mean" not in output
    assert fails("-c", str(settings), "--method", "qlora", "--quant", "none") == 2
    assert "--method lora, or leave out --quant" in capsys.readouterr().err


def test_invalid_rows_are_all_reported_or_skipped(
    settings: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows.write_text(rows.read_text() + '\n{"instruction": "Hm?"}\n{broken\n')
    assert fails("-c", str(settings), "--dry-run") == 1
    output = capsys.readouterr().err
    assert "rows.jsonl:41" in output
    assert "rows.jsonl:42" in output
    assert "--on-error skip" in output
    with pytest.raises(SystemExit) as ended:
        main(["finetune", "-c", str(settings), "--dry-run", "--on-error", "skip"])
    assert ended.value.code == 0
    assert "left out" in capsys.readouterr().err


def test_dry_run_prints_the_plan_and_writes_nothing(
    settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["finetune", "--config", str(settings), "--dry-run"])
    assert ended.value.code == 0
    output = capsys.readouterr()
    for words in ("steps", "tokens per epoch", "trainable", "memory"):
        assert words in output.out
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_ctrl_c_saves_and_the_printed_command_resumes(settings: Path, tmp_path: Path) -> None:
    words = ["finetune", "-c", str(settings), "--epochs", "40", "--eval-every", "200", "--no-track"]
    with RunningCommand(*words, COLUMNS="200") as process:
        output = interrupt_at_first_step(process)
        assert process.wait() == 130
    assert "which is saved" in output[-1]
    assert f"--resume --output {tmp_path / 'out'}" in output[-1]
    step = int(output[-1].split("step ")[1].split(",")[0])
    done = run_in_process(
        "finetune", "--resume", "-o", str(tmp_path / "out"), "--json", "--no-track"
    )
    assert done.returncode == 0, error_lines(done.stderr)
    report = json.loads(done.stdout)
    assert step < report["steps"]
    assert [number for number, _ in report["losses"]] == list(range(1, report["steps"] + 1))


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(settings: Path, tmp_path: Path) -> None:
    words = ["finetune", "-c", str(settings), "--max-steps", "3", "--micro-batch-size", "2"]
    words.append("--no-track")
    reports = []
    for number in ("1", "2"):
        output = str(tmp_path / number)
        done = run_process(*words, "--nproc", number, "-o", output, "--json", OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stderr
        reports.append(json.loads(done.stdout))
        assert done.stderr.count("steps, ") == 1  # only one of them prints
    for (_, alone), (_, shared) in zip(*(r["losses"] for r in reports), strict=True):
        assert shared == pytest.approx(alone, abs=1e-5)
    for (_, alone), (_, shared) in zip(*(r["eval_losses"] for r in reports), strict=True):
        assert shared == pytest.approx(alone, abs=1e-5)


@pytest.mark.slow
def test_two_stopped_processes_save_and_finish_tracking(settings: Path, tmp_path: Path) -> None:
    words = ["finetune", "-c", str(settings), "--epochs", "400", "--eval-every", "500"]
    words += ["--nproc", "2"]
    with RunningCommand(*words, COLUMNS="200", OMP_NUM_THREADS="1") as process:
        output = interrupt_at_first_step(process)
        assert process.wait() == 130
    assert "which is saved" in output[-1]  # and nothing of entries that wait
    assert not [*(tmp_path / "store/tracking").iterdir()]


@pytest.mark.slow
def test_failed_processes_report_one_error(settings: Path) -> None:
    done = run_process("finetune", "-c", str(settings), "--nproc", "2", "--batch-size", "3")
    assert done.returncode == 2
    assert sum("error:" in line for line in error_lines(done.stderr)) == 1
    assert "a batch of 3 rows is not divisible by 2 devices" in done.stderr
