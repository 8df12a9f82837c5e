"""`cascadia calibrate engine`: corrections of the cost model, learnt from running engines' own histograms."""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.request
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cascadia_api.errors import InputError, Problem
from cascadia_cli.failures import say
from cascadia_cli.predicting import gpu_named, model_named
from cascadia_cli.step_times import read_corrections

if TYPE_CHECKING:
    from cascadia_solver.engine_window import EngineCounters
    from cascadia_solver.live_correction import CorrectionKey, LiveCorrections

__all__ = ["EngineFlags", "learn_from_engines"]

_DEADLINE_S = 10.0
_MOST_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFlags:
    """The command's flags, by their names."""

    metrics: list[str]
    model: str
    gpu: str
    gpu_spec: str | None
    tensor_parallel: int
    pipeline_parallel: int
    precision: str | None
    prefix_cache_hit: int
    chunk_tokens: int | None
    engine: str
    live: str
    windows: int
    interval: float
    as_json: bool


def learn_from_engines(flags: EngineFlags) -> None:
    """Read the engines' metrics a few times, learn from each window between, and keep that in the file.

    Raises:
        InputError: A flag is wrong, an engine does not answer at first or is no SGLang with ``--enable-metrics``,
            or no window held enough work to learn from.
        InfeasibleError: The model does not fit on the GPUs that the flags name.
    """
    from cascadia_local.corrections_file import learn_into
    from cascadia_solver.engine_settings import EngineSettings, with_settings
    from cascadia_solver.engine_window import learn, window_between
    from cascadia_solver.live_correction import CorrectionKey, LiveCorrections
    from cascadia_solver.roofline import Roofline, Shape
    from cascadia_solver.sources import engine_version

    try:
        engine = engine_version(flags.engine)
    except InputError as error:
        raise InputError(Problem("--engine", str(error))) from None
    if not engine.version:
        raise InputError(
            Problem("--engine", f"corrections are of one version: {flags.engine}:VERSION, see /server_info")
        )
    facts, gpu = model_named(flags.model), gpu_named(flags.gpu, flags.gpu_spec)
    shape = Shape(flags.tensor_parallel, flags.pipeline_parallel)
    settings = EngineSettings(flags.prefix_cache_hit, flags.chunk_tokens)
    source = with_settings(Roofline(engine=engine.engine), settings)
    step = source.step_model(facts, gpu, shape, flags.precision or facts.native_precision)
    key = CorrectionKey(facts.name, gpu.name, str(shape), str(engine))
    file = Path(flags.live)
    _check_file(file)
    learnt: LiveCorrections | None = None
    before = {url: _read(url) for url in flags.metrics}
    for number in range(1, flags.windows + 1):
        time.sleep(flags.interval)
        now, windows = {}, {}
        for url in flags.metrics:
            try:
                now[url] = _read(url)
            except InputError as error:  # it is down or restarts: nothing is learnt from it until it answers twice
                say(*(problem.message for problem in error.problems))
                continue
            window = window_between(before[url], now[url]) if url in before else None
            if window is not None:
                windows[url] = window
        before = now
        tried = learn(LiveCorrections(), key, step, windows)
        said = "too little work, or too much, to learn from"
        if tried.by_key:
            learnt = learn_into(file, partial(learn, key=key, step=step, windows=windows))
            said = _words(learnt, key)
        say(f"window {number} of {flags.windows}: {said}")
    if learnt is None:
        raise InputError(
            f"nothing was learnt: no window of {flags.interval:g} s held 20 answers, or prompts filled more than half "
            "of the time; take longer windows, or a load that the engines carry"
        )
    correction = learnt.by_key[key]
    if flags.as_json:
        document = {
            **key._asdict(), "windows": len(correction.decode), "file": flags.live,
            "prefillFactor": correction.factor("prefill"), "decodeFactor": correction.factor("decode"),
            "spreadPercent": correction.spread_percent("decode"),
        }  # fmt: skip
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    else:
        sys.stdout.write(f"{key.model} on {key.shape} of {key.gpu}, {engine}: {_words(learnt, key)}; in {flags.live}\n")


def _check_file(file: Path) -> None:
    """Say what is wrong with the file before the first window."""
    folder = file.absolute().parent
    if not folder.is_dir():
        raise InputError(Problem("--live", f"{file} cannot be written: its folder is not there: make it"))
    if not os.access(folder, os.W_OK):
        raise InputError(Problem("--live", f"{file} cannot be written: its folder is read-only"))
    if file.exists():
        read_corrections(str(file))


def _words(corrections: LiveCorrections, key: CorrectionKey) -> str:
    known = corrections.by_key[key]
    return (
        f"prompts take {known.factor('prefill'):.2f} and decoding {known.factor('decode'):.2f} times as long as "
        f"predicted ({len(known.decode)} windows, {known.spread_percent('decode'):.0f} % apart)"
    )


def _read(url: str) -> EngineCounters:
    from cascadia_solver.engine_window import read_counters

    if not url.startswith(("http://", "https://")):
        raise InputError(Problem("--metrics", f"{url!r} is no http URL: http://HOST:30000/metrics"))
    try:
        with urllib.request.urlopen(url, timeout=_DEADLINE_S) as answer:  # noqa: S310 - http only, checked above
            text = answer.read(_MOST_BYTES).decode(errors="replace")
    except (OSError, ValueError) as error:
        raise InputError(Problem("--metrics", f"{url} does not answer: {error}")) from None
    counters = read_counters(text, time.monotonic())
    if counters is None:
        raise InputError(
            Problem(
                "--metrics", f"{url} lacks SGLang's counters: start the engine with --enable-metrics, name /metrics"
            )
        )
    return counters
