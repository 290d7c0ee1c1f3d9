"""`vidsieve check`: are these policy files sound?"""

from typing import Annotated

import typer

from vidsieve.cli.options import Json, Plugins
from vidsieve.cli.output import complain, say, say_json
from vidsieve.harness.setup import add_plugins


def check(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="Policy files (YAML), or names of published ones.")
    ],
    plugin: Plugins = None,
    json: Json = False,
) -> None:
    """Check policy files: every fault with its line. Exit code 1 if one is faulty."""
    from vidsieve.framework.errors import VidsieveError
    from vidsieve.framework.policy.file import load_policy

    add_plugins(plugin)
    verdicts = []
    for file in files:
        try:
            policy = load_policy(file)
        except VidsieveError as error:
            faults = getattr(error, "faults", None) or str(error).splitlines()
            verdicts.append({"file": file, "ok": False, "faults": faults})
        else:
            stages = [bound.label for bound in policy.stages]
            verdicts.append({"file": file, "ok": True, "name": policy.name, "hash": policy.hash, "stages": stages})
    _print(verdicts, as_json=json)
    if not all(verdict["ok"] for verdict in verdicts):
        raise typer.Exit(1)


def _print(verdicts: list[dict[str, object]], *, as_json: bool) -> None:
    """Print one line a sound file, one line a fault."""
    if as_json:
        say_json(verdicts)
        return
    for verdict in verdicts:
        if verdict["ok"]:
            stages = ", ".join(verdict["stages"]) or "no stages"  # type: ignore[arg-type]
            say(f"{verdict['file']}: ok, policy {verdict['name']!r} ({stages}), hash {verdict['hash']}")
        else:
            for fault in verdict["faults"]:  # type: ignore[attr-defined]
                complain(fault, kind="")
