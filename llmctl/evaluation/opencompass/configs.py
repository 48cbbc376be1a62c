"""How does any data set of OpenCompass become a plan? OpenCompass itself reads and words it."""

import difflib
import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmctl.errors import ConfigError
from llmctl.evaluation.benchmarks.data_paths import benchmarks_dir
from llmctl.evaluation.benchmarks.registry import BENCHMARKS
from llmctl.evaluation.opencompass.launch import OpenCompassError, launch
from llmctl.evaluation.opencompass.venv import VERSION, setup_venv
from llmctl.evaluation.plan import EvalSelection, chance_accuracy, select_docs
from llmctl.types import BenchmarkPlan, EvalSample, Message, Progress, ProgressCallback, SubjectPlan


def is_opencompass_config(plan: BenchmarkPlan) -> bool:
    """Whether a plan is OpenCompass' own configuration, and none of our suites."""
    return plan.suite not in BENCHMARKS


def plan_config(
    name: str, data_dir: Path | None, choice: EvalSelection, progress: ProgressCallback
) -> BenchmarkPlan:
    """Let OpenCompass read a data set, and say what it would ask.

    Args:
        name: of a configuration, such as `hellaswag_ppl_47bff9`.
        data_dir: folder whose folders OpenCompass knows by name; None is the store's.

    Raises:
        ConfigError: there is no such configuration or subject, its data is not there, or it cannot
            be asked over a server.
    """
    python = setup_venv(None, progress)
    known = config_names(python)
    if name not in known:
        near = difflib.get_close_matches(name, [*known, *BENCHMARKS], n=5, cutoff=0.4)
        raise ConfigError(
            f"there is no exam {name!r}, and OpenCompass {VERSION} has no such configuration",
            hint=f"near it: {', '.join(near)}" if near else f"one of: {', '.join(BENCHMARKS)}",
        )
    listener = _Listener(name)
    data = data_dir.expanduser().resolve() if data_dir is not None else benchmarks_dir()
    asked = {
        "config": name,
        "subjects": list(choice.subjects),
        "shots": choice.shots,
        "max_new_tokens": choice.max_new_tokens,
    }
    progress(Progress(f"OpenCompass reads {name}"))
    with tempfile.TemporaryDirectory(prefix="llmctl-opencompass-") as scratch:
        source = data_cache_dir(data, Path(scratch))
        request: dict[str, object] = {
            "describe": asked,
            "model": "",
            "base_url": "",
            "identity": "",
            "workers": 1,
            "shared": True,
            "journal": str(Path(scratch) / "answers.jsonl"),
        }
        try:
            launch(python, Path(scratch), request, listener, api_key="", data=source)
        except OpenCompassError as error:
            raise ConfigError(f"{name} cannot be asked: {error}") from error
    return listener.plan(choice, data)


def config_names(python: Path) -> list[str]:
    """Return the names of all configurations that the overlay's OpenCompass has."""
    folder = python.parent.parent
    found = folder.glob("[Ll]ib/**/opencompass/configs/datasets/**/*.py")
    return sorted({file.stem for file in found if not file.stem.startswith("_")})


def data_cache_dir(data: Path, scratch: Path) -> Path:
    """Return a folder whose `data` is the given one, as OpenCompass wants it."""
    if (data / "data").is_dir():
        return data
    if data.name == "data":
        return data.parent
    link = scratch / "cache" / "data"
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.exists():
        link.symlink_to(data, target_is_directory=True)
    return link.parent


class _Listener:
    """Makes a plan of what the child tells."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._how: dict[str, Any] = {}
        self._listed: dict[str, list[dict[str, Any]]] = {}
        self._failed: dict[str, str] = {}

    def __call__(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "named":
                self._how = event
            case "listed":
                self._listed[event["subject"]] = event["questions"]
            case "failed":
                self._failed[event["subject"]] = event["error"]

    def plan(self, choice: EvalSelection, data: Path) -> BenchmarkPlan:
        self._check(choice, data)
        mode, plans = self._how["mode"], []
        digest = hashlib.sha256()
        for subject, listed in self._listed.items():
            questions = [
                _question(self._name, subject, index, told) for index, told in enumerate(listed)
            ]
            digest.update("".join(question.fingerprint for question in questions).encode())
            drawn = tuple(select_docs(questions, choice.limit, choice.seed, subject))
            plans.append(SubjectPlan(self._name, subject, subject, (), drawn))
        return BenchmarkPlan(
            self._name,
            mode,
            self._how["shots"],
            self._how["prompt_hash"],
            digest.hexdigest(),
            str(data),
            chance_accuracy(plans),
            self._how["max_new_tokens"],
            tuple(plans),
        )

    def _check(self, choice: EvalSelection, data: Path) -> None:
        mode, subjects = self._how["mode"], self._how["subjects"]
        if choice.mode not in (None, mode):
            raise ConfigError(
                f"{self._name} asks in mode {mode}, not {choice.mode}",
                hint="each mode is a configuration of its own: leave out --mode",
            )
        unknown = [name for name in choice.subjects if name not in subjects]
        if unknown:
            near = difflib.get_close_matches(unknown[0], subjects, n=3) or subjects[:5]
            raise ConfigError(
                f"{self._name} has no subject {unknown[0]!r}", hint=f"such as {', '.join(near)}"
            )
        if self._failed:
            lines = [f"  {subject}: {why}" for subject, why in list(self._failed.items())[:5]]
            raise ConfigError(
                f"OpenCompass cannot read the data of {self._name}:\n" + "\n".join(lines),
                hint=f"it looks for relative paths below {data}; --data-dir names another folder",
            )


def _question(suite: str, subject: str, index: int, told: dict[str, Any]) -> EvalSample:
    if "messages" in told:
        turns: Sequence[dict[str, str]] = told["messages"]
        messages = tuple(Message(turn["role"], turn["content"]) for turn in turns)  # type: ignore[arg-type]
        return EvalSample(
            suite, subject, index, told["gold"], messages=messages, extraction="judged"
        )
    return EvalSample(
        suite,
        subject,
        index,
        told["gold"],
        tuple(told["labels"]),
        body=told["context"],
        continuations=tuple(told["continuations"]),
        extraction="judged",
    )
