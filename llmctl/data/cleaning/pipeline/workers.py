"""How is a stream of chunks cleaned by several processes, and handed back in order?"""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import chain, islice

from llmctl.data.cleaning.pipeline.chunk import ChunkCleaner, ChunkResult, CleanJob
from llmctl.data.io.reader import RawRow
from llmctl.errors import LlmctlError

CHUNK_ROWS = 256
"""Rows that go to a process at a time."""
_CHUNK_BYTES = 8 * 2**20
"""Fewer rows, where they are long."""
_WORTH_IT = 16
"""Chunks below which starting processes takes longer than the work."""


def clean_chunks(
    rows: Iterable[RawRow], job: CleanJob, workers: int | None = None
) -> Generator[ChunkResult, None, None]:
    """Clean rows chunk by chunk, in their order.

    Args:
        workers: processes; `None` takes one per core, and none for what is small.

    Raises:
        LlmctlError: a process was ended from outside, as a rule for want of memory.
    """
    count = workers or _cores()
    chunks = _chunks(rows)
    first = list(islice(chunks, _WORTH_IT if workers is None else 1))
    alone = count == 1 or (workers is None and len(first) < _WORTH_IT)
    if not alone:
        try:
            pool = ProcessPoolExecutor(
                count,
                # A fork would take along locks of threads that tokenizers and torch have started.
                multiprocessing.get_context("spawn"),
                initializer=_begin,
                initargs=(job,),
            )
        except (OSError, ImportError, NotImplementedError):  # no semaphores here
            alone = True
    if alone:
        cleaner = ChunkCleaner(job)
        yield from map(cleaner.clean, chain(first, chunks))
        return
    try:
        yield from _in_order(pool, chain(first, chunks), ahead=2 * count)
    except BrokenProcessPool as error:
        raise LlmctlError(
            "a process that cleans rows was ended from outside, or could not start",
            hint="is there memory enough? --workers 1 does everything in one process",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _in_order(
    pool: ProcessPoolExecutor, chunks: Iterable[Sequence[RawRow]], ahead: int
) -> Iterator[ChunkResult]:
    waiting: deque[Future[ChunkResult]] = deque()
    for chunk in chunks:
        with _ctrl_c_waits():
            waiting.append(pool.submit(_clean, chunk))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@contextmanager
def _ctrl_c_waits() -> Iterator[None]:
    """Let Ctrl-C wait while processes may start: they inherit that it does not reach them.

    A terminal sends it to all of them; the one that reads the rows ends the others.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _chunks(rows: Iterable[RawRow]) -> Iterator[list[RawRow]]:
    chunk: list[RawRow] = []
    size = 0
    for row in rows:
        chunk.append(row)
        size += len(row.raw)
        if len(chunk) == CHUNK_ROWS or size > _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


_cleaner: ChunkCleaner | None = None


def _begin(job: CleanJob) -> None:
    global _cleaner
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _cleaner = ChunkCleaner(job)


def _clean(rows: Sequence[RawRow]) -> ChunkResult:
    assert _cleaner is not None
    return _cleaner.clean(rows)
