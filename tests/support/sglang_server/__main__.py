"""Run the tests of clients, and of clients that leave, on a real SGLang: `python -m tests.support.sglang_server`.

Arguments are pytest's. Exit code 2: it cannot run here; the message says why.
"""

from __future__ import annotations

import os
import subprocess
import sys

from tests.support.sglang_server import InstallError, ServerError, ensure_sglang_server, sglang_server

_TESTS = ("tests/integration/test_router_clients.py", "tests/integration/test_router_disconnects_real.py")


def main() -> int:
    """Install, start, test; returns pytest's exit code, or 2."""
    try:
        home = ensure_sglang_server()
        with sglang_server(home) as address:
            print(f"SGLang with SmolLM2-135M-Instruct answers on {address}", flush=True)
            command = [sys.executable, "-m", "pytest", "--numprocesses", "0", "-k", "given", *_TESTS, *sys.argv[1:]]
            return subprocess.run(command, env=os.environ | {"CASCADIA_TEST_ENGINE": address}, check=False).returncode
    except (InstallError, ServerError) as error:
        print(f"SGLang cannot run here: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
