"""Folders that can hold the data of a benchmark."""

from pathlib import Path

from llmctl.config import store_home
from llmctl.errors import ConfigError
from llmctl.evaluation.benchmarks.readers import BenchmarkDataError
from llmctl.evaluation.benchmarks.registry import Benchmark


def benchmarks_dir() -> Path:
    """Return the folder that downloads are written to. It may not exist yet."""
    return store_home() / "benchmarks"


def store_dirs() -> list[Path]:
    """Return the folders of downloaded benchmarks; earlier releases wrote to `exams`."""
    return [benchmarks_dir(), store_home() / "exams"]


def candidate_dirs(benchmark: Benchmark, data_dir: Path | None) -> list[Path]:
    """Return the folders that may hold a benchmark's data, in the order they are searched."""
    folders = []
    if data_dir is not None:
        root = data_dir.expanduser().resolve()
        for below in benchmark.folders:
            folders += [root / below, root / "data" / below]
    return [*dict.fromkeys(folders), *(store / benchmark.name for store in store_dirs())]


def find_data(benchmark: Benchmark, data_dir: Path | None) -> Path | None:
    """Return the first folder that has data files of the benchmark, or None."""
    for folder in candidate_dirs(benchmark, data_dir):
        files = (benchmark.reader.files(folder, subject)[0] for subject in benchmark.subjects)
        if any(file.is_file() for file in files):
            return folder
    return None


def locate_data(benchmark: Benchmark, data_dir: Path | None) -> Path:
    """Return the local folder of a benchmark's data.

    Raises:
        BenchmarkDataError: a folder has the benchmark's name but other files.
        ConfigError: there is no such folder; the message lists all searched ones.
    """
    found = find_data(benchmark, data_dir)
    if found is not None:
        return found
    check_data_dir(benchmark, data_dir)
    searched = "\n".join(f"  {folder}" for folder in candidate_dirs(benchmark, data_dir))
    raise ConfigError(
        f"no local data of {benchmark.name}; searched:\n{searched}",
        hint=f"llmctl eval pull {benchmark.name}; or --data-dir FOLDER that contains "
        f"{first_file(benchmark)}",
    )


def check_data_dir(benchmark: Benchmark, data_dir: Path | None) -> None:
    """Raise `BenchmarkDataError` if a folder has the benchmark's name but other files."""
    if data_dir is None:
        return
    for folder in candidate_dirs(benchmark, data_dir):
        names = (benchmark.name, *map(str.lower, benchmark.folders))
        if folder.is_dir() and folder.name.lower() in names:
            content = ", ".join(sorted(entry.name for entry in folder.iterdir())[:5])
            raise BenchmarkDataError(
                f"{folder} has no {first_file(benchmark)}; it has {content or 'nothing'}",
                hint=f"expected in {first_file(benchmark)}: {benchmark.reader.expected}",
            )


def first_file(benchmark: Benchmark) -> Path:
    """Return the relative path of the first subject's questions, as an example for messages."""
    return benchmark.reader.files(Path(), benchmark.subjects[0])[0]
