"""Free ports of the loopback interface."""

import random
import socket

# Below the kernel's usual range of outgoing ports (32768 and up): a port found free there can be taken by any outgoing
# connection before its server listens.
_FIRST, _LAST = 20000, 32000


def free_ports(count: int) -> list[int]:
    """Find ports of 127.0.0.1 that nobody listens on, all different.

    They are free when this returns; another process may still take one first, so the caller must be ready to try again.

    Raises:
        OSError: when there are not enough of them.
    """
    held: list[socket.socket] = []
    try:
        for port in random.sample(range(_FIRST, _LAST), 2000):
            if len(held) == count:
                break
            candidate = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            try:
                candidate.bind(("127.0.0.1", port))
            except OSError:
                candidate.close()
            else:
                held.append(candidate)
        if len(held) < count:
            raise OSError(f"no {count} free ports between {_FIRST} and {_LAST} on 127.0.0.1")
        return [holder.getsockname()[1] for holder in held]
    finally:
        for holder in held:
            holder.close()
