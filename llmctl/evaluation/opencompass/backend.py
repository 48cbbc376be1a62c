"""Who asks the questions? OpenCompass, by its own prompts, extraction and scoring."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmctl.errors import ConfigError
from llmctl.evaluation.backend import ModelUnderTest, ServerModel
from llmctl.evaluation.benchmarks.registry import BENCHMARKS
from llmctl.evaluation.opencompass.configs import data_cache_dir, is_opencompass_config
from llmctl.evaluation.opencompass.launch import launch
from llmctl.evaluation.opencompass.likelihood_path import logprob_route
from llmctl.evaluation.opencompass.outputs import failed_result, read_subject
from llmctl.evaluation.opencompass.venv import NATIVE_HINT, VERSION, setup_venv
from llmctl.types import (
    BenchmarkPlan,
    Progress,
    ProgressCallback,
    ResultCallback,
    SampleResult,
    SubjectPlan,
)

MAX_IN_FLIGHT = 64
"""Questions that are asked at once; the server puts them in line."""
_FILES = frozenset({"arc-c", "arc-e", "hellaswag"})
"""Of these OpenCompass wants the path of the file, of all others that of the folder."""


class OpenCompassBackend:
    """OpenCompass, run once as a child over a server.

    Args:
        folder: of the run; what OpenCompass read and wrote, and its log, lie there under
            `opencompass`.
        warn: told in a line what a person should know and what fails nothing.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        self._folder = folder.resolve() / "opencompass"
        self._warn = warn

    def run(
        self,
        plans: Sequence[BenchmarkPlan],
        candidate: ModelUnderTest,
        on_result: ResultCallback,
        progress: ProgressCallback,
    ) -> list[SampleResult]:
        """Ask as `Backend.run` says; the candidate must be an `BenchServer`.

        Results come a subject at a time; answers within a subject are kept in a journal, so that a
        run that was killed in the middle of one asks none of them again.

        Raises:
            ConfigError: a plan is not OpenCompass', or the endpoint tells no log-likelihoods.
            LlmctlError: OpenCompass cannot be installed, or failed.
        """
        if not isinstance(candidate, ServerModel):
            raise ConfigError("OpenCompass reaches a model over HTTP alone", hint=NATIVE_HINT)
        plans = [plan for plan in plans if plan.question_count]
        configs = [_config_of(plan) for plan in plans]
        if not plans:
            return []
        shared = True
        if any(plan.mode == "ppl" for plan in plans):
            shared = logprob_route(candidate) == "score"
        python = setup_venv(None, progress)
        request = {
            "model": candidate.model,
            "base_url": candidate.base_url,
            "identity": self._identity(candidate),
            "journal": str(self._folder / "answers.jsonl"),
            "workers": MAX_IN_FLIGHT,
            "shared": shared,
            "exams": [_exam(*pair) for pair in zip(plans, configs, strict=True)],
        }
        listener = _Listener(plans, on_result, progress)
        progress(Progress(f"starting OpenCompass {VERSION}"))
        launch(
            python,
            self._folder,
            request,
            listener,
            api_key=candidate.api_key,
            data=self._data(plans),
        )
        return listener.close()

    def _data(self, plans: Sequence[BenchmarkPlan]) -> Path:
        """Return where OpenCompass looks for what no path is given for."""
        for plan in plans:
            if is_opencompass_config(plan):
                self._folder.mkdir(parents=True, exist_ok=True)
                return data_cache_dir(Path(plan.data_source), self._folder)
        return self._folder.parent

    def _identity(self, candidate: ServerModel) -> str:
        """Name what the journal's answers are answers of. The port of a private server changes."""
        return hashlib.sha256(json.dumps([candidate.model, VERSION]).encode()).hexdigest()[:16]


def _config_of(plan: BenchmarkPlan) -> str:
    """Return OpenCompass' own name of what a plan asks."""
    if is_opencompass_config(plan):
        return plan.suite
    suite = BENCHMARKS.get(plan.suite)
    config = None if suite is None else suite.opencompass.get(plan.mode)
    if config is None:
        known = () if suite is None else tuple(suite.opencompass)
        raise ConfigError(
            f"OpenCompass does not ask {plan.suite} in mode {plan.mode}",
            hint=" or ".join([*(f"--mode {mode}" for mode in known), NATIVE_HINT]),
        )
    return config


def _exam(plan: BenchmarkPlan, config: str) -> dict[str, object]:
    return {
        "suite": plan.suite,
        "config": config,
        "mode": plan.mode,
        "shots": plan.shots,
        "max_new_tokens": plan.max_new_tokens,
        "path": "" if is_opencompass_config(plan) else str(_data_of(plan).resolve()),
        "subjects": {
            subject.subject: [question.index for question in subject.questions]
            for subject in plan.subjects
            if subject.questions
        },
    }


def _data_of(plan: BenchmarkPlan) -> Path:
    suite, folder = BENCHMARKS[plan.suite], Path(plan.data_source)
    return suite.layout.files(folder, suite.subjects[0])[0] if plan.suite in _FILES else folder


class _Listener:
    """Turns what the child tells into results and progress."""

    def __init__(
        self, plans: Sequence[BenchmarkPlan], on_result: ResultCallback, progress: ProgressCallback
    ) -> None:
        self._plans = {plan.suite: plan for plan in plans}
        self._on_result = on_result
        self._progress = progress
        self._results: dict[tuple[str, str, int], SampleResult] = {}
        self._suite = ""
        self._asked = 0

    def __call__(self, event: Mapping[str, Any]) -> None:
        match event["event"]:
            case "subject":
                if event["suite"] != self._suite:
                    self._suite, self._asked = event["suite"], 0
                self._report()
            case "question":
                self._asked += 1
                self._report()
            case "done":
                plan, subject = self._find(event)
                files = Path(event["predictions"]), Path(event["results"])
                self._keep(read_subject(subject, plan.mode, *files))
            case "failed":
                _, subject = self._find(event)
                self._keep(
                    [failed_result(question, event["error"]) for question in subject.questions]
                )

    def close(self) -> list[SampleResult]:
        """Return a result for every question, in order."""
        for plan in self._plans.values():
            for subject in plan.subjects:
                lost = [q for q in subject.questions if q.key not in self._results]
                self._keep([failed_result(q, "OpenCompass never came to it") for q in lost])
        return [
            self._results[question.key]
            for plan in self._plans.values()
            for subject in plan.subjects
            for question in subject.questions
        ]

    def _find(self, event: Mapping[str, Any]) -> tuple[BenchmarkPlan, SubjectPlan]:
        plan = self._plans[event["suite"]]
        return plan, next(s for s in plan.subjects if s.subject == event["subject"])

    def _keep(self, results: Sequence[SampleResult]) -> None:
        for result in results:
            self._results[result.key] = result
            self._on_result(result)

    def _report(self) -> None:
        total = self._plans[self._suite].question_count
        self._progress(Progress(f"{self._suite} through OpenCompass", self._asked, total))
