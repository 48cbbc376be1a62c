"""The OpenCompass backend: evaluates with OpenCompass' own prompts, extraction and scoring."""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from llmctl.engine.base import BaseEngine
from llmctl.engine.openai.batch_client import OpenAIBatchClient
from llmctl.errors import ConfigError, RequestError
from llmctl.evaluation.benchmarks.registry import BENCHMARKS
from llmctl.evaluation.logprob_support import PROBE_TEXT, check_logprob_support
from llmctl.evaluation.opencompass.child.http import (
    ServerClient,
    ServerRequestError,
    echo_logprobs,
    score_shared_prefix,
)
from llmctl.evaluation.opencompass.configs import data_cache_dir, is_opencompass_config
from llmctl.evaluation.opencompass.launch import Event, launch
from llmctl.evaluation.opencompass.outputs import read_subject
from llmctl.evaluation.opencompass.venv import NATIVE_HINT, VERSION, setup_venv
from llmctl.types import (
    ApiEndpoint,
    BenchmarkPlan,
    Progress,
    ProgressCallback,
    ResultCallback,
    SampleKey,
    SampleResult,
    SubjectPlan,
)

MAX_IN_FLIGHT = 64
"""Requests sent at once; the server queues them."""
_FILE_PATHS = frozenset({"arc-c", "arc-e", "hellaswag"})
"""Benchmarks for which OpenCompass expects the path of the file, not of the folder."""


Serve = Callable[[BaseEngine], AbstractContextManager[ApiEndpoint]]


class OpenCompassBackend:
    """Runs OpenCompass once, as a child process that uses a server.

    Args:
        folder: results folder; OpenCompass' own files and its log are in `opencompass` below it.
        serve: serves a local engine as long as the context lasts.
    """

    def __init__(self, folder: Path, serve: Serve) -> None:
        self._folder = folder.resolve() / "opencompass"
        self._serve = serve

    def run(
        self,
        plans: Sequence[BenchmarkPlan],
        engine: BaseEngine,
        on_result: ResultCallback,
        progress: ProgressCallback,
    ) -> list[SampleResult]:
        """Evaluate as `Backend.run`.

        Results arrive a subject at a time. Responses are cached, so that a run that was killed
        within a subject repeats no request.

        Raises:
            ConfigError: OpenCompass has no configuration for a plan, or the server returns no
                log-likelihoods.
            LlmctlError: OpenCompass cannot be installed, or failed.
        """
        plans = [plan for plan in plans if plan.question_count]
        benchmarks = [_benchmark_request(plan) for plan in plans]
        if not plans:
            return []
        collector = _ResultCollector(plans, on_result, progress)
        server = engine.endpoint if isinstance(engine, OpenAIBatchClient) else None
        with self._serve(engine) if server is None else nullcontext(server) as endpoint:
            shared = True
            if any(plan.mode == "ppl" for plan in plans):
                shared = shares_prefixes(endpoint)
            python = setup_venv(None, progress)
            # The address is not part of the identity: the port of a local engine changes.
            identity = json.dumps([endpoint.model, VERSION]).encode()
            request = {
                "model": endpoint.model,
                "base_url": endpoint.base_url,
                "identity": hashlib.sha256(identity).hexdigest()[:16],
                "cache": str(self._folder / "answers.jsonl"),
                "workers": MAX_IN_FLIGHT,
                "shared": shared,
                "benchmarks": benchmarks,
            }
            progress(Progress(f"starting OpenCompass {VERSION}"))
            launch(
                python,
                self._folder,
                request,
                collector,
                api_key=endpoint.api_key or "",
                data=self._data_dir(plans),
            )
        return collector.results()

    def _data_dir(self, plans: Sequence[BenchmarkPlan]) -> Path:
        """Return the folder of the datasets that have no explicit path."""
        for plan in plans:
            if is_opencompass_config(plan):
                self._folder.mkdir(parents=True, exist_ok=True)
                return data_cache_dir(Path(plan.data_source), self._folder)
        return self._folder.parent


