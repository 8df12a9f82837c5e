"""Configuration of one simulated engine process: a JSON file, camelCase."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from cascadia_api.errors import InputError, Problem
from cascadia_api.policy.text import Address, check_port
from cascadia_local.simulated_engine.difficulty import DEFAULT_CORRELATION, ModelAbility
from cascadia_solver.steptime import StepModel

__all__ = ["SimulatedEngineConfig", "decode_config"]

NonNegative = Annotated[float, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]
Degree = Annotated[int, Meta(ge=1, le=1024)]


class SimulatedEngineConfig(Struct, frozen=True, rename="camel", kw_only=True, forbid_unknown_fields=True):
    """What one simulated engine is told, fixed for the life of the process.

    Attributes:
        listen: ``host:port``; port 0 takes a free one (the first log line says which).
        served_model_name: The `model` of its answers.
        stage: The stage that it serves, for its logs and `/server_info`.
        model: What the model can do.
        step: The replica's step-time model: a `StepModel` as a list of its fields.
        step_source: Where the step times come from, in words, for `/server_info`.
        model_load_seconds: Time before it is ready, service seconds.
        seed: Seed of the difficulty model: the same in all engines of a cascade.
        error_correlation: rho of the difficulty model: the same in all engines of a cascade.
        context_window: Longest prompt + answer, tokens.
        outcomes_file: Calibration set whose rows requests may ask for by `simulation.row`.
        scorer_id: Scores of the outcomes file to use.
        stream_interval_milliseconds: Shortest time between two chunks of one stream, wall ms.
        drain_poll_seconds: How often an engine told to stop looks whether it is idle, service
            seconds (SGLang: 5).
        clock_scale: Service seconds per wall second.
        clock_epoch: See `cascadia_api.clock.ScaledClock.epoch`.
        tensor_parallel: TP degree, for `/server_info`.
        pipeline_parallel: PP degree, for `/server_info`.
        hardware: What is simulated, in words, for `/server_info`.
    """

    listen: Address
    served_model_name: Annotated[str, Meta(min_length=1, max_length=253)]
    stage: Annotated[str, Meta(min_length=1, max_length=253)]
    model: ModelAbility
    step: list[float]
    step_source: str = "roofline"
    model_load_seconds: NonNegative = 0.0
    seed: int = 0
    error_correlation: Annotated[float, Meta(ge=0, le=1)] = DEFAULT_CORRELATION
    context_window: Annotated[int, Meta(ge=2)] = 131_072
    outcomes_file: str | None = None
    scorer_id: str = "logprob-mean"
    stream_interval_milliseconds: Positive = 5.0
    drain_poll_seconds: Positive = 5.0
    clock_scale: Positive = 1.0
    clock_epoch: float = 0.0
    tensor_parallel: Degree = 1
    pipeline_parallel: Degree = 1
    hardware: str = ""

    def __post_init__(self) -> None:
        """Check the port."""
        check_port("listen", self.listen)

    @property
    def step_model(self) -> StepModel:
        """The step-time model."""
        return StepModel(*self.step)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port to listen on."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)


def decode_config(document: bytes) -> SimulatedEngineConfig:
    """Read a configuration.

    Raises:
        InputError: It does not fit; the message names the field.
    """
    try:
        config = msgspec.json.decode(document, type=SimulatedEngineConfig)
    except msgspec.MsgspecError as error:
        raise InputError(str(error)) from None
    if len(config.step) != len(StepModel._fields):
        expected = len(StepModel._fields)
        raise InputError(Problem("step", f"has {len(config.step)} numbers; give the {expected} of StepModel"))
    if config.address[1] > 65535:
        raise InputError(Problem("listen", f"port {config.address[1]} is over 65535"))
    return config
