"""The control plane's processes: they die with whoever started them, and say why when they die early."""

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

LOG_LINES = 25

# Runs between fork and exec of each program, as a tiny program of its own: subprocess' preexec_fn is unsafe (and warned
# about) in a process with threads. It asks the kernel to end the program with its parent, and closes the race of a
# parent that was already gone before it asked.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class ProcessFailedError(RuntimeError):
    """A process of the control plane ended early; the message names it, its exit code and its last log lines."""


class _Spawner:
    """Starts processes from one thread that lives as long as this process.

    The kernel's "die with the parent" means the thread that forked: children forked from a short-lived thread would die
    with that thread.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], subprocess.Popen[bytes]], Future[subprocess.Popen[bytes]]]]
        self._jobs = queue.SimpleQueue()
        threading.Thread(target=self._serve, name="control-plane-spawner", daemon=True).start()

    def spawn(self, start: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
        done: Future[subprocess.Popen[bytes]] = Future()
        self._jobs.put((start, done))
        return done.result(timeout=30)

    def _serve(self) -> None:
        while True:
            start, done = self._jobs.get()
            try:
                done.set_result(start())
            except BaseException as error:  # noqa: BLE001  # handed to the caller's thread
                done.set_exception(error)


_spawner: _Spawner | None = None
_spawner_lock = threading.Lock()


def _the_spawner() -> _Spawner:
    global _spawner
    with _spawner_lock:
        if _spawner is None:
            _spawner = _Spawner()
        return _spawner


class ServerProcess:
    """One running program, its log in a file.

    Args:
        name: For messages, and the log's file name.
        command: The program's absolute path and its arguments.
        log: Where its stdout and stderr go.
        environment: The whole environment of the program.
    """

    def __init__(self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.log = log
        wrapped = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *command]

        def start() -> subprocess.Popen[bytes]:
            with log.open("ab") as output:
                return subprocess.Popen(
                    wrapped,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=dict(environment),
                    # A session of its own: Ctrl-C reaches us only, and we stop them in order.
                    start_new_session=True,
                )

        self._process = _the_spawner().spawn(start)

    @property
    def pid(self) -> int:
        """The program's process id (the wrapper execs it in place)."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def last_lines(self, count: int = LOG_LINES) -> str:
        """The end of its log."""
        try:
            text = self.log.read_text(errors="replace")
        except OSError:
            return "(no log)"
        return "\n".join(text.splitlines()[-count:]) or "(empty log)"

    def check(self) -> None:
        """Raise ProcessFailedError if it has ended."""
        code = self._process.poll()
        if code is not None:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
            raise ProcessFailedError(f"{self.name} {how}; the end of its log:\n{self.last_lines()}")

    def ask_to_stop(self) -> None:
        """Send SIGTERM, unless it has ended."""
        if self.running:
            self._process.terminate()

    def wait_until_stopped(self, timeout_s: float) -> None:
        """Wait for its end; after `timeout_s` seconds kill it. Never raises for a process that is already gone."""
        try:
            self._process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(timeout=10)


def stop_all(processes: Sequence[ServerProcess], *, timeout_s: float) -> None:
    """Stop these at once, each killed if it has not ended `timeout_s` seconds after SIGTERM."""
    for process in processes:
        process.ask_to_stop()
    for process in processes:
        process.wait_until_stopped(timeout_s)
