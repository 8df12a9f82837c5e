"""The operator as a process of a test, on the test's control plane and in the test's namespace."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from tests.support.control_plane import ControlPlane
from tests.support.control_plane.processes import ServerProcess


class OperatorUnderTest:
    """Starts, kills and stops operators of one namespace; their log is kept together."""

    def __init__(self, control_plane: ControlPlane, namespace: str, log: Path) -> None:
        self.kubeconfig = control_plane.kubeconfig
        self._namespace = namespace
        self._log = log
        self._process: ServerProcess | None = None

    def start(self, *flags: str) -> None:
        """Start one."""
        command = [
            *(sys.executable, "-W", "error", "-m", "cascadia_operator"),
            *("--namespace", self._namespace),
            # The pods of fake nodes are not real: nobody can ask their routers.
            *("--router-acknowledgement", "none"),
            *("--resync-seconds", "3"),
            *flags,
        ]
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": os.environ.get("HOME", "/"),
            "KUBECONFIG": str(self.kubeconfig),
            "NO_PROXY": "127.0.0.1",
        }
        self._process = ServerProcess("operator", command, self._log, environment)

    def kill(self) -> None:
        """Kill it as a power cut would."""
        assert self._process is not None
        self._process.check()
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait_until_stopped(10)

    def check(self) -> None:
        """Raise if it has ended by itself."""
        if self._process is not None:
            self._process.check()

    def stop(self) -> None:
        """Stop it, and see that it ends in good order."""
        if self._process is not None and self._process.running:
            self._process.ask_to_stop()
            self._process.wait_until_stopped(20)

    def log(self) -> str:
        """The end of the log."""
        return self._process.last_lines(40) if self._process is not None else "(never started)"
