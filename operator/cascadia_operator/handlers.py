"""What Kopf calls: every event is only a hint that a cascade should be looked at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import kopf

from cascadia_api.names import CASCADE_LABEL, FIELD_MANAGER, GROUP, PLAN_PLURAL, PLURAL, VERSION
from cascadia_operator.process import OperatorProcess
from cascadia_operator.settings import OperatorSettings
from cascadia_operator.world import Key

__all__ = ["configure", "register"]


def register(registry: kopf.OperatorRegistry, settings: OperatorSettings) -> None:
    """Add the handlers to a registry. There are no finalizers: the garbage collector deletes by owner."""
    running: list[OperatorProcess] = []

    @kopf.on.startup(registry=registry)
    async def start(**_: Any) -> None:
        running.append(OperatorProcess(settings))
        running[0].start()

    @kopf.on.cleanup(registry=registry)
    async def stop(**_: Any) -> None:
        if running:
            await running.pop().stop()

    @kopf.on.probe(id="reconciling", registry=registry)
    async def reconciling(**_: Any) -> str:
        trouble = running[0].trouble() if running else "not started"
        if trouble:
            # Any other exception would be retried, and the probe would hang instead of failing.
            raise kopf.PermanentError(trouble)
        return "ok"

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)
    async def cascade_event(namespace: str | None, name: str | None, **_: Any) -> None:
        if running and namespace and name:
            running[0].enqueue(Key(namespace, name))

    @kopf.on.event(GROUP, VERSION, PLAN_PLURAL, registry=registry)
    @kopf.on.event("apps", "v1", "statefulsets", registry=registry)
    @kopf.on.event("", "v1", "pods", registry=registry)
    async def child_event(namespace: str | None, labels: Mapping[str, str], **_: Any) -> None:
        cascade = labels.get(CASCADE_LABEL)
        if running and namespace and cascade:
            running[0].enqueue(Key(namespace, cascade))


def configure(settings: kopf.OperatorSettings) -> None:
    """Set Kopf up for this operator."""
    # There is one operator, by its Deployment; a foreign one's peering must not pause it.
    settings.peering.standalone = True
    settings.posting.enabled = False
    settings.posting.reporting_component = FIELD_MANAGER
    settings.persistence.finalizer = f"{GROUP}/cleanup"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=f"operator.{GROUP}")
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=f"operator.{GROUP}")
    # A watch that died silently behind a load balancer is noticed and opened again.
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 360
    settings.watching.inactivity_timeout = 70
    settings.watching.chunk_size = 200
    # Other people's workloads are none of our business, and none of our memory.
    settings.watching.label_selectors["statefulsets"] = CASCADE_LABEL
    settings.watching.label_selectors["pods"] = CASCADE_LABEL
    settings.networking.connect_timeout = 10
    settings.networking.request_timeout = 60
    settings.queueing.worker_limit = 10
    settings.execution.max_workers = 8
