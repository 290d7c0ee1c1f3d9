"""The command line: one file per verb. Importing this package costs nothing; the verbs load what they use."""

import sys


def main() -> None:
    """The console script `vidsieve`."""
    from vidsieve.cli.app import app

    app(prog_name="vidsieve")


def tune_alias() -> None:
    """The console script `tune`: `vidsieve tune` under a shorter name (torchtune installs a `tune` too)."""
    from vidsieve.cli.app import app

    app(args=["tune", *sys.argv[1:]], prog_name="vidsieve")
