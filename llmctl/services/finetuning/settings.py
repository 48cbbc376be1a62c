"""What was asked of `llmctl finetune`: of options, a file, the run that goes on or is repeated."""

from dataclasses import dataclass
from pathlib import Path

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
from llmctl.monitor.read.files import local_artifact_folder
from llmctl.monitor.read.runs import find_run, open_runs
from llmctl.train.setup.run_lock import PATH_SETTINGS, RunLock
from llmctl.types import TrainListener, TrainNote


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneRequest:
    """What a person asks of `llmctl finetune`."""

    options: ConfigSource
    """Settings by option or variable."""
    file: Path | None = None
    """YAML file with settings."""
    resume: bool = False
    overwrite: bool = False
    dry_run: bool = False
    from_run: str | None = None
    """Id of a run, or a folder with its receipt, to repeat."""
    track: bool = True
    tracking_uri: str | None = None
    run_name: str | None = None

    def reads(self, config: TrainConfig) -> dict[str, str]:
        """Return the files and folders that the run reads -> the option that names each."""
        named = {} if self.file is None else {str(self.file): "--config"}
        for name in PATH_SETTINGS:
            value: str | tuple[str, ...] | None = getattr(config, name)
            for path in (value,) if isinstance(value, str) else value or ():
                named[path] = f"--{name.replace('_', '-')}"
        return named


def resolve_settings(
    request: FinetuneRequest,
) -> tuple[ResolvedConfig[TrainConfig], RunLock | None]:
    """Put together what was chosen; return the receipt of the run that is gone on with, too."""
    chosen = [read_config_file(request.file)] if request.file else []
    chosen.append(request.options)
    if request.resume:
        if request.from_run:
            raise ConfigError("--resume goes on with a run, and --from-run begins it anew")
        output = _output(chosen)
        before = RunLock.read(Path(output).expanduser())
        if before.finished:
            raise ConfigError(
                f"the run in {output} is finished",
                hint=f"`llmctl chat --model {output}` talks to it; another --output begins anew",
            )
        settings = build_config(TrainConfig, before.layer("the run"), *chosen)
        origins = {n: o for n, o in settings.origins.items() if o != "the run"}
        before.check_same(settings.values, origins)
        return settings, before
    if request.from_run:
        before = _receipt_of(request.from_run, request.tracking_uri)
        recalled = before.layer(f"run {request.from_run}")
        recalled = {name: value for name, value in recalled.items() if name != "output"}
        return build_config(TrainConfig, recalled, *chosen), before
    if request.dry_run:
        chosen.insert(0, {"output": Setting("checkpoints/dry-run", "nothing is written")})
    return build_config(TrainConfig, *chosen), None


def _output(layers: list[ConfigSource]) -> str:
    for layer in reversed(layers):
        for name, setting in layer.items():
            if field_keys(TrainConfig).get(name, name) == "output" and setting.value is not None:
                return str(setting.value)
    raise ConfigError("--resume needs the folder of the run", hint="--resume --output FOLDER")


def _receipt_of(reference: str, tracking_uri: str | None) -> RunLock:
    """Find the receipt of a run: in a folder, or in the store by id or name."""
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
    before: RunLock, now: RunLock, request: FinetuneRequest, listen: TrainListener
) -> None:
    """Refuse to go on with, or to repeat, what is not the same any more."""
    hard, soft = before.differences(now)
    if hard and request.resume:
        raise ConfigError(
            "the run cannot go on: " + "; ".join(hard),
            hint="another --output begins a new run",
        )
    for difference in hard:
        listen(TrainNote(f"not the same run: {difference}"))
    for difference in soft:
        listen(TrainNote(f"the last digits may differ: {difference}"))
