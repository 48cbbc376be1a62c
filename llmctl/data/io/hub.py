"""Rows of datasets on the Hugging Face hub or in its local cache."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llmctl.data.io.sources import parse_hub_id
from llmctl.data.io.tables import arrow_rows
from llmctl.data.rows.row_errors import DataError
from llmctl.errors import ConfigError
from llmctl.types import Progress, ProgressCallback

_TIMEOUT_S = 10.0
_BATCH = 512


@dataclass(frozen=True, slots=True)
class HubSplit:
    """One split of a dataset: JSON files on this machine, or a table for every other kind of file.

    `datasets` infers one type per column from JSON. Where text and lists mix, it writes the text
    "42" as a number, and it adds null for each field that other rows have. The files hold neither.
    """

    json_files: tuple[str, ...] = ()
    table: Any = None

    def rows(
        self, name: str, progress: ProgressCallback
    ) -> Iterator[tuple[bytes, Mapping[str, object]]]:
        """Yield the table's rows as JSON text and as value."""
        done, total = 0, len(self.table)
        for batch in self.table.with_format("arrow").iter(batch_size=_BATCH):
            progress(Progress(f"reading {name}", done, total))
            yield from arrow_rows(batch)
            done += len(batch)


def load_hub_split(source: str, progress: ProgressCallback) -> HubSplit:
    """Load the split `owner/name[@revision][:split]`, `train` if it is not given.

    If the hub is not available, the dataset is read from the local cache. The dataset's own code is
    never run.

    Raises:
        DataError: neither the hub nor the cache has the dataset, or it cannot be read.
        ConfigError: the dataset has no such split.
    """
    name, revision, split = parse_hub_id(source)
    progress(Progress(f"fetching {name}"))
    splits = _load(name, revision)
    split = split or ("train" if "train" in splits else next(iter(splits)))
    if split not in splits:
        raise ConfigError(
            f"the dataset {name} has no split {split!r}", hint=f"one of: {', '.join(splits)}"
        )
    return splits[split]


def _load(name: str, revision: str | None) -> dict[str, HubSplit]:
    import datasets
    from datasets.utils.logging import set_verbosity_error
    from huggingface_hub.errors import HfHubHTTPError

    set_verbosity_error()
    datasets.disable_progress_bars()
    try:
        unavailable = _why_unavailable(name, revision)
        if unavailable is None:
            return _splits(name, revision)
        return _load_cached(name, revision, unavailable)
    except HfHubHTTPError as error:
        raise DataError(
            f"no file {name}, and no accessible dataset {name} on the hub",
            hint="check the path or the id; a private dataset needs HF_TOKEN",
        ) from error
    except (
        ValueError,
        FileNotFoundError,
    ) as error:  # no single configuration
        raise DataError(
            f"the dataset {name} cannot be read: {str(error).splitlines()[0]}",
            hint="download the files you need and give their paths",
        ) from error


def _splits(name: str, revision: str | None) -> dict[str, HubSplit]:
    """Return the splits of a dataset on the hub, or of a folder on this machine."""
    import datasets
    from datasets.packaged_modules.json.json import Json

    builder = datasets.load_dataset_builder(name, revision=revision)
    if isinstance(builder, Json) and builder.config.field is None:
        download = datasets.DownloadManager(builder.dataset_name, base_path=builder.base_path)
        files = download.download_and_extract(builder.config.data_files)
        return {
            str(split): HubSplit(json_files=tuple(download.iter_files(paths)))
            for split, paths in files.items()
        }
    return _tables(datasets.load_dataset(name, revision=revision))


def _tables(data: Any) -> dict[str, HubSplit]:
    return {split: HubSplit(table=table) for split, table in data.items()}


def _why_unavailable(name: str, revision: str | None) -> str | None:
    """Return why the hub is not available, `None` if it is; `datasets` would retry for a minute."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        HfApi().dataset_info(name, revision=revision, timeout=_TIMEOUT_S)
    except OfflineModeIsEnabled:
        return "HF_HUB_OFFLINE is set"
    except HfHubHTTPError:
        raise  # the hub is available and refused the request
    except Exception as error:  # huggingface_hub changed its HTTP client
        return f"the hub cannot be reached ({type(error).__name__})"
    return None


def _load_cached(name: str, revision: str | None, unavailable: str) -> dict[str, HubSplit]:
    import datasets
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            name, repo_type="dataset", revision=revision, local_files_only=True
        )
    except LocalEntryNotFoundError:
        pass
    else:
        return _splits(folder, None)
    online, datasets.config.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE, True
    try:
        if revision is None:
            return _tables(datasets.load_dataset(name))
    except ConnectionError:
        pass
    finally:
        datasets.config.HF_HUB_OFFLINE = online
    raise DataError(
        f"no file {name}, and no dataset {name} in the cache; {unavailable}",
        hint="check the path, go online (HF_ENDPOINT sets a mirror), or download the files",
    )
