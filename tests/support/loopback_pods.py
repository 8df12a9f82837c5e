"""Real routers beside simulated engines behind the pods of fake nodes, each on a loopback address of its own.

All of 127.0.0.0/8 is this machine, so every pod can have the ports that the operator expects of it.
"""

from __future__ import annotations

import base64
import json
import random
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kubernetes import client

from cascadia_api.names import ADMIN_PORT, REPLICA_LABEL, STAGE_LABEL
from cascadia_operator.manifests.router_config import LEADER_ANNOTATION, PEER_SECRET_KEY
from cascadia_solver.steptime import StepModel
from tests.support.control_plane import wait_for
from tests.support.control_plane.ports import free_ports
from tests.support.control_plane.processes import ServerProcess, stop_all
from tests.support.engine_process import engine_config
from tests.support.operator_cascades import WAIT_S, Cascades

__all__ = ["LoopbackPod", "LoopbackPods", "Traffic"]

_REQUEST_S = 30.0


@dataclass
class LoopbackPod:
    """One pod's processes.

    Attributes:
        name: The pod's.
        stage: Of its engine.
        engine_url: Where its engine listens.
        engine: The engine's process.
        router: The router's.
    """

    name: str
    stage: str
    engine_url: str
    engine: ServerProcess
    router: ServerProcess


@dataclass
class LoopbackPods:
    """Starts the processes of a cascade's leaders, and tells the cluster where they are.

    Attributes:
        cascades: The namespace.
        api: Of the cluster, with all rights.
        folder: For configurations and logs.
        running: What was started.
    """

    cascades: Cascades
    api: client.ApiClient
    folder: Path
    running: list[LoopbackPod] = field(default_factory=list)

    def start(self, cascade: str, steps: dict[str, StepModel]) -> None:
        """Start a router and an engine for each pod that the cascade has now.

        Args:
            cascade: Its name.
            steps: Step times of the engines, by stage.
        """
        core: Any = client.CoreV1Api(self.api)
        namespace = self.cascades.namespace
        token = core.create_namespaced_service_account_token(f"{cascade}-router", namespace, {"spec": {}}).status.token
        (self.folder / "token").write_text(token)
        secret = core.read_namespaced_secret(f"{cascade}-peers", namespace).data[PEER_SECRET_KEY]
        (self.folder / "peers").write_text(base64.b64decode(secret).decode())
        for pod in self.cascades.pods(cascade):
            address = _own_address()
            self.running.append(self._start(pod, address, steps[pod.metadata.labels[STAGE_LABEL]]))
            status = {"status": {"podIP": address, "podIPs": [{"ip": address}]}}
            core.patch_namespaced_pod_status(
                pod.metadata.name, namespace, status, _content_type="application/merge-patch+json"
            )

    def _start(self, pod: Any, address: str, step: StepModel) -> LoopbackPod:
        name, stage = pod.metadata.labels[REPLICA_LABEL], pod.metadata.labels[STAGE_LABEL]
        engine_port, client_port, peers_port = free_ports(3)
        engine_file, router_file = self.folder / f"{name}-engine.json", self.folder / f"{name}-router.json"
        said = engine_config(
            listen=f"127.0.0.1:{engine_port}", servedModelName=stage, stage=stage, step=list(step), clockScale=1.0
        )
        engine_file.write_text(json.dumps(said))
        changes = {
            "engine": f"127.0.0.1:{engine_port}",
            "client": f"{address}:{client_port}",
            "peers": f"{address}:{peers_port}",
            "admin": f"{address}:{ADMIN_PORT}",
            "policyFile": str(self.folder / f"{name}-policy.json"),
            "peerSecretFile": str(self.folder / "peers"),
        }
        router_file.write_text(json.dumps(json.loads(pod.metadata.annotations[LEADER_ANNOTATION]) | changes))
        environment = {
            "CASCADIA_API_SERVER": self.api.configuration.host,
            "CASCADIA_API_TOKEN_FILE": str(self.folder / "token"),
            "CASCADIA_API_CA_FILE": str(self.api.configuration.ssl_ca_cert),
        }
        python = (sys.executable, "-m")
        engine = [*python, "cascadia_local.simulated_engine", "--config", str(engine_file)]
        router = [*python, "cascadia_router", "--config", str(router_file)]
        return LoopbackPod(
            name=pod.metadata.name,
            stage=stage,
            engine_url=f"http://127.0.0.1:{engine_port}",
            engine=ServerProcess(f"{name} engine", engine, self.folder / f"{name}-engine.log", {}),
            router=ServerProcess(f"{name} router", router, self.folder / f"{name}-router.log", environment),
        )

    def of(self, stage: str) -> LoopbackPod:
        """The pod of a stage that has one."""
        (found,) = [pod for pod in self.running if pod.stage == stage]
        return found

    def stop(self) -> None:
        """Stop all processes."""
        stop_all([process for pod in self.running for process in (pod.router, pod.engine)], timeout_s=10)


def _own_address() -> str:
    """A loopback address whose admin port is free: another test may run beside this one."""
    for _ in range(100):
        address = f"127.{random.randint(1, 254)}.{random.randint(0, 254)}.{random.randint(1, 254)}"
        with socket.socket() as probe:
            try:
                probe.bind((address, ADMIN_PORT))
            except OSError:
                continue
            return address
    raise AssertionError(f"no loopback address has port {ADMIN_PORT} free")


class Traffic:
    """Requests to an engine that come when they come, until the block ends.

    Args:
        url: The engine's.
        rate: Requests per second, on average.
        lengths: Tokens of prompts and answers, drawn from evenly.
    """

    def __init__(self, url: str, rate: float, lengths: Sequence[tuple[int, int]]) -> None:
        self._url = f"{url}/v1/chat/completions"
        self._rate = rate
        self._lengths = lengths
        self._ended = threading.Event()
        self._clients = ThreadPoolExecutor(64, thread_name_prefix="clients")
        self._source = threading.Thread(target=self._send, name="traffic")
        self._url_ready = f"{url}/ready"

    def __enter__(self) -> Traffic:
        wait_for("the engine to be ready", self._ready, timeout_s=WAIT_S)
        self._source.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._source.join()
        self._clients.shutdown(wait=True, cancel_futures=True)

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(self._url_ready, timeout=_REQUEST_S) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _send(self) -> None:
        draw, due = random.Random(1), time.monotonic()
        while not self._ended.wait(max(0.0, due - time.monotonic())):
            due += draw.expovariate(self._rate)
            self._clients.submit(self._ask, *draw.choice(self._lengths))

    def _ask(self, prompt: int, answer: int) -> None:
        body = {
            "messages": [{"role": "user", "content": "?"}],
            "simulation": {"inputTokens": prompt, "outputTokens": answer},
            "max_tokens": answer,
        }
        with urllib.request.urlopen(self._url, data=json.dumps(body).encode(), timeout=_REQUEST_S) as said:
            said.read()
