"""How does an exam's data come into the store? From the hub or ModelScope, into its own layout."""

import csv
import io
import json
import os
import shutil
import tarfile
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llmctl.atomic_files import atomic_folder
from llmctl.errors import ConfigError, LlmctlError
from llmctl.evaluation.benchmarks.data_paths import benchmarks_dir, candidate_dirs, find_data
from llmctl.evaluation.benchmarks.readers import BenchmarkDataError
from llmctl.evaluation.benchmarks.registry import Benchmark
from llmctl.types import Progress, ProgressCallback

_ANSWER_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class DownloadSource:
    """What to fetch for a suite, and how it becomes files in the suite's layout."""

    repo: str
    """Dataset on the Hugging Face hub."""
    file: str
    unpack: Callable[[Path, Path], None]
    """Writes from the fetched file into a folder."""
    modelscope: str | None = None
    """Dataset on ModelScope with the same file."""


def _archive(below: str) -> Callable[[Path, Path], None]:
    """Take the tables under `below` of a zip or tar file."""

    def unpack(file: Path, folder: Path) -> None:
        def keep(name: str, content: bytes) -> None:
            parts = Path(name.removeprefix("./")).parts
            prefix = Path(below).parts
            if parts[: len(prefix)] != prefix or not name.endswith(".csv") or ".." in parts:
                return
            target = folder.joinpath(*parts[len(prefix) :])
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)

        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as zipped:
                for name in zipped.namelist():
                    keep(name, zipped.read(name))
            return
        with tarfile.open(file) as archive:
            for member in archive:
                stream = archive.extractfile(member)
                if stream is not None:
                    keep(member.name, stream.read())

    return unpack


def _rows(name: str, line: Callable[[dict[str, Any]], object]) -> Callable[[Path, Path], None]:
    """Write each row of a parquet file as a line of JSON."""

    def unpack(file: Path, folder: Path) -> None:
        import pyarrow.parquet as pq

        values = [line(row) for row in pq.read_table(file).to_pylist()]
        text = "".join(json.dumps(v, ensure_ascii=False) + "\n" for v in values)
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")

    return unpack


def _arc(row: dict[str, Any]) -> object:
    choices = row["choices"]
    pairs = zip(choices["text"], choices["label"], strict=True)
    return {
        "id": row["id"],
        "question": {
            "stem": row["question"],
            "choices": [{"text": text, "label": label} for text, label in pairs],
        },
        "answerKey": row["answerKey"],
    }


def _hellaswag(row: dict[str, Any]) -> object:
    """Prepare a row as lm-evaluation-harness does, the way OpenCompass' file was made."""

    def clean(text: str) -> str:
        import re

        text = text.strip().replace(" [title]", ". ")
        return re.sub(r"\[.*?\]", "", text).replace("  ", " ")

    context = f"{row['ctx_a']} {row['ctx_b'].capitalize()}"
    return {
        "query": f"{clean(row['activity_label'])}: {clean(context)}",
        "choices": [clean(ending) for ending in row["endings"]],
        "gold": int(row["label"]),
    }


def _truthful(file: Path, folder: Path) -> None:
    import pyarrow.parquet as pq

    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(("Question", "Best Answer", "Incorrect Answers"))
    for row in pq.read_table(file).to_pylist():
        wrong = "; ".join(row["incorrect_answers"])
        writer.writerow((row["question"], row["best_answer"], wrong))
    (folder / "TruthfulQA.csv").write_text(out.getvalue(), encoding="utf-8")


DOWNLOAD_SOURCES: Final[Mapping[str, DownloadSource]] = {
    "ceval": DownloadSource(
        "ceval/ceval-exam", "ceval-exam.zip", _archive(""), "opencompass/ceval-exam"
    ),
    "mmlu": DownloadSource("cais/mmlu", "data.tar", _archive("data")),
    "cmmlu": DownloadSource("haonan-li/cmmlu", "cmmlu_v1_0_1.zip", _archive("")),
    "gsm8k": DownloadSource(
        "openai/gsm8k", "main/test-00000-of-00001.parquet", _rows("test.jsonl", lambda row: row)
    ),
    "arc-c": DownloadSource(
        "allenai/ai2_arc",
        "ARC-Challenge/test-00000-of-00001.parquet",
        _rows("ARC-c/ARC-Challenge-Test.jsonl", _arc),
    ),
    "arc-e": DownloadSource(
        "allenai/ai2_arc",
        "ARC-Easy/test-00000-of-00001.parquet",
        _rows("ARC-e/ARC-Easy-Test.jsonl", _arc),
    ),
    "truthfulqa": DownloadSource(
        "truthfulqa/truthful_qa", "generation/validation-00000-of-00001.parquet", _truthful
    ),
    "hellaswag": DownloadSource(
        "Rowan/hellaswag",
        "data/validation-00000-of-00001.parquet",
        _rows("hellaswag.jsonl", _hellaswag),
    ),
}


