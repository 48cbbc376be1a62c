"""Plans of the benchmarks of a run, and its results folder."""

from dataclasses import replace
from datetime import datetime
from pathlib import Path

from llmctl.config import EvalConfig, store_home
from llmctl.errors import ConfigError
from llmctl.evaluation.benchmarks.custom_benchmark import is_benchmark_file, load_custom_benchmark
from llmctl.evaluation.benchmarks.data_paths import locate_data
from llmctl.evaluation.benchmarks.registry import get_benchmark, is_benchmark
from llmctl.evaluation.plan import plan_benchmark
from llmctl.types import BenchmarkPlan, ProgressCallback


def create_plans(config: EvalConfig, progress: ProgressCallback) -> list[BenchmarkPlan]:
    """Plan every benchmark of the configuration; missing data is downloaded.

    Raises:
        ConfigError: a benchmark is unknown, its data is missing or malformed, or two benchmarks
            have the same name, which identifies their results.
    """
    plans, sources = [], dict[str, str]()
    for dataset in config.dataset:
        plan = _create_plan(dataset, config, progress)
        if plan.suite in sources:
            raise ConfigError(
                f"{sources[plan.suite]} and {dataset} are both named {plan.suite}",
                hint="a custom benchmark is named after its file: rename one, or use two runs",
            )
        sources[plan.suite] = dataset
        plans.append(plan)
    return plans


def _create_plan(dataset: str, config: EvalConfig, progress: ProgressCallback) -> BenchmarkPlan:
    data_dir = None if config.data_dir is None else Path(config.data_dir)
    if is_benchmark_file(dataset):
        if config.backend == "opencompass":
            raise ConfigError(
                f"{dataset} is a custom benchmark, which OpenCompass does not know",
                hint="--backend native",
            )
        file = Path(dataset).expanduser().resolve()
        return plan_benchmark(load_custom_benchmark(file), file.parent, config)
    if config.backend == "opencompass" and not is_benchmark(dataset):
        from llmctl.evaluation.opencompass.configs import plan_config

        return plan_config(dataset, data_dir, config, progress)
    from llmctl.evaluation.benchmarks.download import download_if_missing

    benchmark = get_benchmark(dataset)
    if config.mode is None and config.base_url is not None and "gen" in benchmark.prompts:
        config = replace(config, mode="gen")  # the mode that every server supports
    download_if_missing(benchmark, data_dir, progress)
    return plan_benchmark(benchmark, locate_data(benchmark, data_dir), config)


def output_dir(config: EvalConfig) -> Path:
    """Return the results folder; it may not exist yet."""
    if config.output is not None:
        return Path(config.output).expanduser().absolute()
    names = "-".join(Path(name).stem for name in config.dataset)[:60]
    timestamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")[:-3]
    return evals_dir() / f"{timestamp}-{names}"


def evals_dir() -> Path:
    """Return the folder of runs without an explicit output folder. It may not exist yet."""
    return store_home() / "evals"
