"""`vidsieve show`: one policy or stage, with its settings and what it can reach."""

from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from vidsieve.cli.options import Json, Plugins
from vidsieve.cli.output import say, say_json, table
from vidsieve.harness.setup import add_plugins

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from vidsieve.framework.policy.policy import Policy
    from vidsieve.framework.records import VideoShape
    from vidsieve.framework.registry import Registry
    from vidsieve.framework.stage import Stage


def show(
    name: Annotated[str, typer.Argument(help="A policy (published name or YAML file) or a stage.")],
    plugin: Plugins = None,
    frames: Annotated[int, typer.Option(min=1, help="Attainable range: frames the vision tower encodes.")] = 16,
    tokens: Annotated[int, typer.Option(min=1, help="Attainable range: visual tokens a frame.")] = 196,
    layers: Annotated[int, typer.Option(min=1, help="Attainable range: decoder layers.")] = 28,
    json: Json = False,
) -> None:
    """Show a policy (stages, settings, sources, attainable retention) or a stage (settings)."""
    from vidsieve.framework.records import VideoShape

    registry = add_plugins(plugin)
    found = describe(name, registry, VideoShape(frames, tokens, layers))
    if json:
        say_json(found)
        return
    if "policy" in found:
        _print_policy(found["policy"])
    if "stage" in found:
        _print_stage(found["stage"])


def describe(name: str, registry: "Registry", shape: "VideoShape") -> dict[str, Any]:
    """Describe the policy and the stage of that name; a name may be both.

    Raises:
        UnknownNameError: neither exists.
    """
    from vidsieve.framework.errors import UnknownNameError
    from vidsieve.framework.policy.file import load_policy

    found: dict[str, Any] = {}
    is_path = name.endswith((".yaml", ".yml")) or "/" in name
    if name in registry.policies or is_path:
        found["policy"] = policy_facts(load_policy(name, registry=registry), shape)
    if name in registry.stages:
        found["stage"] = {"name": name, "from": registry.origin("stage", name)} | stage_facts(registry.stages[name])
    if not found:
        raise UnknownNameError("show", "policy or stage", name, {*registry.policies, *registry.stages})
    return found


def policy_facts(policy: "Policy", shape: "VideoShape") -> dict[str, Any]:
    """Describe a policy in plain types."""
    low, high = policy.attainable(shape)
    return {
        "name": policy.name,
        "summary": policy.summary,
        "sources": list(policy.sources),
        "reference": policy.reference or None,
        "requires": list(policy.requires),
        "hash": policy.hash,
        "retention_ratio": policy.retention_ratio,
        "positions": policy.positions,
        "exact": policy.exact,
        "attainable": {
            "low": low,
            "high": high,
            "frames": shape.frames,
            "tokens": shape.tokens,
            "layers": shape.layers,
        },
        "needs": sorted(policy.needs()),
        "stages": [
            {"label": bound.label, "use": bound.use} | stage_facts(type(bound.stage), bound.stage)
            for bound in policy.stages
        ],
        "provenance": dict(policy.provenance),
    }


def stage_facts(kind: "type[Stage]", stage: "Stage | None" = None) -> dict[str, Any]:
    """Describe what a stage class declares; with an instance, also the values it has."""
    settings = []
    for name, field in kind.settings().items():
        value = {"value": getattr(stage, name)} if stage is not None else {}
        settings.append({"name": name} | value | setting_facts(field))
    return {
        "summary": _paragraph(kind.__doc__),
        "hooks": list(kind.hooks()),
        "reads": list(kind.reads),
        "solves": kind.solves,
        "settings": settings,
    }


def setting_facts(field: "FieldInfo") -> dict[str, Any]:
    """Describe default, type and range of one setting."""
    from pydantic_core import PydanticUndefined

    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    choices = list(get_args(field.annotation)) if _is_literal(field.annotation) else None
    return {
        "default": None if field.default is PydanticUndefined else field.default,
        "required": field.default is PydanticUndefined,
        "type": "choice" if choices else str(getattr(field.annotation, "__name__", field.annotation)),
        "choices": choices,
        "low": extra.get("low"),
        "high": extra.get("high"),
        "log": bool(extra.get("log", False)),
        "help": field.description or "",
    }


def _is_literal(annotation: Any) -> bool:
    from typing import Literal, get_origin

    return get_origin(annotation) is Literal


def _paragraph(text: str | None) -> str:
    """Return the first paragraph of a docstring, on one line."""
    return " ".join((text or "").strip().split("\n\n")[0].split())


def _print_policy(facts: dict[str, Any]) -> None:
    say(f"policy {facts['name']}: {facts['summary']}")
    ratio, reach = facts["retention_ratio"], facts["attainable"]
    say(f"  sources          {', '.join(facts['sources']) or 'none given'}")
    say(f"  retention_ratio  {ratio if ratio is not None else 'decided by the last stage'}")
    say(
        f"  attainable       {reach['low']:.3g} to {reach['high']:.3g} of {reach['frames']} x {reach['tokens']} "
        f"visual tokens, {reach['layers']} layers"
    )
    exact = "exact counts" if facts["exact"] else "the method's own counts"
    say(f"  positions        {facts['positions']}, {exact}, hash {facts['hash']}")
    if facts["requires"]:
        say(f"  requires         {', '.join(facts['requires'])}")
    if facts["provenance"]:
        say(f"  provenance       {', '.join(facts['provenance'])} (--json prints it)")
    for number, stage in enumerate(facts["stages"], start=1):
        label = stage["label"] if stage["label"] == stage["use"] else f"{stage['use']} as {stage['label']}"
        say(f"\n{number}. {label}: {stage['summary']}")
        _print_settings(stage["settings"])
    if not facts["stages"]:
        say("\nno stages: the model runs as it is")


def _print_stage(facts: dict[str, Any]) -> None:
    say(f"stage {facts['name']} ({', '.join(facts['hooks'])}; from {facts['from']}): {facts['summary']}")
    _print_settings(facts["settings"])


def _print_settings(settings: list[dict[str, Any]]) -> None:
    if not settings:
        say("   no settings")
        return
    rows = []
    for item in settings:
        values = [item["value"]] if "value" in item else []
        default = "required" if item["required"] else item["default"]
        rows.append([str(cell) for cell in (f"   {item['name']}", *values, default, _range(item), item["help"])])
    head = ["   setting", *(["value"] if "value" in settings[0] else []), "default", "range", ""]
    table("", head, rows)


def _range(item: dict[str, Any]) -> str:
    if item["choices"]:
        return " | ".join(str(choice) for choice in item["choices"])
    if item["low"] is None and item["high"] is None:
        return str(item["type"])
    return f"{item['low']} to {item['high']}{' (log)' if item['log'] else ''}"
