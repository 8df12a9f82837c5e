"""Who is let in: keys from files, by digest, as they are now."""

import hashlib
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascadia_router.api_keys import ApiKeys
from cascadia_router.clients import Clients
from tests.support.mounted_secret import MountedSecret

OLD, NEW, OTHER = b"sk-old-0123456789abcdef", b"sk-new-0123456789abcdef", b"sk-other-0123456789abc"


def who(clients: Clients, key: bytes) -> str | None:
    client = clients.of(b"Bearer " + key)
    return client.id if client is not None else None


def clients_of(*sources: Path) -> Clients:
    clients = Clients(ApiKeys([str(source) for source in sources]))
    clients.keys.read()
    return clients


def test_a_mounted_secret_is_followed_without_a_pause(tmp_path: Path) -> None:
    mount = MountedSecret(tmp_path / "keys")
    mount.put(team=OLD, other=b"sha256:" + hashlib.sha256(OTHER).hexdigest().encode())
    clients = clients_of(mount.path)
    assert (who(clients, OLD), who(clients, OTHER), who(clients, NEW)) == ("team", "other", None)
    team = clients.of(b"Bearer " + OLD)

    mount.put(team=b"# both, until all have the new one\n" + OLD + b"\n" + NEW + b"\n", other=OTHER)
    clients.keys.read()
    assert who(clients, OLD) == who(clients, NEW) == "team"
    assert clients.of(b"Bearer " + NEW) is team, "a rotation keeps the client's counts"

    mount.put(team=NEW)
    clients.keys.read()
    assert (who(clients, OLD), who(clients, NEW), who(clients, OTHER)) == (None, "team", None)
    assert [client.id for client in clients.all()] == ["team"]


def test_what_cannot_be_read_changes_nothing_and_what_is_empty_lets_nobody_in(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    clients = clients_of(file)
    assert not clients.keys.known
    assert who(clients, OLD) is None
    file.write_bytes(OLD)
    clients.keys.read()
    assert clients.keys.known
    assert who(clients, OLD) == "keys"
    file.unlink()
    clients.keys.read()
    assert who(clients, OLD) == "keys"
    file.write_bytes(b"\n# nobody\n")
    clients.keys.read()
    assert clients.keys.known
    assert who(clients, OLD) is None


def test_a_bad_line_is_named_without_its_text_and_the_others_hold(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys"
    file.write_bytes(b"short\n" + OLD + b"\nsha256:abc\nwith space 0123456789\n\xff\xfe0123456789abcdef\n" + b"k" * 600)
    with caplog.at_level(logging.DEBUG):
        clients = clients_of(file)
    assert who(clients, OLD) == "keys"
    assert len(clients.keys.ids) == 1
    refused = [record for record in caplog.records if record.message == "API key refused"]
    assert [vars(record)["fields"]["line"] for record in refused] == [1, 3, 4, 5, 6]
    told = str([vars(record) for record in caplog.records])
    assert not any(text in told for text in ("short", "with space", "kkkk", OLD.decode()))


def test_no_key_is_kept_in_memory(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_bytes(OLD)
    clients = clients_of(file)
    assert who(clients, OLD) == "keys"
    assert who(clients, NEW) is None
    held = [getattr(each, name) for each in (clients, clients.keys) for name in dir(each) if not name.startswith("__")]
    kept = repr(held)
    assert OLD.decode() not in kept
    assert NEW.decode() not in kept


@given(st.binary(max_size=60) | st.builds(lambda scheme, key: scheme + key, st.binary(max_size=8), st.just(OLD)))
def test_only_a_bearer_of_a_key_is_known(header: bytes) -> None:
    clients = Clients(ApiKeys([]))
    clients.keys.ids = {hashlib.sha256(OLD).digest(): "team"}
    scheme, _, key = header.partition(b" ")
    valid = scheme.lower() == b"bearer" and key.strip(b" \t") == OLD
    assert (clients.of(header) is not None) == valid
