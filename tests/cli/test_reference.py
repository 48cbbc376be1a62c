"""The generated reference documentation is up to date."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from llmctl.cli import reference

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("commands.md", reference.commands_reference),
        ("configuration.md", reference.configuration_reference),
    ],
)
def test_reference_is_current(name: str, text: Callable[[], str]) -> None:
    written = (ROOT / reference.DEFAULT_FOLDER / name).read_text(encoding="utf-8")
    assert written == text(), "run `python -m llmctl.cli.reference`"


def test_all_variables_of_the_code_are_listed() -> None:
    listed = reference.configuration_reference()
    for file in (ROOT / "llmctl").rglob("*.py"):
        for name in re.findall(r'"(LLMCTL_[A-Z_]+)"', file.read_text(encoding="utf-8")):
            if name != "LLMCTL_OC_KEY":  # between llmctl and its OpenCompass process
                assert f"`{name}`" in listed, f"{name} in {file}"
