"""SGLang's command line.

Full option names only: SGLang's parser also takes abbreviations, and an abbreviation that is
unambiguous today may not be tomorrow. A test hands every command line built here to SGLang's own parser.
"""

from __future__ import annotations

from cascadia_api.cascade import Model
from cascadia_api.names import DISTRIBUTED_INIT_PORT, ENGINE_PORT

__all__ = ["MODEL_VOLUME_PATH", "POD_INDEX_VARIABLE", "engine_command", "model_path"]

POD_INDEX_VARIABLE = "CASCADIA_POD_INDEX"
"""Environment variable with the pod's rank, from the StatefulSet's pod-index label."""
MODEL_VOLUME_PATH = "/models"

_PRECISION_OPTIONS: dict[str, list[str]] = {
    "bf16": ["--dtype", "bfloat16"],
    "fp16": ["--dtype", "float16"],
    "fp8": ["--quantization", "fp8"],
    # Weights quantised to integers or to 4 bits say how in their own config.json, which SGLang reads; naming a
    # method that differs from it would be an error.
    "int8": [],
    "int4": [],
    "fp4": [],
}


def model_path(model: Model) -> str:
    """What `--model-path` says: a repository, or a folder on the mounted volume."""
    if model.source.hugging_face is not None:
        return model.source.hugging_face.repo
    assert model.source.pvc is not None
    return f"{MODEL_VOLUME_PATH}/{model.source.pvc.path.strip('/')}"


def engine_command(
    model: Model, tensor_parallel: int, pipeline_parallel: int, *, nodes: int, leader_host: str
) -> list[str]:
    """Command of the engine container, the same for every rank.

    Args:
        model: The model that it serves, under its stage name.
        tensor_parallel: GPUs that share each layer.
        pipeline_parallel: Pipeline stages.
        nodes: Pods that the replica spans; the rank is taken from the environment by the kubelet.
        leader_host: DNS name of rank 0, where the ranks meet.
    """
    command = [
        *("sglang", "serve"),
        *("--model-path", model_path(model)),
        *("--served-model-name", model.name),
        # Only the router in the same pod talks to the engine.
        *("--host", "127.0.0.1"),
        *("--port", str(ENGINE_PORT)),
        *("--tp-size", str(tensor_parallel)),
        *("--pp-size", str(pipeline_parallel)),
        "--enable-metrics",
    ]
    if nodes > 1:
        command += [
            *("--nnodes", str(nodes)),
            *("--node-rank", f"$({POD_INDEX_VARIABLE})"),
            *("--dist-init-addr", f"{leader_host}:{DISTRIBUTED_INIT_PORT}"),
        ]
    if model.source.hugging_face is not None and model.source.hugging_face.revision:
        command += ["--revision", model.source.hugging_face.revision]
    command += _PRECISION_OPTIONS[model.precision or "bf16"]
    command += list(model.engine.extra_args or ()) if model.engine else []
    return command
