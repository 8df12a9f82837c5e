"""Install the clients: `python -m tests.support.node_clients`."""

from tests.support.node_clients import ensure_clients

print(f"JavaScript clients: {ensure_clients()}")
