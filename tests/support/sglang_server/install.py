"""SGLang for the CPU in an environment of its own, and SmolLM2 as it reads it: both once, in the cache of tools."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from cascadia_api.errors import InputError
from cascadia_local.llamacpp_engine import default_model_file
from tests.support.control_plane.binaries import cache_root
from tests.support.control_plane.locking import exclusively
from tests.support.sglang_parser import SGLANG_VERSION

__all__ = ["HERE", "InstallError", "ensure_sglang_server"]

HERE = Path(__file__).parent
_REQUIREMENTS = HERE / "requirements.txt"
_TIMEOUT_S = 3600.0
_GIGABYTES = 7
_CONVERT = """
import sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
source, target = Path(sys.argv[1]), sys.argv[2]
whole = GgufConfig(dequantize=True)
options = {"gguf_file": source.name, "dtype": torch.bfloat16, "quantization_config": whole}
AutoModelForCausalLM.from_pretrained(source.parent, **options).save_pretrained(target)
AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(target)
"""
"""SGLang reads GGUF with kernels that its CPU build lacks: the weights are written out whole."""


class InstallError(RuntimeError):
    """SGLang could not be installed here; the message says why, or holds the installer's last lines."""


def ensure_sglang_server(environment: Mapping[str, str] | None = None) -> Path:
    """Return the folder with SGLang (`bin/python`) and the model (`model`), installing them first if need be.

    Raises:
        InstallError: This machine cannot run it, or something failed.
    """
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise InstallError(f"it has wheels for Linux on x86-64, and this is {sys.platform} on {platform.machine()}")
    try:
        model = default_model_file()
    except InputError as error:
        raise InstallError(f"{error} (`make engine`)") from None
    cache = cache_root(os.environ if environment is None else environment)
    digest = hashlib.sha256(_REQUIREMENTS.read_bytes() + _CONVERT.encode()).hexdigest()[:16]
    home = cache / f"sglang-server-{SGLANG_VERSION}-py{sys.version_info.major}{sys.version_info.minor}-{digest}"
    if (home / "complete").exists():
        return home
    with exclusively(cache / f".{home.name}.lock", timeout_s=_TIMEOUT_S, what="another installation of SGLang"):
        if not (home / "complete").exists():
            _install(home, model)
    return home


def _install(home: Path, model: Path) -> None:
    # Environments cannot be renamed: the last file says that all others are there.
    shutil.rmtree(home, ignore_errors=True)
    free = shutil.disk_usage(home.parent).free / 1e9
    if free < _GIGABYTES:
        raise InstallError(f"it takes {_GIGABYTES} GB in {home.parent}, where {free:.1f} GB are free")
    print(f"installing SGLang {SGLANG_VERSION} for the CPU ({_GIGABYTES} GB, minutes, once) …", file=sys.stderr)
    _run("the environment", [sys.executable, "-m", "venv", str(home)])
    python = str(home / "bin" / "python")
    # uv, where there is one: its cache serves every environment, and UV_TORCH_BACKEND=cpu has it take the small torch.
    uv = shutil.which("uv", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))))
    installer = [uv, "pip", "install"] if uv else [python, "-m", "pip", "install", "--disable-pip-version-check"]
    install = [*installer, "--quiet", *(("--python", python) if uv else ())]
    _run("SGLang's dependencies", [*install, "--requirement", str(_REQUIREMENTS)])
    _run("SGLang", [*install, "--no-deps", f"sglang=={SGLANG_VERSION}"])
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(HERE / "stand_ins")}
    _run("the model", [python, "-c", _CONVERT, str(model), str(home / "model")], offline)
    (home / "complete").touch()


def _run(what: str, command: list[str], environment: Mapping[str, str] | None = None) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, env=environment)
    except subprocess.TimeoutExpired:
        raise InstallError(f"{what} took over {_TIMEOUT_S:.0f} s to install") from None
    if done.returncode != 0:
        raise InstallError(f"{what} could not be installed:\n{(done.stderr or done.stdout)[-2000:]}")
