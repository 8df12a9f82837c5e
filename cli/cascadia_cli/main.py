"""Entry points of `cascadia` and `kubectl cascadia`: run one command, turn what goes wrong into one clear message.

`cascadia router` and `cascadia operator` are handed on before anything else is imported: a router is
started in every pod and has to be small and quick.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

__all__ = ["kubectl_plugin", "main"]

KUBECTL = "kubectl cascadia"


def main(argv: Sequence[str] | None = None) -> int:
    """Run `cascadia`.

    Args:
        argv: Arguments after the program's name; those of the process where None.

    Returns:
        Exit code: 0 ok, 1 something failed, 2 bad input, 3 infeasible, 130 interrupted.
    """
    return _interruptible("cascadia", lambda: _run(list(sys.argv[1:] if argv is None else argv)))


def kubectl_plugin(argv: Sequence[str] | None = None) -> int:
    """Run `kubectl cascadia`; arguments and exit codes as for `main`."""
    return _interruptible(KUBECTL, lambda: _run_plugin(list(sys.argv[1:] if argv is None else argv)))


def _interruptible(program: str, run: Callable[[], int]) -> int:
    try:
        return run()
    except KeyboardInterrupt:  # while the modules of a command are being loaded
        from cascadia_cli.failures import interrupted

        return interrupted(program)


def _run_plugin(arguments: list[str]) -> int:
    from cascadia_cli.failures import run_command
    from cascadia_cli.plugin import plugin

    return run_command(plugin, arguments, program=KUBECTL)


def _run(arguments: list[str]) -> int:
    if arguments[:1] == ["router"]:
        from cascadia_router.main import main as router

        return router(arguments[1:])
    if arguments[:1] == ["operator"]:
        from cascadia_operator.main import main as operator

        return operator(arguments[1:])
    from cascadia_cli.app import app
    from cascadia_cli.failures import run_command

    return run_command(app, arguments, program="cascadia")


if __name__ == "__main__":
    sys.exit(main())
