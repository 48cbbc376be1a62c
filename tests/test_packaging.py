"""The promises of the repository itself: start-up, packaging, the README's lines."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
HEAVY = ("torch", "transformers", "fastapi", "uvicorn", "mlflow", "peft", "datasets")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from llmctl.cli.app import main\n"
        "for command in ([], ['chat'], ['serve'], ['models'], ['models', 'list']):\n"
        "    try: main([*command, '--help'])\n"
        "    except SystemExit as end: assert end.code == 0, (command, end.code)\n"
        f"print(sorted(set(sys.modules) & set({HEAVY!r})), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_the_conda_environment_leaves_versions_to_pyproject() -> None:
    environment = yaml.safe_load((ROOT / "environment.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    *conda, pip_part = environment["dependencies"]
    assert pip_part == {"pip": ["-e .[dev]"]}
    assert "dev" in project["optional-dependencies"]
    assert [re.split(r"[ <>=]", name)[0] for name in conda] == ["python", "pip"]
    stated = [project["requires-python"], *project["dependencies"]]
    assert not any(name.endswith(version) for version in stated for name in conda)


def test_no_dependency_is_locked_to_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [project["dependencies"], *project["optional-dependencies"].values()]
    locked = [line for lines in listed for line in lines if re.search(r"(?<![!<>~])==", line)]
    assert locked == []


def test_both_readmes_have_the_same_two_set_up_lines() -> None:
    chinese = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")
    lines = re.findall(r"^pip install .*$", README, flags=re.MULTILINE)[:2]
    assert len(lines) == 2
    assert "llmctl serve" in lines[0]
    assert "pytest" in lines[1]
    for line in lines:
        assert line in chinese


def test_python_dash_m_is_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "llmctl", "--version"], capture_output=True, text=True, check=True
    )
    assert re.fullmatch(r"llmctl \d+\.\d+\.\d+\n", done.stdout)


@pytest.mark.parametrize("name", ["docs/architecture.md", "CONTRIBUTING.md", "docs/performance.md"])
def test_every_file_that_a_document_names_exists(name: str) -> None:
    """Paths in backticks are below the root, `llmctl/`, or the folder named before them."""
    text = (ROOT / name).read_text(encoding="utf-8")
    known = {path.relative_to(ROOT).as_posix() for path in (ROOT / "llmctl").rglob("*")}
    named = re.findall(r"`((?:[\w.]+/)*[\w.]+\.py|(?:[\w.]+/)+)`", text)
    missing = [
        path
        for path in named
        if not (ROOT / path).exists()
        and not any(file.endswith("/" + path.rstrip("/")) for file in known)
    ]
    assert missing == []
