"""What one router tells the next about a request, and the signature that lets it believe it.

Two headers go with a request on the stage port:

* ``x-cascadia-hop``: base64 of a JSON array, the `Hop`;
* ``x-cascadia-signature``: hex HMAC-SHA256, under the cascade's peer secret, of the path, the hop header's
  bytes, and the whole body, a zero byte between them.

So a client who reaches the stage port cannot enter in the middle of the cascade, choose a stage or
lengthen a deadline, and a captured header fits no other body or path. Each signature is new, for it has the
time in it: a receiver takes it for a minute, and once. Keeping captured traffic secret is the network's part.
"""

from __future__ import annotations

import binascii
import hmac
from collections.abc import Sequence
from typing import Final

import msgspec

from cascadia_router.hop import Hop

__all__ = ["MAX_SKEW_SECONDS", "Hop", "PeerSecrets", "SignatureError"]

MAX_SKEW_SECONDS: Final = 60.0
"""Most by which a hop's `signed_at` may differ from the receiver's clock, wall s."""
_REMEMBERED: Final = 16_384
"""Signatures of one generation; two are remembered."""


_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(Hop)


class SignatureError(ValueError):
    """The hop's headers are missing, malformed, stale or not signed with our secret."""


class PeerSecrets:
    """The secrets of a cascade's routers: the first one signs, and all of them are believed.

    Two at a time let a secret be changed while requests travel: every router believes the new one before
    the first router signs with it.

    Args:
        secrets: At least one.
    """

    def __init__(self, secrets: Sequence[bytes]) -> None:
        self._seen: set[bytes] = set()
        self._seen_before: set[bytes] = set()
        self.use(secrets)

    def use(self, secrets: Sequence[bytes]) -> None:
        """Have other secrets from now on."""
        self._keyed = [hmac.new(secret, digestmod="sha256") for secret in secrets]

    @staticmethod
    def _mac(keyed: hmac.HMAC, path: bytes, hop: bytes, body: bytes) -> bytes:
        mac = keyed.copy()  # with the key already in it: a third cheaper than from the start
        mac.update(b"%s\0%s\0" % (path, hop))
        mac.update(body)
        return mac.hexdigest().encode()

    def sign(self, hop: Hop, path: bytes, body: bytes) -> bytes:
        """Return the two header lines for a hop, each ending in CRLF."""
        header = binascii.b2a_base64(_encoder.encode(hop), newline=False)
        mac = self._mac(self._keyed[0], path, header, body)
        return b"x-cascadia-hop: %s\r\nx-cascadia-signature: %s\r\n" % (header, mac)

    def verify(self, headers: dict[bytes, bytes], path: bytes, body: bytes, now: float) -> Hop:
        """Read and check a hop.

        Args:
            headers: The request's, names in lower case.
            path: The request's.
            body: The request's.
            now: Wall clock, Unix s.

        Raises:
            SignatureError: The hop must not be believed.
        """
        header = headers.get(b"x-cascadia-hop")
        signature = headers.get(b"x-cascadia-signature")
        if header is None or signature is None:
            raise SignatureError("the request carries no signed hop")
        if not any(hmac.compare_digest(self._mac(keyed, path, header, body), signature) for keyed in self._keyed):
            raise SignatureError("the hop's signature is wrong")
        try:
            hop = _decoder.decode(binascii.a2b_base64(header))
        except (msgspec.DecodeError, binascii.Error) as error:
            raise SignatureError(f"the hop cannot be read: {error}") from None
        if abs(now - hop.signed_at) > MAX_SKEW_SECONDS:
            raise SignatureError(f"the hop was signed over {MAX_SKEW_SECONDS:g} s ago, or in the future")
        self._take_once(signature)
        return hop

    def _take_once(self, signature: bytes) -> None:
        if signature in self._seen or signature in self._seen_before:
            raise SignatureError("the hop was used before")
        if len(self._seen) >= _REMEMBERED:
            self._seen, self._seen_before = set(), self._seen
        self._seen.add(signature)
