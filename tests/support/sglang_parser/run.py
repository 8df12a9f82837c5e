"""Hands command lines to SGLang's parser, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CHILD = Path(__file__).with_name("child.py")
_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Parsed:
    """What SGLang makes of one command line.

    Attributes:
        values: Every option's value by its name in the parser; empty if the line was refused.
        error: What the parser said when it refused the line.
    """

    values: dict[str, Any]
    error: str


def parse(sglang: Path, lines: Sequence[Sequence[str]]) -> list[Parsed]:
    """Parse argument lists (without the program) by SGLang's own parser, abbreviations not allowed.

    Args:
        sglang: The folder of `ensure_sglang`.
        lines: One argument list each.

    Raises:
        RuntimeError: SGLang's parser could not be built.
    """
    # Isolated and without site-packages: nothing that happens to be installed here takes part.
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(_CHILD), str(sglang)],
        input=json.dumps([list(line) for line in lines]),
        env={"SGLANG_USE_CPU_ENGINE": "1"},
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"SGLang's parser could not be built:\n{done.stderr[-3000:]}")
    return [Parsed(**one) for one in json.loads(done.stdout.splitlines()[-1])]
