"""Plans for any dataset configuration of OpenCompass, with its own data and prompts."""

import hashlib
import tempfile
from pathlib import Path
from typing import Any

from llmctl.config.evaluation import EvalSelection
from llmctl.did_you_mean import close_matches
from llmctl.errors import ConfigError
from llmctl.evaluation.benchmarks.data_paths import store_dirs
from llmctl.evaluation.benchmarks.registry import BENCHMARKS
from llmctl.evaluation.opencompass.launch import Event, OpenCompassError, launch
from llmctl.evaluation.opencompass.venv import VERSION, setup_venv
from llmctl.evaluation.plan import chance_accuracy, select_docs
from llmctl.types import (
    BenchmarkPlan,
    EvalSample,
    Message,
    Progress,
    ProgressCallback,
    SubjectPlan,
)


def is_opencompass_config(plan: BenchmarkPlan) -> bool:
    """Return whether a plan is a configuration of OpenCompass, not a built-in benchmark."""
    return plan.suite not in BENCHMARKS


def plan_config(
    name: str, data_dir: Path | None, selection: EvalSelection, progress: ProgressCallback
) -> BenchmarkPlan:
    """Plan a configuration: OpenCompass reads the dataset and renders its prompts.

    Args:
        name: of a configuration, such as `hellaswag_ppl_47bff9`.
        data_dir: folder with the datasets in OpenCompass' layout; None uses the store.
        selection: which samples to evaluate.
        progress: receives the progress.

    Raises:
        ConfigError: there is no such configuration or subject, its data is missing, or it needs a
            model in the same process.
    """
    python = setup_venv(None, progress)
    known = config_names(python)
    if name not in known:
        near = close_matches(name, [*known, *BENCHMARKS], limit=5, cutoff=0.4)
        raise ConfigError(
            f"unknown benchmark {name!r}; OpenCompass {VERSION} has no such configuration either",
            hint=f"did you mean {' or '.join(near)}?"
            if near
            else f"one of: {', '.join(BENCHMARKS)}",
        )
    builder = _PlanBuilder(name)
    data = data_dir.expanduser().resolve() if data_dir is not None else _store_dir()
    description = {
        "config": name,
        "subjects": list(selection.subjects),
        "shots": selection.shots,
        "max_new_tokens": selection.max_new_tokens,
    }
    progress(Progress(f"OpenCompass reads {name}"))
    with tempfile.TemporaryDirectory(prefix="llmctl-opencompass-") as scratch:
        source = data_cache_dir(data, Path(scratch))
        request: dict[str, object] = {
            "describe": description,
            "model": "",
            "base_url": "",
            "identity": "",
            "workers": 1,
            "shared": True,
            "cache": str(Path(scratch) / "answers.jsonl"),
        }
        try:
            launch(python, Path(scratch), request, builder, api_key="", data=source)
        except OpenCompassError as error:
            raise ConfigError(f"cannot evaluate {name}: {error}") from error
    return builder.plan(selection, data)


def _store_dir() -> Path:
    """Return the folder of downloaded benchmarks, of an earlier release if there is no other."""
    return next((folder for folder in store_dirs() if folder.is_dir()), store_dirs()[0])


def config_names(python: Path) -> list[str]:
    """Return the names of all dataset configurations of the installed OpenCompass."""
    folder = python.parent.parent
    files = folder.glob("[Ll]ib/**/opencompass/configs/datasets/**/*.py")
    return sorted({file.stem for file in files if not file.stem.startswith("_")})


def data_cache_dir(data: Path, scratch: Path) -> Path:
    """Return a folder whose `data` is the given folder, as OpenCompass expects it."""
    if (data / "data").is_dir():
        return data
    if data.name == "data":
        return data.parent
    link = scratch / "cache" / "data"
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.exists():
        link.symlink_to(data, target_is_directory=True)
    return link.parent


class _PlanBuilder:
    """Builds a plan from the events of the child process."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._setup: dict[str, Any] = {}
        self._samples: dict[str, list[dict[str, Any]]] = {}
        self._errors: dict[str, str] = {}

    def __call__(self, event: Event) -> None:
        match event["event"]:
            case "setup":
                self._setup = event
            case "samples":
                self._samples[event["subject"]] = event["samples"]
            case "failed":
                self._errors[event["subject"]] = event["error"]

    def plan(self, selection: EvalSelection, data: Path) -> BenchmarkPlan:
        """Return the plan. Raises `ConfigError`."""
        self._check(selection, data)
        plans = []
        digest = hashlib.sha256()
        for subject, values in self._samples.items():
            samples = [
                _sample(self._name, subject, index, value) for index, value in enumerate(values)
            ]
            digest.update("".join(sample.fingerprint for sample in samples).encode())
            selected = select_docs(samples, selection.limit, selection.seed, subject)
            plans.append(SubjectPlan(self._name, subject, subject, (), tuple(selected)))
        return BenchmarkPlan(
            self._name,
            self._setup["mode"],
            self._setup["shots"],
            self._setup["prompt_hash"],
            digest.hexdigest(),
            str(data),
            chance_accuracy(plans),
            self._setup["max_new_tokens"],
            tuple(plans),
        )

    def _check(self, selection: EvalSelection, data: Path) -> None:
        mode, subjects = self._setup["mode"], self._setup["subjects"]
        if selection.mode not in (None, mode):
            raise ConfigError(
                f"{self._name} has mode {mode}, not {selection.mode}",
                hint="each mode is a configuration of its own: leave out --mode",
            )
        unknown = [name for name in selection.subjects if name not in subjects]
        if unknown:
            near = close_matches(unknown[0], subjects, limit=3) or subjects[:5]
            raise ConfigError(
                f"{self._name} has no subject {unknown[0]!r}", hint=f"such as {', '.join(near)}"
            )
        if self._errors:
            lines = [f"  {subject}: {error}" for subject, error in [*self._errors.items()][:5]]
            raise ConfigError(
                f"OpenCompass cannot read the data of {self._name}:\n" + "\n".join(lines),
                hint=f"relative paths are below {data}; --data-dir names another folder",
            )


def _sample(benchmark: str, subject: str, index: int, value: dict[str, Any]) -> EvalSample:
    if "messages" in value:
        messages = tuple(Message(turn["role"], turn["content"]) for turn in value["messages"])
        return EvalSample(
            benchmark, subject, index, value["gold"], messages=messages, extraction="judged"
        )
    return EvalSample(
        benchmark,
        subject,
        index,
        value["gold"],
        tuple(value["labels"]),
        body=value["context"],
        continuations=tuple(value["continuations"]),
        extraction="judged",
    )
