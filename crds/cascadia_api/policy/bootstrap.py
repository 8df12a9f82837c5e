"""A router's own configuration, fixed for the life of its process."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from cascadia_api.policy.text import Address, NonEmpty, check_port

__all__ = ["RouterConfig", "TlsFiles"]


class TlsFiles(Struct, frozen=True, rename="camel", kw_only=True):
    """A certificate and its key, PEM; both are watched.

    Attributes:
        certificate: File with the certificate and the intermediate ones after it.
        key: File with its private key, without a password.
    """

    certificate: Annotated[str, Meta(min_length=1)]
    key: Annotated[str, Meta(min_length=1)]


class RouterConfig(Struct, frozen=True, rename="camel", kw_only=True):
    """Bootstrap of one router process, fixed for its life.

    Attributes:
        stage: Stage of the engine beside this router; None for an entry router without an engine,
            which relays every request to the first live stage.
        replica: This replica's name, as in `Endpoint.replica`; None for an entry router.
        engine: ``host:port`` of the engine beside it; None for an entry router or a follower.
        role: ``Leader`` serves; ``Follower`` (rank > 0 of a multi-node replica) only answers probes.
        client: ``host:port`` to listen on for clients.
        peers: ``host:port`` to listen on for other routers of the cascade (the *stage port*).
        admin: ``host:port`` for probes, metrics, report and drain.
        policy_file: File that holds the policy: watched, and read at a cold start.
        policy_config_map: ``namespace/name`` of the ConfigMap to watch in a cluster (key
            ``policy.json``); `policy_file` then serves a cold start only.
        peer_secret_file: File with the secret that signs what routers send each other.
        api_keys: Files, and folders of files, with the API keys of clients (``cascadia_router.api_keys`` says
            how); they are watched. None: whoever reaches the client port is served.
        tls: What the client port shows; None: it speaks plain HTTP, as the other ports always do.
        secrets: Folder with the files that scorers' endpoints and the collector of traces name: API keys,
            headers and certificates. ``scorerSecrets`` in files: older routers read that, and running pods keep it.
        clock_scale: Service seconds per wall second (1 in a cluster).
        clock_epoch: See `ScaledClock.epoch`.
        max_body_bytes: Largest request body that is taken; a larger one is refused with 413.
    """

    stage: NonEmpty | None = None
    replica: NonEmpty | None = None
    engine: Address | None = None
    role: Literal["Leader", "Follower"] = "Leader"
    client: Address | None = None
    peers: Address | None = None
    admin: Address
    policy_file: str | None = None
    policy_config_map: str | None = None
    peer_secret_file: str | None = None
    secrets: str | None = field(default=None, name="scorerSecrets")
    api_keys: Annotated[list[str], Meta(min_length=1, max_length=16)] | None = None
    tls: TlsFiles | None = None
    clock_scale: Annotated[float, Meta(gt=0)] = 1.0
    clock_epoch: float = 0.0
    max_body_bytes: Annotated[int, Meta(ge=1024)] = 8 * 1024 * 1024

    def __post_init__(self) -> None:
        """Check the ports."""
        for name in ("engine", "client", "peers", "admin"):
            check_port(name, getattr(self, name))
