"""Virtual environment of OpenCompass, which also imports llmctl's packages.

OpenCompass 0.5.4 pins numpy, datasets and httpx to versions that conflict with llmctl's, but runs
with llmctl's versions. It is installed without its dependencies into its own virtual environment,
which imports torch, transformers and datasets from llmctl's environment through a `.pth` file; its
other dependencies are installed beside it. llmctl's own environment is not changed.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from llmctl.atomic_files import install_folder
from llmctl.config import store_home
from llmctl.engine import subprocess_runner
from llmctl.engine.models.model_folder import disk_bytes
from llmctl.errors import ConfigError, LlmctlError
from llmctl.types import Progress, ProgressCallback, ignore_progress

VERSION = "0.5.4"
NEWEST_PYTHON = (3, 12)
"""tree_sitter_languages, which OpenCompass imports, has no wheels for later versions."""
INSTALLED_BYTES = 430_000_000
"""Approximate size of the environment on disk."""
MANIFEST = "llmctl-overlay.json"
NATIVE_HINT = "`--backend native` needs no OpenCompass"

REQUIREMENTS = (
    "absl-py",
    "cpm_kernels",
    "einops",
    "evaluate",
    "func_timeout",
    "fuzzywuzzy",
    "gradio-client",
    "h5py",
    "immutabledict",
    "importlib-metadata",
    "jieba",
    "json5",
    "jsonlines",
    "mmengine-lite==0.11.0rc3",
    "nltk",
    "opencv-python-headless",
    "prettytable",
    "protobuf",
    "python-Levenshtein",
    "rank_bm25==0.2.2",
    "rapidfuzz",
    "retrying",
    "rouge",
    "rouge_chinese",
    "rouge_score",
    "sacrebleu",
    "scikit-learn",
    "seaborn",
    "sentence_transformers",
    "tabulate",
    "tiktoken",
    "timeout_decorator",
    "tree-sitter==0.21.3",
    "tree_sitter_languages>=1.10.2",
)
"""Imports of `opencompass.datasets`, which imports every dataset, besides llmctl's packages."""


