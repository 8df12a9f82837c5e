"""Runs a module as a child process that ends with its parent: ``python -m cascadia_local.child PID MODULE ARGS…``.

The kernel's "die with the parent" is asked for here, by the child itself: `subprocess`' ``preexec_fn``
is unsafe in a process with threads, and a wrapper program would cost one more interpreter start for
each of the dozens of processes of a run.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys

PR_SET_PDEATHSIG = 1
"""From <linux/prctl.h>: the signal to get when the parent's thread that started us ends."""


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, however that happens (Linux; nothing elsewhere)."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it was gone before we asked
        sys.exit("the parent process is gone")


def main() -> None:
    """Run the module named on the command line."""
    parent, module = int(sys.argv[1]), sys.argv[2]
    die_with_parent(parent)
    sys.argv = [module, *sys.argv[3:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
