"""The Hugging Face hub and its local cache, which other tools share."""

import json
import os
import re
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Self

from llmctl.engine import subprocess_runner
from llmctl.engine.models import model_folder
from llmctl.errors import LlmctlError, ModelNotFoundError
from llmctl.types import Progress, ProgressCallback

DEFAULT_REVISION = "main"
_REQUEST_SECONDS = 15.0
_MIRROR_HINT = "set HF_ENDPOINT=https://hf-mirror.com where huggingface.co cannot be reached"
_REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_repo_id(name: str) -> bool:
    """Whether `name` has the form of a hub id, `owner/name`."""
    return _REPO_ID.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class CachedRepo:
    """A snapshot of a hub repository in the cache, complete or not."""

    repo: str
    revision: str
    """Commit sha."""
    path: Path


@dataclass(frozen=True, slots=True)
class Hub:
    """A hub and the user's cache of it."""

    endpoint: str
    cache: Path
    offline: bool
    probe_timeout_s: float = 4.0
    """For the first response of the hub: name resolution, connection and answer."""

    @classmethod
    def from_environment(cls) -> Self:
        """Read the variables of `huggingface_hub`, now instead of at its first import."""
        env = os.environ
        base = Path(env.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
        home = Path(env.get("HF_HOME") or base)
        cache = Path(env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE") or home / "hub")
        offline = env.get("HF_HUB_OFFLINE") or env.get("TRANSFORMERS_OFFLINE") or ""
        return cls(
            endpoint=(env.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/"),
            cache=Path(os.path.expandvars(cache)).expanduser(),
            offline=offline.upper() in ("1", "ON", "YES", "TRUE"),
        )

    def cached(self, repo: str, revision: str, *, allow_pickle: bool = False) -> Path:
        """Return the snapshot of `repo` in the cache, if it is complete.

        Raises:
            ModelNotFoundError: the cache has no snapshot, or only a part of it.
            UnsafeModelError: its weights are pickle files, which were not allowed.
        """
        commit = _commit(self._repo_folder(repo), revision)
        snapshot = self._repo_folder(repo) / "snapshots" / commit
        if not snapshot.is_dir():
            raise ModelNotFoundError(f"not in {self.cache}")
        missing = model_folder.missing_part(snapshot, allow_pickle=allow_pickle)
        if missing is None:
            return snapshot
        if missing.startswith("weights") and not allow_pickle:
            model_folder.reject_pickle(model_folder.file_names(snapshot), repo)
        raise ModelNotFoundError(f"the copy in {self.cache} lacks {missing}")

    def cached_repos(self) -> Iterator[CachedRepo]:
        """Yield the cached models, each with its main snapshot, or else its newest."""
        if not self.cache.is_dir():
            return
        for path in sorted(self.cache.glob("models--*--*")):
            snapshots = [p for p in path.glob("snapshots/*") if p.is_dir()]
            if snapshots:
                main = path / "snapshots" / _commit(path, DEFAULT_REVISION)
                chosen = main if main in snapshots else max(snapshots, key=_modified)
                repo = path.name.removeprefix("models--").replace("--", "/", 1)
                yield CachedRepo(repo, chosen.name, chosen)

    def remove(self, repo: str, revision: str | None = None) -> tuple[tuple[Path, ...], int]:
        """Delete one revision (a branch, a commit or its first seven digits) or all of a model.

        Returns:
            The deleted snapshot folders, and the number of bytes freed.

        Raises:
            ModelNotFoundError: the cache does not have it.
        """
        from huggingface_hub import CacheNotFound, scan_cache_dir

        absent = ModelNotFoundError(
            f"{repo if revision is None else f'{repo}@{revision}'} is not in {self.cache}",
            hint="`llmctl models list` shows the downloaded models",
        )
        try:
            cache = scan_cache_dir(self.cache)
        except CacheNotFound:
            raise absent from None
        selected = [
            snapshot
            for cached in cache.repos
            if cached.repo_type == "model" and cached.repo_id == repo
            for snapshot in cached.revisions
            if revision is None
            or revision in snapshot.refs
            or (len(revision) >= 7 and snapshot.commit_hash.startswith(revision))
        ]
        if not selected:
            raise absent
        strategy = cache.delete_revisions(*(snapshot.commit_hash for snapshot in selected))
        strategy.execute()
        return tuple(s.snapshot_path for s in selected), int(strategy.expected_freed_size)

    def download(
        self, repo: str, revision: str, *, allow_pickle: bool, progress: ProgressCallback
    ) -> Path:
        """Download the files that loading needs and return their snapshot folder.

        Files in the cache are not downloaded again. If the hub does not answer, this fails within
        seconds.

        Raises:
            ModelNotFoundError: with the reason in one line.
            UnsafeModelError: its weights are pickle files, which were not allowed.
            ModelLoadError: it is an adapter, or has only GGUF files.
        """
        if self.offline:
            raise ModelNotFoundError("HF_HUB_OFFLINE is set", hint="unset HF_HUB_OFFLINE")
        progress(Progress(f"asking {self.endpoint} for {repo}"))
        if (reason := self._connection_error(repo)) is not None:
            raise ModelNotFoundError(f"it cannot be reached: {reason}", hint=_MIRROR_HINT)
        from huggingface_hub import HfApi

        try:
            info = HfApi(self.endpoint).model_info(
                repo, revision=revision, files_metadata=True, timeout=_REQUEST_SECONDS
            )
            sizes = {s.rfilename: s.size or 0 for s in info.siblings or ()}
            files = _select_files(sizes, repo, allow_pickle=allow_pickle)
            snapshot = self._repo_folder(repo) / "snapshots" / (info.sha or revision)
            missing = sum(sizes[f] for f in files if not (snapshot / f).is_file())
            path = self._download(repo, revision, files, missing, progress)
        except LlmctlError:
            raise
        except Exception as error:
            # Of httpx, httpx2, OSError or the hub's own, depending on version and stage.
            raise self.translate_error(error, repo, revision) from error
        if (missing_part := model_folder.missing_part(path, allow_pickle=allow_pickle)) is not None:
            raise ModelNotFoundError(f"the repository lacks {missing_part}")
        return path

    def _connection_error(self, repo: str) -> str | None:
        """Return why the hub does not answer; `None` if it answers, with any status.

        Unanswered connections and name resolution have long timeouts of their own, so the request
        runs in a daemon thread that may outlive this call.
        """
        from huggingface_hub import get_session

        result: SimpleQueue[str | None] = SimpleQueue()

        def probe() -> None:
            try:
                get_session().head(
                    f"{self.endpoint}/api/models/{repo}", timeout=self.probe_timeout_s
                )
            except Exception as error:  # of httpx, httpx2 or OSError, depending on the version
                result.put(_first_line(error))
            else:
                result.put(None)

        threading.Thread(target=probe, daemon=True).start()
        try:
            return result.get(timeout=self.probe_timeout_s)
        except Empty:
            return f"no answer within {self.probe_timeout_s:g} s"

    def _download(
        self, repo: str, revision: str, files: list[str], total: int, progress: ProgressCallback
    ) -> Path:
        request = {
            "repo_id": repo,
            "revision": revision,
            "cache_dir": str(self.cache),
            "endpoint": self.endpoint,
            "allow_patterns": files,
        }
        done = 0
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder, "log.txt")

            def report() -> None:
                nonlocal done
                # Two bars count bytes, received and written ones; the greater one is shown.
                done = max(done, min(_last_message(log).get("done", 0), total))
                progress(Progress(f"downloading {repo} from the hub", done, total, "B"))

            arguments = ["-m", "llmctl.engine.models.hub_download", json.dumps(request)]
            try:
                subprocess_runner.run(arguments, log, environment={}, tick=report)
            except subprocess.CalledProcessError as error:
                last = (error.output.splitlines() or ["without a message"])[-1]
                raise ModelNotFoundError(f"the download failed: {last}") from error
            outcome = _last_message(log)
        if "path" not in outcome:
            raise ModelNotFoundError(outcome["reason"], hint=outcome["hint"])
        return Path(outcome["path"])

    def translate_error(self, error: Exception, repo: str, revision: str) -> ModelNotFoundError:
        """Return the `ModelNotFoundError` for an exception of the hub's client."""
        from huggingface_hub import errors

        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, errors.RevisionNotFoundError):
            return ModelNotFoundError(f"{repo} has no revision {revision}")
        # The error of a gated repository is a subclass of that of a missing one: test it first.
        if isinstance(error, errors.GatedRepoError) or status == 403:
            return ModelNotFoundError(
                f"{repo} is gated: its licence must be accepted first",
                hint=f"accept the licence at {self.endpoint}/{repo}, then run `hf auth login`",
            )
        if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
            return ModelNotFoundError(
                f"{repo} does not exist, or it is private",
                hint=f"check the name at {self.endpoint}; for a private model run `hf auth login`",
            )
        if status is not None:
            return ModelNotFoundError(f"it answered with status {status}")
        return ModelNotFoundError(
            f"the connection failed: {_first_line(error)}",
            hint="try again: files already downloaded are kept",
        )

    def _repo_folder(self, repo: str) -> Path:
        return self.cache / f"models--{repo.replace('/', '--')}"


def _commit(repo_folder: Path, revision: str) -> str:
    """Return the commit of a branch or tag at its last download."""
    ref = repo_folder / "refs" / revision
    return ref.read_text(encoding="utf-8").strip() if ref.is_file() else revision


def _modified(path: Path) -> float:
    return path.stat().st_mtime


def _select_files(sizes: dict[str, int], repo: str, *, allow_pickle: bool) -> list[str]:
    model_folder.reject_other_kinds(sizes, repo)
    if not allow_pickle:
        model_folder.reject_pickle(sizes, repo)
    if not model_folder.has_tokenizer(sizes):
        raise ModelNotFoundError("the repository lacks a tokenizer")
    return model_folder.wanted_files(sizes, allow_pickle=allow_pickle)


def _last_message(log: Path) -> dict[str, Any]:
    """Return the last complete JSON object that the download process printed."""
    for line in reversed(log.read_text(encoding="utf-8", errors="replace").splitlines()):
        if line.startswith("{") and line.endswith("}"):
            message: dict[str, Any] = json.loads(line)
            return message
    return {}


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
