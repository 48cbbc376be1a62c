"""Which rows does a dataset on the Hugging Face hub have, or one in the local cache?"""

from collections.abc import Iterator, Mapping
from typing import Any

from llmctl.data.io.sources import parse_hub_id
from llmctl.data.io.tables import encode_arrow_row
from llmctl.data.rows.row_errors import DataError
from llmctl.errors import ConfigError
from llmctl.types import Progress, ProgressCallback

_ANSWER_SECONDS = 10.0


def read_hub_rows(
    source: str, progress: ProgressCallback
) -> Iterator[tuple[bytes, Mapping[str, object]]]:
    """Yield the rows of `owner/name[@revision][:split]` as JSON text and as value.

    The split is `train` where none is named. Where the hub cannot be asked, what earlier downloads
    left in the cache is read. Nothing of the dataset's own code is run.

    Raises:
        DataError: neither the hub nor the cache has it.
        ConfigError: it has no such split.
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
        silent = _why_silent(name, revision)
        if silent is None:
            return datasets.load_dataset(name, revision=revision)
        return _cached(name, revision, silent)
    except HfHubHTTPError as error:
        raise DataError(
            f"there is no file {name}, and the hub has no dataset {name} for you",
            hint="check the path or the id; a private dataset needs HF_TOKEN",
        ) from error
    except (ValueError, FileNotFoundError) as error:  # several configurations, or none to be read
        raise DataError(
            f"the dataset {name} cannot be read: {str(error).splitlines()[0]}",
            hint="download the files that you want and give their paths",
        ) from error


def _why_silent(name: str, revision: str | None) -> str | None:
    """Say why the hub cannot be asked, or return `None`. `datasets` itself asks for a minute."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        HfApi().dataset_info(name, revision=revision, timeout=_ANSWER_SECONDS)
    except OfflineModeIsEnabled:
        return "HF_HUB_OFFLINE is set"
    except HfHubHTTPError:
        raise  # an answer, if not the one hoped for
    except Exception as error:  # which HTTP client is below differs between the hub's versions
        return f"the hub cannot be reached ({type(error).__name__})"
    return None


def _cached(name: str, revision: str | None, silent: str) -> Any:
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
        f"there is no file {name}, and no dataset {name} in the cache; {silent}",
        hint="check the path; or go online (HF_ENDPOINT names a mirror), or download the files",
    )
