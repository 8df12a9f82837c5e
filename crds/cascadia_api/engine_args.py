"""Engine arguments of a manifest: those that it may not set, and those that planning reads.

SGLang's parser accepts any unambiguous prefix of an option (``--tensor`` for
``--tensor-parallel-size``), so a prefix of an owned option is refused just as the option is, and a prefix
of an option that planning reads is read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from cascadia_api.errors import InputError

__all__ = ["OWNED_ENGINE_ARGS", "chunked_prefill_size", "is_owned"]

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

_CHUNK_OPTION = "--chunked-prefill-size"
_LEAST_PREFIX = "--chu"
"""Its shortest abbreviation that no other option of SGLang's begins with."""


def is_owned(argument: str) -> bool:
    """Whether an argument names an option of the operator's, also as ``--x=y`` or abbreviated."""
    option = argument.split("=", 1)[0]
    return option.startswith("--") and any(owned.startswith(option) for owned in OWNED_ENGINE_ARGS)


def chunked_prefill_size(arguments: Sequence[str]) -> int | None:
    """Value of SGLang's ``--chunked-prefill-size``: most prompt tokens in one step; 0 or less turns chunking off.

    Args:
        arguments: As they are passed to the engine. The last value counts, as in SGLang's parser.

    Returns:
        None where the option is not among them.

    Raises:
        InputError: The option has no value, or one that is no whole number.
    """
    found = None
    for index, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if not (option.startswith(_LEAST_PREFIX) and _CHUNK_OPTION.startswith(option)):
            continue
        if not equals:
            value = arguments[index + 1] if index + 1 < len(arguments) else ""
        if re.fullmatch(r"-?[0-9]{1,9}", value, re.ASCII) is None:
            raise InputError(
                f"{_CHUNK_OPTION} is {value!r}: give a whole number of tokens, or -1 for prompts in one piece"
            )
        found = int(value)
    return found
