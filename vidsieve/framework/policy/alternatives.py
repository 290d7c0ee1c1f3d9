"""The key `stages` of a policy file's `search:` section: which stages a search may leave out or exchange."""

from collections.abc import Sequence

import yaml
from pydantic import ValidationError

from vidsieve.framework.errors import suggest
from vidsieve.framework.policy.policy import BoundStage, setting_faults
from vidsieve.framework.policy.yaml_nodes import Faults, kind, pairs
from vidsieve.framework.registry import Registry

WORDS = ("fixed", "optional")


def read_alternatives(
    node: yaml.Node, stages: Sequence[BoundStage] | None, registry: Registry, faults: Faults
) -> dict[str, tuple[BoundStage, ...]]:
    """The stages that may stand in place of each, built with their default settings; what is wrong goes to `faults`.

    `stages` are those of the policy, None where they could not be read (then labels are not checked).
    """
    found: dict[str, tuple[BoundStage, ...]] = {}
    by_label = {bound.label: bound for bound in stages or ()}
    for label, (key, value) in pairs(node, "search.stages", faults).items():
        if stages is not None and label not in by_label:
            faults.add(key, f"search.stages: no stage labelled {label!r}. {suggest(label, by_label)}")
        where = f"search.stages.{label}"
        if isinstance(value, yaml.SequenceNode) and value.value:
            others = [_alternative(item, where, by_label.get(label), registry, faults) for item in value.value]
            names = [item.value for item in value.value]
            for index, item in enumerate(value.value):
                if names[index] in names[:index]:
                    faults.add(item, f"{where}: {names[index]!r} stands twice.")
            found[label] = tuple(bound for bound in others if bound is not None)
        elif not (isinstance(value, yaml.ScalarNode) and value.value in WORDS):
            faults.add(value, f"{where} must be fixed, optional or a list of stage names, got {_came(value)}.")
    return found


def _came(node: yaml.Node) -> str:
    return "an empty list" if isinstance(node, yaml.SequenceNode) else kind(node)


def _alternative(
    node: yaml.Node, where: str, published: BoundStage | None, registry: Registry, faults: Faults
) -> BoundStage | None:
    """The stage a list names; None for the published one, which is there with its own settings, and for faults."""
    if not (isinstance(node, yaml.ScalarNode) and node.tag.endswith(":str")):
        faults.add(node, f"{where} must list names of stages, got {kind(node)}.")
        return None
    name = node.value
    if name not in registry.stages:
        faults.add(node, f"{where}: no stage named {name!r}. {suggest(name, registry.stages)}")
        return None
    if published is None or name == published.use:
        return None
    try:
        stage = registry.stages[name].build({})
    except ValidationError as error:
        missing = " ".join(sentence for _, sentence in setting_faults(error))
        faults.add(node, f"{where}: {name!r} cannot stand in, as it has settings without a default: {missing}")
        return None
    # a label the author chose names the place; otherwise a stage goes by its own name
    return BoundStage(published.label if published.label != published.use else name, name, stage)
