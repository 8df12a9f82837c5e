"""Server-side apply, only where something differs: a reconcile that finds all in order writes nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from cascadia_api.errors import CascadiaError
from cascadia_api.names import GROUP
from cascadia_operator.cluster import Cluster, ClusterError, Object
from cascadia_operator.gather import owned_by

__all__ = ["APPLIED_ANNOTATION", "NameTakenError", "apply_if_changed", "contains"]

APPLIED_ANNOTATION = f"{GROUP}/applied"
"""Digest of the manifest that was last applied: by it a field that is wanted no more is noticed."""


class NameTakenError(CascadiaError):
    """An object of a name that the operator needs is there, and is somebody else's."""


async def apply_if_changed(cluster: Cluster, manifest: Object, live: Object | None) -> bool:
    """Apply a manifest unless the live object has all of it already.

    Args:
        cluster: Where.
        manifest: What is wanted; its owner reference names the cascade.
        live: The object as it is, if the cascade owns one of this name.

    Returns:
        Whether anything was written.

    Raises:
        NameTakenError: An object of this name belongs to somebody else.
        ClusterError: The API server failed or refused, or what a deleted cascade left is still there.
    """
    digest = sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16]
    metadata = manifest["metadata"]
    annotations = metadata.get("annotations", {}) | {APPLIED_ANNOTATION: digest}
    manifest = manifest | {"metadata": metadata | {"annotations": annotations}}
    if live is None:
        await _refuse_strangers(cluster, manifest)
    elif live["metadata"].get("deletionTimestamp") or contains(live, manifest):
        return False
    await cluster.apply(manifest)
    return True


async def _refuse_strangers(cluster: Cluster, manifest: Object) -> None:
    metadata = manifest["metadata"]
    stranger = await cluster.get(manifest["kind"], metadata["namespace"], metadata["name"])
    owner = metadata["ownerReferences"][0]
    if stranger is None or owned_by(stranger, owner["uid"]):
        return
    references = stranger["metadata"].get("ownerReferences") or ()
    if any((r.get("kind"), r.get("name")) == (owner["kind"], owner["name"]) for r in references):
        raise ClusterError(
            f"{manifest['kind']} {metadata['name']} is of a deleted cascade of the same name: "
            "it waits for the garbage collector"
        )
    raise NameTakenError(
        f"{manifest['kind']} {metadata['name']} exists and does not belong to this cascade: "
        "delete or rename it, or rename the cascade"
    )


def contains(live: Any, wanted: Any) -> bool:
    """Whether a live object has all that is wanted of it; what the server added does not count.

    The server leaves out empty values, so an empty value is contained in nothing.
    """
    if isinstance(wanted, Mapping):
        if not isinstance(live, Mapping):
            return not wanted
        return all(contains(live.get(key), value) for key, value in wanted.items())
    if isinstance(wanted, list):
        if not isinstance(live, list) or len(live) != len(wanted):
            return not wanted and not live
        return all(contains(*pair) for pair in zip(live, wanted, strict=True))
    return bool(live == wanted or (live is None and not wanted))
