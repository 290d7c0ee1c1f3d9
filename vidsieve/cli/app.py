"""The application: every verb under one name, and what failures become: one message, never a traceback."""

import functools
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer

from vidsieve import __version__
from vidsieve.cli.bench import bench
from vidsieve.cli.check import check
from vidsieve.cli.demo import demo
from vidsieve.cli.eval import evaluate
from vidsieve.cli.ls import ls
from vidsieve.cli.options import flat
from vidsieve.cli.output import complain
from vidsieve.cli.run import run
from vidsieve.cli.serve_check import serve_check
from vidsieve.cli.show import show
from vidsieve.cli.tune import tune
from vidsieve.cli.view import view
from vidsieve.framework.errors import VidsieveError

INTERRUPTED = 130


def guarded(verb: Callable[..., None]) -> Callable[..., None]:
    """Wrap `verb`: print its failures on standard error and turn them into an exit code (see `errors`, and 130)."""

    @functools.wraps(verb)
    def run(**given: Any) -> None:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                verb(**given)
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt:
            complain("interrupted.", kind="")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            # the reader of a pipe (`| head`) has seen enough; what is still buffered must not fail again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except Exception as error:
            code = _report_error(error)
            raise typer.Exit(code) from None

    return run


def _report_error(error: Exception) -> int:
    """Print what went wrong and return the exit code."""
    if os.environ.get("VIDSIEVE_DEBUG") == "1":
        traceback.print_exception(error)
    if isinstance(error, VidsieveError):
        complain(str(error))
        return error.exit_code
    if isinstance(error, OSError) and error.strerror:
        complain(f"{error.filename or 'file system'}: {error.strerror}.")
        return 1
    if type(error).__name__ == "OutOfMemoryError":
        complain("device memory: the model and this workload do not fit; lower --batch-size, --frames or --max-pixels.")
        return 1
    first = (str(error).strip() or "no message").splitlines()[0]
    complain(
        f"{type(error).__name__}: {first}\nThis is a bug in Vidsieve or in a plugin. VIDSIEVE_DEBUG=1 prints the "
        "traceback; please report it with the command."
    )
    return 1


def _show_warning(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    """Print warnings meant for people as one line; leave out those of libraries about their own code."""
    if issubclass(category, UserWarning) and not issubclass(category, FutureWarning | DeprecationWarning):
        complain(str(message), kind="warning")


HELP = """Make video LLMs in transformers answer sooner by removing visual tokens that carry little.

Start with: vidsieve tune --model qwen2-vl --speedup 2
"""

app = typer.Typer(
    help=HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"vidsieve {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Do nothing before a verb."""


for _name, _verb in (
    ("tune", tune),
    ("run", run),
    ("view", view),
    ("eval", evaluate),
    ("bench", bench),
    ("ls", ls),
    ("show", show),
    ("check", check),
    ("demo", demo),
    ("serve-check", serve_check),
):
    app.command(_name, help=_verb.__doc__)(guarded(flat(_verb)))
