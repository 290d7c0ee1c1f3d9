"""docs/reference/policy-file.md and policy.schema.json."""

import json

from reference_pages.markdown import table
from vidsieve.framework.policy.file import KEYS
from vidsieve.framework.policy.schema import policy_schema
from vidsieve.framework.registry import Registry

MEANING = {
    "format": "always 1",
    "name": "words joined by '.', '-' or '_'",
    "summary": "one sentence",
    "sources": "papers, such as `arXiv:2505.14454`",
    "reference": "official code and commit it was checked against",
    "requires": "packages that bring the stages; named when a stage is unknown",
    "retention_ratio": "visual tokens the language model sees ÷ those of the uncompressed model, in (0, 1]",
    "positions": (
        "`original` (default): kept tokens keep their positions; `trained`: the same, numbered as the checkpoints were "
        "trained and as vLLM does; `compact`: renumbered without gaps"
    ),
    "exact": "`true` (default): the count asked is met exactly; `false`: the method's own counts stand",
    "stages": "the stages in order; each has `use`, optionally `as` (a label), and its settings",
    "search": "ranges that the tuner uses in place of the stages' own; under `stages`, which of them may change",
    "provenance": "filled by `vidsieve tune`; not part of the policy's hash",
}

HEAD = """# Policy files

A policy file is YAML, and data only: no code, no tags, no paths, no devices. Unknown keys, repeated keys and wrong
types are refused, all at once, each with its line. `vidsieve check FILE` reads a file without a model. The JSON Schema
for editors is [policy.schema.json](policy.schema.json)."""


def page() -> str:
    """The page."""
    schema = policy_schema(Registry(installed=True))
    required = set(schema["required"])
    rows = [(f"`{key}`", "yes" if key in required else "", MEANING[key]) for key in KEYS]
    return "\n".join([HEAD, "", *table(("key", "required", "meaning"), rows)])


def schema() -> str:
    """The JSON Schema over the built-in stages."""
    return json.dumps(policy_schema(Registry(installed=True)), indent=2, ensure_ascii=False)
