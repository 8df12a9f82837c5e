import math

import pytest
from rich.console import Console

from cascadia_local.events import Event
from cascadia_local.snapshot import Snapshot, StageSnapshot
from cascadia_local.view import line, render, sparkline


def busy() -> Snapshot:
    return Snapshot(
        cascade="chat",
        endpoint="http://127.0.0.1:8080/v1",
        engines="simulated engines",
        scale=10,
        elapsed=312,
        activity="traffic before the change",
        progress=0.42,
        plan_id="p-0123456789ab",
        revision=3,
        gpus_total=32,
        stages=(
            StageSnapshot("small", "Llama-3.1-8B bf16", "4×TP1", 4, 4, ("Ready",) * 4, 0.812, 1.0, 1.0, 21, 0, 0.13),
            StageSnapshot("large", "70B", "2×TP4", 1, 2, ("Ready", "Starting") * 4, None, 0.4, 0.38, 33, 4, 0.5),
        ),
        rate=9.8,
        rate_planned=10,
        p50=0.32,
        p95=14.3,
        answered=3121,
        failed=2,
        in_flight=57,
        history=(1.0, 2.0, 3.0),
        scores=tuple(range(25)),
        score_threshold=0.812,
        events=tuple(Event(at=float(n), kind="Drift", text=f"event {n} " + "x" * 200) for n in range(30)),
    )


def drawn(snapshot: Snapshot, width: int, height: int) -> str:
    console = Console(width=width, height=height, force_terminal=True, color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(render(snapshot, console.size))
    return capture.get()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 40), (120, 50), (200, 60)])
def test_the_screen_fits_the_terminal(width: int, height: int) -> None:
    lines = drawn(busy(), width, height).splitlines()
    assert max(len(text) for text in lines) <= width
    assert len(lines) < height, "the terminal must not scroll"


def test_the_screen_tells_what_matters() -> None:
    text = drawn(busy(), 120, 45)
    for part in ("chat", "p-0123456789ab", "42 %", "≥ 0.812", "40 % /  38 %", "■■■■■▨■▨■▨■▨", "12 of 32", "2 failed",
                 "320 ms", "14.3 s", "1 s here = 10 s of service", "event 29"):  # fmt: skip
        assert part in text


def test_an_empty_run_can_be_shown() -> None:
    assert "in the making" in drawn(Snapshot(cascade="chat"), 80, 30)
    assert "answered 0" in line(Snapshot(cascade="chat"))


def test_the_line_tells_stages_and_failures() -> None:
    text = line(busy())
    assert "\n" not in text
    for part in ("[5:12]", "42 %", "9.8 req/s", "failed 2", "large 1/2 ready", "4 queued"):
        assert part in text


def test_sparkline_scales_to_the_largest_and_keeps_the_newest() -> None:
    assert sparkline([math.nan, 1.0, 4.0, 8.0], 2) == "▅█"
    assert sparkline([], 5) == ""
