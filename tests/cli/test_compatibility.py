"""Every command and option of an earlier release is still accepted.

`fixtures/options_1.json` lists the commands of that release, their options, and valid values of
each option; a flag has none.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import typer.main

from llmctl.cli.app import app

FIXTURE = Path(__file__).parent / "fixtures" / "options_1.json"
EARLIER: dict[str, dict[str, list[str]]] = json.loads(FIXTURE.read_text())
# Their callbacks print and exit.
EXITING = ("--version", "--list-rules", "--install-completion", "--show-completion", "--help")


def find_command(path: str) -> Any:
    command: Any = typer.main.get_command(app)
    for name in path.split()[1:]:
        command = command.commands[name]
    return command


@pytest.mark.parametrize("path", EARLIER)
def test_command_and_its_options_are_accepted(path: str) -> None:
    command = find_command(path)
    options = {name: p for p in command.params for name in (*p.opts, *p.secondary_opts)}
    for name, values in EARLIER[path].items():
        if name in EXITING:
            assert name in options or name.startswith(("--install", "--show"))
            continue
        for words in [[name, value] for value in values] or [[name]]:
            context = command.make_context(path, [], resilient_parsing=True)
            parsed, rest, _ = command.make_parser(context).parse_args(words)
            parameter = options[name]
            assert rest == [], (name, rest)
            # Conversion raises for an invalid value.
            converted = parameter.process_value(context, parsed[parameter.name])
            assert converted not in (None, []), name
