"""A real control plane on loopback: etcd, API server, controller manager, scheduler, and KWOK for the nodes."""

import atexit
import http.client
import os
import shutil
import ssl
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml
from kubernetes import client, config

from tests.support.control_plane import commands, crds, kwok, nodes
from tests.support.control_plane.binaries import Binaries, ensure_binaries
from tests.support.control_plane.deadlines import DeadlineExceededError, wait_for
from tests.support.control_plane.pki import Pki
from tests.support.control_plane.ports import free_ports
from tests.support.control_plane.processes import ProcessFailedError, ServerProcess, stop_all

_STOP_TIMEOUT_S = 5.0
_PORT_ATTEMPTS = 3


class ControlPlaneError(RuntimeError):
    """The control plane did not come up; the message names the process and quotes its log."""


class ControlPlane:
    """One control plane with a folder, certificates and ports of its own; any number run side by side.

    Used as a context manager, or with `start` and `stop`. Its processes die with this process, however it ends.

    Args:
        load_seconds: How long pods on fake nodes take from start to Ready, unless their annotation says otherwise.
        crds: Files of CustomResourceDefinitions to install before the controller manager starts. Its garbage collector
            knows these from the start; of any later one it learns within 30 seconds, which no flag changes
            (see `restart_controller_manager`).
        start_timeout_s: Seconds until everything must be up, not counting the build of the binaries.
        keep_files: Leave the folder with logs and keys behind after `stop`.
        environment: Where to look up `KUBEBUILDER_ASSETS` and the cache of binaries; this process' by default.
    """

    def __init__(
        self,
        *,
        load_seconds: float = 0.5,
        crds: Sequence[Path] = (),
        start_timeout_s: float = 90.0,
        keep_files: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._load_seconds = load_seconds
        self._crds = list(crds)
        self._start_timeout_s = start_timeout_s
        self._keep_files = keep_files
        self._environment = dict(os.environ if environment is None else environment)
        self._folder: Path | None = None
        self._pki: Pki | None = None
        self._port = 0
        self._etcd_port = 0
        self._binaries = Binaries()
        self._processes: dict[str, ServerProcess] = {}

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def folder(self) -> Path:
        """Where keys, data and logs (`logs/<process>.log`) lie."""
        if self._folder is None:
            raise ControlPlaneError("the control plane is not running")
        return self._folder

    @property
    def kubeconfig(self) -> Path:
        """A kubeconfig with all rights, which needs no other file."""
        return self.folder / "pki" / "admin.kubeconfig"

    @property
    def binaries(self) -> Binaries:
        """The programs it runs, and `kubectl`."""
        return self._binaries

    @property
    def pids(self) -> dict[str, int]:
        """The process id of each running process by name."""
        return {name: process.pid for name, process in self._processes.items() if process.running}

    def start(self) -> Self:
        """Build what is missing, start everything, and wait until it serves.

        Raises:
            BuildError, ToolchainError: when the binaries cannot be made.
            ControlPlaneError: when a process ends early or is not up in time; the message holds the end of its log.
        """
        if self._folder is not None:
            raise ControlPlaneError("the control plane is running already")
        self._binaries = ensure_binaries(self._environment)
        atexit.register(self.stop)
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            try:
                self._bring_up()
            except ProcessFailedError as error:
                self.stop()
                # Another process may take a free port before ours listens on it.
                if "address already in use" not in str(error) or attempt == _PORT_ATTEMPTS:
                    raise ControlPlaneError(str(error)) from error
            except BaseException:
                self.stop()
                raise
            else:
                break
        return self

    def stop(self) -> None:
        """Stop everything in reverse order and remove the folder. Does nothing when it is not running."""
        atexit.unregister(self.stop)
        for names in (("kwok", "scheduler", "controller-manager"), ("apiserver",), ("etcd",)):
            stop_all([self._processes[name] for name in names if name in self._processes], timeout_s=_STOP_TIMEOUT_S)
        self._processes.clear()
        if self._folder is not None and not self._keep_files:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = None

    def check(self) -> None:
        """Raise ControlPlaneError if one of the processes has ended."""
        try:
            for process in self._processes.values():
                process.check()
        except ProcessFailedError as error:
            raise ControlPlaneError(str(error)) from error

    def api(self) -> client.ApiClient:
        """A new client with all rights. Close it, or use it as a context manager."""
        settings = client.Configuration()
        load: Any = config.load_kube_config  # Any: it has no annotations
        load(config_file=str(self.kubeconfig), client_configuration=settings)
        settings.proxy = None  # a proxy from the environment has no business on loopback
        return client.ApiClient(settings)

    def install_crds(self, *files: Path) -> None:
        """Install CustomResourceDefinitions and wait until they are served.

        The garbage collector learns of them within 30 seconds; `restart_controller_manager` makes it learn at once.
        """
        with self.api() as api:
            crds.install(api, files)

    def restart_controller_manager(self) -> None:
        """Start the controller manager afresh, so that its garbage collector knows every CRD there is."""
        stop_all([self._processes["controller-manager"]], timeout_s=_STOP_TIMEOUT_S)
        self._start_controller_manager()

    def stop_api_server(self) -> None:
        """Stop the API server alone: what it stored stays in etcd."""
        stop_all([self._processes["apiserver"]], timeout_s=_STOP_TIMEOUT_S)

    def start_api_server(self) -> None:
        """Start it again, on the same port, and wait until it is ready."""
        assert self._pki is not None
        self._run("apiserver", "kube-apiserver", commands.apiserver(self._pki, self._port, self._etcd_port))
        self._wait("the API server to be ready", "apiserver", self._api_ready)

    def set_load_seconds(self, load_seconds: float) -> None:
        """Change how long pods that start from now on take to become Ready. Pods that are loading keep their time."""
        self._load_seconds = load_seconds
        stop_all([self._processes["kwok"]], timeout_s=_STOP_TIMEOUT_S)
        self._start_kwok()

    def add_gpu_node(
        self,
        name: str,
        gpus: int = 8,
        gpu_product: str = nodes.H100,
        *,
        labels: Mapping[str, str] | None = None,
        taints: Sequence[Mapping[str, str]] = (),
    ) -> nodes.GpuNode:
        """Add a fake node and wait until pods can be scheduled on it. See `GpuNode` and `nodes.add_node` for more."""
        node = nodes.GpuNode(name, gpus, gpu_product, labels=labels or {}, taints=taints)
        with self.api() as api:
            nodes.add_node(api, node)
        return node

    def remove_gpu_node(self, name: str) -> None:
        """Take a fake node away, and its pods with it."""
        with self.api() as api:
            nodes.remove_node(api, name)

    def _bring_up(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="cascadia-control-plane-"))
        (self._folder / "logs").mkdir()
        self._pki = Pki(self._folder / "pki")
        self._port, self._etcd_port = free_ports(2)
        for user in ("admin", "controller-manager", "scheduler"):
            self._pki.kubeconfig(user, self._port)
        self._run("etcd", "etcd", commands.etcd(self._folder, self._pki, self._etcd_port))
        self._run("apiserver", "kube-apiserver", commands.apiserver(self._pki, self._port, self._etcd_port))
        self._wait("the API server to be ready", "apiserver", self._api_ready)
        if self._crds:
            self.install_crds(*self._crds)
        self._start_controller_manager()
        configuration = self._folder / "scheduler.yaml"
        configuration.write_text(yaml.safe_dump(commands.scheduler_configuration(self._pki)))
        self._run("scheduler", "kube-scheduler", commands.scheduler(configuration))
        self._start_kwok()
        with self.api() as api:
            core = client.CoreV1Api(api)

            def default_account() -> bool:
                return bool(core.list_namespaced_service_account("default").items)

            self._wait("the default ServiceAccount", "controller-manager", default_account)

    def _start_controller_manager(self) -> None:
        assert self._pki is not None
        self._run("controller-manager", "kube-controller-manager", commands.controller_manager(self._pki))

    def _start_kwok(self) -> None:
        stages = kwok.render_stages(self.folder / "stages", self._load_seconds)
        self._run("kwok", "kwok", kwok.kwok_arguments(self.kubeconfig, stages))

    def _run(self, name: str, program: str, arguments: Sequence[str]) -> None:
        # Nothing of the caller's environment: kwok reads a configuration below $HOME, and Go programs heed proxies.
        environment = {
            "PATH": os.defpath,
            "HOME": str(self.folder),
            "TMPDIR": str(self.folder),
            "NO_PROXY": "127.0.0.1",
        }
        log = self.folder / "logs" / f"{name}.log"
        self._processes[name] = ServerProcess(name, [str(self._binaries[program]), *arguments], log, environment)

    def _wait(self, what: str, responsible: str, probe: Callable[[], bool]) -> None:
        def alive_and_done() -> bool:
            for process in self._processes.values():
                process.check()
            return probe()

        try:
            wait_for(what, alive_and_done, timeout_s=self._start_timeout_s, interval_s=0.05)
        except DeadlineExceededError as error:
            log = self._processes[responsible].last_lines()
            raise ControlPlaneError(f"{error}; the end of the log of {responsible}, still running:\n{log}") from error

    def _api_ready(self) -> bool:
        assert self._pki is not None
        context = ssl.create_default_context(cafile=str(self._pki.certificate("ca")))
        context.load_cert_chain(self._pki.certificate("admin"), self._pki.key("admin"))
        connection = http.client.HTTPSConnection("127.0.0.1", self._port, timeout=5, context=context)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
