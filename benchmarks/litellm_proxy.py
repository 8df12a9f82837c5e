"""How `benchmarks/router.py` sets LiteLLM's proxy up: as lean as it goes, and without a word to the network."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

VERSION = "1.106.2"
HEALTH = "/health/liveliness"
START_SECONDS = 120.0
"""Most that its start may take; it imports for some 20 s."""


def find_litellm(given: str | None) -> str | None:
    """The program's path, or None with a word why it is left out."""
    found = shutil.which(given or "litellm")
    if found is None:
        sys.stderr.write(
            f"litellm is not installed: left out (pip install 'litellm[proxy]=={VERSION}' in its own venv)\n"
        )
    return found


def config(engine: int, key: str) -> str:
    """Its config.yaml, in YAML's JSON form: one model, one key, no database, no callbacks.

    Args:
        engine: Port of the OpenAI-compatible engine.
        key: What clients must present: it refuses to start without one, and our router checks one too.
    """
    engine_url = f"http://127.0.0.1:{engine}/v1"
    model = {"model": "openai/m", "api_base": engine_url, "api_key": "none"}
    return json.dumps(
        {
            "model_list": [{"model_name": "chat", "litellm_params": model}],
            "litellm_settings": {"telemetry": False, "set_verbose": False},
            "general_settings": {"master_key": key},
        }
    )


def environment(home: Path) -> dict[str, str]:
    """Its whole environment: no database, proxy or callback of the caller's, and nothing fetched at its start."""
    local = ("MODEL_COST_MAP", "ANTHROPIC_BETA_HEADERS", "AUTOROUTER_PRESETS", "BLOG_POSTS", "POLICY_TEMPLATES")
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(home),
        "LITELLM_MODE": "PRODUCTION",  # otherwise it reads the .env of the working directory
        "LITELLM_LOG": "ERROR",
        **{f"LITELLM_LOCAL_{name}": "True" for name in local},
    }


def arguments(file: Path, port: int) -> list[object]:
    """Its command line: one worker, loopback."""
    where = ["--host", "127.0.0.1", "--port", port, "--num_workers", 1]
    return ["--config", file, *where, "--telemetry", "False"]
