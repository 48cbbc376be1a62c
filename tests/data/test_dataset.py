"""Tokenised datasets from files, and their cache."""

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from llmctl.data.dataset import TokenizedDataset, TokenizeOptions, build_dataset
from llmctl.data.io.validating_reader import ReadOptions
from llmctl.data.rows.row_errors import DataError
from llmctl.data.tokenized import cache
from llmctl.engine.chat.template import ChatTemplate
from llmctl.errors import ConfigError, LlmctlError
from llmctl.types import Progress, SourceLocation
from tests.data.families import CHATML, QWEN3

SAMPLES = Path(__file__).parent / "samples"
NO_LIMIT = TokenizeOptions(max_length=1000)
HELLO = {"prompt": "Hi", "completion": "Hello"}

_opened: list[str] | None = None


def _record_open(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _opened is not None:
        _opened.append(str(arguments[0]))


sys.addaudithook(_record_open)


@contextmanager
def opened_files() -> Iterator[list[str]]:
    """Collect the paths of all files that are opened in the block."""
    global _opened
    _opened = []
    try:
        yield _opened
    finally:
        _opened = None


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMCTL_HOME", str(tmp_path / "store"))
    return tmp_path / "store" / "datasets"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write(tmp_path / "rows.jsonl", HELLO, {"prompt": "2+2?", "completion": "4"})


def write(path: Path, *rows: dict[str, str]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def built(
    *sources: Path,
    template: ChatTemplate | None = None,
    options: TokenizeOptions = NO_LIMIT,
    stop_ids: tuple[int, ...] = CHATML.stop_ids,
    progress: Callable[[Progress], None] = lambda _: None,
    **reading: object,
) -> TokenizedDataset:
    return build_dataset(
        sources,
        template or CHATML.template(),
        stop_ids,
        options,
        reading=ReadOptions(**reading),  # type: ignore[arg-type]
        progress=progress,
    )


def entries(store: Path) -> set[str]:
    return {path.name for path in store.iterdir() if not path.name.startswith(".")}


def test_rows_are_parsed_once_without_the_cache_and_never_with_it(rows: Path) -> None:
    for expected in (["hashing", "tokenising"], ["hashing"]):
        stages: list[str] = []
        with opened_files() as opened:
            dataset = built(rows, progress=lambda done: stages.append(done.stage.split()[0]))  # noqa: B023  called at once
        # One progress report for each pass over a small file, and one for each time it is opened.
        assert stages == expected
        assert opened.count(str(rows)) == len(expected)
        assert dataset.cached == ("tokenising" not in expected)
    assert (dataset.report.rows, len(dataset.train), dataset.eval) == (2, 2, None)


def test_training_and_evaluation_files_are_each_parsed_once(rows: Path, tmp_path: Path) -> None:
    eval_rows = write(tmp_path / "eval.jsonl", {"prompt": "3+3?", "completion": "6"})
    stages: list[str] = []
    for file in (rows, eval_rows, rows, eval_rows):
        built(file, progress=lambda done: stages.append(done.stage))
    assert stages.count(f"tokenising {rows}") == stages.count(f"tokenising {eval_rows}") == 1


def test_the_dataset_reference_is_the_same_in_every_release() -> None:
    files = (SAMPLES / "messages.jsonl", SAMPLES / "prompt-completion.csv")
    for dataset in (built(*files), built(*files)):
        data = dataset.data
        assert (data.name, data.rows) == ("messages+prompt-completion", 7)
        assert data.format == "messages+prompt-completion"
        assert data.source == ", ".join(map(str, files))
        assert data.digest == "8724e4a150d627400482763d85b1c49bf920957587d3f052e9788cfc67a49a04"


def test_the_second_build_reads_the_cache(rows: Path) -> None:
    first, second = built(rows), built(rows)
    assert (first.cached, second.cached) == (False, True)
    assert (second.report, second.data, second.key) == (first.report, first.data, first.key)
    assert second.train[0].ids.tolist() == first.train[0].ids.tolist()


def test_sequences_name_their_own_file_even_if_another_file_has_equal_rows(
    rows: Path, tmp_path: Path
) -> None:
    copied = Path(shutil.copy(rows, tmp_path / "copied.jsonl"))
    first, second = built(rows), built(copied)
    assert second.key == first.key
    assert second.train[1].origin == SourceLocation(str(copied), 2)


def test_equal_rows_in_another_format_have_the_same_key(rows: Path, tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    table.write_text("prompt,completion\nHi,Hello\n2+2?,4\n")
    assert built(table).key == built(rows).key


def test_other_rows_options_stop_tokens_or_templates_miss_the_cache(
    rows: Path, tmp_path: Path
) -> None:
    tokenizer = CHATML.tokenizer()
    changed = ChatTemplate(tokenizer, str(tokenizer.chat_template).replace("helpful", "kind"))
    keys = {built(rows).key}
    for dataset in (
        built(write(tmp_path / "other.jsonl", HELLO)),
        built(rows, options=replace(NO_LIMIT, max_length=999)),
        built(rows, stop_ids=(*CHATML.stop_ids, 0)),
        built(rows, template=changed),
        built(rows, template=QWEN3.template(), stop_ids=QWEN3.stop_ids),
    ):
        assert not dataset.cached
        assert dataset.key not in keys
        keys.add(dataset.key)
    write(rows, HELLO)
    assert not built(rows).cached
    assert not built(rows, columns={"completion": "completion"}).cached


def test_invalid_rows_are_all_reported_or_skipped_also_from_the_cache(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(f'{json.dumps(HELLO)}\n{{"prompt": 1}}\n{{"text": ""}}\n')
    for _ in range(2):  # the second time, the rows are in the cache
        with pytest.raises(DataError) as caught:
            built(rows)
        assert [line.split(":")[1] for line in str(caught.value).splitlines()] == ["2", "3"]
        assert "--on-error skip" in caught.value.hint
        skipped = built(rows, on_error="skip")
        assert (skipped.skipped, skipped.data.rows) == ({"missing-column": 1, "empty": 1}, 1)


def test_errors_in_rows_come_before_errors_of_the_tokenisation(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(HELLO) + "\n" + '{"prompt": 1, "completion": "a"}\n')
    with pytest.raises(DataError, match="2:prompt: a number"):
        built(rows, stop_ids=(0,))
    with pytest.raises(ConfigError, match="not a stop token"):
        built(rows, stop_ids=(0,), on_error="skip")


def test_no_valid_rows_are_an_error_with_skip_too(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1:text: empty") as caught:
        built(write(tmp_path / "rows.jsonl", {"text": ""}), on_error="skip")
    assert "no valid row is left" in caught.value.hint


def test_files_that_change_while_they_are_read_are_an_error(rows: Path, store: Path) -> None:
    def progress(done: Progress) -> None:
        if done.stage.startswith("tokenising"):
            write(rows, HELLO)

    with pytest.raises(DataError, match="changed while they were read"):
        built(rows, progress=progress)
    assert entries(store) == set()


def test_a_damaged_cache_entry_is_rebuilt(rows: Path, store: Path) -> None:
    built(rows)
    (ids,) = store.glob("*/ids.bin")
    content = ids.read_bytes()
    ids.write_bytes(content[:-4])
    assert not built(rows).cached
    assert ids.read_bytes() == content


def test_an_interrupted_build_leaves_nothing_behind(rows: Path, store: Path) -> None:
    def interrupt(done: Progress) -> None:
        if done.stage.startswith("tokenising"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        built(rows, progress=interrupt)
    assert entries(store) == set()
    assert list((store / ".aside").iterdir()) == []


def test_the_least_recently_used_entries_are_evicted_over_the_size_limit(
    rows: Path, store: Path
) -> None:
    keys = []
    for age, seed in enumerate((3, 2, 1)):
        before = entries(store) if store.exists() else set()
        built(rows, options=replace(NO_LIMIT, seed=seed))
        (key,) = entries(store) - before
        os.utime(store / key, (1000 + age, 1000 + age))
        keys.append(key)
    size = sum(file.stat().st_size for file in (store / keys[0]).iterdir())
    built(rows, options=replace(NO_LIMIT, seed=3))  # used again
    assert cache.evict(limit_bytes=3 * size) == []
    assert cache.evict(limit_bytes=2 * size + size // 2, days=0) == [keys[1]]
    assert entries(store) == {keys[0], keys[2]}


def test_entries_in_recent_use_are_kept_over_the_size_limit(rows: Path, store: Path) -> None:
    built(rows)
    assert cache.evict(limit_bytes=0) == []
    assert len(entries(store)) == 1


def test_a_full_disk_is_an_error_that_names_the_folder_and_leaves_nothing(store: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "ids.bin").write_bytes(b"some")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(LlmctlError, match="No space left") as caught:
        cache.get_or_build("key", build)
    assert str(store) in str(caught.value)
    assert "LLMCTL_HOME" in caught.value.hint
    assert list((store / ".aside").iterdir()) == []
