"""The table of measured engines in the aiconfigurator-core wheel, mapped to the catalogue.

`silicon_sample.csv` lists published measurements (mostly InferenceX runs of SGLang, vLLM and
TensorRT-LLM): mean time to first token and time per output token of a closed loop of clients. Only
aggregated rows count (prompt and answer on the same GPUs) on GPUs of the catalogue.

Lengths are labelled by their most. InferenceX draws them evenly from 80 to 100 % of that
(``--random-range-ratio 0.8`` of its benchmark_serving.py), so that their means are 90 % of the labels; the
other campaigns, one file per GPU and engine, have lengths that do not vary.

InferenceX's scripts (github.com/SemiAnalysisAI/InferenceX, benchmarks) say what the table does not: which runs keep
their cache in 8 bits, and that SGLang on B200 looks for new requests only every 10 steps, or every 30 from 16 clients
on (``--scheduler-recv-interval``), so that a prompt waits for half as many decode steps in the mean; by itself it
looks at every step.

Two labels are repaired where the row's own name shows what was run: with expert parallelism the
table multiplies the tensor degree by the expert degree ("tp 64" is TP8 and EP8 on 8 GPUs), and a
batch per rank is replaced by the number of clients.
"""

from __future__ import annotations

import csv
import importlib.util
import math
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cascadia_solver.catalogue.gpus import GpuFacts, gpu_facts
from cascadia_solver.catalogue.models import ModelFacts, model_facts
from cascadia_solver.roofline import Shape, memory_use

__all__ = ["GPU_NAMES", "Measurement", "load", "table_path"]

GPU_NAMES = {"h100_sxm": "H100-SXM-80GB", "h200_sxm": "H200-SXM-141GB", "b200_sxm": "B200-SXM-180GB"}

# Checkpoints of one architecture: (catalogue entry, architecture). Twins are left out together.
_MODELS = {
    "meta-llama/Llama-3.1-70B": "meta-llama/Llama-3.1-70B",
    "meta-llama/Llama-3.1-8B-Instruct": "meta-llama/Llama-3.1-8B-Instruct",
    "nvidia/Llama-3.1-8B-Instruct-FP8": "meta-llama/Llama-3.1-8B-Instruct",
    "Qwen/Qwen3-32B": "Qwen/Qwen3-32B",
    "nvidia/Qwen3-32B-NVFP4": "Qwen/Qwen3-32B",
    "Qwen/Qwen3-235B-A22B-FP8": "Qwen/Qwen3-235B-A22B",
    "Qwen/Qwen3.5-397B-A17B": "Qwen/Qwen3.5-397B-A17B",
    "deepseek-ai/DeepSeek-R1": "deepseek-ai/DeepSeek-V3",
    "deepseek-ai/DeepSeek-V3": "deepseek-ai/DeepSeek-V3",
    "nvidia/DeepSeek-R1-NVFP4": "deepseek-ai/DeepSeek-V3",
    "nvidia/DeepSeek-V3.1-NVFP4": "deepseek-ai/DeepSeek-V3",
    "moonshotai/Kimi-K2.5": "moonshotai/Kimi-K2.5",
    "MiniMaxAI/MiniMax-M2.5": "MiniMaxAI/MiniMax-M2.5",
    "openai/gpt-oss-120b": "openai/gpt-oss-120b",
    "zhipuai/GLM-5": "zai-org/GLM-5",
}
_ONE_LENGTH = "aic-auto-gap-analysis/data/"
"""In the source of rows whose lengths do not vary."""
_LEAST_SHARE = 0.8
_WEIGHTS = {"": "bf16", "fp8": "fp8", "fp8_block": "fp8", "nvfp4": "fp4", "int4_wo": "int4"}


@dataclass(frozen=True, slots=True)
class Measurement:
    """One row.

    Attributes:
        model: The catalogue's facts; `model.name` is the architecture that is left out.
        gpu: The GPU.
        shape: Degrees of parallelism.
        precision: Of the weights.
        engine: sglang, vllm or trtllm.
        version: Of the engine; empty where the table does not say.
        clients: Closed-loop concurrency.
        inputs: Longest prompt, tokens.
        outputs: Longest answer, tokens.
        least_share: Shortest prompts and answers, in the longest.
        cache: Precision of the key-value cache.
        look_steps: Steps from one look for new requests to the next.
        first_token: Measured time to first token, s.
        per_token: Measured time per output token, s.
        source: Which campaign.
    """

    model: ModelFacts
    gpu: GpuFacts
    shape: Shape
    precision: str
    engine: str
    version: str
    clients: int
    inputs: int
    outputs: int
    first_token: float
    per_token: float
    source: str
    least_share: float = 1.0
    cache: str = "bf16"
    look_steps: int = 1

    @property
    def mean_inputs(self) -> float:
        """Mean prompt length, tokens."""
        return self.inputs * (1.0 + self.least_share) / 2.0

    @property
    def mean_outputs(self) -> float:
        """Mean answer length, tokens."""
        return self.outputs * (1.0 + self.least_share) / 2.0

    def look_seconds(self, decode_step: float) -> float:
        """Mean wait until the engine looks for new requests.

        Args:
            decode_step: Seconds of a decode step.
        """
        return 0.5 * (self.look_steps - 1) * decode_step

    @property
    def end_to_end(self) -> float:
        """Time to first token and the other tokens of an answer of mean length, s."""
        return self.first_token + (self.mean_outputs - 1.0) * self.per_token


