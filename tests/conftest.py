"""Set-up that all tests share."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import uvloop

# As the solver does, before a test module loads numpy.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], Any]]:
    """Run the router's tests on the loop that it runs on in production."""
    if item.path.name.startswith("test_router"):
        return {"uvloop": uvloop.new_event_loop}
    import asyncio

    return {"asyncio": asyncio.new_event_loop}
