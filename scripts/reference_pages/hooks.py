"""docs/reference/hooks.md: every hook with its signature, its sentence, who carries it out, and an example."""

from pathlib import Path

from reference_pages.markdown import doc, signature
from vidsieve.framework.hookspecs import STAGE_HOOKS, PluginSpecs, StageSpecs
from vidsieve.framework.planning.checks import _ALLOWED
from vidsieve.framework.registry import Registry

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples" / "hooks"

HEAD = """# Hooks

A stage is a class with one or more of the stage hooks; a plugin module has the register hooks. Each is marked with a
bare `@hookimpl`. Take only the arguments you use. A stage hook answers with a [plan](records-and-plans.md); `None` is
an error, and "nothing to do" is a plan that says so.

Steps 3 to 7 run stage by stage in the order of the policy file, on one video at a time; the hooks of one stage run in
the order of this page. `reduce_frames`, `prune_layer`, `evict_kv` and `prune_kv` run at their own time. Every example
is a lone plugin file of `docs/examples/hooks`."""

STEPS = {
    "reduce_frames": "1, before the vision tower",
    "segment_frames": "3",
    "budget_frames": "4",
    "score_tokens": "5",
    "select_tokens": "6",
    "merge_tokens": "7",
    "prune_layer": "9, inside the language model in prefill",
    "evict_kv": "10, in prefill, once a layer has read the prompt",
    "prune_kv": "10, in decode",
}


def page() -> str:
    """The page."""
    registry = Registry(installed=True)
    parts = [HEAD, "", "## Stage hooks"]
    for name in STAGE_HOOKS:
        families = sorted(family for family, adapter in registry.models.items() if name in adapter.runs)
        carried = ", ".join(families) if families else "no bundled adapter yet; only the test kit calls it"
        answers = " or ".join(f"`{kind.__name__}`" for kind in _ALLOWED[name])
        parts += ["", *_hook(name, StageSpecs), f"Step {STEPS[name]}. Answers with {answers}.", ""]
        parts += [f"Carried out on a model by: {carried}.", "", *_example(name)]
    parts += ["", "## Register hooks"]
    for name in ("register_stages", "register_policies", "register_models"):
        parts += ["", *_hook(name, PluginSpecs), *_example(name)]
    return "\n".join(parts)


def _hook(name: str, specs: type) -> list[str]:
    spec = getattr(specs, name)
    return [f"### {name}", "", "```text", signature(name, spec), "```", "", " ".join(doc(spec).split()), ""]


def _example(name: str) -> list[str]:
    return ["```python", (EXAMPLES / f"{name}.py").read_text(encoding="utf-8").rstrip(), "```"]
