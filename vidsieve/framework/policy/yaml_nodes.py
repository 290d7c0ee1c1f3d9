"""YAML as data, with line numbers: no tags, no anchors, no repeated keys."""

import re
from typing import Any

import yaml

MOST_CHARACTERS = 1_000_000
MOST_LEVELS = 50
_TEXT = "tag:yaml.org,2002:str"
_CONSTRUCTOR = yaml.constructor.SafeConstructor
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")


class Faults:
    """Collects 'file:line: sentence' so that all faults are told at once."""

    def __init__(self, where: str) -> None:
        self.where = where
        self._found: list[tuple[int, str]] = []

    def add(self, at: "yaml.Node | yaml.Event | int", sentence: str) -> None:
        """Note a fault at a node, an event, or a line number (1-based); the same fault twice is one."""
        fault = (at if isinstance(at, int) else _line(at), sentence)
        if fault not in self._found:
            self._found.append(fault)

    @property
    def lines(self) -> list[str]:
        """All faults in order of their lines."""
        return [f"{self.where}:{line}: {text}" for line, text in sorted(self._found, key=lambda fault: fault[0])]


def _line(at: "yaml.Node | yaml.Event") -> int:
    return at.start_mark.line + 1 if at.start_mark is not None else 1


def compose(text: str, faults: Faults) -> yaml.Node | None:
    """The root node of one YAML document; syntax errors, tags and anchors become faults."""
    if len(text) > MOST_CHARACTERS:
        faults.add(1, f"the file has {len(text)} characters; a policy file has at most {MOST_CHARACTERS}.")
        return None
    try:
        _refuse_events(text, faults)
        root = yaml.compose(text, Loader=yaml.SafeLoader) if not faults.lines else None
    except yaml.YAMLError as error:
        faults.add(_line_of(error, text), f"not valid YAML: {_problem(error)}.")
        return None
    if root is None and not faults.lines:
        faults.add(1, "the file is empty; a policy file has format, name and stages.")
    if root is not None:
        _refuse_unreadable(root, faults)
    return root


def _refuse_events(text: str, faults: Faults) -> None:
    """Fault what is more than plain data, before a node is built: anchors, tags, second documents, deep nesting."""
    depth = documents = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        documents += isinstance(event, yaml.DocumentStartEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if documents > 1:
            faults.add(event, "a second document starts here; a policy file holds one.")
            return
        if depth > MOST_LEVELS:
            faults.add(event, f"nested deeper than {MOST_LEVELS} levels.")
            return
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            faults.add(event, "anchors and aliases are not allowed in a policy file; write the value out.")
        elif tag := getattr(event, "tag", None):
            faults.add(event, f"the tag {tag} is not allowed; a policy file is plain data.")


def _line_of(error: yaml.YAMLError, text: str) -> int:
    """Where a syntax error is, 1-based."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is not None:
        return int(mark.line) + 1
    return text.count("\n", 0, getattr(error, "position", 0)) + 1


def _problem(error: yaml.YAMLError) -> str:
    """What is wrong, in one line."""
    if isinstance(error, yaml.reader.ReaderError):
        return f"the character #x{error.character:04x} is not allowed"
    return getattr(error, "problem", None) or str(error).splitlines()[0]


def _refuse_unreadable(node: yaml.Node, faults: Faults) -> None:
    """Fault keys that are no words and scalars that only look like a number (0x_). A date is text in a policy file."""
    if isinstance(node, yaml.ScalarNode):
        if node.tag.endswith(":timestamp"):
            node.tag = _TEXT
        try:
            python(node)
        except (ValueError, OverflowError, yaml.YAMLError):
            faults.add(node, f"{_short(node.value)} cannot be read as a value; put it in quotes if text is meant.")
            node.tag = _TEXT
    elif isinstance(node, yaml.MappingNode):
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                faults.add(key, f"a key must be a word, got {kind(key)}.")
        node.value = [(key, value) for key, value in node.value if isinstance(key, yaml.ScalarNode)]
        for key, value in node.value:
            _refuse_unreadable(key, faults)
            _refuse_unreadable(value, faults)
    else:
        for item in node.value:
            _refuse_unreadable(item, faults)


def pairs(node: yaml.Node, what: str, faults: Faults) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    """The entries of a mapping node by key: (key node, value node). Repeated keys are faults."""
    if not isinstance(node, yaml.MappingNode):
        faults.add(node, f"{what} must be a mapping of keys to values, got {kind(node)}.")
        return {}
    found: dict[str, tuple[yaml.Node, yaml.Node]] = {}
    for key, value in node.value:
        name = str(key.value)
        if not name:
            faults.add(key, f"{what} has an empty key.")
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
    value = _short(node.value)
    if tag == "bool" and node.value.lower() not in ("true", "false"):
        return f"{value}, which YAML reads as {python(node)}; put it in quotes if the word is meant"
    if tag == "str" and getattr(node, "style", None) is None and len(node.value) < 60 and _NUMBER.fullmatch(node.value):
        return f"{value}, which is text to YAML; write {_as_yaml_number(node.value)}"
    words = {"str": "the text", "int": "the number", "float": "the number", "bool": "", "null": "nothing,"}
    return f"{words.get(tag, 'the ' + tag)} {value}".strip()


def _short(text: str) -> str:
    """Text in quotes, cut where nobody reads on."""
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def _as_yaml_number(text: str) -> str:
    """A spelling YAML 1.1 reads as a number: with a dot and a signed exponent."""
    mantissa, _, exponent = text.lower().partition("e")
    mantissa = mantissa if "." in mantissa else f"{mantissa}.0"
    return f"{mantissa}e{int(exponent):+d}" if exponent else mantissa
