"""The certificates and keys of one loopback control plane, made with the openssl command."""

import base64
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import yaml

_TIMEOUT_S = 30.0
_DAYS = "30"


class PkiError(RuntimeError):
    """A key or certificate could not be made; the message quotes openssl."""


@dataclass(frozen=True)
class _Subject:
    name: str
    subject: str
    usage: str
    alternative_names: str = ""


_SERVER_NAMES = (
    "IP:127.0.0.1,IP:10.96.0.1,DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,"
    "DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local"
)
_SUBJECTS = (
    _Subject("etcd", "/CN=etcd", "serverAuth,clientAuth", "IP:127.0.0.1,DNS:localhost"),
    _Subject("apiserver", "/CN=kube-apiserver", "serverAuth,clientAuth", _SERVER_NAMES),
    _Subject("admin", "/O=system:masters/CN=admin", "clientAuth"),
    _Subject("controller-manager", "/CN=system:kube-controller-manager", "clientAuth"),
    _Subject("scheduler", "/CN=system:kube-scheduler", "clientAuth"),
)


class Pki:
    """A certificate authority of its own, and what it has signed, in one folder.

    Raises:
        PkiError: when openssl is missing or fails.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        openssl = shutil.which("openssl")
        if openssl is None:
            raise PkiError("the openssl command is missing: install the package openssl")
        self._openssl = openssl
        self._authority()
        for subject in _SUBJECTS:
            self._sign(subject)
        self._key("service-account")
        self._run("pkey", "-in", str(self.key("service-account")), "-pubout", "-out", str(self.service_account_public))

    @property
    def service_account_public(self) -> Path:
        """The public key against which service account tokens are checked."""
        return self.folder / "service-account.pub"

    def key(self, name: str) -> Path:
        """The private key of a subject."""
        return self.folder / f"{name}.key"

    def certificate(self, name: str) -> Path:
        """The certificate of a subject; `ca` is the authority's."""
        return self.folder / f"{name}.crt"

    def kubeconfig(self, user: str, port: int) -> Path:
        """Write a kubeconfig that needs no other file, for `user` at the API server on this port of 127.0.0.1."""

        def inline(path: Path) -> str:
            return base64.b64encode(path.read_bytes()).decode()

        server = {
            "server": f"https://127.0.0.1:{port}",
            "certificate-authority-data": inline(self.certificate("ca")),
        }
        credentials = {
            "client-certificate-data": inline(self.certificate(user)),
            "client-key-data": inline(self.key(user)),
        }
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "cascadia-test", "cluster": server}],
            "users": [{"name": user, "user": credentials}],
            "contexts": [{"name": "cascadia-test", "context": {"cluster": "cascadia-test", "user": user}}],
            "current-context": "cascadia-test",
        }
        path = self.folder / f"{user}.kubeconfig"
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        return path

    def _authority(self) -> None:
        self._key("ca")
        self._run(
            *("req", "-x509", "-new", "-key", str(self.key("ca")), "-subj", "/CN=cascadia-test-ca", "-days", _DAYS),
            *("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign"),
            *("-out", str(self.certificate("ca"))),
        )

    def _sign(self, subject: _Subject) -> None:
        self._key(subject.name)
        request = self.folder / f"{subject.name}.csr"
        extensions = self.folder / f"{subject.name}.ext"
        names = f"subjectAltName={subject.alternative_names}\n" if subject.alternative_names else ""
        extensions.write_text(f"keyUsage=critical,digitalSignature\nextendedKeyUsage={subject.usage}\n{names}")
        self._run("req", "-new", "-key", str(self.key(subject.name)), "-subj", subject.subject, "-out", str(request))
        self._run(
            *("x509", "-req", "-in", str(request), "-CA", str(self.certificate("ca")), "-CAkey", str(self.key("ca"))),
            *("-CAcreateserial", "-days", _DAYS, "-extfile", str(extensions)),
            *("-out", str(self.certificate(subject.name))),
        )

    def _key(self, name: str) -> None:
        self._run("ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", str(self.key(name)))

    def _run(self, *arguments: str) -> None:
        try:
            result = subprocess.run(
                [self._openssl, *arguments], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise PkiError(f"openssl {arguments[0]} took longer than {_TIMEOUT_S:g} s") from error
        if result.returncode != 0:
            raise PkiError(f"openssl {arguments[0]} failed: {result.stderr.strip()}")
