"""The JSON Schema for editors says what the reader says."""

import json
from typing import Any

import pytest
import yaml
from framework.kit import Best, Norm, Window

from vidsieve.framework.policy.file import KEYS
from vidsieve.framework.policy.schema import policy_schema
from vidsieve.framework.registry import Registry, default


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    made = Registry(installed=False)
    for name, stage in {"norm": Norm, "top-k": Best, "window": Window}.items():
        made.register(name, stage)
    return policy_schema(made)


def test_it_is_plain_json(schema: dict[str, Any]) -> None:
    assert json.loads(json.dumps(schema)) == schema


def test_its_keys_are_those_of_the_reader(schema: dict[str, Any]) -> None:
    assert set(schema["properties"]) == set(KEYS)
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["format", "name", "stages"]


def branch(schema: dict[str, Any], name: str) -> dict[str, Any]:
    [found] = [
        one for one in schema["properties"]["stages"]["items"]["anyOf"] if one["properties"]["use"]["const"] == name
    ]
    return found


def test_each_stage_has_its_branch_with_its_settings(schema: dict[str, Any]) -> None:
    assert len(schema["properties"]["stages"]["items"]["anyOf"]) == 3
    norm = branch(schema, "norm")
    assert set(norm["properties"]) == {"use", "as", "sign"}
    assert norm["required"] == ["use"]
    assert norm["additionalProperties"] is False
    assert (norm["properties"]["sign"]["minimum"], norm["properties"]["sign"]["maximum"]) == (-2.0, 2.0)
    kinds = {kind["type"] for kind in branch(schema, "top-k")["properties"]["keep_ratio"]["anyOf"]}
    assert kinds == {"number", "null"}


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """The part of JSON Schema that ours uses."""
    kinds = {"string": str, "object": dict, "array": list, "boolean": bool, "null": type(None)}
    if "anyOf" in schema and not any(fits(value, one) for one in schema["anyOf"]):
        return False
    if ("const" in schema and value != schema["const"]) or ("enum" in schema and value not in schema["enum"]):
        return False
    kind = schema.get("type")
    if kind in ("number", "integer"):
        good = isinstance(value, int | float if kind == "number" else int) and not isinstance(value, bool)
        return (
            good
            and schema.get("minimum", value) <= value <= schema.get("maximum", value)
            and not value <= schema.get("exclusiveMinimum", value - 1)
        )
    if kind in kinds and not isinstance(value, kinds[kind]):
        return False
    if kind == "object":
        known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        return all(key in value for key in schema.get("required", ())) and all(
            fits(item, known[key]) if key in known else others is True or (others and fits(item, others))
            for key, item in value.items()
        )
    if kind == "array":
        unique = len(set(map(str, value))) == len(value) or not schema.get("uniqueItems")
        enough = len(value) >= schema.get("minItems", 0)
        return unique and enough and all(fits(item, schema.get("items", {})) for item in value)
    return True


@pytest.mark.parametrize("name", sorted(default().policies))
def test_published_policies_fit_the_schema(name: str) -> None:
    document = yaml.safe_load(default().policies[name].read_text())
    assert fits(document, policy_schema())


@pytest.mark.parametrize(
    "change",
    [{"format": 2}, {"name": 3}, {"retention_ratio": 0}, {"retention_ratio": 1.5}, {"extra": 1},
     {"stages": [{"use": "absent"}]}, {"stages": [{"use": "norm", "sign": 3.0}]}, {"stages": [{"use": "norm", "x": 1}]},
     {"search": {"stages": {"norm": "on"}}}, {"search": {"stages": {"norm": []}}},
     {"search": {"stages": {"norm": ["absent"]}}}, {"search": {"stages": {"norm": ["norm", "norm"]}}},
     {"search": {"stages": "fixed"}}, {"positions": "near"}, {"exact": 1}, {"sources": "one"}],
)  # fmt: skip
def test_what_the_reader_refuses_does_not_fit(schema: dict[str, Any], change: dict[str, Any]) -> None:
    sound = {"format": 1, "name": "x", "retention_ratio": 0.5, "stages": [{"use": "norm"}, {"use": "top-k"}]}
    assert fits(sound, schema)
    assert not fits(sound | change, schema)


def test_a_search_section_with_stages_fits(schema: dict[str, Any]) -> None:
    sound = {"format": 1, "name": "x", "retention_ratio": 0.5, "stages": [{"use": "norm"}, {"use": "top-k"}]}
    search = {"norm.sign": {"low": 1.0}, "stages": {"norm": ["norm", "window"], "top-k": "fixed"}}
    assert fits(sound | {"search": search}, schema)
