"""Compiles the router's request path into the wheel: `CASCADIA_COMPILE=1 pip wheel .` (a C compiler is needed).

Without the variable the wheel is plain Python, and the editable installation of developers always is. Compiled
modules behave as their sources, which stay beside them in the wheel; `make compiled` holds them to that.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SWITCH = "CASCADIA_COMPILE"
SOURCES = ("crds/cascadia_api", "router/cascadia_router")
_SETUP = """
import setuptools
from mypyc.build import mypycify

options = ["--strict", "--config-file=", "--ignore-missing-imports", "--namespace-packages", "--explicit-package-bases"]
setuptools.setup(
    name="compiled", packages=[], ext_modules=mypycify([*options, *{modules!r}], opt_level="3", debug_level="0")
)
"""


class CompileRouter(BuildHookInterface[Any]):
    """Hatch's hook: `modules` in pyproject.toml are those that are compiled, relative to `cascadia_router`."""

    def _compiles(self) -> bool:
        return self.target_name == "wheel" and os.environ.get(SWITCH, "0") not in {"", "0"}

    def dependencies(self) -> list[str]:
        """What the build needs beyond hatchling: all that tells mypy the types."""
        wanted = ("mypy", "msgspec", "uvloop", "httptools")
        stated = [*self.metadata.core.dependencies, *self.metadata.core.optional_dependencies["dev"]]
        return ["setuptools>=77", *(each for each in stated if each.startswith(wanted))] if self._compiles() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and add what was compiled to the wheel."""
        if version == "editable" or not self._compiles():
            return
        compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
        header = Path(sysconfig.get_path("include"), "Python.h")
        if shutil.which(compiler) is None:
            sys.exit(f"{SWITCH}=1 needs a C compiler, and there is no {compiler!r}: install one, or unset {SWITCH}.")
        if not header.exists():
            sys.exit(f"{SWITCH}=1 needs Python's headers, and there is no {header}: install them, or unset {SWITCH}.")
        self._folder = tempfile.TemporaryDirectory(prefix="cascadia-compile-")  # until the wheel is packed
        folder = Path(self._folder.name)
        for source in SOURCES:
            ignored = shutil.ignore_patterns("__pycache__", "*.so")
            shutil.copytree(Path(self.root, source), folder / Path(source).name, ignore=ignored)
        modules = [f"cascadia_router/{name}.py" for name in self.config["modules"]]
        (folder / "setup.py").write_text(_SETUP.format(modules=modules))
        command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
        done = subprocess.run(command, cwd=folder, check=False, text=True, capture_output=True)
        if done.returncode:
            sys.exit(f"the router's modules could not be compiled:\n{(done.stdout + done.stderr)[-4000:]}")
        shutil.rmtree(folder / "build")
        made = list(folder.rglob(f"*{sysconfig.get_config_var('EXT_SUFFIX')}"))
        build_data["force_include"] |= {str(path): str(path.relative_to(folder)) for path in made}
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Remove what was only needed to build."""
        if version != "editable" and self._compiles():
            self._folder.cleanup()
