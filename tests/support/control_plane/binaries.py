"""The control plane's binaries, built once from the Go module proxy into a cache.

`tests/tools/<name>/go.mod` and `go.sum` pin everything, so the same files build the same tools on every machine; no
registry of binaries or images is needed. A cold build of all three takes some eight minutes on two cores.
"""

import hashlib
import os
import platform
import queue
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tests.support.control_plane.locking import exclusively
from tests.support.control_plane.progress import BuildProgress
from tests.support.control_plane.toolchain import choose_go, go_environment, required_go_version

TOOLS = Path(__file__).resolve().parents[2] / "tools"
BUILD_TIMEOUT_S = 3600.0
KUBERNETES_VERSION = "1.36.3"
# setup-envtest's folder holds these three; the rest of a control plane is always built.
_ASSETS = ("kube-apiserver", "etcd", "kubectl")


class BuildError(RuntimeError):
    """A tool could not be built; the message holds the compiler's last lines."""


def _version_flags(version: str) -> str:
    # Built outside its release tree Kubernetes calls itself v0.0.0-master, over which kubectl and helm stumble.
    major, minor, _ = version.split(".")
    package = "k8s.io/component-base/version"
    return f" -X {package}.gitVersion=v{version} -X {package}.gitMajor={major} -X {package}.gitMinor={minor}"


@dataclass(frozen=True)
class GoTool:
    """Binaries that one go.mod below `tests/tools/` pins.

    Attributes:
        name: The folder below `tests/tools/`.
        packages: Import path of each main package by the binary's name.
        ldflags: Flags for the linker.
        note: How long a cold build takes, for whoever waits.
    """

    name: str
    packages: Mapping[str, str]
    ldflags: str = "-s -w"
    note: str = ""

    def folder(self, tools: Path = TOOLS) -> Path:
        """Where the go.mod lies."""
        return tools / self.name


ETCD = GoTool("etcd", {"etcd": "go.etcd.io/etcd/server/v3"}, note="the first time, about half a minute")
KWOK = GoTool("kwok", {"kwok": "sigs.k8s.io/kwok/cmd/kwok"}, note="the first time, about a minute and a half")
KUBERNETES = GoTool(
    "kubernetes",
    {
        name: f"k8s.io/kubernetes/cmd/{name}"
        for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
    },
    ldflags="-s -w" + _version_flags(KUBERNETES_VERSION),
    note="the first time, about six minutes on two cores",
)
CONTROL_PLANE_TOOLS = (ETCD, KWOK, KUBERNETES)


@dataclass(frozen=True)
class Binaries:
    """Where each program of a control plane lies."""

    paths: Mapping[str, Path] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Path:
        return self.paths[name]


def cache_root(environment: Mapping[str, str]) -> Path:
    """The folder of built tools: `$CASCADIA_TOOLS_CACHE`, or `cascadia/tools` in the user's cache folder."""
    chosen = environment.get("CASCADIA_TOOLS_CACHE")
    if chosen:
        return Path(chosen).absolute()
    base = environment.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "cascadia" / "tools"


def cache_key(tool: GoTool, go_mod: bytes, go_sum: bytes, machine: str) -> str:
    """Name what decides the binaries: the pinned modules, the packages, the flags and the machine's kind."""
    digest = hashlib.sha256()
    for part in (go_mod, go_sum, tool.ldflags.encode(), machine.encode()):
        digest.update(len(part).to_bytes(8, "big") + part)
    for name in sorted(tool.packages):
        digest.update(f"{name}={tool.packages[name]}\n".encode())
    return digest.hexdigest()[:16]


def built_folder(tool: GoTool, cache: Path, tools: Path = TOOLS) -> Path:
    """Where this tool's binaries are once they are built.

    Raises:
        BuildError: when the tool's go.mod or go.sum is missing.
    """
    folder = tool.folder(tools)
    try:
        pinned = [(folder / name).read_bytes() for name in ("go.mod", "go.sum")]
    except OSError as error:
        raise BuildError(f"the pins of {tool.name} are missing: {error}") from error
    key = cache_key(tool, pinned[0], pinned[1], f"{platform.system()}-{platform.machine()}")
    return cache / f"{tool.name}-{key}"


