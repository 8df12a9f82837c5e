"""`python -m tests.fuzz --seconds 600`: throw messages at the router until the time is over, or something breaks."""

from __future__ import annotations

import argparse
import logging
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz import checks, messages

__all__ = ["TARGETS", "attempts", "main"]

_CUTS = st.lists(st.integers(0, 400), max_size=6)
_PATHS = st.sampled_from([b"/v1/chat/completions", b"/v1/completions", b"/v1/responses"])
_ASKED = st.sampled_from([b'{"model":"chat","messages":[]}', b'{"model":"chat","messages":[],"stream":true}'])

TARGETS: dict[str, tuple[st.SearchStrategy[Any], Callable[..., None]]] = {
    "requests": (st.tuples(messages.request_streams, _CUTS), checks.check_requests),
    "answers": (st.tuples(messages.answers, _CUTS), checks.check_answer),
    "bodies": (st.tuples(_PATHS, messages.bodies), checks.check_body),
    "engines": (st.tuples(_ASKED, messages.answers), checks.check_engine),
    "hops": (st.tuples(messages.hops, messages.bodies), checks.check_hop),
}
"""What is thrown, and what must hold then, by name."""


def attempts(name: str, limits: settings) -> Callable[[], None]:
    """Throw as much at a target as the settings say."""
    thrown, check = TARGETS[name]
    return limits(given(thrown)(lambda values: check(*values)))


_ROUND = settings(
    max_examples=500,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink],
)


def main() -> int:
    """Run; return 1 if something broke (hypothesis prints the smallest message that breaks it)."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long")
    parser.add_argument("--seed", type=int, default=None, help="to run the same again")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; all by default")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    names = arguments.targets or list(TARGETS)
    first = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(2**32)
    until, rounds, settled_mb = time.monotonic() + arguments.seconds, Counter[str](), 0.0
    while time.monotonic() < until:
        for name in names:
            number = first + rounds[name]
            try:
                seed(number)(attempts(name, _ROUND))()
            except Exception:
                sys.stderr.write(f"{name} broke: python -m tests.fuzz --seed {number} {name}\n")
                raise
            rounds[name] += 1
        settled_mb = settled_mb or _peak_mb()
    grown = _peak_mb() - settled_mb
    said = ", ".join(f"{name} {count * 500}" for name, count in rounds.items())
    sys.stdout.write(f"messages: {said}; nothing broke; peak memory grew by {grown:.1f} MB after the first round\n")
    return 0


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    sys.exit(main())
