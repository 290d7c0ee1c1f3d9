"""`vidsieve ls`: what there is."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidsieve.cli.options import Json, Plugins
from vidsieve.cli.output import say, say_json, table
from vidsieve.cli.plugins import add_plugins

if TYPE_CHECKING:
    from vidsieve.framework.registry import Registry


class Kind(StrEnum):
    """What can be listed."""

    policies = "policies"
    stages = "stages"
    models = "models"


def ls(
    kind: Annotated[Kind | None, typer.Argument(help="What to list; policies and models if left out.")] = None,
    plugin: Plugins = None,
    json: Json = False,
) -> None:
    """List policies, stages and models. `vidsieve show NAME` tells more about one."""
    registry = add_plugins(plugin)
    listers = {Kind.policies: policies, Kind.stages: stages, Kind.models: models}
    kinds = [kind] if kind else [Kind.policies, Kind.models]
    found = {each.value: listers[each](registry) for each in kinds}
    if json:
        say_json(found)
        return
    for name, rows in found.items():
        head = list(rows[0]) if rows else ["none"]
        table(name, head, [[_cell(value) for value in row.values()] for row in rows])
        say()
    if kind is None:
        say("More: vidsieve ls stages, vidsieve show NAME")


def _cell(value: object) -> str:
    """A value for the eye."""
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    return "" if value is None else str(value)


def policies(registry: "Registry") -> list[dict[str, Any]]:
    """Published policies, read as plain YAML so that torch stays out."""
    return [{"name": name, **_headline(path)} for name, path in sorted(registry.policies.items())]


def _headline(path: Path) -> dict[str, Any]:
    """Summary and sources of a policy file, without building its stages."""
    from vidsieve.framework.yaml_nodes import Faults, compose, pairs, python

    try:
        root = compose(path.read_text(encoding="utf-8"), Faults(str(path)))
    except (OSError, UnicodeDecodeError) as error:
        return {"summary": f"cannot be read: {error}", "sources": []}
    entries = pairs(root, str(path), Faults(str(path))) if root is not None else {}
    values = {key: python(node) for key, (_, node) in entries.items() if key in ("summary", "sources")}
    return {
        "summary": values.get("summary", "not readable, see `vidsieve check`"),
        "sources": values.get("sources", []),
    }


def stages(registry: "Registry") -> list[dict[str, Any]]:
    """Registered stages with the hooks they implement."""
    rows = []
    for name, stage in sorted(registry.stages.items()):
        summary = (stage.__doc__ or "").strip().split("\n")[0]
        rows.append(
            {
                "name": name,
                "hooks": list(stage.hooks()),
                "summary": summary,
                "from": registry.origin("stage", name),
            }
        )
    return rows


def models(registry: "Registry") -> list[dict[str, Any]]:
    """Model families: what stands for each, and what of it is on this machine."""
    from vidsieve.cli.workbench.choice import on_this_machine

    return [
        {
            "family": family,
            "model classes": list(adapter.model_classes),
            "default checkpoint": adapter.default_checkpoint,
            "on this machine": on_this_machine(adapter),
        }
        for family, adapter in sorted(registry.models.items())
    ]
