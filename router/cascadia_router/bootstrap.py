"""A router's bootstrap configuration: read, and checked beyond what its types say."""

from __future__ import annotations

from pathlib import Path

import msgspec

from cascadia_api.errors import InputError, Problem
from cascadia_api.policy import RouterConfig

__all__ = ["check_config", "load_config"]


def load_config(path: str) -> RouterConfig:
    """Read a router's configuration.

    Raises:
        InputError: The file cannot be read or does not fit; the message names the field.
    """
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=RouterConfig)
    except OSError as error:
        raise InputError(f"cannot read the configuration: {error.strerror}", source=path) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"the configuration is wrong: {error}", source=path) from None


def check_config(config: RouterConfig) -> None:
    """Check what fields say of each other.

    Raises:
        InputError: They contradict each other; every contradiction is named.
    """
    problems = _leader_problems(config) if config.role == "Leader" else []
    if config.policy_config_map is not None and config.policy_config_map.count("/") != 1:
        problems.append(Problem("policyConfigMap", f"give namespace/name, not {config.policy_config_map!r}"))
    if problems:
        raise InputError(problems)


def _leader_problems(config: RouterConfig) -> list[Problem]:
    problems = []
    if config.client is None and config.peers is None:
        problems.append(Problem("client", "a leader needs a client or a peers address to listen on"))
    elif config.peer_secret_file is None:
        problems.append(Problem("peerSecretFile", "a leader needs the secret that signs requests between routers"))
    if len({config.engine is None, config.stage is None, config.replica is None}) > 1:
        problems.append(Problem("engine", "give engine, stage and replica together, or none for an entry router"))
    elif config.peers is not None and config.engine is None:
        problems.append(Problem("peers", "an entry router has no engine that peers could ask: remove it"))
    if config.api_keys is not None and config.client is None:
        problems.append(Problem("apiKeys", "only a router with a client port checks keys: remove them, or give client"))
    if config.tls is not None and config.client is None:
        problems.append(Problem("tls", "only the client port speaks TLS: remove it, or give client"))
    if config.policy_file is None and config.policy_config_map is None:
        problems.append(Problem("policyFile", "give policyFile or policyConfigMap"))
    return problems
