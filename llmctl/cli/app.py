"""The `llmctl` command: its subcommands, and the one place where errors meet a person."""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, NoReturn

import typer

from llmctl import __version__
from llmctl.cli import bench, chat, evaluate, finetune, models, runs, serve
from llmctl.cli.data import commands
from llmctl.cli.render import print_error
from llmctl.config import wants_traceback
from llmctl.errors import LlmctlError

# Rich help panels alone would take half of the time that `--help` may take.
app = typer.Typer(name="llmctl", rich_markup_mode=None, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"llmctl {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def llmctl(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Talk to, serve and manage local language models."""
    if context.invoked_subcommand is None and not version:
        typer.echo(context.get_help())


app.command("chat")(chat.chat)
app.command("serve")(serve.serve)
app.command("finetune")(finetune.finetune)
app.command("bench")(bench.bench)
app.add_typer(evaluate.app, name="eval")
app.add_typer(models.app, name="models")
app.add_typer(commands.app, name="data")
app.add_typer(runs.app, name="runs")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and end the process: 0 ok, 1 failed, 2 wrong usage, 130 Ctrl-C."""
    _open_streams()
    try:
        code = app(args=arguments, prog_name="llmctl", standalone_mode=False)
    except LlmctlError as error:
        if wants_traceback():
            raise
        print_error(str(error), error.hint)
        code = error.exit_code
    except typer.TyperException as error:  # wrong usage, found by Typer
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "llmctl"
        print_error(error.format_message().rstrip("."), f"see `{command} --help`")
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    except SystemExit as ended:  # by a signal
        code = ended.code
    except (typer.Abort, EOFError):
        code = 1
    except BrokenPipeError:
        # Whoever read our output has left. Python would complain again while it flushes at exit.
        sys.stdout = None
        code = 1
    except OSError as error:
        if wants_traceback():
            raise
        print_error(str(error), "LLMCTL_TRACEBACK=1 shows where it came from")
        sys.stdout = None  # it may be what cannot be written
        code = 1
    _end(code if isinstance(code, int) else 0)


def _open_streams() -> None:
    """Open what a shell has closed (`<&-`), or the next file would be taken for it."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  for good


def _end(code: int) -> NoReturn:
    """End the process, at once where it is one of several that have learnt together.

    The threads of their group live as long as the process, even when the group is destroyed. One
    that lets go of a tensor while Python takes itself apart ends the process by SIGABRT, with its
    work done (pytorch#38228).
    """
    if "WORLD_SIZE" in os.environ and "torch" in sys.modules:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                with suppress(OSError):
                    stream.flush()
        os._exit(code)
    sys.exit(code)
