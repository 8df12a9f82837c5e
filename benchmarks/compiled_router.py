"""The compiled router, built once for its sources: `python benchmarks/compiled_router.py` prints where it is.

The folder holds the unpacked wheel. With it on `PYTHONPATH` its modules come before those of an editable
installation. The last few builds are kept under `.cache/`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

__all__ = ["compiled_router", "environment", "image_python"]

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "compiled-router"
SOURCES = ("crds/cascadia_api", "router/cascadia_router")
KEPT = 4
_TOOLS = "import sys, sysconfig, mypy.version as mypy; print(mypy.__version__, sysconfig.get_platform(), sys.version)"
_FITS = """
import pathlib, sysconfig
print(sysconfig.get_config_var("SOABI") if pathlib.Path(sysconfig.get_path("include"), "Python.h").exists() else "")
"""


def image_python() -> str:
    """The interpreter that a container image would carry, if there is one of our version: the distribution's.

    Distributions build with profiles and at link time, which `./configure` alone (pyenv's way) does not; it is worth a
    tenth of a request. Without one, or without its headers, it is ours.
    """
    found = shutil.which(f"python{sys.version_info.major}.{sys.version_info.minor}", path="/usr/bin")
    if found is None or subprocess.check_output([found, "-c", _FITS], text=True).strip() != _soabi():
        return sys.executable
    return found


def _soabi() -> str:
    return str(sysconfig.get_config_var("SOABI"))


def environment(*before: Path) -> dict[str, str]:
    """Variables with which another interpreter of our version finds these folders, and then our packages."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([*map(str, before), sysconfig.get_path("purelib")])}


def compiled_router(python: str = sys.executable) -> Path:
    """The folder with the compiled router; builds it if these sources have not been built yet.

    Args:
        python: The interpreter that it is for, of our version; it is lent our packages.

    Raises:
        SystemExit: It could not be built: there is no C compiler, or the sources cannot be compiled.
    """
    files = sorted(file for source in SOURCES for file in (ROOT / source).rglob("*.py"))
    digest = hashlib.sha256(subprocess.check_output([python, "-c", _TOOLS], env=environment()))
    for file in (ROOT / "hatch_build.py", ROOT / "pyproject.toml", *files):
        digest.update(b"%s\0%s\0" % (str(file.relative_to(ROOT)).encode(), file.read_bytes()))
    folder = CACHE / digest.hexdigest()[:16]
    if not folder.exists():
        sys.stderr.write("» compiling the router (once for these sources, about a minute)\n")
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as building:
            command = [python, "-m", "hatchling", "build", "--target", "wheel", "--directory", building]
            env = environment() | {"CASCADIA_COMPILE": "1"}
            if subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, check=False).returncode:
                raise SystemExit("the router could not be compiled")
            (wheel,) = Path(building).glob("*.whl")
            unpacked = Path(building, "unpacked")
            zipfile.ZipFile(wheel).extractall(unpacked)
            unpacked.rename(folder)
        for old in sorted(CACHE.iterdir(), key=lambda each: each.stat().st_mtime)[:-KEPT]:
            shutil.rmtree(old)
    return folder


if __name__ == "__main__":
    print(compiled_router())
