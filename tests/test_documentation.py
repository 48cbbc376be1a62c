"""Files that the documentation names."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
FILES = {
    file.relative_to(ROOT).as_posix()
    for pattern in ("llmctl/**/*", "tests/**/*", "examples/**/*")
    for file in ROOT.glob(pattern)
}
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]


def missing_code(text: str) -> list[str]:
    """Return the modules and folders of the code in backticks that do not exist.

    A name is below `llmctl/`, or the end of a path whose folder the text names nearby.
    """
    named = re.findall(r"`((?:[\w.-]+/)*[\w-]+\.py|(?:engine|server|data)/[\w/-]*)`", text)
    paths = [name.rstrip("/") for name in named]
    return [path for path in paths if not any(f"/{file}".endswith(f"/{path}") for file in FILES)]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_modules_and_linked_files_of_a_page_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?://|#)([^)#\s]+)[^)]*\)", text)
    missing = [link for link in links if not (page.parent / link).exists()]
    if page.name != "CHANGELOG.md":  # it names files of earlier versions
        missing += missing_code(text)
    assert missing == []


def test_a_module_that_does_not_exist_is_found() -> None:
    text = "`engine/base.py`, `scheduler.py`, `engine/no_such.py`, `engine/chat/`, `data/none/`"
    assert missing_code(text) == ["engine/no_such.py", "data/none"]
