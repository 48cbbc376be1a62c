"""A pool of processes that cleans chunks of rows and returns the results in order."""

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
"""Number of rows per chunk."""
_CHUNK_BYTES = 8 * 2**20
"""Maximum size of a chunk; it has fewer rows if they are long."""
_MIN_POOL_CHUNKS = 16
"""With fewer chunks, starting processes takes longer than the work."""


def clean_chunks(
    rows: Iterable[RawRow], job: CleanJob, workers: int | None = None
) -> Generator[ChunkResult, None, None]:
    """Clean rows chunk by chunk, in their order.

    Args:
        workers: processes; `None` takes one per core, and no others for a small dataset.

    Raises:
        LlmctlError: a process was killed, usually for lack of memory.
    """
    count = workers or _cores()
    chunks = _chunks(rows)
    first = list(islice(chunks, _MIN_POOL_CHUNKS if workers is None else 1))
    in_process = count == 1 or (workers is None and len(first) < _MIN_POOL_CHUNKS)
    if not in_process:
        try:
            pool = ProcessPoolExecutor(
                count,
                # A fork would copy held locks of the threads of tokenizers and torch.
                multiprocessing.get_context("spawn"),
                initializer=_initialize,
                initargs=(job,),
            )
        except (OSError, ImportError, NotImplementedError):  # no semaphores on this platform
            in_process = True
    if in_process:
        cleaner = ChunkCleaner(job)
        yield from map(cleaner.clean, chain(first, chunks))
        return
    try:
        yield from _in_order(pool, chain(first, chunks), ahead=2 * count)
    except BrokenProcessPool as error:
        raise LlmctlError(
            "a worker process of the cleaning was killed or could not start",
            hint="it may lack memory; --workers 1 uses a single process",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _in_order(
    pool: ProcessPoolExecutor, chunks: Iterable[Sequence[RawRow]], ahead: int
) -> Iterator[ChunkResult]:
    waiting: deque[Future[ChunkResult]] = deque()
    for chunk in chunks:
        with _blocked_sigint():
            waiting.append(pool.submit(_clean, chunk))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@contextmanager
def _blocked_sigint() -> Iterator[None]:
    """Block SIGINT while worker processes may start; they inherit the blocked signal.

    A terminal sends Ctrl-C to all processes; the process that reads the rows ends the others.
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


def _initialize(job: CleanJob) -> None:
    global _cleaner
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _cleaner = ChunkCleaner(job)


def _clean(rows: Sequence[RawRow]) -> ChunkResult:
    assert _cleaner is not None
    return _cleaner.clean(rows)
