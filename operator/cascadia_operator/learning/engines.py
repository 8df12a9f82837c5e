"""Which engines to look at, and what is learnt of which of them goes together.

An engine's metrics are asked from the router beside it: the engine itself listens on loopback.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass
from datetime import datetime, timedelta

from cascadia_api.cascade import CascadeDeployment, Model, Pool
from cascadia_api.errors import InputError
from cascadia_api.names import REPLICA_LABEL
from cascadia_operator.cluster import Object
from cascadia_operator.decide.replicas import current_identity, label_of, ready_leaders
from cascadia_operator.learning.learnt import Learnt, Lesson
from cascadia_operator.manifests.naming import digest8
from cascadia_operator.manifests.replica import GPUS_PER_NODE, ReplicaIdentity, model_named, pool_named
from cascadia_operator.settings import Images
from cascadia_operator.world import World
from cascadia_solver.catalogue.manifest import gpu_of, model_of
from cascadia_solver.live_correction import CorrectionKey

__all__ = ["Engine", "basis_of", "engine_version_of", "engines_to_ask", "lessons_for"]

_MOST_OF_A_KIND = 4
"""Interchangeable replicas that are asked: more say the same."""
_MOST = 32
_NAMED_CHARACTERS = 64
_DIGEST_CHARACTERS = 12


@dataclass(frozen=True, slots=True)
class Engine:
    """A replica whose metrics are asked for.

    Attributes:
        pod: Its leader.
        life: Of its process: another one starts to count afresh.
        identity: What it is interchangeable with.
        version: Of its image, as corrections are kept under.
        basis: See `basis_of`.
    """

    pod: Object
    life: str
    identity: ReplicaIdentity
    version: str
    basis: str

    @property
    def name(self) -> str:
        """Name of its leader."""
        return str(self.pod["metadata"]["name"])


def engines_to_ask(world: World, warm_up_seconds: float) -> list[Engine]:
    """The engines to look at: a few of each kind, by name, that run with what the manifest says.

    Args:
        world: The cascade as it is.
        warm_up_seconds: An engine is left out until it has been ready for so long: what it compiles and fills at
            its start is not what it takes afterwards.
    """
    leaders = {label_of(pod, REPLICA_LABEL): pod for pod in ready_leaders(world.pods)}
    since = world.now - timedelta(seconds=warm_up_seconds)
    found: list[Engine] = []
    kinds: Counter[ReplicaIdentity] = Counter()
    for statefulset in sorted(world.statefulsets, key=lambda each: str(each["metadata"]["name"])):
        pod = leaders.get(statefulset["metadata"]["name"])
        identity = current_identity(world.cascade, statefulset)
        if pod is None or identity is None or _ready_since(pod) > since or kinds[identity] >= _MOST_OF_A_KIND:
            continue
        kinds[identity] += 1
        found.append(_engine(world.cascade, pod, identity))
    return found[:_MOST]


def _engine(cascade: CascadeDeployment, pod: Object, identity: ReplicaIdentity) -> Engine:
    image = next(str(c["image"]) for c in pod["spec"]["containers"] if c["name"] == "engine")
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    restarts = [status.get("restartCount", 0) for status in statuses if status.get("name") == "engine"]
    model, pool = model_named(cascade, identity.stage), pool_named(cascade, identity.pool)
    return Engine(
        pod=pod,
        life=f"{pod['metadata']['uid']}/{restarts}",
        identity=identity,
        version=engine_version_of(image),
        basis=basis_of(cascade, model, pool, image),
    )


def _ready_since(pod: Object) -> datetime:
    conditions: Sequence[Object] = pod["status"]["conditions"]
    return datetime.fromisoformat(next(c["lastTransitionTime"] for c in conditions if c["type"] == "Ready"))


def lessons_for(
    cascade: CascadeDeployment,
    learnt: Learnt,
    images: Images,
    given: Set[tuple[str, str, str]] = frozenset(),
) -> tuple[Lesson, ...]:
    """What to plan with: lessons with enough windows, of engines as the manifest wants them now.

    Args:
        cascade: The manifest.
        learnt: All that is known.
        images: Default images of new replicas.
        given: Model, GPU and shape of what the manifest's own corrections are of: they go first.
    """
    found: dict[CorrectionKey, Lesson] = {}
    for model in cascade.spec.models if learnt.lessons else ():
        image = (model.engine.image if model.engine else None) or images.engine
        for pool in cascade.spec.gpus.pools:
            try:
                wanted = (model_of(model).name, gpu_of(pool).name, engine_version_of(image))
            except InputError:  # no plan can be made either, and planning says why
                continue
            basis = basis_of(cascade, model, pool, image)
            found |= {
                key: lesson
                for key, lesson in learnt.lessons.items()
                if (key.model, key.gpu, key.engine_version) == wanted and lesson.basis == basis and lesson.believed
            }
    return tuple(found[key] for key in sorted(found) if key[:3] not in given)


def engine_version_of(image: str) -> str:
    """The version that an image is of, as corrections are kept under: ``sglang 0.5.23`` for ``…/sglang:v0.5.23``.

    An image without a tag is known by its digest; one with neither is ``latest``.
    """
    name, _, digest = image.partition("@")
    tag = name.rpartition("/")[2].partition(":")[2]
    if not tag:
        tag = digest.partition(":")[2][:_DIGEST_CHARACTERS] or "latest"
    if tag[0] == "v" and tag[1:2].isdigit():
        tag = tag[1:]
    return f"sglang {tag[:_NAMED_CHARACTERS]}"


def basis_of(cascade: CascadeDeployment, model: Model, pool: Pool, image: str) -> str:
    """Digest of all that a correction depends on beside its key: what engines run with, and what is predicted of it.

    A correction is a ratio of both. What was learnt before one of them changed is of no use afterwards.
    """
    planning, own = cascade.spec.planning, model.prefix_cache_hit_percent
    return digest8(
        {
            "image": image,
            "source": model.source.model_dump(mode="json", by_alias=True, exclude_none=True),
            "precision": model.precision,
            "engine": model.engine.model_dump(mode="json", by_alias=True, exclude_none=True) if model.engine else {},
            "config": model.config_json,
            "prefixCacheHits": own if own is not None else cascade.spec.workload.prefix_cache_hit_percent or 0,
            "gpu": pool.gpu,
            "gpuSpec": pool.gpu_spec.model_dump(mode="json", by_alias=True) if pool.gpu_spec else {},
            "gpusPerNode": pool.gpus_per_node or GPUS_PER_NODE,
            "predictedBy": [planning.cost_source or "Roofline", planning.engine_version]
            if planning
            else ["Roofline", None],
        }
    )
