"""Where does an exam's data lie? Looks in the given folder, then in the store, and says so."""

from dataclasses import dataclass
from pathlib import Path

from llmctl.config import store_home
from llmctl.errors import ConfigError
from llmctl.evaluation.benchmarks.readers import BenchmarkDataError
from llmctl.evaluation.benchmarks.registry import Benchmark


@dataclass(frozen=True, slots=True)
class Found:
    """The folder that a suite's layout begins in."""

    folder: Path
    tried: tuple[str, ...] = ()


def benchmarks_dir() -> Path:
    """Return the folder of fetched exams. It may not exist yet."""
    return store_home() / "exams"


def candidate_dirs(suite: Benchmark, data_dir: Path | None) -> list[Path]:
    """Return the folders that may hold a suite's data, in the order they are looked at."""
    folders = []
    if data_dir is not None:
        root = data_dir.expanduser().resolve()
        for below in suite.folders:
            folders += [root / below, root / "data" / below]
    return [*dict.fromkeys(folders), benchmarks_dir() / suite.name]


def find_data(suite: Benchmark, data_dir: Path | None) -> Path | None:
    """Return the first folder with a file of the suite; `None` where there is none.

    Raises:
        ExamError: a folder is there by the suite's name, and is laid out otherwise.
    """
    for folder in candidate_dirs(suite, data_dir):
        if any(suite.layout.files(folder, subject)[0].is_file() for subject in suite.subjects):
            return folder
    return None


def locate_data(suite: Benchmark, data_dir: Path | None) -> Path:
    """Return the folder of a suite's data, as far as it is on this machine.

    Raises:
        ExamError: a folder has the suite's name and another layout.
        ConfigError: nothing is there; the message names every place.
    """
    found = find_data(suite, data_dir)
    if found is not None:
        return found
    tried = candidate_dirs(suite, data_dir)
    wanted = suite.layout.files(Path(), suite.subjects[0])[0]
    for folder in tried:
        if folder.is_dir() and folder.name != (data_dir or Path()).resolve().name:
            inside = sorted(entry.name for entry in folder.iterdir())[:5]
            raise BenchmarkDataError(
                f"{folder} has no {wanted}; it has {', '.join(inside) or 'nothing'}",
                hint=f"{wanted} should be {suite.layout.expected}",
            )
    places = "\n".join(f"  {folder}: not there" for folder in tried)
    raise ConfigError(
        f"the data of {suite.name} is not on this machine:\n{places}",
        hint=f"llmctl eval pull {suite.name}; or --data-dir FOLDER that has {wanted} in it",
    )
