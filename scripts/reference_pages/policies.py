"""docs/reference/policies.md: the published policies, as their files stand."""

from vidsieve.framework.policy.file import load_policy
from vidsieve.framework.records import VideoShape
from vidsieve.framework.registry import Registry

SHAPE = VideoShape(frames=16, tokens=196, layers=28)

HEAD = f"""# Published policies

`load_policy(NAME)` in Python, `--policy NAME` or `vidsieve show NAME` on the command line. *Attainable* is for
{SHAPE.frames} frames of {SHAPE.tokens} visual tokens; `vidsieve show NAME --frames F --tokens N` gives it for others.
The hash changes whenever a stage, a setting or the ratio does."""


def page() -> str:
    """The page."""
    registry = Registry(installed=True)
    parts = [HEAD]
    for name, path in sorted(registry.policies.items()):
        if registry.origin("policy", name) != "vidsieve.policies":
            continue
        policy = load_policy(name, registry=registry)
        low, high = policy.attainable(SHAPE)
        reach = f"{low:.4g} to {high:.4g}" if high > low else f"{low:.4g} only"
        parts += ["", f"## {name}", "", policy.summary, ""]
        parts += [f"Attainable {reach}. Hash `{policy.hash}`.", ""]
        parts += ["```yaml", path.read_text(encoding="utf-8").rstrip(), "```"]
    return "\n".join(parts)
