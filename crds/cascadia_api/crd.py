"""The custom resource definitions, generated from the models.

`cascadia crd` prints them and ``crds/*.yaml`` holds them; a test fails when the two differ.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from cascadia_api import names
from cascadia_api.cascade import CascadeDeployment, CascadeDeploymentSpec
from cascadia_api.plan import CascadePlan, CascadePlanSpec, CascadePlanStatus
from cascadia_api.schema import ApiModel, Rule
from cascadia_api.status import CascadeStatus

__all__ = ["as_yaml", "cascade_deployment_crd", "cascade_plan_crd", "crds", "structural_schema"]


def structural_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return a model's schema as Kubernetes wants it: no references, no unions, rules as CEL.

    Numbers of type `Figure` become decimal strings; optional items of a list become nullable.

    Raises:
        TypeError: A field's type has no structural schema (a union of two non-null types).
    """
    schema = model.model_json_schema(by_alias=True, mode="validation")
    definitions = schema.get("$defs", {})
    rules = {cls.__name__: _cel_rules(cls) for cls in _models_of(model)}
    return _Structural(definitions, rules).node(schema, model.__name__)


def _models_of(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    seen: set[type[BaseModel]] = set()
    queue: list[Any] = [model]
    while queue:
        current = queue.pop()
        if isinstance(current, type) and issubclass(current, BaseModel):
            if current in seen:
                continue
            seen.add(current)
            yield current
            queue.extend(field.annotation for field in current.model_fields.values())
        else:
            queue.extend(getattr(current, "__args__", ()))


def _cel_rules(model: type[BaseModel]) -> list[dict[str, str]]:
    rules: tuple[Rule, ...] = model.rules if issubclass(model, ApiModel) else ()
    return [
        {"rule": rule.cel, "message": rule.message} | ({"fieldPath": rule.field} if rule.field else {})
        for rule in rules
    ]


class _Structural:
    """Rewrites one JSON schema: holds its definitions and the rules of its models."""

    def __init__(self, definitions: dict[str, Any], rules: dict[str, list[dict[str, str]]]) -> None:
        self._definitions = definitions
        self._rules = rules

    def node(self, node: dict[str, Any], owner: str = "") -> dict[str, Any]:
        if "$ref" in node:
            name = node["$ref"].rsplit("/", 1)[1]
            return self.node(self._definitions[name] | _without(node, "$ref"), name)
        if "anyOf" in node:
            options = [option for option in node["anyOf"] if option.get("type") != "null"]
            if len(options) != 1:
                raise TypeError(f"no structural schema for a union: {node}")
            return self.node(options[0] | _without(node, "anyOf", "default"), owner)
        if node.get("type") == "number":
            described = {"description": node["description"]} if "description" in node else {}
            return {"type": "string", "maxLength": 32, "pattern": r"^-?[0-9.]+(e[+-]?[0-9]+)?$"} | described
        result = {key: self._value(key, value) for key, value in node.items() if _kept(key, value)}
        if "const" in node:
            result["enum"] = [node["const"]]
        if isinstance(node.get("additionalProperties"), dict):
            result.setdefault("maxProperties", 64)
        if node.get("type") == "array":
            result.setdefault("x-kubernetes-list-type", "atomic")
        if node.get("type") == "integer":
            result.setdefault("format", "int64")
        if node.get("type") == "object" and self._rules.get(owner):
            result["x-kubernetes-validations"] = self._rules[owner]
        return result

    def _value(self, key: str, value: Any) -> Any:
        if key == "properties":
            return {name: self.node(child) for name, child in value.items()}
        if key == "items":
            nullable = any(option.get("type") == "null" for option in value.get("anyOf", ()))
            return _without_defaults(self.node(value)) | ({"nullable": True} if nullable else {})
        if key == "additionalProperties":
            return self.node(value)
        return " ".join(value.split()) if key == "description" else value


def _kept(key: str, value: Any) -> bool:
    if key == "additionalProperties":
        return isinstance(value, dict)  # `false` beside properties is not structural; pruning and strict mode do that
    return key not in ("title", "const", "$defs", "discriminator") and not (key == "default" and value is None)


def _without_defaults(node: dict[str, Any]) -> dict[str, Any]:
    """Drop defaults of list items: the API server would add them, and GitOps tools see a difference for ever."""
    kept = _without(node, "default")
    if "properties" in kept:
        kept["properties"] = {name: _without_defaults(child) for name, child in kept["properties"].items()}
    return kept


def _without(node: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key not in keys}


def _crd(
    kind: str, plural: str, short: list[str], schema: dict[str, Any], columns: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{names.GROUP}", "labels": {"app.kubernetes.io/part-of": "cascadia"}},
        "spec": {
            "group": names.GROUP,
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": short,
                "categories": ["cascadia"],
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": names.VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": columns,
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


def _root(model: type[ApiModel], spec: dict[str, Any], status: dict[str, Any]) -> dict[str, Any]:
    root: dict[str, Any] = {
        "type": "object",
        "description": " ".join((model.__doc__ or "").split()),
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": status,
        },
    }
    if model.rules:
        root["x-kubernetes-validations"] = _cel_rules(model)
    return root


def _column(name: str, path: str, *, priority: int = 0, kind: str = "string", description: str = "") -> dict[str, Any]:
    column: dict[str, Any] = {"name": name, "type": kind, "jsonPath": path}
    if priority:
        column["priority"] = priority
    if description:
        column["description"] = description
    return column


def cascade_deployment_crd() -> dict[str, Any]:
    """The CustomResourceDefinition of CascadeDeployment."""
    columns = [
        _column("Ready", '.status.conditions[?(@.type=="Ready")].status'),
        _column("Stages", ".status.display.stages", description="Ready of live stages"),
        _column("GPUs", ".status.display.gpus", description="GPUs in use of those allowed"),
        _column("Quality", ".status.display.quality", description="Predicted quality and its floor"),
        _column("P95", ".status.display.p95", description="Predicted end-to-end p95"),
        _column("Plan", ".status.display.plan"),
        _column("Reason", ".status.display.reason"),
        _column("Cost/h", ".status.display.cost", priority=1),
        _column("Endpoint", ".status.endpoint", priority=1),
        _column("Age", ".metadata.creationTimestamp", kind="date"),
    ]
    schema = _root(CascadeDeployment, structural_schema(CascadeDeploymentSpec), structural_schema(CascadeStatus))
    return _crd(names.KIND, names.PLURAL, ["cascade", "cascades"], schema, columns)


def cascade_plan_crd() -> dict[str, Any]:
    """The CustomResourceDefinition of CascadePlan."""
    columns = [
        _column("Cascade", ".spec.plan.cascade"),
        _column("Phase", ".status.phase"),
        _column("Trigger", ".spec.trigger"),
        _column("Quality", ".spec.plan.quality.mean"),
        _column("P95ms", ".spec.plan.latency.p95Ms"),
        _column("Age", ".metadata.creationTimestamp", kind="date"),
    ]
    schema = _root(CascadePlan, structural_schema(CascadePlanSpec), structural_schema(CascadePlanStatus))
    return _crd(names.PLAN_KIND, names.PLAN_PLURAL, ["cplan", "cplans"], schema, columns)


def crds() -> dict[str, dict[str, Any]]:
    """Every definition by its file name in ``crds/``."""
    return {
        f"{names.GROUP}_{names.PLURAL}.yaml": cascade_deployment_crd(),
        f"{names.GROUP}_{names.PLAN_PLURAL}.yaml": cascade_plan_crd(),
    }


def main(arguments: list[str]) -> int:
    """Write every definition into the folder named first; returns an exit code."""
    folder = Path(arguments[0])
    for name, definition in crds().items():
        (folder / name).write_text(as_yaml(definition), encoding="utf-8")
        sys.stderr.write(f"wrote {folder / name}\n")
    return 0


def as_yaml(definition: dict[str, Any]) -> str:
    """One definition as the YAML that ``crds/`` holds."""
    header = "# Generated from cascadia_api by `make crds`; do not edit.\n"
    return header + yaml.safe_dump(definition, sort_keys=False, width=120)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
