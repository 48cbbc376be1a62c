"""Only the modules for output print."""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "llmctl"
ALLOWED = {
    "cli/render.py": "results and messages of all commands",
    "cli/repl/display.py": "replies and notices of the chat",
    "cli/repl/terminal.py": "repainted rows of the chat",
    "cli/repl/markdown.py": "renders into a string",
    "server/request_log.py": "the request log",
    "engine/models/hub_download.py": "the protocol of a child process",
}


def prints(tree: ast.AST) -> Iterator[str]:
    """Yield the calls that print: `print`, `typer.echo`, a console, or a standard stream."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name in ("print", "typer.echo", "typer.secho", "Console") or name.endswith(
            ("console.print", ".err.print", ".out.print", "stdout.write", "stderr.write")
        ):
            yield name


def test_only_modules_for_output_print() -> None:
    found = {}
    for file in PACKAGE.rglob("*.py"):
        calls = list(prints(ast.parse(file.read_text(encoding="utf-8"))))
        if calls:
            found[file.relative_to(PACKAGE).as_posix()] = calls
    assert {name: calls for name, calls in found.items() if name not in ALLOWED} == {}
    assert found.keys() >= ALLOWED.keys() - {"cli/repl/terminal.py"}
