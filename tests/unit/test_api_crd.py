"""The generated custom resource definitions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cascadia_api.crd import as_yaml, cascade_deployment_crd, crds
from cascadia_api.plan import Plan
from tests.support.plans import example_plan

CRDS = Path(__file__).parents[2] / "crds"


@pytest.mark.parametrize("name", sorted(crds()))
def test_files_hold_what_the_models_say(name: str) -> None:
    assert (CRDS / name).read_text() == as_yaml(crds()[name]), "the models changed: run `make crds`"


def test_no_file_without_a_model() -> None:
    assert {path.name for path in CRDS.glob("*.yaml")} == set(crds())


@pytest.mark.parametrize("name", sorted(crds()))
def test_well_under_200_kb(name: str) -> None:
    assert len(as_yaml(crds()[name]).encode()) < 120_000


def _schema(crd: dict[str, Any]) -> dict[str, Any]:
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    assert isinstance(schema, dict)
    return schema


def _nodes(node: dict[str, Any], path: str = "", in_items: bool = False) -> Iterator[tuple[str, dict[str, Any], bool]]:
    yield path, node, in_items
    for name, child in node.get("properties", {}).items():
        yield from _nodes(child, f"{path}.{name}", in_items)
    if "items" in node:
        yield from _nodes(node["items"], f"{path}[]", True)
    if "additionalProperties" in node:
        yield from _nodes(node["additionalProperties"], f"{path}{{}}", True)


@pytest.mark.parametrize("name", sorted(crds()))
def test_every_list_and_string_is_bounded(name: str) -> None:
    for part in ("spec", "status"):
        for path, node, _ in _nodes(_schema(crds()[name])["properties"][part], part):
            if node.get("type") == "array":
                assert "maxItems" in node, path
            if node.get("type") == "string" and "enum" not in node:
                assert "maxLength" in node or _bounded(node.get("pattern", "")), path
            if "additionalProperties" in node:
                assert "maxProperties" in node, path


def _bounded(pattern: str) -> bool:
    return bool(pattern) and not set("*+") & set(pattern.replace(r"\+", "").replace("[+-]", "").replace("[0-9.]+", ""))


def test_no_default_below_a_list_item_and_no_number() -> None:
    for name, crd in crds().items():
        for path, node, in_items in _nodes(_schema(crd)):
            assert not (in_items and "default" in node), f"{name} {path}"
            assert node.get("type") != "number", f"{name} {path}"


def test_every_spec_field_is_documented() -> None:
    undocumented = [
        path
        for path, node, _ in _nodes(_schema(cascade_deployment_crd())["properties"]["spec"], "spec")
        if not path.endswith(("[]", "{}")) and not node.get("description")
    ]
    assert undocumented == []


def test_rules_reach_the_schema() -> None:
    spec = _schema(cascade_deployment_crd())["properties"]["spec"]
    messages = {rule["message"] for _, node, _ in _nodes(spec) for rule in node.get("x-kubernetes-validations", ())}
    assert any("model names must be unique" in message for message in messages)
    assert any("an option that the operator owns" in message for message in messages)
    root = _schema(cascade_deployment_crd())["x-kubernetes-validations"]
    assert "metadata.name must have at most 24 characters" in root[0]["message"]


@pytest.mark.parametrize("number", [0.1 + 0.2, 1e-7, 0.6876512345678901, 3.0, 81, 1e22])
def test_figures_keep_every_digit_in_kubernetes(number: float) -> None:
    plan = example_plan(thresholds=[number, 0.5, None])
    stored = plan.for_kubernetes()
    assert isinstance(stored["thresholds"][0], str)
    assert Plan.model_validate(stored) == plan
    assert plan.for_json()["thresholds"][0] == number
