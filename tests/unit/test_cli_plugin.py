"""The kubectl plugin against a small stand-in for the API server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from cascadia_cli.main import kubectl_plugin as main
from tests.support.manifests import cascade_manifest
from tests.support.plans import example_plan

BASE = "/apis/cascadia.dev/v1alpha1/namespaces/serving"
PLAN = "chat-0123456789ab"


class ApiServer(ThreadingHTTPServer):
    """Serves the objects in `objects` and keeps the patches that it is sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, dict[str, Any]] = {}
        self.patches: list[tuple[str, dict[str, Any]]] = []


class _Handler(BaseHTTPRequestHandler):
    server: ApiServer

    def do_GET(self) -> None:
        found = self.server.objects.get(self.path)
        self._answer(200 if found else 404, found or {"kind": "Status", "message": "not found"})

    def do_POST(self) -> None:
        self._body()
        self._answer(201, {"status": {"userInfo": {"username": "ada"}}})

    def do_PATCH(self) -> None:
        body = self._body()
        if self.path.startswith(f"{BASE}/cascadeplans/forbidden"):
            self._answer(403, {"kind": "Status", "message": "ada cannot patch cascadeplans/status"})
            return
        self.server.patches.append((self.path, body))
        self._answer(200, {})

    def _body(self) -> dict[str, Any]:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert isinstance(body, dict)
        return body

    def _answer(self, status: int, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...


def cascade_plan(phase: str) -> dict[str, Any]:
    plan = example_plan(stages=[s.model_dump(by_alias=True) for s in example_plan().stages])
    return {
        "apiVersion": "cascadia.dev/v1alpha1",
        "kind": "CascadePlan",
        "metadata": {"name": PLAN, "namespace": "serving"},
        "spec": {"plan": plan.for_kubernetes(), "generation": 1, "trigger": "Drift"},
        "status": {"phase": phase},
    }


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    with ApiServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "test",
                    "contexts": [
                        {"name": "test", "context": {"cluster": "test", "user": "ada", "namespace": "serving"}}
                    ],
                    "clusters": [
                        {"name": "test", "cluster": {"server": f"http://127.0.0.1:{server.server_address[1]}"}}
                    ],
                    "users": [{"name": "ada", "user": {"token": "t"}}],
                }
            )
        )
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        document = cascade_manifest()
        document["metadata"]["namespace"] = "serving"
        document["status"] = {"proposedPlan": PLAN, "observedGeneration": 1}
        server.objects[f"{BASE}/cascadedeployments/chat"] = document
        server.objects[f"{BASE}/cascadeplans/{PLAN}"] = cascade_plan("Proposed")
        yield server
        server.shutdown()
        thread.join(timeout=10)


def test_status_as_json_and_as_text(server: ApiServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "chat", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["proposedPlan"] == PLAN
    assert main(["status", "chat"]) == 0
    assert f"kubectl cascadia approve {PLAN}" in capsys.readouterr().out


def test_plan_in_force_and_proposed(server: ApiServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "chat"]) == 2
    assert "chat has no plan yet" in capsys.readouterr().err
    assert main(["plan", "chat", "--proposed", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == example_plan().for_json()
    assert main(["plan", "chat", "--proposed"]) == 0
    assert "2 × TP8 + 1 × TP4" in capsys.readouterr().out


def test_approval_is_written_to_the_status_with_the_users_name(
    server: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["approve", PLAN]) == 0
    assert capsys.readouterr().out == f"{PLAN} approved by ada\n"
    assert server.patches == [
        (f"{BASE}/cascadeplans/{PLAN}/status", {"status": {"phase": "Approved", "approvedBy": "ada"}})
    ]


def test_only_proposed_plans_are_approved(server: ApiServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.objects[f"{BASE}/cascadeplans/{PLAN}"] = cascade_plan("Superseded")
    assert main(["approve", PLAN]) == 2
    assert f"{PLAN} is Superseded: only a proposed plan can be approved" in capsys.readouterr().err
    assert server.patches == []


def test_refusals_and_absences_are_told_in_one_line(server: ApiServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "chatt"]) == 2
    err = capsys.readouterr().err
    assert err == "kubectl cascadia: CascadeDeployment chatt is not in namespace serving: check the name, or give -n\n"
    server.objects[f"{BASE}/cascadeplans/forbidden"] = cascade_plan("Proposed")
    assert main(["approve", "forbidden"]) == 1
    assert "403 Forbidden: ada cannot patch cascadeplans/status" in capsys.readouterr().err


def test_without_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    assert main(["status", "chat"]) == 2
    assert "give --kubeconfig and --context, or set KUBECONFIG" in capsys.readouterr().err
