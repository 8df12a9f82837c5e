"""Installing custom resource definitions, and waiting until the API server really serves them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client

from tests.support.control_plane.deadlines import wait_for


def definitions(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Read every CustomResourceDefinition in these YAML files; other documents are left out.

    Raises:
        OSError: when a file cannot be read.
        yaml.YAMLError: when one is not YAML.
    """
    documents = [document for file in files for document in yaml.safe_load_all(file.read_text())]
    return [document for document in documents if document and document.get("kind") == "CustomResourceDefinition"]


def install(api: client.ApiClient, files: Sequence[Path], *, timeout_s: float = 30.0) -> None:
    """Create or update the definitions, and wait until their objects can be listed.

    Raises:
        DeadlineExceededError: when one is not served after `timeout_s` seconds.
        kubernetes.client.ApiException: when the API server refuses one.
    """
    extensions = client.ApiextensionsV1Api(api)
    wanted = definitions(files)
    for definition in wanted:
        extensions.patch_custom_resource_definition(
            definition["metadata"]["name"],
            definition,
            field_manager="cascadia-tests",
            force=True,
            _content_type="application/apply-patch+yaml",
        )
    custom = client.CustomObjectsApi(api)
    for definition in wanted:
        spec = definition["spec"]
        version = next(version["name"] for version in spec["versions"] if version.get("served"))

        def served(group: str = spec["group"], version: str = version, plural: str = spec["names"]["plural"]) -> bool:
            custom.list_cluster_custom_object(group, version, plural)
            return True

        # Established comes before the storage answers: it may say 404 or 429 for a moment yet.
        wait_for(
            f"{definition['metadata']['name']} to be served", served, timeout_s=timeout_s, ignore=(client.ApiException,)
        )
