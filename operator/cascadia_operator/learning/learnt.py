"""What the engines of a cascade have taught, as one ConfigMap of the cascade keeps it.

Its document is a file of corrections as `cascadia calibrate engine --live` writes it, with a few fields more: so it
can be read from the cluster and planned with anywhere.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from cascadia_api.cascade import CascadeDeployment
from cascadia_api.errors import InputError
from cascadia_operator.cluster import Object
from cascadia_operator.manifests.naming import child_metadata, learnt_name
from cascadia_solver.engine_window import EngineWindow, learn
from cascadia_solver.live_correction import Correction, CorrectionKey, LiveCorrections
from cascadia_solver.steptime import StepModel

__all__ = [
    "LEARNT_KEY",
    "Learnt",
    "Lesson",
    "Observed",
    "as_corrections",
    "learnt_config_map",
    "read_learnt",
    "with_windows",
]

log = logging.getLogger("cascadia.operator.learning")

LEARNT_KEY = "corrections.json"
_MOST_LESSONS = 32
"""Kinds of replicas that are kept, the latest learnt of: some 100 KiB."""
_BELIEVED_FROM = 8
"""Windows from which a correction is planned with."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """What the replicas of one kind have taught.

    Attributes:
        key: Model, GPU, shape and engine version.
        basis: Digest of what else it depends on (`engines.basis_of`).
        correction: The windows.
        at: When the latest window ended.
    """

    key: CorrectionKey
    basis: str
    correction: Correction
    at: datetime

    @property
    def believed(self) -> bool:
        """Whether there are enough windows to plan with it."""
        return len(self.correction.decode) >= _BELIEVED_FROM


@dataclass(frozen=True, slots=True)
class Learnt:
    """All that is known from the engines.

    Attributes:
        lessons: What they taught, by what it is of.
        told: Pods whose metrics were read at the last look.
        silent: Pods whose were not, and why.
    """

    lessons: Mapping[CorrectionKey, Lesson] = field(default_factory=dict)
    told: tuple[str, ...] = ()
    silent: Mapping[str, str] = field(default_factory=dict)


class Observed(NamedTuple):
    """A window of one engine.

    Attributes:
        pod: Its name.
        key: What a correction of it is kept under.
        basis: See `Lesson.basis`.
        step: What the uncorrected source says of it.
        window: What it did.
    """

    pod: str
    key: CorrectionKey
    basis: str
    step: StepModel
    window: EngineWindow


def as_corrections(lessons: Iterable[Lesson]) -> dict[str, object]:
    """Some lessons as a file of corrections; empty where there are none."""
    by_key = {lesson.key: lesson.correction for lesson in lessons}
    return LiveCorrections(by_key).to_json() if by_key else {}


def with_windows(
    lessons: Mapping[CorrectionKey, Lesson], observed: Iterable[Observed], now: datetime
) -> dict[CorrectionKey, Lesson]:
    """The lessons after some more windows.

    A window that says nothing (too much work, or too little) changes nothing; one on another basis starts afresh.
    """
    found = dict(lessons)
    for pod, key, basis, step, window in observed:
        known = found.get(key)
        before = LiveCorrections({key: known.correction} if known is not None and known.basis == basis else {})
        after = learn(before, key, step, {pod: window})
        if after is not before:
            found[key] = Lesson(key, basis, after.by_key[key], now)
    latest = sorted(found.values(), key=lambda lesson: lesson.at, reverse=True)[:_MOST_LESSONS]
    return {lesson.key: lesson for lesson in sorted(latest, key=lambda lesson: lesson.key)}


def learnt_config_map(cascade: CascadeDeployment, learnt: Learnt) -> dict[str, Any]:
    """Build the ConfigMap that keeps what was learnt."""
    lessons = learnt.lessons
    document: dict[str, Any] = LiveCorrections({key: lessons[key].correction for key in lessons}).to_json()
    for entry, key in zip(document["corrections"], sorted(lessons), strict=True):  # both in order of their keys
        entry |= {"basis": lessons[key].basis, "at": lessons[key].at.strftime("%Y-%m-%dT%H:%M:%SZ")}
    document |= {"told": list(learnt.told), "silent": dict(learnt.silent)}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": child_metadata(cascade, learnt_name(cascade.metadata.name)),
        "data": {LEARNT_KEY: json.dumps(document)},
    }


def read_learnt(config_map: Object | None) -> Learnt:
    """What a ConfigMap keeps; nothing where there is none, or none that can be read: it is learnt afresh."""
    text = ((config_map or {}).get("data") or {}).get(LEARNT_KEY)
    if not text:
        return Learnt()
    try:
        document = json.loads(text)
        by_key = LiveCorrections.from_json(document).by_key
        lessons = [
            Lesson(key, str(entry["basis"]), known, datetime.fromisoformat(entry["at"]).astimezone(UTC))
            for entry in document["corrections"]
            for key in [CorrectionKey(entry["model"], entry["gpu"], entry["shape"], entry["engineVersion"])]
            for known in [by_key[key]]
        ]
        silent = {str(pod): str(why) for pod, why in document["silent"].items()}
        return Learnt({lesson.key: lesson for lesson in lessons}, tuple(map(str, document["told"])), silent)
    except (InputError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning(
            "ConfigMap %s is not readable, it is learnt afresh: %s", (config_map or {})["metadata"]["name"], error
        )
        return Learnt()
