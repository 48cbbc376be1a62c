"""Rounds sizes up, so that matrices come in few different shapes.

On a CPU oneDNN compiles a kernel for every shape of a product and keeps it: with a shape per prompt
length a server would grow by hundreds of megabytes. What is added is masked or cut off again.
"""

_EXACT = 16
_LEAST_STEP = 8


def bucket_size(count: int) -> int:
    """Return the next admitted size: every one up to 16, then about eight per doubling."""
    if count <= _EXACT:
        return count
    step = max(1 << (count.bit_length() - 4), _LEAST_STEP)
    return -(-count // step) * step


def query_bucket_size(count: int) -> int:
    """Return the next power of two from 16 on: these vary together with the keys they ask."""
    return max(_EXACT, 1 << (count - 1).bit_length())
