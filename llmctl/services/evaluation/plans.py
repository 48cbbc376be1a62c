"""Which questions will an evaluation ask, and where does it keep the answers?"""

from dataclasses import replace
from datetime import datetime
from pathlib import Path

from llmctl.config import EvalConfig, store_home
from llmctl.errors import ConfigError
from llmctl.evaluation.benchmarks.custom_benchmark import is_benchmark_file, load_custom_benchmark
from llmctl.evaluation.benchmarks.data_paths import locate_data
from llmctl.evaluation.benchmarks.registry import Benchmark, get_benchmark, is_benchmark
from llmctl.evaluation.plan import EvalSelection, plan_benchmark
from llmctl.types import BenchmarkPlan, ProgressCallback


def create_plans(config: EvalConfig, progress: ProgressCallback) -> list[BenchmarkPlan]:
    """Plan every exam; data that is not here is fetched.

    Raises:
        ConfigError: there is no such exam, its data cannot be had or used, or two share a name,
            by which their answers are told apart.
    """
    plans, named = [], dict[str, str]()
    for name in config.dataset:
        plan = _plan(name, config, progress)
        if plan.suite in named:
            raise ConfigError(
                f"{named[plan.suite]} and {name} are both called {plan.suite}",
                hint="a file's name is its exam's: rename one, or sit them in two runs",
            )
        named[plan.suite] = name
        plans.append(plan)
    return plans


def create_plan(name: str, data_dir: Path | None, wanted: EvalSelection) -> BenchmarkPlan:
    """Plan one exam, by its name or its file."""
    if is_benchmark_file(name):
        file = Path(name).expanduser().resolve()
        return plan_benchmark(load_custom_benchmark(file), file.parent, wanted)
    suite = get_benchmark(name)
    return plan_benchmark(suite, locate_data(suite, data_dir), wanted)


def _plan(name: str, config: EvalConfig, progress: ProgressCallback) -> BenchmarkPlan:
    mode = config.mode
    data_dir = None if config.data_dir is None else Path(config.data_dir)
    wanted = EvalSelection(
        mode, config.shots, config.limit, config.subjects, config.seed, config.max_new_tokens
    )
    if config.backend == "opencompass" and is_benchmark_file(name):
        raise ConfigError(
            f"{name} is an exam of your own, which llmctl asks itself", hint="--backend native"
        )
    if config.backend == "opencompass" and not is_benchmark(name):
        from llmctl.evaluation.opencompass.configs import plan_config

        return plan_config(name, data_dir, wanted, progress)
    suite: Benchmark | None = None if is_benchmark_file(name) else get_benchmark(name)
    if mode is None and config.base_url is not None and suite is not None and "gen" in suite.forms:
        mode = "gen"  # what every server can do
    if suite is not None:
        from llmctl.evaluation.benchmarks.download import download_if_missing

        download_if_missing(suite, data_dir, progress)
    wanted = replace(wanted, mode=mode)
    return create_plan(name, data_dir, wanted)


def output_dir(config: EvalConfig) -> Path:
    """Return the folder for the results; it may not exist yet."""
    if config.output is not None:
        return Path(config.output).expanduser().absolute()
    names = "-".join(Path(name).stem for name in config.dataset)[:60]
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")[:-3]
    return evals_dir() / f"{stamp}-{names}"


def evals_dir() -> Path:
    """Return the folder of runs that were given none of their own. It may not exist yet."""
    return store_home() / "evals"
