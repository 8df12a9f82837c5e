"""Engine arguments that the operator sets itself, so that a manifest may not.

SGLang's parser accepts any unambiguous prefix of an option (``--tensor`` for
``--tensor-parallel-size``), so a prefix of an owned option is refused just as the option is.
"""

from __future__ import annotations

__all__ = ["OWNED_ENGINE_ARGS", "is_owned"]

OWNED_ENGINE_ARGS: tuple[str, ...] = (
    "--api-key",
    "--attn-dp-size",
    "--config",
    "--data-parallel-size",
    "--device",
    "--dist-init-addr",
    "--dp-size",
    "--enable-dp-attention",
    "--enable-metrics",
    "--host",
    "--is-embedding",
    "--model-path",
    "--model",
    "--nccl-init-addr",
    "--nnodes",
    "--node-rank",
    "--pipeline-parallel-size",
    "--port",
    "--pp-size",
    "--quantization",
    "--served-model-name",
    "--tensor-parallel-size",
    "--tp-size",
)


def is_owned(argument: str) -> bool:
    """Whether an argument names an option of the operator's, also as ``--x=y`` or abbreviated."""
    option = argument.split("=", 1)[0]
    return option.startswith("--") and any(owned.startswith(option) for owned in OWNED_ENGINE_ARGS)
