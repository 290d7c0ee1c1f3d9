"""Policy files: strict YAML in, `Policy` out; every fault with its line, all at once."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from vidsieve.framework.composition import (
    FORMAT,
    BoundStage,
    Composition,
    Positions,
    count_faults,
    flow_faults,
    stage_faults,
)
from vidsieve.framework.errors import PolicyError, PolicyFileError, UnknownNameError, UsageError, path_fault, suggest
from vidsieve.framework.policy import yaml_nodes
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.policy.yaml_nodes import Faults, kind, pairs, python
from vidsieve.framework.registry import Registry, default
from vidsieve.framework.stage import setting_faults

CHOICES = ("fixed", "optional")
"""What `search: stages:` may say of a stage instead of naming others."""
_LABEL = re.compile(r"[A-Za-z0-9]+([._-][A-Za-z0-9]+)*")
KEYS = (
    "format",
    "name",
    "summary",
    "sources",
    "reference",
    "requires",
    "retention_ratio",
    "positions",
    "exact",
    "stages",
    "search",
    "provenance",
)


def load_policy(
    name_or_path: str | Path,
    *,
    retention_ratio: float | None = None,
    settings: dict[str, Any] | None = None,
    registry: Registry | None = None,
) -> Policy:
    """The published policy of that name, or the policy in a YAML file, with a ratio and settings of your own.

    `settings` are `{"stage-label.setting": value}`, split at the last dot; `positions` is the policy's own.

    Raises:
        UnknownNameError: no such policy, stage or setting; offers the nearest.
        PolicyFileError: faults in the file, all of them with their lines.
        UsageError: a ratio or setting out of range.
    """
    registry = registry or default()
    path = _find(name_or_path, registry)
    policy = read_policy(_read_text(path), str(path), registry)
    if retention_ratio is None and not settings:
        return policy
    return policy.with_(retention_ratio=retention_ratio, settings=settings)


def _read_text(path: Path) -> str:
    """The text of a policy file. Raises PolicyError when it is no text, or too much of it."""
    try:
        with path.open("rb") as file:
            raw = file.read(4 * yaml_nodes.MOST_CHARACTERS + 1)
        return raw.decode("utf-8") if len(raw) <= 4 * yaml_nodes.MOST_CHARACTERS else raw.decode("utf-8", "replace")
    except UnicodeDecodeError as error:
        raise PolicyError(f"policy file {path}: not UTF-8 text (byte {error.start}). Save it as UTF-8.") from None
    except OSError as error:
        raise PolicyError(f"policy file {path}: cannot be read: {error.strerror}.") from None


def _find(name_or_path: str | Path, registry: Registry) -> Path:
    """A registered name, else a path."""
    text = str(name_or_path)
    if isinstance(name_or_path, str) and text in registry.policies:
        return registry.policies[text]
    if (fault := path_fault(text)) is not None:
        raise UsageError(
            f"policy {text!r}: {fault}. Or give a published policy: {', '.join(sorted(registry.policies))}."
        )
    path = Path(text).expanduser()
    if os.path.isfile(path):  # Path.is_file raises for a name that is too long
        return path
    if isinstance(name_or_path, Path) or path.suffix in (".yaml", ".yml") or "/" in text:
        raise PolicyError(
            f"policy file {text}: no such file. Published policies: {', '.join(sorted(registry.policies))}."
        )
    raise UnknownNameError("load_policy", "policy", text, registry.policies)


def read_policy(text: str, where: str, registry: Registry | None = None) -> Policy:
    """The policy written in `text`; `where` names the file in messages.

    Raises:
        PolicyFileError: unknown, repeated, mistyped or out-of-range keys, unknown stages, stages that do not fit.
    """
    faults = Faults(where)
    root = yaml_nodes.compose(text, faults)
    reader = _Reader(faults, registry or default())
    fields = reader.read(root) if root is not None else {}
    if root is not None and reader.stages_are_sound:
        _refuse_composition(reader, root, fields)
    if faults.lines:
        raise PolicyFileError(where, faults.lines)
    return Policy(**fields)


def _refuse_composition(reader: "_Reader", root: yaml.Node, fields: dict[str, Any]) -> None:
    """Fault stages that do not fit together, each at its line."""
    composition = Composition(name="", retention_ratio=fields.get("retention_ratio"), stages=fields["stages"])
    found = stage_faults(composition) + flow_faults(composition)
    # a ratio that could not be read is told already; that none is given would be wrong
    found += count_faults(composition) if reader.ratio_is_sound else []
    for index, sentence in found:
        reader.faults.add(reader.stage_nodes[index] if index is not None else reader.stages_node or root, sentence)


@dataclass
class _Reader:
    """Walks the nodes of one file."""

    faults: Faults
    registry: Registry

    def __post_init__(self) -> None:
        self.stage_nodes: list[yaml.Node] = []
        self.stages_node: yaml.Node | None = None
        self.stages_are_sound = False
        self.ratio_is_sound = True

    def read(self, root: yaml.Node) -> dict[str, Any]:
        """The fields of a Policy; what is wrong goes to `faults`."""
        entries = pairs(root, "the policy", self.faults)
        for name, (key, _) in entries.items():
            if name not in KEYS:
                self.faults.add(key, f"unknown key {name!r}. {suggest(name, KEYS)}")
        if not isinstance(root, yaml.MappingNode):
            return {}
        for name in ("format", "name", "stages"):
            if name not in entries:
                self.faults.add(root, f"the key {name!r} is missing{' (format: 1)' if name == 'format' else ''}.")
        fields: dict[str, Any] = {}
        for name in KEYS:
            if name in entries:
                value = getattr(self, f"_{name}")(entries[name][1])
                if value is not None and name != "format":
                    fields[name] = value
        if "search" in entries:
            self._stage_choices(entries["search"][1], fields)
        return fields

    def _stage_choices(self, search: yaml.Node, fields: dict[str, Any]) -> None:
        """Read `search: stages:`, which names stages of this file and of the registry."""
        asked = pairs(search, "search", self.faults).get("stages") if isinstance(search, yaml.MappingNode) else None
        if asked is not None:
            stages = fields.get("stages") if self.stages_are_sound else None
            fields["alternatives"] = _read_alternatives(asked[1], stages, self.registry, self.faults)

    def _format(self, node: yaml.Node) -> None:
        if not (node.tag.endswith(":int") and python(node) == FORMAT):
            self.faults.add(
                node, f"format must be {FORMAT}, got {kind(node)}. This version reads format {FORMAT} only."
            )

    def _text(self, node: yaml.Node, key: str) -> str | None:
        if node.tag.endswith(":str") and isinstance(node, yaml.ScalarNode):
            return node.value
        self.faults.add(node, f"{key} must be text, got {kind(node)}.")
        return None

    def _texts(self, node: yaml.Node, key: str) -> tuple[str, ...] | None:
        if not isinstance(node, yaml.SequenceNode):
            self.faults.add(node, f"{key} must be a list of texts, got {kind(node)}.")
            return None
        return tuple(text for item in node.value if (text := self._text(item, key)) is not None)

    def _name(self, node: yaml.Node) -> str | None:
        name = self._text(node, "name")
        if name is not None and not _LABEL.fullmatch(name):
            self.faults.add(node, f"name must be words joined by '.', '-' or '_', got {name!r}.")
        return name

    def _summary(self, node: yaml.Node) -> str | None:
        return self._text(node, "summary")

    def _reference(self, node: yaml.Node) -> str | None:
        return self._text(node, "reference")

    def _sources(self, node: yaml.Node) -> tuple[str, ...] | None:
        return self._texts(node, "sources")

    def _requires(self, node: yaml.Node) -> tuple[str, ...] | None:
        self._required = self._texts(node, "requires")
        return self._required

    def _retention_ratio(self, node: yaml.Node) -> float | None:
        if node.tag.endswith((":int", ":float")) and 0 < python(node) <= 1:
            return float(python(node))
        self.ratio_is_sound = False
        number = "a number " if not node.tag.endswith((":int", ":float")) else ""
        self.faults.add(
            node,
            f"retention_ratio must be {number}in (0, 1], got {kind(node)}. "
            "Ratios are fractions kept: 0.25 is a quarter.",
        )
        return None

    def _positions(self, node: yaml.Node) -> str | None:
        if node.tag.endswith(":str") and node.value in get_args(Positions):
            return node.value
        self.faults.add(node, f"positions must be original, trained or compact, got {kind(node)}.")
        return None

    def _exact(self, node: yaml.Node) -> bool | None:
        if node.tag.endswith(":bool"):
            return python(node)
        self.faults.add(node, f"exact must be true or false, got {kind(node)}.")
        return None

    def _free(self, node: yaml.Node, key: str) -> dict[str, Any] | None:
        if not isinstance(node, yaml.MappingNode):
            self.faults.add(node, f"{key} must be a mapping of keys to values, got {kind(node)}.")
            return None
        yaml_nodes.repeated_keys(node, key, self.faults)
        return dict(python(node)) if not self.faults.lines else None

    def _search(self, node: yaml.Node) -> dict[str, Any] | None:
        return self._free(node, "search")

    def _provenance(self, node: yaml.Node) -> dict[str, Any] | None:
        return self._free(node, "provenance")

    def _stages(self, node: yaml.Node) -> tuple[BoundStage, ...] | None:
        self.stages_node = node
        if not isinstance(node, yaml.SequenceNode):
            self.faults.add(node, f"stages must be a list, got {kind(node)}.")
            return None
        self.stage_nodes = list(node.value)
        read = [self._stage(index, item) for index, item in enumerate(node.value)]
        stages = tuple(bound for bound in read if bound is not None)
        self.stages_are_sound = len(stages) == len(read)
        return stages

    def _stage(self, index: int, node: yaml.Node) -> BoundStage | None:
        what = f"stages[{index}]"
        entries = pairs(node, what, self.faults)
        if not isinstance(node, yaml.MappingNode):
            return None
        if "use" not in entries:
            self.faults.add(node, f"{what}: the key 'use' is missing; it names the stage.")
            return None
        use = self._text(entries["use"][1], f"{what}.use")
        label = self._label(entries, what) if "as" in entries else use
        if use is None or label is None:
            return None
        stages = self.registry.stages
        if use not in stages:
            self.faults.add(entries["use"][1], f"{what}.use: {self._unknown_stage(use)}")
            return None
        return self._build(what, label, use, stages[use], entries)

    def _label(self, entries: dict[str, tuple[yaml.Node, yaml.Node]], what: str) -> str | None:
        label = self._text(entries["as"][1], f"{what}.as")
        if label is not None and not _LABEL.fullmatch(label):
            self.faults.add(entries["as"][1], f"{what}.as must be words joined by '.', '-' or '_', got {label!r}.")
            return None
        return label

    def _unknown_stage(self, use: str) -> str:
        required = getattr(self, "_required", None)
        hint = f" The file says it needs: {', '.join(required)}; install it first." if required else ""
        broken = "".join(
            f" Plugin {name} could not be imported: {why}." for name, why in self.registry.failures.items()
        )
        return f"no stage named {use!r}.{hint}{broken} {suggest(use, self.registry.stages)}"

    def _build(self, what: str, label: str, use: str, stage: Any, entries: dict[str, Any]) -> BoundStage | None:
        """Validate the settings by the stage's own declaration."""
        settings = {name: pair for name, pair in entries.items() if name not in ("use", "as")}
        known = stage.settings()
        for name, (key, _) in settings.items():
            if name not in known:
                self.faults.add(key, f"{what} ({use}): no setting named {name!r}. {suggest(name, known)}")
        for name, (_, value) in settings.items():
            yaml_nodes.repeated_keys(value, f"{what}.{name}", self.faults)
        values = {name: python(value) for name, (_, value) in settings.items() if name in known}
        try:
            bound = BoundStage(label, use, stage.build(values))
            return bound if len(values) == len(settings) else None
        except ValidationError as error:
            for name, sentence in setting_faults(error):
                value = settings[name][1] if name in settings else entries["use"][1]
                trap = kind(value) if name in settings else ""
                came = f" The file has {trap}." if "which" in trap else ""
                self.faults.add(value, f"{what} ({use}).{sentence}{came}")
        except Exception as error:  # a stranger's validator may raise anything
            self.faults.add(entries["use"][1], f"{what} ({use}): raised {type(error).__name__}: {error}.")
        return None


def _read_alternatives(
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
        elif not (isinstance(value, yaml.ScalarNode) and value.value in CHOICES):
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
