"""The certificates and keys of one loopback control plane."""

import base64
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_LIFE = timedelta(days=30)
_CLOCK_SKEW = timedelta(minutes=5)


@dataclass(frozen=True)
class _Subject:
    name: str
    common_name: str
    organisation: str | None = None
    serves: tuple[str, ...] = ()
    """Names that it serves under; empty for one that is only a client."""


_SERVER_NAMES = (
    "127.0.0.1",
    "10.96.0.1",
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
)
_SUBJECTS = (
    _Subject("etcd", "etcd", serves=("127.0.0.1", "localhost")),
    _Subject("apiserver", "kube-apiserver", serves=_SERVER_NAMES),
    _Subject("admin", "admin", organisation="system:masters"),
    _Subject("controller-manager", "system:kube-controller-manager"),
    _Subject("scheduler", "system:kube-scheduler"),
)


class Pki:
    """A certificate authority of its own, and what it has signed, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cascadia-test-ca")])
        self._authority_key = self._new_key("ca")
        self._authority()
        for subject in _SUBJECTS:
            self._sign(subject)
        public = self._new_key("service-account").public_key()
        self.service_account_public.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))

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
        usage = _key_usage(digital_signature=False, key_cert_sign=True, crl_sign=True)
        certificate = (
            self._builder(self._issuer, self._authority_key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .sign(self._authority_key, hashes.SHA256())
        )
        self.certificate("ca").write_bytes(certificate.public_bytes(Encoding.PEM))

    def _sign(self, subject: _Subject) -> None:
        names = [x509.NameAttribute(NameOID.COMMON_NAME, subject.common_name)]
        if subject.organisation:
            names.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, subject.organisation))
        roles = [ExtendedKeyUsageOID.CLIENT_AUTH] + ([ExtendedKeyUsageOID.SERVER_AUTH] if subject.serves else [])
        builder = (
            self._builder(x509.Name(names), self._new_key(subject.name))
            .add_extension(_key_usage(digital_signature=True, key_cert_sign=False, crl_sign=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(roles), critical=False)
        )
        if subject.serves:
            alternatives = [_general_name(name) for name in subject.serves]
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        certificate = builder.sign(self._authority_key, hashes.SHA256())
        self.certificate(subject.name).write_bytes(certificate.public_bytes(Encoding.PEM))

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _CLOCK_SKEW)
            .not_valid_after(now + _LIFE)
        )

    def _new_key(self, name: str) -> ec.EllipticCurvePrivateKey:
        key = ec.generate_private_key(ec.SECP256R1())
        self.key(name).touch(mode=0o600)
        self.key(name).write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()))
        return key


def _general_name(name: str) -> x509.GeneralName:
    return x509.IPAddress(IPv4Address(name)) if name[0].isdigit() else x509.DNSName(name)


def _key_usage(*, digital_signature: bool, key_cert_sign: bool, crl_sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )
