"""KWOK plays the kubelets of the fake nodes, by the stages in `stages/*.yaml`.

A pod starts its containers at once, "loads its model" for some seconds, and is then Ready. Its sidecars (init
containers with restartPolicy Always) run from the start. What a test can change:

- how long pods load: `ControlPlane(load_seconds=…)`, `ControlPlane.set_load_seconds(…)` for pods that start later, or
  the annotation `test.cascadia.dev/load-seconds` on a pod or its template;
- a crash loop of the first container: `crash` and `recover`, or the annotation `test.cascadia.dev/crash: "true"`;
- how long a pod takes to go once it is deleted: the annotation `test.cascadia.dev/terminate-seconds` (0 otherwise).

A changed image restarts its own container only, as a kubelet would do it.
"""

from pathlib import Path

from kubernetes import client

PREFIX = "test.cascadia.dev"
LOAD_SECONDS = f"{PREFIX}/load-seconds"
TERMINATE_SECONDS = f"{PREFIX}/terminate-seconds"
CRASH = f"{PREFIX}/crash"
CRASH_REASON = f"{PREFIX}/crash-reason"
CRASH_RESTARTS = f"{PREFIX}/crash-restarts"
LOADED_CONDITION = f"{PREFIX}/Loaded"

_STAGES = Path(__file__).resolve().parent / "stages"
_LOAD_PLACEHOLDER = "@LOAD_SECONDS@"


def render_stages(folder: Path, load_seconds: float) -> list[Path]:
    """Write the stages into `folder`, with the seconds that pods load for by default, and return the files.

    Raises:
        ValueError: when `load_seconds` is negative.
    """
    if load_seconds < 0:
        raise ValueError(f"load_seconds must be 0 or more, not {load_seconds}")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for source in sorted(_STAGES.glob("*.yaml")):
        target = folder / source.name
        # Go's durations know no exponents, which Python would write for very small numbers.
        target.write_text(source.read_text().replace(_LOAD_PLACEHOLDER, f"{load_seconds:.3f}"))
        written.append(target)
    return written


def kwok_arguments(kubeconfig: Path, stages: list[Path]) -> list[str]:
    """The command line of kwok, less the program."""
    return [
        f"--kubeconfig={kubeconfig}",
        "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
        # No leases: a kwok that was restarted would otherwise leave the nodes alone until the old leases expire.
        "--node-lease-duration-seconds=0",
        # No server of its own (logs, exec): one port less to find.
        "--node-port=0",
        "--cidr=10.244.0.0/16",
        *(f"--config={stage}" for stage in stages),
    ]


def crash(api: client.ApiClient, namespace: str, pod: str, *, reason: str = "Error", restarts: int = 1) -> None:
    """Let the first container of a running pod fall into CrashLoopBackOff, until `recover`.

    Args:
        api: The cluster.
        namespace: The pod's namespace.
        pod: The pod's name.
        reason: Why the container ended last: `Error` (exit code 1) or `OOMKilled` (exit code 137).
        restarts: By how much the container's restart count grows.
    """
    _annotate(api, namespace, pod, {CRASH: "true", CRASH_REASON: reason, CRASH_RESTARTS: str(restarts)})


def recover(api: client.ApiClient, namespace: str, pod: str) -> None:
    """End what `crash` began: the container starts again, loads its model, and the pod becomes Ready."""
    _annotate(api, namespace, pod, {CRASH: None, CRASH_REASON: None, CRASH_RESTARTS: None})


def _annotate(api: client.ApiClient, namespace: str, pod: str, annotations: dict[str, str | None]) -> None:
    patch = {"metadata": {"annotations": annotations}}
    client.CoreV1Api(api).patch_namespaced_pod(pod, namespace, patch, _content_type="application/merge-patch+json")
