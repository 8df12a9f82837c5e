"""Set-up that all tests share."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import uvloop

# As the solver does, before a test module loads numpy.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def pytest_configure() -> None:
    """See that the compiled router is the one that is tested, where it should be."""
    if os.environ.get("CASCADIA_COMPILED"):
        from cascadia_router import express, http1_server

        for module in (express, http1_server):
            assert str(module.__file__).endswith(".so"), f"{module.__file__} is not compiled"


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], Any]]:
    """Run the router's tests on the loop that it runs on in production."""
    if item.path.name.startswith("test_router"):
        return {"uvloop": uvloop.new_event_loop}
    import asyncio

    return {"asyncio": asyncio.new_event_loop}
