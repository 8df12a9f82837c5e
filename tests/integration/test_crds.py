"""The custom resources on a real API server: what it accepts, what it refuses, and in whose words."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from cascadia_api.load import load_manifest
from cascadia_api.names import GROUP, PLAN_PLURAL, PLURAL, VERSION
from cascadia_api.plan import Plan
from tests.support.manifests import BROKEN, Broken, cascade_manifest
from tests.support.plans import example_plan

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


def create(api: client.ApiClient, namespace: str, document: dict[str, Any], plural: str = PLURAL) -> dict[str, Any]:
    created = client.CustomObjectsApi(api).create_namespaced_custom_object(
        GROUP, VERSION, namespace, plural, document, field_validation="Strict"
    )
    assert isinstance(created, dict)
    return created


def admit(api: client.ApiClient, document: dict[str, Any]) -> dict[str, Any]:
    """Everything that the API server does with a new object, but for storing it."""
    created = client.CustomObjectsApi(api).create_namespaced_custom_object(
        GROUP, VERSION, "default", PLURAL, document, field_validation="Strict", dry_run="All"
    )
    assert isinstance(created, dict)
    return created


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_examples_are_accepted_and_come_back_unchanged(api_client: client.ApiClient, path: Path) -> None:
    document = next(d for d in yaml.safe_load_all(path.read_text()) if d["kind"] == "CascadeDeployment")
    stored = admit(api_client, document)
    for key in ("models", "gpus", "workload"):
        assert stored["spec"][key] == document["spec"][key], "no default may appear below a list item"
    again = load_manifest(yaml.safe_dump({k: stored[k] for k in ("apiVersion", "kind", "metadata", "spec")}), "stored")
    assert again.cascade.spec == load_manifest(path.read_text(), path.name).cascade.spec


@pytest.mark.parametrize("broken", BROKEN, ids=lambda b: b.id)
def test_broken_manifests_are_refused(api_client: client.ApiClient, broken: Broken) -> None:
    document = broken.document()
    with pytest.raises(client.ApiException) as caught:
        admit(api_client, document)
    assert caught.value.status in (400, 422)
    message = json.loads(caught.value.body)["message"]
    assert broken.message in message
    field = broken.field.rsplit(".", 1)[-1].split("[")[0]
    assert field in message


def test_a_plan_is_stored_whole_and_cannot_be_changed(api_client: client.ApiClient, namespace: str) -> None:
    plan = example_plan()
    document = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "CascadePlan",
        "metadata": {"name": f"chat-{plan.plan_id[2:]}"},
        "spec": {"plan": plan.for_kubernetes(), "generation": 1, "trigger": "Created", "triggerMessage": "new"},
    }
    stored = create(api_client, namespace, document, PLAN_PLURAL)
    assert Plan.model_validate(stored["spec"]["plan"]) == plan
    changed = copy.deepcopy(stored)
    changed["spec"]["plan"]["cascade"] = "another"
    with pytest.raises(client.ApiException) as caught:
        client.CustomObjectsApi(api_client).replace_namespaced_custom_object(
            GROUP, VERSION, namespace, PLAN_PLURAL, stored["metadata"]["name"], changed
        )
    assert "a CascadePlan is immutable" in json.loads(caught.value.body)["message"]


def test_a_name_at_its_limit(api_client: client.ApiClient) -> None:
    assert admit(api_client, cascade_manifest("x" * 24))["metadata"]["name"] == "x" * 24
