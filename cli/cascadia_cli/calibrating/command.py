"""`cascadia calibrate FILE --prompts F`: from the flags to the summary."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cascadia_api.cascade import CascadeDeploymentSpec, Routing
from cascadia_api.errors import CascadiaError, InputError, Problem
from cascadia_cli.calibrating.endpoint import Endpoint, base_url
from cascadia_cli.calibrating.judges import (
    JUDGE_TEMPLATE,
    AgreementJudge,
    EndpointJudge,
    Judge,
    ReferenceJudge,
    check_template,
)
from cascadia_cli.calibrating.prompts import Prompt, parse_prompts
from cascadia_cli.calibrating.record import Record
from cascadia_cli.calibrating.report import set_summary, stage_table, target_words
from cascadia_cli.calibrating.scoring import Scoring, needed_secrets, required_ids
from cascadia_cli.calibrating.session import Outcome, make_rows
from cascadia_cli.calibrating.stages import StageAddress, check_stages, stage_addresses
from cascadia_cli.failures import say
from cascadia_cli.files import read_lines, read_manifest, read_text

__all__ = ["JudgeKind", "Settings", "calibrate"]

JudgeKind = Literal["Reference", "Endpoint", "AgreementWithLargest"]

STAGE_KEY_VARIABLE = "CASCADIA_API_KEY"
JUDGE_KEY_VARIABLE = "CASCADIA_JUDGE_API_KEY"
"""Keys come from the environment: a command line is seen by every user of a machine."""
_LINE_S = 10.0
"""Seconds between two lines of progress where there is no terminal."""
_SHOWN_FAILURES = 5


@dataclass(frozen=True, slots=True)
class Settings:
    """The command's flags.

    Attributes:
        prompts: File of prompts.
        target: File to write; goes on where it ends.
        endpoint: URL of the running cascade.
        stages: ``NAME=URL`` or ``NAME=URL#MODEL`` flags.
        judge: What judges.
        judge_endpoint, judge_model, judge_template: For ``Endpoint``; the template is a file.
        judge_max_completion_tokens: For ``Endpoint``: see `EndpointJudge`.
        concurrency: Prompts at once.
        limit: Take only the first so many prompts.
        timeout_s: Longest wait for one answer.
        attempts: Times that one request is sent at most.
        as_json: Print the summary as JSON.
        scorer_secrets: Folder with the scorer's keys and certificates.
    """

    prompts: str
    target: str
    endpoint: str | None
    stages: Sequence[str]
    judge: JudgeKind
    judge_endpoint: str | None
    judge_model: str | None
    judge_template: str | None
    concurrency: int
    limit: int | None
    timeout_s: float
    attempts: int
    as_json: bool
    scorer_secrets: str | None = None
    judge_max_completion_tokens: int | None = None


def calibrate(file: str, settings: Settings) -> int:
    """Make a calibration set, or go on with one; print what it says; return the exit code: 1 if prompts failed.

    Raises:
        InputError: A file or flag is wrong.
        CascadiaError: There was no use in going on; what was done is kept.
    """
    spec = read_manifest(file).cascade.spec
    names = [model.name for model in spec.models]
    if Path(settings.target).suffix in {".csv", ".parquet"} or settings.target == "-":
        raise InputError(
            Problem("--output", f"{settings.target!r}: name a .jsonl file, which a broken run can go on with")
        )
    _check_judge(settings, names)
    _check_secrets(spec.routing, settings.scorer_secrets)
    addresses = stage_addresses(names, settings.endpoint, settings.stages)
    prompts = _prompts(settings)
    if not Path(settings.target).absolute().parent.is_dir():
        raise InputError("its folder does not exist: make it first", source=settings.target)
    template = _template(settings.judge_template)
    with Record(settings.target, names, required_ids(spec.routing)) as record:
        outcome = asyncio.run(_run(spec, addresses, prompts, template, record, settings))
        record.finish(prompts)
        _report(spec, record, settings, outcome)
    return 1 if outcome.failures else 0


def _check_judge(settings: Settings, names: Sequence[str]) -> None:
    given = {
        "--judge-endpoint": settings.judge_endpoint,
        "--judge-model": settings.judge_model,
        "--judge-template": settings.judge_template,
        "--judge-max-completion-tokens": settings.judge_max_completion_tokens,
    }
    if settings.judge == "Endpoint":
        for flag in ("--judge-endpoint", "--judge-model"):
            if given[flag] is None:
                raise InputError(Problem(flag, "--judge Endpoint needs it: the judge's URL and its model"))
    elif flags := [flag for flag, value in given.items() if value is not None]:
        raise InputError(Problem(flags[0], f"goes with --judge Endpoint, not {settings.judge}"))
    if settings.judge == "AgreementWithLargest" and len(names) < 2:
        raise InputError(Problem("--judge", f"AgreementWithLargest compares models, and there is only {names[0]}"))


def _prompts(settings: Settings) -> list[Prompt]:
    lines = read_lines(settings.prompts)
    try:
        return parse_prompts(lines, need_references=settings.judge == "Reference")[: settings.limit]
    except InputError as error:
        raise error.within(settings.prompts) from None


def _template(path: str | None) -> str:
    if path is None:
        return JUDGE_TEMPLATE
    template = read_text(path)
    try:
        check_template(template)
    except InputError as error:
        raise error.within(path) from None
    return template


async def _run(
    spec: CascadeDeploymentSpec,
    addresses: Sequence[StageAddress],
    prompts: Sequence[Prompt],
    template: str,
    record: Record,
    settings: Settings,
) -> Outcome:
    async with contextlib.AsyncExitStack() as closing:

        def endpoint(url: str, key_variable: str) -> Endpoint:
            key = os.environ.get(key_variable)
            made = Endpoint(url, api_key=key, timeout_s=settings.timeout_s, attempts=settings.attempts)
            closing.push_async_callback(made.close)
            return made

        judge: Judge = ReferenceJudge() if settings.judge == "Reference" else AgreementJudge()
        if settings.judge_endpoint is not None and settings.judge_model is not None:
            url = base_url("--judge-endpoint", settings.judge_endpoint)
            judge = EndpointJudge(
                endpoint(url, JUDGE_KEY_VARIABLE),
                settings.judge_model,
                template,
                max_completion_tokens=settings.judge_max_completion_tokens,
            )
        left = record.open(prompts, judge.name)
        if not left:
            return Outcome()
        urls = sorted({address.url for address in addresses})
        endpoints = {url: endpoint(url, STAGE_KEY_VARIABLE) for url in urls}
        scorings = {url: _scoring(spec.routing, url, settings) for url in urls}
        for scoring in scorings.values():
            closing.callback(scoring.close)
        stages = await check_stages(addresses, endpoints, scorings)
        total = len(prompts)
        if record.rows or record.redone:
            again = f", {record.redone} are done again (cut off, or not of this prompt)" if record.redone else ""
            say(f"{settings.target}: going on: {total - len(left):,} of {total:,} prompts are done{again}")
        if record.before is not None:
            say(f"note: rows were dropped that lack a stage or score, or whose prompt has changed: see {record.before}")
        try:
            with _progress(total - len(left), total) as tell:
                return await make_rows(
                    left, stages, judge, record, concurrency=min(settings.concurrency, len(left)), tell=tell
                )
        except (asyncio.CancelledError, CascadiaError):
            done = sum(prompt.id in record.rows for prompt in prompts)
            say(f"{settings.target}: {done:,} of {total:,} prompts are done; the same command goes on from there")
            raise


def _scoring(routing: Routing, url: str, settings: Settings) -> Scoring:
    key = os.environ.get(STAGE_KEY_VARIABLE)
    try:
        return Scoring(routing, url, key, settings.scorer_secrets, settings.attempts)
    except ValueError as error:
        raise InputError(Problem("spec.routing.scorer", str(error))) from None


def _check_secrets(routing: Routing, folder: str | None) -> None:
    missing = [file for file in needed_secrets(routing) if folder is None or not (Path(folder) / file).is_file()]
    if missing:
        message = f"the scorer needs {', '.join(missing)}: name a folder with a file SECRET.KEY for each secret"
        raise InputError(Problem("--scorer-secrets", message))


@contextlib.contextmanager
def _progress(kept: int, total: int) -> Iterator[Callable[[Outcome], None]]:
    """A bar on a terminal, else a line now and then; on standard error."""
    console = Console(stderr=True)
    if not console.is_terminal:
        said = time.monotonic()

        def tell_line(outcome: Outcome) -> None:
            nonlocal said
            if time.monotonic() - said >= _LINE_S:
                said = time.monotonic()
                failed = f", {len(outcome.failures):,} failed" if outcome.failures else ""
                say(f"{kept + outcome.done:,} of {total:,} prompts{failed}")

        yield tell_line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task("calibrating", total=total, completed=kept)

        def tell_bar(outcome: Outcome) -> None:
            failed = f"calibrating, {len(outcome.failures):,} failed" if outcome.failures else "calibrating"
            bar.update(task, completed=kept + outcome.done, description=failed)

        yield tell_bar


def _report(spec: CascadeDeploymentSpec, record: Record, settings: Settings, outcome: Outcome) -> None:
    rows = record.complete
    if older := len(record.rows) - len(rows):
        say(f"note: {older:,} rows of other prompts lack a stage or score of the manifest: kept, not counted")
    if outcome.failures:
        say(f"{len(outcome.failures):,} prompts failed; the same command tries them again")
        for message, count in Counter(outcome.failures.values()).most_common(_SHOWN_FAILURES):
            say(f"  {count:,} by {message}")
    for stage, count in outcome.cut.items():
        say(f"note: {count:,} answers of {stage} were cut off at a length limit and judged as they were")
    if not rows:
        return
    summary = set_summary(spec, rows) | {"file": settings.target, "failed": len(outcome.failures)}
    if settings.as_json:
        sys.stdout.write(json.dumps(summary, indent=2, allow_nan=False) + "\n")
        return
    console = Console(highlight=False)
    console.print(
        f"{settings.target}: {len(rows):,} requests, judged by {summary['judge']}, scored by {summary['scorer']}",
        markup=False,
        soft_wrap=True,
    )
    console.print(stage_table(summary))
    console.print(target_words(summary["target"], len(rows)), markup=False, soft_wrap=True)
