"""docs/reference/stages.md: the built-in stages, from their own declarations."""

from typing import Any

from reference_pages.markdown import blocks, doc, table
from vidsieve.cli.show import stage_facts
from vidsieve.framework.registry import Registry

HEAD = """# Built-in stages

Settings are given in a policy file beside `use:`, or with `--set stage.setting=value`. Values outside the range
are refused. The tuner searches the settings marked *searched* that have a value in the policy. The setting named under
*decides the count* may be left out on the last reducing stage of a policy: the core then solves it for the retention
ratio asked."""


def built_in() -> dict[str, Any]:
    """Stages of this package, by name."""
    registry = Registry(installed=True)
    return {
        name: stage
        for name, stage in sorted(registry.stages.items())
        if registry.origin("stage", name) == "vidsieve.policies"
    }


def page() -> str:
    """The page."""
    parts = [HEAD]
    for name, stage in built_in().items():
        facts = stage_facts(stage)
        parts += ["", f"## {name}", "", blocks(doc(stage)), ""]
        parts += [f"- hooks: {', '.join(f'[`{hook}`](hooks.md#{hook})' for hook in facts['hooks'])}"]
        parts += [f"- reads: {', '.join(facts['reads'])}"] if facts["reads"] else []
        parts += [f"- reads if made: {', '.join(stage.reads_if_made)}"] if stage.reads_if_made else []
        parts += ["- optional: a search may switch it off"] if stage.optional else []
        parts += [f"- decides the count: `{stage.solves}`"] if stage.solves else []
        rows = [
            (f"`{s['name']}`", _default(s), _range(s), _searched(stage, s["name"]), s["help"])
            for s in facts["settings"]
        ]
        head = ("setting", "default", "range", "searched", "meaning")
        parts += ["", *table(head, rows)] if rows else ["- no settings"]
    return "\n".join(parts)


def _default(setting: dict[str, Any]) -> str:
    if setting["required"]:
        return "required"
    return "left out" if setting["default"] is None else f"`{setting['default']}`"


def _range(setting: dict[str, Any]) -> str:
    if setting["choices"]:
        return ", ".join(f"`{choice}`" for choice in setting["choices"])
    if setting["low"] is None:
        return str(setting["type"])
    return f"{setting['low']} to {setting['high']}{', logarithmic' if setting['log'] else ''}"


def _searched(stage: Any, name: str) -> str:
    """Whether the stage declares the setting with `tunable`."""
    extra = stage.settings()[name].json_schema_extra
    return "yes" if isinstance(extra, dict) and extra.get("tunable") else ""
