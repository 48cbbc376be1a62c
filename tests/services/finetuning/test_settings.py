"""Sources of the settings of `llmctl finetune`."""

import os
from pathlib import Path

import pytest

from tests.cli.process import error_lines, run_in_process
from tests.train.conftest import write_rows


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="the system has no /dev/fd")
def test_the_config_file_is_read_once_so_it_may_be_a_pipe(
    tiny_folder: Path, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as out:
        out.write(f"model: {tiny_folder}\ndata: {rows}\ndevice: cpu\nmax_steps: 7\n")
    done = run_in_process(
        "finetune",
        *("--config", f"/dev/fd/{reader}", "--dry-run"),
        LLMCTL_HOME=str(tmp_path / "store"),
    )
    os.close(reader)
    assert done.returncode == 0, error_lines(done.stderr)
    assert "7 steps" in done.stdout + done.stderr


@pytest.mark.skipif(os.name != "posix", reason="paths are Unicode on Windows")
def test_an_output_folder_that_is_not_utf8_is_refused_before_the_training(
    tiny_folder: Path, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    output = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    done = run_in_process(
        "finetune",
        *("--model", str(tiny_folder), "--data", str(rows), "--output", output),
        LLMCTL_HOME=str(tmp_path / "store"),
    )
    assert done.returncode == 2
    assert "is not valid UTF-8" in done.stderr
    assert not Path(output).exists()
