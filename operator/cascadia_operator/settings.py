"""What the operator is told on its command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["DEFAULT_ENGINE_IMAGE", "DEFAULT_ROUTER_IMAGE", "Images", "OperatorSettings"]

DEFAULT_ENGINE_IMAGE = "lmsysorg/sglang:v0.5.23"
"""The SGLang release that the engine's arguments are tested against."""
DEFAULT_ROUTER_IMAGE = "cascadia/cascadia:0.1.0"


@dataclass(frozen=True, slots=True)
class Images:
    """Container images of the pods.

    Attributes:
        engine: SGLang, for models that name no image of their own.
        router: Cascadia; runs the router beside each engine.
    """

    engine: str = DEFAULT_ENGINE_IMAGE
    router: str = DEFAULT_ROUTER_IMAGE


@dataclass(frozen=True, slots=True)
class OperatorSettings:
    """Settings of one operator process.

    Attributes:
        namespaces: Namespaces that it looks after; empty for the whole cluster.
        images: Default images of the pods.
        router_acknowledgement: ``http`` asks every ready router for the policy revision that it enforces before
            a step of a transition is taken; ``none`` takes it for granted (clusters with simulated pods).
        workers: Cascades that are reconciled at once.
        resync_seconds: Time after which a cascade is looked at again though nothing seems to have happened.
        planning_deadline_seconds: Time that one planning run may take; the last good plan stays meanwhile.
        engine_look_seconds: Time between looks at the engines' metrics, from which corrections of the cost model are
            learnt; 0 for never. Routers are asked for them: with acknowledgement ``none`` nobody is.
    """

    namespaces: tuple[str, ...] = ()
    images: Images = Images()
    router_acknowledgement: Literal["http", "none"] = "http"
    workers: int = 8
    resync_seconds: float = 60.0
    planning_deadline_seconds: float = 60.0
    engine_look_seconds: float = 60.0
