"""Tables between markers in docs/compatibility.md."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

_DOCUMENT = Path(__file__).parents[2] / "docs" / "compatibility.md"


def write_table(
    name: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    packages: Sequence[str],
    origin: str = "",
) -> None:
    """Replace the table `name` in the document.

    Args:
        name: of the markers `<!-- name -->` and `<!-- /name -->`.
        header: names of the columns.
        rows: cells.
        packages: whose versions are written below the table.
        origin: name and version of further material.
    """
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]
    versions = ", ".join([f"{package} {version(package)}" for package in packages])
    versions += f", {origin}" if origin else ""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    text = _DOCUMENT.read_text(encoding="utf-8")
    before, rest = text.split(begin)
    after = rest.split(end, 1)[1]
    table = "\n".join(lines) + f"\n\nVersions: {versions}.\n"
    _DOCUMENT.write_text(before + begin + table + end + after, encoding="utf-8")
