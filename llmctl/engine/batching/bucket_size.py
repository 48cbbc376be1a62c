"""Bucket sizes that limit the number of different matrix shapes.

On a CPU oneDNN compiles and caches a kernel for every shape of a matrix product. With one shape per
prompt length a server would grow by hundreds of megabytes. The padding is masked or cut off again.
"""

_EXACT = 16
_MIN_STEP = 8


def bucket_size(count: int) -> int:
    """Return the smallest bucket for `count`: every size to 16, then about 8 per doubling."""
    if count <= _EXACT:
        return count
    step = _step(count)
    return -(-count // step) * step


def _step(count: int) -> int:
    return max(1 << (count.bit_length() - 4), _MIN_STEP)


def bucket_floor(count: int) -> int:
    """Return the largest bucket of at most `count`."""
    return count if bucket_size(count) == count else bucket_size(count) - _step(count)


def query_bucket_size(count: int) -> int:
    """Return the next power of two from 16 on; each of these occurs with every key size."""
    return max(_EXACT, 1 << (count - 1).bit_length())
