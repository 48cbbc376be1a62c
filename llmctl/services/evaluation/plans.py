"""Which questions will an evaluation ask, and where does it keep the answers?"""

from dataclasses import replace
from datetime import datetime
from pathlib import Path

from llmctl.config import EvalConfig, store_home
from llmctl.errors import ConfigError
from llmctl.evaluation.benchmarks.custom_benchmark import exam_suite, is_exam_file
from llmctl.evaluation.benchmarks.data_paths import locate
from llmctl.evaluation.benchmarks.registry import Suite, find_suite, is_suite
from llmctl.evaluation.plan import Wanted, plan_suite
from llmctl.types import ProgressCallback, SuitePlan


def plans_of(config: EvalConfig, progress: ProgressCallback) -> list[SuitePlan]:
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


def plan_of(name: str, data_dir: Path | None, wanted: Wanted) -> SuitePlan:
    """Plan one exam, by its name or its file."""
    if is_exam_file(name):
        file = Path(name).expanduser().resolve()
        return plan_suite(exam_suite(file), file.parent, wanted)
    suite = find_suite(name)
    return plan_suite(suite, locate(suite, data_dir), wanted)


def _plan(name: str, config: EvalConfig, progress: ProgressCallback) -> SuitePlan:
    mode = config.mode
    data_dir = None if config.data_dir is None else Path(config.data_dir)
    wanted = Wanted(
        mode, config.shots, config.limit, config.subjects, config.seed, config.max_new_tokens
    )
    if config.backend == "opencompass" and is_exam_file(name):
        raise ConfigError(
            f"{name} is an exam of your own, which llmctl asks itself", hint="--backend native"
        )
    if config.backend == "opencompass" and not is_suite(name):
        from llmctl.evaluation.opencompass.configs import plan_config

        return plan_config(name, data_dir, wanted, progress)
    suite: Suite | None = None if is_exam_file(name) else find_suite(name)
    if mode is None and config.base_url is not None and suite is not None and "gen" in suite.forms:
        mode = "gen"  # what every server can do
    if suite is not None:
        from llmctl.evaluation.benchmarks.download import fetch_if_missing

        fetch_if_missing(suite, data_dir, progress)
    wanted = replace(wanted, mode=mode)
    return plan_of(name, data_dir, wanted)


def output_of(config: EvalConfig) -> Path:
    """Return the folder for the results; it may not exist yet."""
    if config.output is not None:
        return Path(config.output).expanduser().absolute()
    names = "-".join(Path(name).stem for name in config.dataset)[:60]
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")[:-3]
    return evals_folder() / f"{stamp}-{names}"


def evals_folder() -> Path:
    """Return the folder of runs that were given none of their own. It may not exist yet."""
    return store_home() / "evals"
