"""Fixtures on a real control plane. What cannot be built or started fails the tests; nothing is skipped."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes import client

from tests.support.control_plane import ControlPlane, GpuNodes, ensure_binaries, namespaces
from tests.support.operator_cascades import Cascades
from tests.support.operator_process import OperatorUnderTest

CRDS = sorted((Path(__file__).resolve().parents[2] / "crds").glob("*.yaml"))

_build_failure = pytest.StashKey[Exception]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One process runs all tests on the shared control plane, whatever others do beside it (`--dist loadgroup`)."""
    for item in items:
        if "control_plane" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("control-plane"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build the binaries before the first test: the minutes that takes once should count against no test's timeout."""
    needed = any("control_plane" in getattr(item, "fixturenames", ()) for item in session.items)
    if not needed or session.config.option.collectonly:
        return
    capture = session.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        try:
            ensure_binaries()
        except Exception as error:  # noqa: BLE001  # the fixture raises it in every test that needs the binaries
            session.config.stash[_build_failure] = error


@pytest.fixture(scope="session")
def control_plane(request: pytest.FixtureRequest) -> Iterator[ControlPlane]:
    """The control plane that all tests of a session share, with the project's CRDs and no nodes (see `gpu_nodes`)."""
    failure = request.config.stash.get(_build_failure, None)
    if failure is not None:
        raise failure
    with ControlPlane(crds=CRDS) as running:
        yield running


@pytest.fixture(scope="session")
def api_client(control_plane: ControlPlane) -> Iterator[client.ApiClient]:
    """The official client with all rights on the shared control plane."""
    with control_plane.api() as api:
        yield api


@pytest.fixture
def namespace(api_client: client.ApiClient) -> Iterator[str]:
    """A fresh namespace; its custom resources, workloads and pods are gone before the next test starts."""
    name = namespaces.create(api_client)
    yield name
    namespaces.delete(api_client, name)


@pytest.fixture
def no_nodes(api_client: client.ApiClient) -> Iterator[GpuNodes]:
    """No node yet: the test adds its own with `add`; all of them go with it."""
    nodes = GpuNodes(api_client)
    yield nodes
    nodes.remove_all()


@pytest.fixture
def gpu_nodes(no_nodes: GpuNodes) -> GpuNodes:
    """Two fake nodes, `gpu-0` and `gpu-1`, with eight H100 each; `add` adds more; all of them go with the test."""
    for index in range(2):
        no_nodes.add(f"gpu-{index}")
    return no_nodes


@pytest.fixture
def operator(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[OperatorUnderTest]:
    """The operator for `namespace`; a test starts it, and it ends with the test."""
    running = OperatorUnderTest(control_plane, namespace, tmp_path / "operator.log")
    yield running
    running.stop()


@pytest.fixture
def cascades(api_client: client.ApiClient, namespace: str, operator: OperatorUnderTest) -> Cascades:
    """The cascades of `namespace`, as its user sees them."""
    return Cascades(api_client, namespace, operator)
