"""What is each run, and each exam, called on a page?"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from llmctl.evaluation.benchmarks.registry import BENCHMARKS
from llmctl.evaluation.results.loaded_run import LoadedRun


def run_names(runs: Sequence[LoadedRun]) -> list[str]:
    """Name each run by its model, and by its folder where two would be alike."""
    models = [_short(run.report.model) for run in runs]
    shared = {name for name, count in Counter(models).items() if count > 1}
    names: list[str] = []
    for model, run in zip(models, runs, strict=True):
        name = f"{model} ({Path(run.report.folder).name})" if model in shared else model
        while name in names:
            name += "'"
        names.append(name)
    return names


def benchmark_title(suite: str) -> str:
    """Return the title of an exam; one of a person's own has its name alone."""
    known = BENCHMARKS.get(suite)
    return suite if known is None else known.title


def _short(model: str) -> str:
    """Leave out where a folder of a model lies."""
    return Path(model).name if Path(model).is_absolute() else model
