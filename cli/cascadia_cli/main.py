"""Entry point of `cascadia`: runs one command and turns whatever goes wrong into one clear message.

`cascadia router` and `cascadia operator` are handed on before anything else is imported: a router is
started in every pod and has to be small and quick.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run `cascadia`.

    Args:
        argv: Arguments after the program's name; those of the process where None.

    Returns:
        Exit code: 0 ok, 1 something failed, 2 bad input, 3 infeasible, 130 interrupted.
    """
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:  # while the modules of a command are being loaded
        from cascadia_cli.failures import interrupted

        return interrupted("cascadia")


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