def table_path(given: str | None) -> Path:
    """The CSV, from the command line or from the installed wheel; exits with what to do if there is none."""
    if given is not None:
        path = Path(given)
        if path.is_file():
            return path
        sys.exit(f"{given} does not exist; give the path of silicon_sample.csv")
    spec = importlib.util.find_spec("aiconfigurator_core")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "systems" / "silicon_sample.csv"
        if path.is_file():
            return path
    sys.exit(
        "the table of measurements is not installed: pip install 'cascadia[measured]' "
        "(aiconfigurator-core 0.12), or give its silicon_sample.csv with --csv"
    )


def load(path: Path) -> tuple[list[Measurement], Counter[str]]:
    """Read the table.

    Returns:
        The rows that can be mapped, and how many cannot, by reason.
    """
    kept: list[Measurement] = []
    excluded: Counter[str] = Counter()
    with path.open(newline="") as lines:
        for row in csv.DictReader(lines):
            if row["mode"] != "agg":
                continue
            measurement = _measurement(row)
            if isinstance(measurement, str):
                excluded[measurement] += 1
            else:
                kept.append(measurement)
    return kept, excluded


def _measurement(row: Mapping[str, str]) -> Measurement | str:
    """The row, or why it cannot be mapped."""
    if row["system"] not in GPU_NAMES:
        return f"no {row['system']} in the catalogue"
    if row["model_path"] not in _MODELS:
        return f"no {row['model_path']} in the catalogue"
    degree = _tensor_parallel(row)
    if degree is None:
        return "attention data parallelism, which no plan uses"
    ranks = int(row["attention_dp_size"] or 1) or 1  # the batch is listed per rank
    moe = row["moe_quant_mode"] or row["gemm_quant_mode"]
    gpu, model = gpu_facts(GPU_NAMES[row["system"]]), model_facts(_MODELS[row["model_path"]])
    precision = _WEIGHTS[moe if moe in {"nvfp4", "int4_wo"} else row["gemm_quant_mode"]]
    measurement = Measurement(
        model=model,
        gpu=gpu,
        shape=Shape(degree, 1),
        precision=precision,
        engine=row["backend"],
        version=row["backend_version"],
        clients=ranks * int(row["batch_size"]),
        inputs=int(row["isl"]),
        outputs=int(row["osl"]),
        first_token=float(row["silicon_ttft_ms"]) / 1e3,
        per_token=float(row["silicon_tpot_ms"]) / 1e3,
        source=row["silicon_data_source"].split(";")[0].rsplit("/", 3)[-1],
        least_share=1.0 if _ONE_LENGTH in row["silicon_data_source"] else _LEAST_SHARE,
    )
    measurement = replace(measurement, cache=_cache(measurement), look_steps=_look_steps(measurement))
    if model.heads % degree:
        return f"{degree} ranks do not divide the heads"
    memory = memory_use(model, gpu, measurement.shape, precision)
    if memory.kv_capacity_tokens < measurement.inputs + measurement.outputs:
        return "does not fit into memory as labelled"
    return measurement


def _cache(row: Measurement) -> str:
    """Precision of the cache: 8 bits in NVIDIA's checkpoints and where InferenceX's scripts say so."""
    if row.engine == "trtllm":
        return "fp8" if row.precision != "bf16" else "bf16"
    if row.precision == "fp4" and "gpt-oss" not in row.model.name:
        return "fp8"
    hopper, name = row.gpu.name.startswith("H"), row.model.name
    scripted = {
        "vllm": "Llama-3.1-70B" in name or ("gpt-oss" in name and not hopper),
        "sglang": row.precision == "fp8" and ("Qwen3.5" in name or not hopper),
    }
    return "fp8" if row.least_share < 1.0 and scripted[row.engine] else "bf16"


def _look_steps(row: Measurement) -> int:
    """SGLang's ``--scheduler-recv-interval``, as InferenceX's scripts for B200 set it; GLM-5's does not."""
    if row.engine != "sglang" or row.least_share == 1.0 or row.gpu.name.startswith("H") or "GLM" in row.model.name:
        return 1
    return 30 if row.clients >= 16 else 10


def _tensor_parallel(row: Mapping[str, str]) -> int | None:
    """Tensor degree as run; None with data-parallel attention."""
    tensor = int(row["tp_size"])
    data = int(row["attention_dp_size"] or 1)
    experts = int(row["moe_tp_size"] or 1), int(row["moe_ep_size"] or 1)
    if data in {0, 1}:
        return math.isqrt(tensor) if tensor == experts[0] * experts[1] and experts[0] == experts[1] > 2 else tensor
    # "tp4 dp4 ep16" is TP4 with EP4: other campaigns list the same runs so.
    return tensor if tensor == data and experts == (1, tensor * data) else None
