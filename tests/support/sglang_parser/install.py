"""SGLang's Python files, installed once into the cache of tools: 220 MB instead of several GB with its dependencies."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.support.control_plane.binaries import cache_root
from tests.support.control_plane.locking import exclusively

SGLANG_VERSION = "0.5.23"
# The few small packages that its parser really runs; the heavy ones are stood in for.
_PACKAGES = (f"sglang=={SGLANG_VERSION}", "msgspec", "packaging", "typing_extensions")
_TIMEOUT_S = 900.0


class InstallError(RuntimeError):
    """SGLang could not be installed; the message holds pip's last lines."""


def ensure_sglang(environment: Mapping[str, str] | None = None) -> Path:
    """Return the folder with SGLang's files, installing them first if the cache lacks them (half a minute).

    Raises:
        InstallError: pip failed.
    """
    cache = cache_root(os.environ if environment is None else environment)
    home = cache / f"sglang-{SGLANG_VERSION}-py{sys.version_info.major}{sys.version_info.minor}"
    if home.is_dir():
        return home
    with exclusively(cache / f".{home.name}.lock", timeout_s=_TIMEOUT_S, what="another installation of SGLang"):
        if not home.is_dir():
            _install(home)
    return home


def _install(home: Path) -> None:
    # Installed aside and renamed: a folder with the final name is always complete.
    unfinished = home.parent / f".installing-{home.name}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    print(f"installing SGLang {SGLANG_VERSION} for its command-line parser, half a minute once …", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps", "--quiet"]
    done = subprocess.run(
        [*command, "--target", str(unfinished), *_PACKAGES],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise InstallError(f"pip could not install {_PACKAGES[0]}:\n{done.stderr[-2000:]}")
    unfinished.rename(home)