def ensure_tool(
    tool: GoTool, cache: Path, *, tools: Path = TOOLS, timeout_s: float = BUILD_TIMEOUT_S
) -> Mapping[str, Path]:
    """Build the tool unless the cache has it, and return its binaries by name.

    Safe to call from several processes: one builds, the others wait for it.

    Raises:
        BuildError: when the build fails or takes longer than `timeout_s` seconds.
        ToolchainError: when there is no Go to build with.
        DeadlineExceededError: when another process' build does not finish in `timeout_s` seconds.
    """
    home = built_folder(tool, cache, tools)
    if not home.is_dir():
        with exclusively(cache / f".{home.name}.lock", timeout_s=timeout_s, what=f"another build of {tool.name}"):
            if not home.is_dir():
                _build(tool, home, tools, timeout_s)
    paths = {name: home / name for name in tool.packages}
    missing = [name for name, path in paths.items() if not os.access(path, os.X_OK)]
    if missing:
        raise BuildError(f"{home} lacks {', '.join(missing)}: remove the folder and build again")
    return paths


def prebuilt(environment: Mapping[str, str]) -> dict[str, Path]:
    """Programs in `$KUBEBUILDER_ASSETS`, the folder that setup-envtest fills; empty when it is not set.

    The controller manager, the scheduler and kwok are taken from there too, if someone has put them there.

    Raises:
        BuildError: when the variable names a folder without apiserver, etcd and kubectl.
    """
    chosen = environment.get("KUBEBUILDER_ASSETS")
    if not chosen:
        return {}
    folder = Path(chosen).absolute()
    missing = [name for name in _ASSETS if not os.access(folder / name, os.X_OK)]
    if missing:
        raise BuildError(
            f"KUBEBUILDER_ASSETS={chosen} lacks {', '.join(missing)}: "
            "fill it with setup-envtest, or unset it to have everything built"
        )
    names = [name for tool in CONTROL_PLANE_TOOLS for name in tool.packages]
    return {name: folder / name for name in names if os.access(folder / name, os.X_OK)}


def ensure_binaries(
    environment: Mapping[str, str] | None = None, *, wanted: Iterable[GoTool] = CONTROL_PLANE_TOOLS
) -> Binaries:
    """Return every program of a control plane, building what neither the cache nor `$KUBEBUILDER_ASSETS` has.

    Raises:
        BuildError, ToolchainError, DeadlineExceededError: see `ensure_tool`.
    """
    environment = os.environ if environment is None else environment
    paths = prebuilt(environment)
    for tool in wanted:
        if not all(name in paths for name in tool.packages):
            paths = {**ensure_tool(tool, cache_root(environment)), **paths}
    return Binaries(paths)


def _build(tool: GoTool, home: Path, tools: Path, timeout_s: float) -> None:
    go = choose_go(required_go_version((tool.folder(tools) / "go.mod").read_text()), home.parent)
    # Built aside and renamed: a folder with the final name is always complete.
    unfinished = home.parent / f".building-{home.name}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    progress = BuildProgress(tool.name, sys.stderr, width=shutil.get_terminal_size().columns)
    progress.start(tool.note or "the first time")
    deadline = time.monotonic() + timeout_s
    try:
        _go_build(go, tool, unfinished, tool.folder(tools), progress, deadline)
        for name, package in tool.packages.items():
            built = unfinished / _binary_name(package)
            built.rename(unfinished / name)
    except BaseException as error:
        progress.failed(str(error).partition("\n")[0] or type(error).__name__)
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    unfinished.rename(home)
    progress.done()


def _binary_name(package: str) -> str:
    parts = package.split("/")
    # Go leaves a major version suffix out of the binary's name: `…/server/v3` becomes `server`.
    return parts[-2] if parts[-1][:1] == "v" and parts[-1][1:].isdigit() else parts[-1]


def _go_build(go: Path, tool: GoTool, output: Path, folder: Path, progress: BuildProgress, deadline: float) -> None:
    # The trailing slash makes Go write one file per package into the folder, also when there is one package only.
    command = [str(go), "build", "-v", "-o", f"{output}/", "-ldflags", tool.ldflags, *sorted(tool.packages.values())]
    if nice := shutil.which("nice"):
        command = [nice, "-n", "10", *command]
    environment = go_environment(os.environ)
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    assert process.stderr is not None
    reader = threading.Thread(target=_pass_lines, args=(process.stderr, lines), daemon=True)
    reader.start()
    try:
        while process.poll() is None:
            if time.monotonic() > deadline:
                raise BuildError(f"building {tool.name} took longer than its deadline allows")
            time.sleep(0.2)
            _take_in(lines, progress)
            progress.tick()
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        reader.join(timeout=5)
        process.stderr.close()
    _take_in(lines, progress)
    if process.returncode != 0:
        raise BuildError(
            f"building {tool.name} failed with exit code {process.returncode}\n"
            f"in {folder}: {shlex.join(command)}\n{progress.tail}"
        )


def _pass_lines(source: IO[str], lines: "queue.SimpleQueue[str]") -> None:
    for line in source:
        lines.put(line)


def _take_in(lines: "queue.SimpleQueue[str]", progress: BuildProgress) -> None:
    while not lines.empty():
        progress.saw(lines.get())
