"""The bootstrap configuration of the router beside an engine.

It travels as two annotations of the pod template, one for rank 0 and one for the ranks above, and reaches
the container through a downward-API volume with one file a rank. So it changes together with the pod it
belongs to, never under a running one, and no ConfigMap per replica is needed.
"""

from __future__ import annotations

import msgspec

from cascadia_api.names import ADMIN_PORT, CLIENT_PORT, ENGINE_PORT, GROUP, PEERS_PORT, POLICY_KEY
from cascadia_api.policy import RouterConfig, TlsFiles

__all__ = [
    "API_KEYS_FOLDER",
    "FOLLOWER_ANNOTATION",
    "LEADER_ANNOTATION",
    "PEER_SECRET_FOLDER",
    "PEER_SECRET_KEY",
    "POLICY_FOLDER",
    "ROUTER_CONFIG_FOLDER",
    "SECRETS_FOLDER",
    "TLS_FOLDER",
    "router_annotations",
]

LEADER_ANNOTATION = f"{GROUP}/router-leader"
FOLLOWER_ANNOTATION = f"{GROUP}/router-follower"
ROUTER_CONFIG_FOLDER = "/etc/cascadia/router"
POLICY_FOLDER = "/etc/cascadia/policy"
API_KEYS_FOLDER = "/etc/cascadia/keys"
TLS_FOLDER = "/etc/cascadia/tls"
SECRETS_FOLDER = "/etc/cascadia/scorers"
PEER_SECRET_FOLDER = "/etc/cascadia/peers"  # noqa: S105 - a folder, not a secret
PEER_SECRET_KEY = "secret"  # noqa: S105 - the key's name

_ENGINE = f"127.0.0.1:{ENGINE_PORT}"
_ADMIN = f"0.0.0.0:{ADMIN_PORT}"


def router_annotations(
    *, stage: str, replica: str, policy: str, nodes: int, api_keys: bool, tls: bool, secrets: bool
) -> dict[str, str]:
    """Annotations of the pod template that hold the routers' configuration.

    Args:
        stage: Stage of the engine.
        replica: Name of the replica, as the policy's endpoints name it.
        policy: ``namespace/name`` of the policy ConfigMap.
        api_keys: Whether clients need a key.
        tls: Whether clients come over TLS.
        secrets: Whether the scorer, or the collector of traces, needs keys or certificates.
        nodes: Pods of the replica; followers are configured only where there are any.
    """
    leader = RouterConfig(
        stage=stage,
        replica=replica,
        engine=_ENGINE,
        client=f"0.0.0.0:{CLIENT_PORT}",
        peers=f"0.0.0.0:{PEERS_PORT}",
        admin=_ADMIN,
        policy_file=f"{POLICY_FOLDER}/{POLICY_KEY}",
        policy_config_map=policy,
        peer_secret_file=f"{PEER_SECRET_FOLDER}/{PEER_SECRET_KEY}",
        api_keys=[API_KEYS_FOLDER] if api_keys else None,
        tls=TlsFiles(certificate=f"{TLS_FOLDER}/tls.crt", key=f"{TLS_FOLDER}/tls.key") if tls else None,
        secrets=SECRETS_FOLDER if secrets else None,
    )
    annotations = {LEADER_ANNOTATION: _document(leader)}
    if nodes > 1:
        follower = RouterConfig(stage=stage, replica=replica, engine=_ENGINE, role="Follower", admin=_ADMIN)
        annotations[FOLLOWER_ANNOTATION] = _document(follower)
    return annotations


def _document(config: RouterConfig) -> str:
    """Write the fields that differ from their defaults: a default of a later version then changes no pod."""
    defaults = msgspec.to_builtins(RouterConfig(admin=config.admin))
    said = {k: v for k, v in msgspec.to_builtins(config).items() if k == "admin" or v != defaults[k]}
    return msgspec.json.encode(said).decode()
