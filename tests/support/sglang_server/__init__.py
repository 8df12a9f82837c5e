"""A real SGLang on the CPU with a real small model, for the tests of clients: see `__main__`."""

from tests.support.sglang_server.install import InstallError, ensure_sglang_server
from tests.support.sglang_server.server import ServerError, sglang_server

__all__ = ["InstallError", "ServerError", "ensure_sglang_server", "sglang_server"]
