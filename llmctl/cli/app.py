"""The `llmctl` command: its subcommands and the handling of errors."""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, NoReturn

import typer

from llmctl import __version__
from llmctl.cli import bench, chat, evaluate, finetune, models, render, runs, serve
from llmctl.cli.data import commands
from llmctl.config import wants_traceback
from llmctl.errors import LlmctlError

# Importing the help panels of Rich would take half of the start-up time of `--help`.
app = typer.Typer(name="llmctl", rich_markup_mode=None, pretty_exceptions_enable=False)


def _print_version(is_given: bool) -> None:
    if is_given:
        render.print_line(f"llmctl {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def llmctl(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Chat with, serve, fine-tune and evaluate local language models."""
    if context.invoked_subcommand is None and not version:
        render.print_help(context)


app.command("chat")(chat.chat)
app.command("serve")(serve.serve)
app.command("finetune")(finetune.finetune)
app.command("bench")(bench.bench)
app.add_typer(evaluate.app, name="eval")
app.add_typer(models.app, name="models")
app.add_typer(commands.app, name="data")
app.add_typer(runs.app, name="runs")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and end the process.

    The exit code is 0 for success, 1 for a failure, 2 for wrong usage and 130 for Ctrl-C.
    """
    _open_streams()
    try:
        code = app(args=arguments, prog_name="llmctl", standalone_mode=False)
    except LlmctlError as error:
        if wants_traceback():
            raise
        render.print_error(str(error), error.hint)
        code = error.exit_code
    except typer.TyperException as error:  # wrong usage
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "llmctl"
        render.print_error(error.format_message().rstrip("."), f"see `{command} --help`")
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    except SystemExit as exit_:  # by a signal
        code = exit_.code
    except (typer.Abort, EOFError):
        code = 1
    except BrokenPipeError:
        # The reader of stdout has closed it. Without stdout Python does not flush it again at exit.
        sys.stdout = None
        code = 1
    except OSError as error:
        if wants_traceback():
            raise
        render.print_error(str(error), "LLMCTL_TRACEBACK=1 shows the traceback")
        sys.stdout = None  # it may be the file that cannot be written
        code = 1
    _exit(code if isinstance(code, int) else 0)


def _open_streams() -> None:
    """Replace streams that the shell has closed (`<&-`), whose numbers files would take."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  stays open


def _exit(code: int) -> NoReturn:
    """End the process, without Python's finalization after distributed training.

    The threads of a process group live until the process ends, even after the group is destroyed.
    One that frees a tensor during finalization aborts the process by SIGABRT (pytorch#38228).
    """
    if "WORLD_SIZE" in os.environ and "torch" in sys.modules:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                with suppress(OSError):
                    stream.flush()
        os._exit(code)
    sys.exit(code)
