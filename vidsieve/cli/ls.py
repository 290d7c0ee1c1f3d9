"""`vidsieve ls`: what there is."""

from enum import StrEnum
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidsieve.cli.options import Json, Plugins
from vidsieve.cli.output import say, say_json, table
from vidsieve.framework.hookspecs import KV_HOOKS, STAGE_HOOKS, VIDEO_HOOKS
from vidsieve.harness.setup import add_plugins

if TYPE_CHECKING:
    from vidsieve.framework.registry import Registry


STEPS = {"frames": ("reduce_frames",), "tokens": VIDEO_HOOKS, "layers": ("prune_layer",), "kv": KV_HOOKS}
INPUTS = ("question", "token_grid", "timestamps_s")
"""Told before the signals, which are taken from the vision tower."""
MEANING = (
    "acts on: frames before the vision tower, tokens before the language model,",
    "layers inside it, kv entries in decode. image: may stand beside a video.",
)


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
        if name == Kind.models:
            _say_models(rows)
            continue
        head = list(rows[0]) if rows else ["none"]
        table(name, head, [[_cell(value) for value in row.values()] for row in rows])
        if name == Kind.policies:
            say("What nobody published: `vidsieve tune --policies composed` searches compositions of all stages.")
        say()
    if kind is None:
        say("More: vidsieve ls stages, vidsieve show NAME")


def _cell(value: object) -> str:
    """Format a value for a table."""
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    return "" if value is None else str(value)


def policies(registry: "Registry") -> list[dict[str, Any]]:
    """Read the published policies as plain YAML, so that torch stays out."""
    return [{"name": name, **_headline(path)} for name, path in sorted(registry.policies.items())]


def _headline(path: Path) -> dict[str, Any]:
    """Read summary and sources of a policy file, without building its stages."""
    from vidsieve.framework.policy.yaml_nodes import Faults, compose, pairs, python

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
    """List registered stages with the hooks they implement."""
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
    """List model families: what each can do, what stands for it, and what of it is on this machine."""
    from vidsieve.harness.model_choice import on_this_machine

    return [
        {
            "family": family,
            "aliases": list(adapter.aliases),
            "model classes": list(adapter.model_classes),
            "hooks": [hook for hook in STAGE_HOOKS if hook in adapter.runs],
            "offers": sorted(adapter.offers, key=lambda name: (name not in INPUTS, name)),
            "image beside video": _takes_images(adapter),
            "needs": list(adapter.needs),
            "default checkpoint": adapter.default_checkpoint,
            "on this machine": on_this_machine(adapter),
        }
        for family, adapter in sorted(registry.models.items())
    ]


def _takes_images(adapter: Any) -> bool:
    """Whether a prompt may have an image and a video.

    Where videos stand on the placeholder of images, transformers takes all of them for images and finds too few.
    """
    return adapter.modality == "image" or adapter.placeholders is None


def _say_models(rows: list[dict[str, Any]]) -> None:
    """Print two tables of at most 80 columns, and what their words mean."""
    head = ("family", "acts on", "image", "inputs and signals for stages")
    table("models", head, [[row["family"], _acts_on(row), _yes(row), _lines(row["offers"], 29)] for row in rows])
    for line in MEANING:
        say(line)
    say()
    shown = [[row["family"], row["default checkpoint"], _here(row["on this machine"])] for row in rows]
    table("checkpoints", ("family", "default checkpoint", "here"), shown)
    say("here: what runs without a download; where nothing does, name a --checkpoint.")
    say(
        "inputs: made from a video's frames by torch alone"
        + ("." if not any(row["needs"] for row in rows) else "; but")
    )
    for row in rows:
        if row["needs"]:
            say(f"  {row['family']} needs {' and '.join(row['needs'])}.")
    say()


def _acts_on(row: dict[str, Any]) -> str:
    """Say where stages can act; hooks by name where a family carries out only part of a step."""
    words = []
    for word, hooks in STEPS.items():
        have = [hook for hook in hooks if hook in row["hooks"]]
        words += [word] if len(have) == len(hooks) else have
    return " ".join(words)


def _yes(row: dict[str, Any]) -> str:
    return "yes" if row["image beside video"] else "no"


def _here(here: str) -> str:
    return "-" if here.startswith("nothing") else _lines(here.split(", "), 17)


def _lines(words: list[str], width: int) -> str:
    """Join words by commas, broken into lines of a table's cell."""
    return fill(", ".join(words), width)