@dataclass(frozen=True, slots=True)
class BuildManifest:
    """What an environment was built for; with another manifest it is stale."""

    version: str
    python: str
    packages: list[str]
    """Site-packages of llmctl, which it imports from."""
    requirements: list[str]

    @classmethod
    def now(cls) -> "BuildManifest":
        python = f"{sys.base_prefix} {sys.version_info.major}.{sys.version_info.minor}"
        return cls(VERSION, python, _own_site_packages(), list(REQUIREMENTS))

    @classmethod
    def read(cls, folder: Path) -> "BuildManifest | None":
        try:
            return cls(**json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None


def venv_dir() -> Path:
    """Return the folder of the environment. It may not exist yet."""
    return store_home() / "opencompass" / VERSION


def find_python() -> Path | None:
    """Return the Python of the environment; None if it does not exist or is stale."""
    python = _python(venv_dir())
    is_current = python.exists() and BuildManifest.read(venv_dir()) == BuildManifest.now()
    return python if is_current else None


def setup_venv(
    wheelhouse: Path | None = None, progress: ProgressCallback = ignore_progress
) -> Path:
    """Return the Python of the environment; build it if necessary, which takes about a minute.

    A lock lets one process build it while others wait.

    Args:
        wheelhouse: a folder of wheels to install from, in place of the package index.
        progress: receives the progress of the installation.

    Raises:
        ConfigError: this Python is too new, or the wheelhouse does not exist.
        LlmctlError: a package cannot be installed, or OpenCompass does not start.
    """
    if (found := find_python()) is not None:
        return found
    if sys.version_info[:2] > NEWEST_PYTHON:
        running = f"{sys.version_info.major}.{sys.version_info.minor}"
        newest = ".".join(map(str, NEWEST_PYTHON))
        raise ConfigError(
            f"OpenCompass {VERSION} runs on Python {newest} at most; this is {running}",
            hint=NATIVE_HINT,
        )
    if wheelhouse is not None and not wheelhouse.is_dir():
        raise ConfigError(f"--wheelhouse {wheelhouse} is not a folder")
    from filelock import FileLock, Timeout

    try:
        venv_dir().parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(venv_dir().parent / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            progress(Progress("waiting for another process that installs OpenCompass"))
            lock.acquire()
        try:
            return find_python() or _build(wheelhouse, progress)
        finally:
            lock.release()
    except OSError as error:
        raise LlmctlError(
            f"cannot install OpenCompass in {venv_dir()}: {error}", hint=NATIVE_HINT
        ) from error


def _build(wheelhouse: Path | None, progress: ProgressCallback) -> Path:
    """Build in a staging folder, then move it; a run with the old one keeps its open files."""
    for leftover in venv_dir().parent.glob(".staging-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=venv_dir().parent))
    try:
        folder = staging / "venv"
        venv.create(folder, with_pip=False, symlinks=os.name != "nt")
        paths = "".join(f"{path}\n" for path in _own_site_packages())
        (_site_packages(folder) / "_llmctl_parent.pth").write_text(paths, encoding="utf-8")
        source = [] if wheelhouse is None else ["--no-index", f"--find-links={wheelhouse}"]
        stage = f"installing OpenCompass {VERSION} beside llmctl (about a minute, once)"

        def report() -> None:
            progress(
                Progress(stage, min(disk_bytes(folder), INSTALLED_BYTES), INSTALLED_BYTES, "B")
            )

        report()
        for packages in (["--no-deps", f"opencompass=={VERSION}"], [*REQUIREMENTS]):
            _pip(folder, staging / "pip.log", [*source, *packages], report)
        progress(Progress("starting OpenCompass for the first time"))
        _check_import(folder, staging / "import.log")
        manifest = json.dumps(asdict(BuildManifest.now()), indent=2) + "\n"
        (folder / MANIFEST).write_text(manifest, encoding="utf-8")
        # Thousands of files, verified by the manifest: not worth a wait for the disk.
        install_folder(folder, venv_dir(), sync=False)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return _python(venv_dir())


def _pip(folder: Path, log: Path, arguments: list[str], tick: Callable[[], None]) -> None:
    # llmctl's pip installs into the environment, which therefore needs no pip.
    options = ["--disable-pip-version-check", "--no-input", "--progress-bar=off", "--retries=2"]
    command = ["-m", "pip", f"--python={_python(folder)}", "install", *options, *arguments]
    try:
        subprocess_runner.run(command, log, environment={}, tick=tick)
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.output.splitlines() if line.startswith("ERROR: ")]
        reason = lines[-1].removeprefix("ERROR: ") if lines else _last_line(error.output)
        hint = f"pip reads a mirror of the package index from PIP_INDEX_URL; {NATIVE_HINT}"
        if "No module named pip" in reason:
            hint = f"install pip: {sys.executable} -m ensurepip; {NATIVE_HINT}"
        raise LlmctlError(f"cannot install OpenCompass: {reason}", hint=hint) from error


def _check_import(folder: Path, log: Path) -> None:
    command = ["-c", "import opencompass.datasets, opencompass.openicl, opencompass.tasks"]
    environment = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    try:
        subprocess_runner.run(command, log, environment=environment, python=str(_python(folder)))
    except subprocess.CalledProcessError as error:
        raise LlmctlError(
            f"OpenCompass {VERSION} is installed but does not start: {_last_line(error.output)}",
            hint=NATIVE_HINT,
        ) from error


def _own_site_packages() -> list[str]:
    return [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]


def _site_packages(folder: Path) -> Path:
    if os.name == "nt":
        return folder / "Lib" / "site-packages"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return folder / "lib" / version / "site-packages"


def _python(folder: Path) -> Path:
    return folder / "Scripts" / "python.exe" if os.name == "nt" else folder / "bin" / "python"


def _last_line(output: str) -> str:
    return next((line for line in reversed(output.splitlines()) if line.strip()), "no output")
