"""Downloads benchmark data from the Hugging Face hub or ModelScope into the benchmark's layout."""

import csv
import io
import json
import os
import re
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
from llmctl.evaluation.benchmarks.data_paths import (
    benchmarks_dir,
    candidate_dirs,
    check_data_dir,
    find_data,
    first_file,
)
from llmctl.evaluation.benchmarks.registry import Benchmark
from llmctl.types import Progress, ProgressCallback

_TIMEOUT_S: Final = 10.0

Unpack = Callable[[Path, Path], None]
"""Writes the content of a downloaded file to a folder."""


@dataclass(frozen=True, slots=True)
class DownloadSource:
    """The file to download for a benchmark, and how to unpack it."""

    repo: str
    """Dataset on the Hugging Face hub."""
    file: str
    unpack: Unpack
    modelscope: str | None = None
    """Dataset on ModelScope with the same file."""


def _unpack_csv_archive(below: str) -> Unpack:
    """Unpack the CSV files under the folder `below` of a zip or tar archive."""

    def unpack(file: Path, folder: Path) -> None:
        def write(name: str, content: bytes) -> None:
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
                    write(name, zipped.read(name))
            return
        with tarfile.open(file) as archive:
            for member in archive:
                stream = archive.extractfile(member)
                if stream is not None:
                    write(member.name, stream.read())

    return unpack


def _parquet_to_jsonl(name: str, convert: Callable[[dict[str, Any]], object]) -> Unpack:
    """Write each converted row of a parquet file as a line of JSON."""

    def unpack(file: Path, folder: Path) -> None:
        import pyarrow.parquet as pq

        values = [convert(row) for row in pq.read_table(file).to_pylist()]
        text = "".join(json.dumps(v, ensure_ascii=False) + "\n" for v in values)
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")

    return unpack


def _arc_row(row: dict[str, Any]) -> object:
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


def _hellaswag_row(row: dict[str, Any]) -> object:
    """Preprocess a row as lm-evaluation-harness does; OpenCompass' file was made that way."""

    def clean(text: str) -> str:
        text = text.strip().replace(" [title]", ". ")
        return re.sub(r"\[.*?\]", "", text).replace("  ", " ")

    context = f"{row['ctx_a']} {row['ctx_b'].capitalize()}"
    return {
        "query": f"{clean(row['activity_label'])}: {clean(context)}",
        "choices": [clean(ending) for ending in row["endings"]],
        "gold": int(row["label"]),
    }


def _unpack_truthfulqa(file: Path, folder: Path) -> None:
    import pyarrow.parquet as pq

    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(("Question", "Best Answer", "Incorrect Answers"))
    for row in pq.read_table(file).to_pylist():
        incorrect = "; ".join(row["incorrect_answers"])
        writer.writerow((row["question"], row["best_answer"], incorrect))
    (folder / "TruthfulQA.csv").write_text(out.getvalue(), encoding="utf-8")


DOWNLOAD_SOURCES: Final[Mapping[str, DownloadSource]] = {
    "ceval": DownloadSource(
        "ceval/ceval-exam", "ceval-exam.zip", _unpack_csv_archive(""), "opencompass/ceval-exam"
    ),
    "mmlu": DownloadSource("cais/mmlu", "data.tar", _unpack_csv_archive("data")),
    "cmmlu": DownloadSource("haonan-li/cmmlu", "cmmlu_v1_0_1.zip", _unpack_csv_archive("")),
    "gsm8k": DownloadSource(
        "openai/gsm8k",
        "main/test-00000-of-00001.parquet",
        _parquet_to_jsonl("test.jsonl", lambda row: row),
    ),
    "arc-c": DownloadSource(
        "allenai/ai2_arc",
        "ARC-Challenge/test-00000-of-00001.parquet",
        _parquet_to_jsonl("ARC-c/ARC-Challenge-Test.jsonl", _arc_row),
    ),
    "arc-e": DownloadSource(
        "allenai/ai2_arc",
        "ARC-Easy/test-00000-of-00001.parquet",
        _parquet_to_jsonl("ARC-e/ARC-Easy-Test.jsonl", _arc_row),
    ),
    "truthfulqa": DownloadSource(
        "truthfulqa/truthful_qa", "generation/validation-00000-of-00001.parquet", _unpack_truthfulqa
    ),
    "hellaswag": DownloadSource(
        "Rowan/hellaswag",
        "data/validation-00000-of-00001.parquet",
        _parquet_to_jsonl("hellaswag.jsonl", _hellaswag_row),
    ),
}


