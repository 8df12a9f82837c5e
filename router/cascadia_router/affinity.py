"""Prefix affinity: conversations that begin alike go to the same replica, whose engine has their prefix cached.

Weighted rendezvous hashing: each replica's place in a conversation's order depends on the two alone, so every
router finds the same one without a word, and when a replica comes or goes only its own share moves. The load
is bounded: a replica that holds more than `SLACK` times its share is passed over for the next in that order.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from cascadia_router.balancing import Replica

__all__ = ["SLACK", "nearest"]

SLACK = 1.25
"""Most outstanding of a replica, as a multiple of its share by weight (consistent hashing with bounded loads,
Mirrokni et al. 2018)."""
_ALL = (1 << 64) - 1


def _mixed(value: int) -> int:
    """A 64-bit number that tells nothing of its neighbours' (the finaliser of SplitMix64)."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _ALL
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _ALL
    return value ^ (value >> 31)


def nearest(
    targets: Sequence[tuple[Replica, float]], key: int, now: float, *, exclude: Collection[Replica] = ()
) -> Replica | None:
    """Return the replica that a conversation goes to, or None if none works.

    Args:
        targets: Replicas of one stage with their plan weights.
        key: Of the conversation, 64 bits.
        now: Service time, s.
        exclude: Replicas that this request has tried already.
    """
    working = [
        (replica, weight)
        for replica, weight in targets
        if replica not in exclude and replica.ready and replica.breaker.allows(now)
    ]
    if len(working) < 2:
        return working[0][0] if working else None
    held = sum(replica.outstanding for replica, _ in working) + 1
    share = SLACK * held / sum(weight for _, weight in working)
    order = sorted(
        (-math.log((_mixed(key ^ replica.seed) + 1) / (_ALL + 2)) / weight, place)
        for place, (replica, weight) in enumerate(working)
    )
    for _, place in order:
        replica, weight = working[place]
        if replica.outstanding < math.ceil(share * weight):
            return replica
    return working[order[0][1]][0]
