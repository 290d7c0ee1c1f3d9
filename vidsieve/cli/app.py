"""The application: every verb under one name."""

from typing import Annotated

import typer

from vidsieve import __version__
from vidsieve.cli.check import check
from vidsieve.cli.eval import evaluate
from vidsieve.cli.guard import guarded
from vidsieve.cli.ls import ls
from vidsieve.cli.options import flat
from vidsieve.cli.run import run
from vidsieve.cli.show import show
from vidsieve.cli.tune import tune

HELP = """Make video LLMs in transformers answer sooner by removing visual tokens that carry little.

Start with: vidsieve tune --model qwen2-vl --latency-ms 200
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
    ("eval", evaluate),
    ("ls", ls),
    ("show", show),
    ("check", check),
):
    app.command(_name, help=_verb.__doc__)(guarded(flat(_verb)))
