"""Flags that several commands take, and the words that they take."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

__all__ = [
    "Calibration",
    "ChunkTokens",
    "CostSource",
    "Dataset",
    "Engine",
    "EngineKind",
    "Format",
    "Gguf",
    "GpuNumbers",
    "JudgeKind",
    "Keep",
    "Live",
    "LocalEngine",
    "Manifest",
    "MilpSolver",
    "PipelineParallel",
    "PlanFormat",
    "PlannedEngine",
    "PlannedStepTimes",
    "Port",
    "Precision",
    "PrefixCacheHit",
    "ResultFormat",
    "ScorerSecrets",
    "Secrets",
    "StepTimes",
    "TensorParallel",
    "Trace",
    "WeightPrecision",
]


class PlanFormat(StrEnum):
    """How a plan is printed."""

    table = "table"
    json = "json"
    yaml = "yaml"


class MilpSolver(StrEnum):
    """Solvers of the MILP."""

    cbc = "cbc"
    highs = "highs"


class ResultFormat(StrEnum):
    """How other results are printed."""

    table = "table"
    json = "json"


class Precision(StrEnum):
    """Precisions of weights."""

    bf16 = "bf16"
    fp16 = "fp16"
    fp8 = "fp8"
    int8 = "int8"
    int4 = "int4"
    fp4 = "fp4"


class CostSource(StrEnum):
    """Where step times come from."""

    roofline = "roofline"
    measured = "measured"


class Dataset(StrEnum):
    """Public results that can be imported."""

    zeroeval = "zeroeval"
    wildbench = "wildbench"


class JudgeKind(StrEnum):
    """What judges answers."""

    reference = "Reference"
    endpoint = "Endpoint"
    agreement = "AgreementWithLargest"


class EngineKind(StrEnum):
    """What answers requests in embedded mode."""

    simulated = "simulated"
    llamacpp = "llamacpp"


Manifest = Annotated[str, typer.Argument(metavar="FILE", help="Manifest with a CascadeDeployment; - reads stdin.")]
Calibration = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Calibration set (.jsonl, .csv, .parquet); else the manifest's ConfigMap."),
]
ScorerSecrets = Annotated[
    str | None, typer.Option(metavar="FOLDER", help="Keys and certificates for the scorer: files SECRET.KEY.")
]
Secrets = Annotated[
    str | None,
    typer.Option(
        "--secrets",
        "--scorer-secrets",
        metavar="FOLDER",
        help="Keys, headers and certificates for scorers and the collector of traces: files SECRET.KEY.",
    ),
]
Format = Annotated[ResultFormat, typer.Option("--output", "-o", help="How to print the result.")]
StepTimes = Annotated[
    CostSource,
    typer.Option(help="The built-in roofline, or aiconfigurator's tables (pip install 'cascadia\\[measured]')."),
]
Engine = Annotated[str, typer.Option(metavar="ENGINE[:VERSION]", help="sglang, vllm or trtllm.")]
PlannedStepTimes = Annotated[
    CostSource | None,
    typer.Option(
        show_default="the manifest's",
        help="The built-in roofline, or aiconfigurator's tables ('cascadia\\[measured]').",
    ),
]
PlannedEngine = Annotated[
    str | None,
    typer.Option(metavar="ENGINE[:VERSION]", show_default="the manifest's", help="sglang, vllm or trtllm."),
]
Live = Annotated[str | None, typer.Option(metavar="FILE", help="Corrections that `cascadia calibrate engine` learnt.")]
Trace = Annotated[
    str | None, typer.Option(metavar="FILE", help="Real traffic: Azure's CSV, or JSONL. Takes the place of workload.")
]
TensorParallel = Annotated[int, typer.Option(min=1, max=64, metavar="N", help="GPUs that share each layer.")]
PipelineParallel = Annotated[int, typer.Option(min=1, max=16, metavar="N", help="Groups of layers in a row.")]
WeightPrecision = Annotated[
    Precision | None, typer.Option(help="Precision of the weights; by default that of the published ones.")
]
PrefixCacheHit = Annotated[
    int, typer.Option(min=0, max=100, metavar="PERCENT", help="Share of prompt tokens in the prefix cache.")
]
ChunkTokens = Annotated[
    int | None,
    typer.Option(
        "--chunked-prefill-size", min=1, metavar="N", help="Most prompt tokens in one step; else SGLang's default."
    ),
]
GpuNumbers = Annotated[
    str | None,
    typer.Option(metavar="GB,GB/s,BF16,FP8,LINK", help="For another GPU: memory, bandwidth, teraflops, link GB/s."),
]
LocalEngine = Annotated[EngineKind, typer.Option(help="Simulated GPUs, or real small models.")]
Gguf = Annotated[str | None, typer.Option(metavar="PATH", help="Model for llamacpp; else SmolLM2-135M.")]
Port = Annotated[int | None, typer.Option(metavar="P", help="Port of the endpoint; else 8080 or any.")]
Keep = Annotated[bool, typer.Option("--keep", help="Keep the run's folder: configurations and logs.")]