def download_if_missing(
    suite: Benchmark, data_dir: Path | None, progress: ProgressCallback
) -> None:
    """Fetch a suite unless its data is on this machine.

    Raises:
        ConfigError: it is not, and nobody has it; the message names every place and why.
    """
    if find_data(suite, data_dir) is not None:
        return
    _check_layout(suite, data_dir)
    try:
        download_benchmark(suite, progress)
    except ConfigError as error:
        wanted = suite.layout.files(Path(), suite.subjects[0])[0]
        tried = [f"  {folder}: no {wanted}" for folder in candidate_dirs(suite, data_dir)]
        raise ConfigError(
            f"the data of {suite.name} cannot be had:\n" + "\n".join([*tried, str(error)]),
            hint=f"`llmctl eval pull {suite.name}` where there is a network; or --data-dir FOLDER "
            f"with {wanted} in it",
        ) from error


def _check_layout(suite: Benchmark, data_dir: Path | None) -> None:
    """Raise `BenchmarkDataError` where a folder has the suite's name and other files."""
    if data_dir is None:
        return
    wanted = suite.layout.files(Path(), suite.subjects[0])[0]
    for folder in candidate_dirs(suite, data_dir):
        if folder.is_dir() and folder.name.lower() in (suite.name, *map(str.lower, suite.folders)):
            inside = ", ".join(sorted(entry.name for entry in folder.iterdir())[:5])
            raise BenchmarkDataError(
                f"{folder} has no {wanted}; it has {inside or 'nothing'}",
                hint=f"{wanted} should be {suite.layout.expected}",
            )


def download_benchmark(suite: Benchmark, progress: ProgressCallback) -> Path:
    """Fetch a suite's data into the store, whole or not at all; return its folder.

    Raises:
        ConfigError: neither the hub nor ModelScope gives it; a line for each says why.
    """
    remote = DOWNLOAD_SOURCES[suite.name]
    why = []
    with tempfile.TemporaryDirectory(prefix="llmctl-exam-") as scratch:
        for name, fetch in (("the hub", _from_hub), ("ModelScope", _from_modelscope)):
            progress(Progress(f"asking {name} for {suite.name}"))
            try:
                file = fetch(remote, Path(scratch))
                return _install(suite, remote, file)
            except LlmctlError as error:
                why.append(f"  {name}: {error}")
            except (OSError, ValueError, KeyError, tarfile.TarError, zipfile.BadZipFile) as error:
                why.append(f"  {name}: {type(error).__name__}: {str(error).splitlines()[0][:200]}")
    raise ConfigError("\n".join(why))


def _from_hub(remote: DownloadSource, _: Path) -> Path:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        HfApi().dataset_info(remote.repo, timeout=_ANSWER_SECONDS)
        return Path(hf_hub_download(remote.repo, remote.file, repo_type="dataset"))
    except OfflineModeIsEnabled as error:
        raise ConfigError("HF_HUB_OFFLINE is set") from error
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise ConfigError(f"{remote.repo}: {str(error).splitlines()[0]}") from error
    except Exception as error:  # which HTTP client is below differs between the hub's versions
        raise ConfigError(f"it cannot be reached ({type(error).__name__})") from error


def _from_modelscope(remote: DownloadSource, scratch: Path) -> Path:
    if remote.modelscope is None:
        raise ConfigError("it has no copy that we know")
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        raise ConfigError("HF_HUB_OFFLINE is set")
    url = f"https://www.modelscope.cn/datasets/{remote.modelscope}/resolve/master/{remote.file}"
    target = scratch / Path(remote.file).name
    with urllib.request.urlopen(url, timeout=_ANSWER_SECONDS) as answer, target.open("wb") as out:
        shutil.copyfileobj(answer, out)
    return target


def _install(suite: Benchmark, remote: DownloadSource, file: Path) -> Path:
    """Unpack aside, look whether the suite is there, and move it into the store."""
    exams = benchmarks_dir()
    exams.mkdir(parents=True, exist_ok=True)
    final = exams / suite.name
    with atomic_folder(final) as folder:
        remote.unpack(file, folder)
        for subject in suite.subjects:
            suite.layout.rows(suite.layout.files(folder, subject)[0])
    return final
