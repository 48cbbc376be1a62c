"""Settings of `llmctl finetune`: options, config file, and the run to resume or repeat."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from llmctl.config import TrainConfig
from llmctl.config.option import field_keys
from llmctl.config.settings import (
    ConfigSource,
    ResolvedConfig,
    Setting,
    build_config,
    read_config_file,
)
from llmctl.errors import ConfigError
from llmctl.monitor import check_tracking_uri
from llmctl.monitor.read.files import local_artifact_folder
from llmctl.monitor.read.runs import find_run, open_runs
from llmctl.train.setup.run_lock import PATH_SETTINGS, RunLock
from llmctl.types import TrainListener, TrainNote


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneRequest:
    """Arguments of `llmctl finetune`."""

    options: ConfigSource
    """Settings from options and environment variables."""
    file: Path | None = None
    """YAML config file."""
    resume: bool = False
    overwrite: bool = False
    dry_run: bool = False
    from_run: str | None = None
    """Run to repeat: its id, its name, or a folder with its `run.lock.json`."""
    track: bool = True
    tracking_uri: str | None = None
    run_name: str | None = None

    def input_paths(self, config: TrainConfig) -> dict[str, str]:
        """Return the files and folders that the run reads -> their options."""
        named = {} if self.file is None else {str(self.file): "--config"}
        for name in PATH_SETTINGS:
            value: str | tuple[str, ...] | None = getattr(config, name)
            for path in (value,) if isinstance(value, str) else value or ():
                named[path] = f"--{name.replace('_', '-')}"
        return named


class ResolvedRequest(NamedTuple):
    """The settings of a request."""

    settings: ResolvedConfig[TrainConfig]
    before: RunLock | None
    """Run lock of the run to resume or repeat."""


def resolve_settings(request: FinetuneRequest) -> ResolvedRequest:
    """Merge the sources of settings: config file, options, and the run to resume or repeat.

    Raises:
        ConfigError: settings are invalid, or the run cannot be resumed or repeated.
    """
    check_tracking_uri(request.tracking_uri, enabled=request.track)
    chosen = [read_config_file(request.file)] if request.file else []
    chosen.append(request.options)
    output = _output(chosen)
    if output is not None:
        _check_output(output)
    if request.resume:
        if request.from_run:
            raise ConfigError(
                "--resume continues a run and --from-run starts a new one: use one of them"
            )
        if output is None:
            raise ConfigError(
                "--resume needs the output folder of the run", hint="--resume --output FOLDER"
            )
        before = RunLock.read(Path(output).expanduser())
        if before.finished:
            raise ConfigError(
                f"the run in {output} is finished",
                hint=f"use it with `llmctl chat --model {output}`, or start a new run with another "
                "--output",
            )
        settings = build_config(TrainConfig, before.config_source("the run"), *chosen)
        origins = {n: o for n, o in settings.origins.items() if o != "the run"}
        before.check_same(settings.values, origins)
        return ResolvedRequest(settings, before)
    if request.from_run:
        before = _find_run_lock(request.from_run, request.tracking_uri)
        source = before.config_source(f"run {request.from_run}")
        source = {name: value for name, value in source.items() if name != "output"}
        settings = build_config(TrainConfig, source, *chosen)
        return ResolvedRequest(settings, before)
    if request.dry_run:
        chosen.insert(0, {"output": Setting("checkpoints/dry-run", "nothing is written")})
    return ResolvedRequest(build_config(TrainConfig, *chosen), None)


def _output(sources: list[ConfigSource]) -> str | None:
    for source in reversed(sources):
        for name, setting in source.items():
            if field_keys(TrainConfig).get(name, name) == "output" and setting.value is not None:
                return str(setting.value)
    return None


def _check_output(output: str) -> None:
    try:
        output.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"--output {output} is not valid UTF-8",
            hint="choose another folder: the tokenizers library cannot write to this one",
        ) from error


def _find_run_lock(reference: str, tracking_uri: str | None) -> RunLock:
    """Find the run lock of a run: in a folder, or in the tracking store by id or name."""
    folder = Path(reference).expanduser()
    if folder.exists():
        return RunLock.read(folder)
    with open_runs(tracking_uri) as runs:
        run = find_run(runs.runs(), reference)
    files = local_artifact_folder(run.artifact_uri)
    if files is None:
        raise ConfigError(
            f"the files of run {reference} are on another machine",
            hint=f"`llmctl runs export {reference} -o FOLDER`, then --from-run FOLDER",
        )
    return RunLock.read(files)


def check_same_run(
    before: RunLock, now: RunLock, request: FinetuneRequest, listener: TrainListener
) -> None:
    """Compare a run to resume or repeat with the present inputs; report differences as notes.

    Raises:
        ConfigError: the inputs of a run to resume have changed.
    """
    inputs, environment = before.differences(now)
    if inputs and request.resume:
        raise ConfigError(
            "the run cannot be resumed: " + "; ".join(inputs),
            hint="another --output starts a new run",
        )
    for difference in inputs:
        listener(TrainNote(f"not the same run: {difference}"))
    for difference in environment:
        listener(TrainNote(f"the last digits may differ: {difference}"))
