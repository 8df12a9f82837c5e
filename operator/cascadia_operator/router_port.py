"""Asks a router on its admin port: one request, with a deadline and a limit to the answer's size."""

from __future__ import annotations

import time
from http.client import HTTPConnection, HTTPException

from cascadia_api.names import ADMIN_PORT
from cascadia_operator.cluster import Object

__all__ = ["ask_router"]

_CHUNK_BYTES = 65_536


def ask_router(pod: Object, path: str, *, seconds: float, most_bytes: int) -> tuple[int, bytes]:
    """GET a path of a pod's router; blocks. No proxy is used: pods are in the cluster.

    Args:
        pod: The router's.
        path: On the admin port.
        seconds: For the whole answer, and the longest silence in it.
        most_bytes: Of the answer's body.

    Returns:
        Status and body.

    Raises:
        OSError: There was no answer in time, none that is HTTP, or too long a one.
    """
    address = (pod.get("status") or {}).get("podIP")
    if not address:
        raise ConnectionError("the pod has no address")
    end = time.monotonic() + seconds
    connection = HTTPConnection(address, ADMIN_PORT, timeout=seconds)
    try:
        connection.connect()
        connection.request("GET", path, headers={"Connection": "close"})
        answer = connection.getresponse()
        body = bytearray()
        while part := answer.read1(_CHUNK_BYTES):
            body += part
            if len(body) > most_bytes:
                raise ConnectionError(f"the answer is longer than {most_bytes} bytes")
            if time.monotonic() > end:
                raise TimeoutError(f"the answer took longer than {seconds:g} s")
        if answer.length:
            raise ConnectionError("the answer was cut off")
        return answer.status, bytes(body)
    except HTTPException as error:
        raise ConnectionError(f"the answer is no HTTP: {error!r}") from None
    finally:
        connection.close()
