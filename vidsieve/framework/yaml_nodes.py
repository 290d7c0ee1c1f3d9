"""YAML as data, with line numbers: no tags, no anchors, no repeated keys."""

from typing import Any

import yaml

_CONSTRUCTOR = yaml.constructor.SafeConstructor


class Faults:
    """Collects 'file:line: sentence' so that all faults are told at once."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.lines: list[str] = []

    def add(self, at: "yaml.Node | yaml.Event | int", sentence: str) -> None:
        """Note a fault at a node, an event, or a line number (1-based)."""
        line = at if isinstance(at, int) else at.start_mark.line + 1
        self.lines.append(f"{self.where}:{line}: {sentence}")


def compose(text: str, faults: Faults) -> yaml.Node | None:
    """The root node of one YAML document; syntax errors, tags and anchors become faults."""
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                faults.add(event, "anchors and aliases are not allowed in a policy file; write the value out.")
            elif getattr(event, "tag", None):
                faults.add(event, f"the tag {event.tag} is not allowed; a policy file is plain data.")
        root = yaml.compose(text, Loader=yaml.SafeLoader) if not faults.lines else None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        faults.add(mark.line + 1 if mark else 1, f"not valid YAML: {problem}.")
        return None
    if root is None and not faults.lines:
        faults.add(1, "the file is empty; a policy file has format, name and stages.")
    return root


def pairs(node: yaml.Node, what: str, faults: Faults) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    """The entries of a mapping node by key: (key node, value node). Repeated keys are faults."""
    if not isinstance(node, yaml.MappingNode):
        faults.add(node, f"{what} must be a mapping of keys to values, got {kind(node)}.")
        return {}
    found: dict[str, tuple[yaml.Node, yaml.Node]] = {}
    for key, value in node.value:
        name = str(key.value) if isinstance(key, yaml.ScalarNode) else ""
        if not name:
            faults.add(key, f"{what} has a key that is no word.")
        elif name in found:
            first = found[name][0].start_mark.line + 1
            faults.add(key, f"{what} has the key {name!r} twice (first in line {first}); remove one.")
        else:
            found[name] = (key, value)
    return found


def python(node: yaml.Node) -> Any:
    """The plain Python value of a node, read with the safe schema."""
    return _CONSTRUCTOR().construct_object(node, deep=True)


def repeated_keys(node: yaml.Node, what: str, faults: Faults) -> None:
    """Fault repeated keys anywhere below `node`."""
    if isinstance(node, yaml.MappingNode):
        pairs(node, what, faults)
        for key, value in node.value:
            repeated_keys(value, f"{what}.{key.value}", faults)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            repeated_keys(item, what, faults)


def kind(node: yaml.Node) -> str:
    """What a node is, in words, with the traps of YAML named."""
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    tag = node.tag.rpartition(":")[2]
    if tag == "bool" and node.value.lower() not in ("true", "false"):
        return f"{node.value!r}, which YAML reads as {python(node)}; put it in quotes if the word is meant"
    if tag == "str" and _looks_like_number(node.value) and node.style is None:
        return f"{node.value!r}, which is text to YAML; write {_as_yaml_number(node.value)}"
    words = {"str": "the text", "int": "the number", "float": "the number", "bool": "", "null": "nothing,"}
    return f"{words.get(tag, 'the ' + tag)} {node.value!r}".strip()


def _looks_like_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _as_yaml_number(text: str) -> str:
    """A spelling YAML 1.1 reads as a number: with a dot and a signed exponent."""
    mantissa, _, exponent = text.lower().partition("e")
    mantissa = mantissa if "." in mantissa else f"{mantissa}.0"
    return f"{mantissa}e{int(exponent):+d}" if exponent else mantissa
