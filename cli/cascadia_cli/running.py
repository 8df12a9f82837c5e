"""`cascadia up` and `cascadia demo`: the files and flags for the embedded runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from cascadia_api.errors import InputError, Problem
from cascadia_cli.calibration_file import read_calibration
from cascadia_cli.failures import say
from cascadia_cli.files import read_manifest, read_trace
from cascadia_cli.step_times import planned_cost_source, read_corrections

if TYPE_CHECKING:
    from cascadia_api.cascade import CascadeDeployment
    from cascadia_api.load import Manifest
    from cascadia_local.session import Options
    from cascadia_solver.calibration import CalibrationSet
    from cascadia_solver.trace import Trace

__all__ = ["EXAMPLE", "run_demo", "run_up"]

EXAMPLE = "examples/chat.yaml"
"""What the demo runs where no manifest is named."""
Engine: TypeAlias = Literal["simulated", "llamacpp"]


def run_up(
    file: str,
    *,
    calibration: str | None,
    trace: str | None,
    limit: int | None,
    leave: bool,
    engine: Engine,
    model_file: str | None,
    time_scale: float,
    port: int | None,
    keep: bool,
    api_keys: str | None,
    secrets: str | None,
    live: str | None,
) -> int:
    """Plan a cascade and run it on this machine; return the exit code.

    Raises:
        InputError: A file or flag is wrong.
        InfeasibleError: No plan does what the manifest asks for.
    """
    from cascadia_local.main import up

    options = _options(engine, model_file, time_scale, port, keep=keep, api_keys=api_keys, secrets=secrets, live=live)
    if trace is None and (leave or limit is not None):
        raise InputError(
            Problem("--exit" if leave else "--limit", "goes with --trace FILE: there is nothing to replay")
        )
    manifest, table, traffic = _read(file, calibration, trace)
    cascade = manifest.cascade
    if cascade.spec.routing.api_keys_secret_ref is not None and api_keys is None:
        say("note: there are no Secrets here, so whoever is on this machine is served; --api-keys PATH checks keys")
    if cascade.spec.routing.tls is not None:
        say("note: the endpoint of this machine is on loopback and speaks plain HTTP, whatever spec.routing.tls says")
    _check_scorer_secrets(cascade, options)
    _note_tracing_secrets(cascade, options)
    try:
        options = replace(options, base=planned_cost_source(manifest))
        return up(cascade, calibration=table, trace=traffic, limit=limit, options=options, stay=not leave)
    except InputError as error:
        raise error if error.source else error.within(file) from None


def _check_scorer_secrets(cascade: CascadeDeployment, options: Options) -> None:
    from cascadia_api.cascade.scorer import scorer_secrets, secret_file

    files = [secret_file(each) for each in scorer_secrets(cascade.spec.routing.scorer)]
    folder = options.secrets
    missing = [file for file in files if folder is None or not (folder / file).is_file()]
    if missing:
        raise InputError(
            Problem(
                "--secrets",
                f"the scorer needs {', '.join(missing)}: there are no Secrets here; name a folder with "
                f"{'that file' if len(missing) == 1 else 'those files'}",
            )
        )


def _note_tracing_secrets(cascade: CascadeDeployment, options: Options) -> None:
    from cascadia_api.cascade.observability import tracing_secrets
    from cascadia_api.cascade.scorer import secret_file

    if options.secrets is None and tracing_secrets(cascade.spec.routing.tracing):
        files = ", ".join(secret_file(each) for each in tracing_secrets(cascade.spec.routing.tracing))
        say(
            f"note: the collector of traces wants {files}: --secrets names their folder, else routers take the "
            "headers from OTEL_EXPORTER_OTLP_HEADERS"
        )


def run_demo(
    file: str,
    *,
    calibration: str | None,
    trace: str | None,
    engine: Engine,
    model_file: str | None,
    time_scale: float | None,
    port: int | None,
    keep: bool,
) -> int:
    """Run the demo; return the exit code.

    Raises:
        InputError: A file or flag is wrong.
        InfeasibleError: No plan does what the manifest asks for.
    """
    from cascadia_local.demo import DEMO_TIME_SCALE, demo

    if time_scale is None:
        time_scale = DEMO_TIME_SCALE if engine == "simulated" else 1.0
    options = _options(engine, model_file, time_scale, port, keep=keep)
    if file == EXAMPLE and not Path(file).is_file():
        raise InputError("no such file: run the demo where Cascadia's repository is, or name a manifest", source=file)
    manifest, table, traffic = _read(file, calibration, trace)
    try:
        options = replace(options, base=planned_cost_source(manifest))
        return demo(manifest.cascade, table, trace=traffic, options=options)
    except InputError as error:
        raise error if error.source else error.within(file) from None


def _options(
    engine: Engine,
    model_file: str | None,
    time_scale: float,
    port: int | None,
    *,
    keep: bool,
    api_keys: str | None = None,
    secrets: str | None = None,
    live: str | None = None,
) -> Options:
    from cascadia_local.session import Options

    options = Options(
        engine=engine,
        model_file=None if model_file is None else Path(model_file),
        time_scale=time_scale,
        port=port,
        keep=keep,
        api_keys=None if api_keys is None else Path(api_keys),
        secrets=None if secrets is None else Path(secrets),
        corrections=None if live is None or not Path(live).exists() else read_corrections(live),
        corrections_file=None if live is None else Path(live).absolute(),
    )
    options.check()
    return options


def _read(
    file: str, calibration: str | None, trace: str | None
) -> tuple[Manifest, CalibrationSet | None, Trace | None]:
    manifest = read_manifest(file)
    table, notes = read_calibration(manifest, file, calibration)
    traffic = None
    if trace is not None:
        traffic, more = read_trace(trace)
        notes += more
    say(*(f"note: {note}" for note in notes))
    return manifest, table, traffic