def download_if_missing(
    benchmark: Benchmark, data_dir: Path | None, progress: ProgressCallback
) -> None:
    """Download a benchmark unless its data is on this machine.

    Raises:
        BenchmarkDataError: a folder has the benchmark's name but other files.
        ConfigError: the download failed; the message lists the searched folders and the reasons.
    """
    if find_data(benchmark, data_dir) is not None:
        return
    check_data_dir(benchmark, data_dir)
    try:
        download_benchmark(benchmark, progress)
    except ConfigError as error:
        wanted = first_file(benchmark)
        searched = [f"  {folder}: no {wanted}" for folder in candidate_dirs(benchmark, data_dir)]
        raise ConfigError(
            f"no data of {benchmark.name}:\n" + "\n".join([*searched, str(error)]),
            hint=f"`llmctl eval pull {benchmark.name}` with network access; or --data-dir FOLDER "
            f"that contains {wanted}",
        ) from error


def download_benchmark(benchmark: Benchmark, progress: ProgressCallback) -> Path:
    """Download a benchmark's data into the store, all or nothing; return its folder.

    Raises:
        ConfigError: neither the hub nor ModelScope provides it; the message has a line for each.
    """
    source = DOWNLOAD_SOURCES[benchmark.name]
    reasons = []
    with tempfile.TemporaryDirectory(prefix="llmctl-benchmark-") as scratch:
        for name, fetch in (("the hub", _from_hub), ("ModelScope", _from_modelscope)):
            progress(Progress(f"downloading {benchmark.name} from {name}"))
            try:
                return _install(benchmark, source, fetch(source, Path(scratch)))
            except LlmctlError as error:
                reasons.append(f"  {name}: {error}")
            except (OSError, ValueError, KeyError, tarfile.TarError, zipfile.BadZipFile) as error:
                reason = str(error).splitlines()[0][:200]
                reasons.append(f"  {name}: {type(error).__name__}: {reason}")
    raise ConfigError("\n".join(reasons))


def _from_hub(source: DownloadSource, _: Path) -> Path:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        HfApi().dataset_info(source.repo, timeout=_TIMEOUT_S)
        return Path(hf_hub_download(source.repo, source.file, repo_type="dataset"))
    except OfflineModeIsEnabled as error:
        raise ConfigError("HF_HUB_OFFLINE is set") from error
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise ConfigError(f"{source.repo}: {str(error).splitlines()[0]}") from error
    except Exception as error:  # the HTTP client and its errors differ between hub releases
        raise ConfigError(f"cannot connect ({type(error).__name__})") from error


def _from_modelscope(source: DownloadSource, scratch: Path) -> Path:
    if source.modelscope is None:
        raise ConfigError("no known copy")
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        raise ConfigError("HF_HUB_OFFLINE is set")
    url = f"https://www.modelscope.cn/datasets/{source.modelscope}/resolve/master/{source.file}"
    target = scratch / Path(source.file).name
    with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response, target.open("wb") as out:
        shutil.copyfileobj(response, out)
    return target


def _install(benchmark: Benchmark, source: DownloadSource, file: Path) -> Path:
    """Unpack to a staging folder, read every subject, then move the folder into the store."""
    final = benchmarks_dir() / benchmark.name
    final.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(final) as staging:
        source.unpack(file, staging)
        for subject in benchmark.subjects:
            benchmark.reader.read(benchmark.reader.files(staging, subject)[0])
    return final
