"""The integration tests' control plane for a developer's hands: `python -m tests.support.control_plane up`."""

import argparse
import contextlib
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from tests.support.control_plane import ControlPlane, ControlPlaneError
from tests.support.control_plane.binaries import BuildError, cache_root, ensure_binaries
from tests.support.control_plane.deadlines import DeadlineExceededError, wait_for
from tests.support.control_plane.toolchain import ToolchainError

_STOP_TIMEOUT_S = 30.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it worked, 1 when it did not, 2 for a wrong command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.control_plane", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="build the binaries into the cache and stop there")
    up = commands.add_parser("up", help="start a control plane in the foreground, until Ctrl-C")
    up.add_argument("--nodes", type=int, default=2, help="fake GPU nodes to add (default 2)")
    up.add_argument("--gpus", type=int, default=8, help="GPUs of each node (default 8)")
    up.add_argument("--load-seconds", type=float, default=0.5, help="seconds a pod takes to become Ready (default 0.5)")
    up.add_argument(
        "--crd", type=Path, action="append", default=[], help="a file of CustomResourceDefinitions to install"
    )
    commands.add_parser("down", help="stop what `up` started in another terminal")
    commands.add_parser("env", help="print export lines for KUBECONFIG and PATH of what `up` started")
    options = parser.parse_args(arguments)
    run = {"build": _build, "up": _up, "down": _down, "env": _env}[options.command]
    try:
        return run(options)
    except (BuildError, ToolchainError, ControlPlaneError, DeadlineExceededError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _build(_: argparse.Namespace) -> int:
    started = time.monotonic()
    for name, path in sorted(ensure_binaries().paths.items()):
        print(f"{name}: {path}")
    print(f"ready after {time.monotonic() - started:.1f} s", file=sys.stderr)
    return 0


def _up(options: argparse.Namespace) -> int:
    state = _state_file()
    if _running(state) is not None:
        print("error: one is up already: `down` stops it, `env` says how to use it", file=sys.stderr)
        return 1
    with (
        _interrupted_by(signal.SIGTERM),
        ControlPlane(load_seconds=options.load_seconds, crds=options.crd) as control_plane,
    ):
        for index in range(options.nodes):
            control_plane.add_gpu_node(f"gpu-{index}", options.gpus)
        kubectl = control_plane.binaries["kubectl"]
        state.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "pid": os.getpid(),
            "started": _start_time(os.getpid()),
            "kubeconfig": str(control_plane.kubeconfig),
            "path": str(kubectl.parent),
        }
        state.write_text(json.dumps(content))
        try:
            print(f"KUBECONFIG={control_plane.kubeconfig}")
            print(
                f"{options.nodes} nodes with {options.gpus} GPUs each; Ctrl-C stops it; kubectl: {kubectl}", flush=True
            )
            while True:
                time.sleep(1)
                control_plane.check()
        except KeyboardInterrupt:
            print("stopping", file=sys.stderr)
        finally:
            state.unlink(missing_ok=True)
    return 0


def _down(_: argparse.Namespace) -> int:
    state = _state_file()
    running = _running(state)
    if running is None:
        print("nothing is up", file=sys.stderr)
        return 0
    os.kill(running["pid"], signal.SIGTERM)
    wait_for("the control plane to stop", lambda: _running(state) is None, timeout_s=_STOP_TIMEOUT_S)
    return 0


def _env(_: argparse.Namespace) -> int:
    running = _running(_state_file())
    if running is None:
        print("error: nothing is up: start one with `up` in another terminal", file=sys.stderr)
        return 1
    print(f"export KUBECONFIG={shlex.quote(running['kubeconfig'])}")
    print(f"export PATH={shlex.quote(running['path'])}:$PATH")
    return 0


def _state_file() -> Path:
    return cache_root(os.environ) / "up.json"


def _running(state: Path) -> dict[str, Any] | None:
    """What `up` wrote, if its process still runs: the start time tells it from a later process with the same id."""
    try:
        content: dict[str, Any] = json.loads(state.read_text())
        alive = _start_time(content["pid"]) == content["started"]
    except (OSError, ValueError, KeyError):
        return None
    return content if alive else None


def _start_time(pid: int) -> str:
    # The 22nd field of stat; the second is the program's name in parentheses and may itself contain blanks.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


@contextlib.contextmanager
def _interrupted_by(number: signal.Signals) -> Iterator[None]:
    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(number, interrupt)
    try:
        yield
    finally:
        signal.signal(number, before)


if __name__ == "__main__":
    sys.exit(main())