def shares_prefixes(endpoint: ApiEndpoint) -> bool:
    """Return whether a server scores texts with a shared prefix in one request, as llmctl's does.

    Raises:
        ConfigError: it does not, and its completions do not echo real log-likelihoods either.
    """
    server = ServerClient(endpoint.base_url, endpoint.model or "", endpoint.api_key or "")
    ((_, scores, _),) = score_shared_prefix(server, [[PROBE_TEXT]])
    if not isinstance(scores, ServerRequestError):
        return True

    def echo(text: str) -> Sequence[float]:
        try:
            return echo_logprobs(server, text)
        except ServerRequestError as error:
            raise RequestError(str(error)) from error

    check_logprob_support(echo, endpoint.base_url)
    return False


def _benchmark_request(plan: BenchmarkPlan) -> dict[str, object]:
    """Return the part of the child's request for a plan. Raises `ConfigError`."""
    return {
        "suite": plan.suite,
        "config": _config_name(plan),
        "mode": plan.mode,
        "shots": plan.shots,
        "max_new_tokens": plan.max_new_tokens,
        "path": "" if is_opencompass_config(plan) else str(_data_path(plan).resolve()),
        "subjects": {
            subject.subject: [sample.index for sample in subject.questions]
            for subject in plan.subjects
            if subject.questions
        },
    }


def _config_name(plan: BenchmarkPlan) -> str:
    """Return the name of OpenCompass' configuration of a plan."""
    if is_opencompass_config(plan):
        return plan.suite
    configs = BENCHMARKS[plan.suite].opencompass
    if plan.mode not in configs:
        raise ConfigError(
            f"OpenCompass has no configuration of {plan.suite} in mode {plan.mode}",
            hint=" or ".join([*(f"--mode {mode}" for mode in configs), NATIVE_HINT]),
        )
    return configs[plan.mode]


def _data_path(plan: BenchmarkPlan) -> Path:
    benchmark, folder = BENCHMARKS[plan.suite], Path(plan.data_source)
    if plan.suite not in _FILE_PATHS:
        return folder
    return benchmark.reader.files(folder, benchmark.subjects[0])[0]


class _ResultCollector:
    """Converts the events of the child process to results and progress."""

    def __init__(
        self,
        plans: Sequence[BenchmarkPlan],
        on_result: ResultCallback,
        progress: ProgressCallback,
    ) -> None:
        self._plans = {plan.suite: plan for plan in plans}
        self._on_result = on_result
        self._progress = progress
        self._results: dict[SampleKey, SampleResult] = {}
        self._current = ""
        self._answered = 0

    def __call__(self, event: Event) -> None:
        match event["event"]:
            case "subject":
                if event["suite"] != self._current:
                    self._current, self._answered = event["suite"], 0
                self._report_progress()
            case "question":
                self._answered += 1
                self._report_progress()
            case "done":
                files = Path(event["predictions"]), Path(event["results"])
                mode = self._plans[event["suite"]].mode
                self._add(read_subject(self._subject(event), mode, *files))
            case "failed":
                samples = self._subject(event).questions
                self._add([SampleResult.for_sample(sample, event["error"]) for sample in samples])

    def results(self) -> list[SampleResult]:
        """Return a result for every sample, in order."""
        samples = [
            sample
            for plan in self._plans.values()
            for subject in plan.subjects
            for sample in subject.questions
        ]
        missing = [sample for sample in samples if sample.key not in self._results]
        self._add([SampleResult.for_sample(s, "OpenCompass did not reach it") for s in missing])
        return [self._results[sample.key] for sample in samples]

    def _subject(self, event: Event) -> SubjectPlan:
        subjects = self._plans[event["suite"]].subjects
        return next(subject for subject in subjects if subject.subject == event["subject"])

    def _add(self, results: Sequence[SampleResult]) -> None:
        for result in results:
            self._results[result.key] = result
            self._on_result(result)

    def _report_progress(self) -> None:
        total = self._plans[self._current].question_count
        self._progress(Progress(f"{self._current} with OpenCompass", self._answered, total))
