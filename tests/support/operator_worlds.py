"""Worlds for tests of the operator's decisions: what `gather` would have found."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from cascadia_api.plan import Plan
from cascadia_operator.manifests.plan_object import inputs_digest
from cascadia_operator.world import CalibrationData, StoredPlan, World
from tests.support.operator_cases import LARGE, SMALL, cascade, cascade_document, plan

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PLAN = plan({"small": [(1, 1, 2)], "large": [(8, 1, 1)]})


def stored(of: Plan = PLAN, name: str = "", inputs: str = "old", minutes: int = 0) -> StoredPlan:
    return StoredPlan(name or f"chat-{of.plan_id[2:]}", of, inputs, "Created", NOW + timedelta(minutes=minutes))


def world(**changes: Any) -> World:
    spec = changes.pop("spec", {})
    owner = cascade(cascade_document([SMALL, LARGE], **spec))
    fields: dict[str, Any] = {
        "cascade": owner,
        "status": {},
        "plans": [],
        "pinned": None,
        "statefulsets": [],
        "pods": [],
        "children": {},
        "policy": None,
        "calibration": CalibrationData(),
        "available": {"h100": 32},
        "inputs": inputs_digest(owner, ""),
        "now": NOW,
    }
    return World(**fields | changes)
