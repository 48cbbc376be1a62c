"""Rows of datasets on the Hugging Face hub or in its local cache."""

from collections.abc import Iterator, Mapping
from typing import Any

from llmctl.data.io.sources import parse_hub_id
from llmctl.data.io.tables import encode_arrow_row
from llmctl.data.rows.row_errors import DataError
from llmctl.errors import ConfigError
from llmctl.types import Progress, ProgressCallback

_TIMEOUT_S = 10.0


def read_hub_rows(
    source: str, progress: ProgressCallback
) -> Iterator[tuple[bytes, Mapping[str, object]]]:
    """Yield the rows of `owner/name[@revision][:split]` as JSON text and as value.

    The split is `train` if not given. If the hub is not available, the dataset is read from the
    local cache. The dataset's own code is never run.

    Raises:
        DataError: neither the hub nor the cache has the dataset, or it cannot be read.
        ConfigError: the dataset has no such split.
    """
    name, revision, split = parse_hub_id(source)
    progress(Progress(f"fetching {name}"))
    data = _load(name, revision)
    split = split or ("train" if "train" in data else next(iter(data)))
    if split not in data:
        raise ConfigError(
            f"the dataset {name} has no split {split!r}", hint=f"one of: {', '.join(data)}"
        )
    for index, value in enumerate(data[split]):
        if index % 1000 == 0:
            progress(Progress(f"reading {name}", index, len(data[split])))
        yield encode_arrow_row(value)


def _load(name: str, revision: str | None) -> Any:
    import datasets
    from datasets.utils.logging import set_verbosity_error
    from huggingface_hub.errors import HfHubHTTPError

    set_verbosity_error()
    datasets.disable_progress_bars()
    try:
        unavailable = _why_unavailable(name, revision)
        if unavailable is None:
            return datasets.load_dataset(name, revision=revision)
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


def _load_cached(name: str, revision: str | None, unavailable: str) -> Any:
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
        return datasets.load_dataset(folder)
    online, datasets.config.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE, True
    try:
        if revision is None:
            return datasets.load_dataset(name)
    except ConnectionError:
        pass
    finally:
        datasets.config.HF_HUB_OFFLINE = online
    raise DataError(
        f"no file {name}, and no dataset {name} in the cache; {unavailable}",
        hint="check the path, go online (HF_ENDPOINT sets a mirror), or download the files",
    )
