"""A file or folder of examples, as other rooms speak of it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DatasetRef:
    """Which data, so exactly that two runs can say they used the same."""

    name: str
    source: str
    """Absolute path, or hub id."""
    digest: str
    """SHA-256 in hex of the rows as they are read: equal digests are equal data."""
    rows: int
    format: str = ""
    """`alpaca`, `sharegpt`, `messages`, ... or several, joined by `+`."""
