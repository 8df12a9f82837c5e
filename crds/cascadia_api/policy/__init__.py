"""What a router is told: its bootstrap configuration, and the policy that it enforces.

msgspec structs, not pydantic models: the router validates a policy in microseconds and stays small.
Field names are camelCase on the wire.
"""

from __future__ import annotations

from cascadia_api.policy.bootstrap import RouterConfig, TlsFiles
from cascadia_api.policy.document import (
    POLICY_SCHEMA_VERSION,
    AccessLogPolicy,
    BalancingPolicy,
    Capability,
    Endpoint,
    OverloadPolicy,
    RouterPolicy,
    ShadowPolicy,
    StagePolicy,
    StreamingPolicy,
    TracingPolicy,
    decode_policy,
    encode_policy,
)
from cascadia_api.policy.limits import LARGEST_BODY_BYTES, RateLimit, RateLimits, RequestLimits
from cascadia_api.policy.scorer import (
    EndpointPolicy,
    HttpPolicy,
    JudgePolicy,
    ScorerPolicy,
    SelfVerifyPolicy,
    ValidatorPolicy,
)

__all__ = [
    "LARGEST_BODY_BYTES",
    "POLICY_SCHEMA_VERSION",
    "AccessLogPolicy",
    "BalancingPolicy",
    "Capability",
    "Endpoint",
    "EndpointPolicy",
    "HttpPolicy",
    "JudgePolicy",
    "OverloadPolicy",
    "RateLimit",
    "RateLimits",
    "RequestLimits",
    "RouterConfig",
    "RouterPolicy",
    "ScorerPolicy",
    "SelfVerifyPolicy",
    "ShadowPolicy",
    "StagePolicy",
    "StreamingPolicy",
    "TlsFiles",
    "TracingPolicy",
    "ValidatorPolicy",
    "decode_policy",
    "encode_policy",
]
