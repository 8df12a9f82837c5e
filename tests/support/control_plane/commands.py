"""The command lines of a control plane for tests: durability is given up for speed, behaviour is not."""

from pathlib import Path
from typing import Any

from tests.support.control_plane.pki import Pki

_ISSUER = "https://kubernetes.default.svc"


def etcd(folder: Path, pki: Pki, port: int) -> list[str]:
    """etcd for one client on this port, its data in `folder`."""
    client_url = f"https://127.0.0.1:{port}"
    return [
        f"--data-dir={folder / 'etcd'}",
        f"--listen-client-urls={client_url}",
        f"--advertise-client-urls={client_url}",
        # It has no peers: any free port will do, and nobody needs to know it.
        "--listen-peer-urls=http://127.0.0.1:0",
        f"--cert-file={pki.certificate('etcd')}",
        f"--key-file={pki.key('etcd')}",
        f"--trusted-ca-file={pki.certificate('ca')}",
        "--client-cert-auth",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]


def apiserver(pki: Pki, port: int, etcd_port: int) -> list[str]:
    """kube-apiserver on this port of 127.0.0.1, with the authorization and admission of a real cluster."""
    return [
        "--bind-address=127.0.0.1",
        # Without it the server looks for a default route, which a machine without network has not.
        "--advertise-address=127.0.0.1",
        "--endpoint-reconciler-type=none",
        f"--secure-port={port}",
        f"--etcd-servers=https://127.0.0.1:{etcd_port}",
        f"--etcd-cafile={pki.certificate('ca')}",
        f"--etcd-certfile={pki.certificate('etcd')}",
        f"--etcd-keyfile={pki.key('etcd')}",
        f"--tls-cert-file={pki.certificate('apiserver')}",
        f"--tls-private-key-file={pki.key('apiserver')}",
        f"--client-ca-file={pki.certificate('ca')}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        f"--service-account-issuer={_ISSUER}",
        f"--api-audiences={_ISSUER}",
        f"--service-account-key-file={pki.service_account_public}",
        f"--service-account-signing-key-file={pki.key('service-account')}",
        "--service-cluster-ip-range=10.96.0.0/16",
        "--profiling=false",
    ]


def controller_manager(pki: Pki) -> list[str]:
    """kube-controller-manager without a port of its own."""
    return [
        f"--kubeconfig={pki.folder / 'controller-manager.kubeconfig'}",
        "--secure-port=0",
        "--leader-elect=false",
        "--use-service-account-credentials=true",
        f"--root-ca-file={pki.certificate('ca')}",
        f"--service-account-private-key-file={pki.key('service-account')}",
        f"--cluster-signing-cert-file={pki.certificate('ca')}",
        f"--cluster-signing-key-file={pki.key('ca')}",
        "--controllers=*,-node-ipam-controller",
        "--kube-api-qps=200",
        "--kube-api-burst=400",
        # Fake nodes send heartbeats every five minutes only, so that they do not wake whoever watches nodes.
        "--node-monitor-grace-period=1h",
    ]


def scheduler(configuration: Path) -> list[str]:
    """kube-scheduler without a port of its own."""
    return [f"--config={configuration}", "--secure-port=0"]


def scheduler_configuration(pki: Pki) -> dict[str, Any]:
    """The scheduler's defaults, but a pod that did not fit is tried again within a second of a change, not ten."""
    return {
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "leaderElection": {"leaderElect": False},
        "clientConnection": {"kubeconfig": str(pki.folder / "scheduler.kubeconfig")},
        "podInitialBackoffSeconds": 1,
        "podMaxBackoffSeconds": 1,
    }
