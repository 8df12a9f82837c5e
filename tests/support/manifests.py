"""A manifest that is right, and many that are each wrong in one place.

Unit tests run the broken ones through `load_manifest`, integration tests through a real API server:
both must refuse, and where the rule is ours, in the same words.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["BROKEN", "Broken", "cascade_manifest"]

Document = dict[str, Any]


def cascade_manifest(name: str = "chat", **spec: Any) -> Document:
    """A small valid CascadeDeployment; keyword arguments replace fields of its spec."""
    return {
        "apiVersion": "cascadia.dev/v1alpha1",
        "kind": "CascadeDeployment",
        "metadata": {"name": name},
        "spec": {
            "models": [
                {"name": "small", "source": {"huggingFace": {"repo": "meta-llama/Llama-3.1-8B-Instruct"}}},
                {"name": "large", "source": {"huggingFace": {"repo": "meta-llama/Llama-3.1-70B-Instruct"}}},
            ],
            "gpus": {"pools": [{"name": "h100", "gpu": "H100-SXM-80GB", "maxGpus": 8}]},
            "objective": {"minQuality": "0.80"},
            "workload": {
                "requestsPerSecond": "4",
                "inputTokens": {"mean": 1155, "p95": 3100},
                "outputTokens": {"mean": 211, "p95": 500},
            },
        }
        | spec,
    }


@dataclass(frozen=True)
class Broken:
    """One way to break a manifest.

    Attributes:
        id: Test id.
        field: The field that both must name (the API server's path, without its brackets' content).
        message: Words of ours that both must say; empty where the API server's schema speaks for itself.
        break_it: Changes the document in place.
    """

    id: str
    field: str
    message: str
    break_it: Callable[[Document], object]

    def document(self, name: str = "chat") -> Document:
        """The broken manifest."""
        document = copy.deepcopy(cascade_manifest(name))
        self.break_it(document)
        return document


def _set(*path: Any) -> Callable[[Document], object]:
    *keys, last, value = path

    def change(document: Document) -> None:
        node: Any = document
        for key in keys:
            node = node.setdefault(key, {}) if isinstance(node, dict) else node[key]
        node[last] = value

    return change


def _remove(*path: Any) -> Callable[[Document], object]:
    *keys, last = path

    def change(document: Document) -> None:
        node: Any = document
        for key in keys:
            node = node[key]
        del node[last]

    return change


_UNIQUE = "model names must be unique"
_OWNED = "must not set or abbreviate an option that the operator owns"


_GATE = "mode: Gate needs gateTokens"


def _streaming(**fields: Any) -> Callable[[Document], object]:
    return _set("spec", "routing", {"streaming": fields})


def _args(*arguments: str) -> Callable[[Document], object]:
    return _set("spec", "models", 0, "engine", {"extraArgs": list(arguments)})


def _scorer(**fields: Any) -> Callable[[Document], object]:
    return _set("spec", "routing", {"scorer": fields})


_OPTIONS = "give the options of the scorer's own type"
_JUDGE: Document = {"url": "https://judge/v1", "model": "referee"}
_VERIFY: Document = {"type": "SelfVerify"}
_FALLING = [{"score": "0.1", "worth": "0.9"}, {"score": "0.2", "worth": "0.8"}]

BROKEN: tuple[Broken, ...] = (
    Broken("duplicate-model", "spec.models", _UNIQUE, _set("spec", "models", 1, "name", "small")),
    Broken("no-models", "spec.models", "", _set("spec", "models", [])),
    Broken("long-model-name", "spec.models[0].name", "", _set("spec", "models", 0, "name", "a-model-too-long")),
    Broken("upper-case-model-name", "spec.models[0].name", "", _set("spec", "models", 0, "name", "Small")),
    Broken("no-source", "spec.models[0].source", "set exactly one of", _set("spec", "models", 0, "source", {})),
    Broken(
        "two-sources",
        "spec.models[0].source",
        "set exactly one of",
        _set("spec", "models", 0, "source", "pvc", {"claimName": "weights", "path": "llama"}),
    ),
    Broken("unknown-precision", "spec.models[0].precision", "", _set("spec", "models", 0, "precision", "fp3")),
    Broken("owned-argument", "spec.models[0].engine.extraArgs", _OWNED, _args("--tp-size", "4")),
    Broken("owned-argument-equals", "spec.models[0].engine.extraArgs", _OWNED, _args("--port=1234")),
    Broken("owned-argument-abbreviated", "spec.models[0].engine.extraArgs", _OWNED, _args("--tensor-par", "4")),
    Broken("owned-argument-short", "spec.models[0].engine.extraArgs", _OWNED, _args("--pp=2")),
    Broken(
        "unknown-pool",
        "spec.models",
        "models[].pools must name pools of gpus.pools",
        _set("spec", "models", 0, "pools", ["a100"]),
    ),
    Broken("no-pools", "spec.gpus.pools", "", _set("spec", "gpus", "pools", [])),
    Broken("zero-gpus", "spec.gpus.pools[0].maxGpus", "", _set("spec", "gpus", "pools", 0, "maxGpus", 0)),
    Broken(
        "duplicate-pool",
        "spec.gpus.pools",
        "pool names must be unique",
        lambda d: d["spec"]["gpus"]["pools"].append(d["spec"]["gpus"]["pools"][0]),
    ),
    Broken("cost-without-price", "spec.gpus", "needs pricePerGpuHour", _set("spec", "objective", "minimize", "Cost")),
    Broken(
        "quality-in-percent",
        "spec.objective.minQuality",
        "write 85 % as 0.85",
        _set("spec", "objective", "minQuality", "85"),
    ),
    Broken("quality-not-a-number", "spec.objective.minQuality", "", _set("spec", "objective", "minQuality", "high")),
    Broken("quality-a-float", "spec.objective.minQuality", "", _set("spec", "objective", "minQuality", 0.85)),
    Broken(
        "confidence-one",
        "spec.objective.confidence",
        "confidence must be at least 0.5 and below 1",
        _set("spec", "objective", "confidence", "1"),
    ),
    Broken(
        "overloaded-above-floor",
        "spec.objective.minQualityOverloaded",
        "must not be above minQuality",
        _set("spec", "objective", "minQualityOverloaded", "0.9"),
    ),
    Broken("no-objective", "spec.objective", "", _remove("spec", "objective")),
    Broken("no-workload", "spec.workload", "", _remove("spec", "workload")),
    Broken(
        "version-of-nothing",
        "spec.planning.engineVersion",
        "engineVersion says whose tables or corrections to use",
        _set("spec", "planning", {"engineVersion": "0.5.23"}),
    ),
    Broken(
        "zero-rate",
        "spec.workload.requestsPerSecond",
        "requestsPerSecond must be above 0",
        _set("spec", "workload", "requestsPerSecond", "0"),
    ),
    Broken("negative-rate", "spec.workload.requestsPerSecond", "", _set("spec", "workload", "requestsPerSecond", "-3")),
    Broken(
        "p95-below-mean",
        "spec.workload.inputTokens.p95",
        "between the mean and 3.8 times the mean",
        _set("spec", "workload", "inputTokens", "p95", 1000),
    ),
    Broken(
        "unknown-metric",
        "spec.objective.targets[0].metric",
        "",
        _set("spec", "objective", "targets", [{"metric": "Mood", "percentile": 95, "milliseconds": 1}]),
    ),
    Broken(
        "odd-percentile",
        "spec.objective.targets[0].percentile",
        "",
        _set("spec", "objective", "targets", [{"metric": "EndToEnd", "percentile": 93, "milliseconds": 1}]),
    ),
    Broken("gate-without-tokens", "spec.routing.streaming.gateTokens", _GATE, _streaming(mode="Gate")),
    Broken("tokens-without-gate", "spec.routing.streaming.gateTokens", _GATE, _streaming(gateTokens=64)),
    Broken(
        "gate-with-a-judge",
        "spec.routing.streaming.mode",
        "Gate needs a scorer that can score the beginning of an answer",
        _set(
            "spec",
            "routing",
            {"streaming": {"mode": "Gate", "gateTokens": 64}, "scorer": {"type": "SelfVerify"}},
        ),
    ),
    Broken("gate-of-nothing", "spec.routing.streaming.gateTokens", "", _streaming(mode="Gate", gateTokens=0)),
    Broken(
        "prefix-bytes-without-affinity",
        "spec.routing.balancing.prefixBytes",
        "prefixBytes needs policy: PrefixAffinity",
        _set("spec", "routing", {"balancing": {"prefixBytes": 64}}),
    ),
    Broken(
        "quantile-of-the-mean",
        "spec.routing.scorer.quantile",
        "quantile is for statistic: Quantile",
        _set("spec", "routing", {"scorer": {"type": "LogProb", "quantile": "0.2"}}),
    ),
    Broken(
        "shadows-of-nothing",
        "spec.routing.shadowSampling.percent",
        "percent must be above 0 and at most 100",
        _set("spec", "routing", {"shadowSampling": {"percent": "0"}}),
    ),
    Broken("judge-without-options", "spec.routing.scorer", _OPTIONS, _scorer(type="Judge")),
    Broken("options-of-another-type", "spec.routing.scorer", _OPTIONS, _scorer(type="LogProb", judge=_JUDGE)),
    Broken(
        "judge-without-an-answer",
        "spec.routing.scorer.judge.prompt",
        "prompt must contain {answer}",
        _scorer(type="Judge", judge=_JUDGE | {"prompt": "Good?"}),
    ),
    Broken("judge-url", "spec.routing.scorer.judge.url", "", _scorer(type="Judge", judge=_JUDGE | {"url": "judge"})),
    Broken(
        "validator-of-nothing",
        "spec.routing.scorer.validator",
        "nothing would be checked",
        _scorer(type="Validator", validator={"toolCalls": False}),
    ),
    Broken("composite-of-nothing", "spec.routing.scorer", "needs combine and parts", _scorer(type="Composite")),
    Broken(
        "parts-of-no-composite",
        "spec.routing.scorer",
        "needs combine and parts",
        _scorer(type="LogProb", parts=[{"type": "LogProb"}, {"type": "SelfVerify"}]),
    ),
    Broken(
        "weight-of-no-mean",
        "spec.routing.scorer.parts",
        "weight is for combine: WeightedMean",
        _scorer(type="Composite", combine="All", parts=[{"type": "LogProb", "weight": "2"}, {"type": "SelfVerify"}]),
    ),
    Broken(
        "calibration-that-falls",
        "spec.routing.scorer.parts[0].calibration",
        "a higher score must not have a lower worth",
        _scorer(type="Composite", combine="All", parts=[{"type": "LogProb", "calibration": _FALLING}, _VERIFY]),
    ),
    Broken("deadline-of-nobody", "spec.routing.scorer", "are for scorers that ask", _scorer(deadlineMs=100)),
    Broken("unknown-field", "spec.colour", "", _set("spec", "colour", "blue")),
    Broken(
        "long-name",
        "",
        "metadata.name must have at most 24 characters",
        _set("metadata", "name", "a-name-of-a-cascade-that-is-too-long"),
    ),
)
