"""The commands of `cascadia calibrate`: their flags and their help. What they do is imported when they run."""

from __future__ import annotations

from typing import Annotated

import typer
from typer.core import TyperGroup

from cascadia_cli.options import (
    ChunkTokens,
    Dataset,
    GpuNumbers,
    JudgeKind,
    Manifest,
    PipelineParallel,
    PrefixCacheHit,
    ResultFormat,
    ScorerSecrets,
    TensorParallel,
    WeightPrecision,
)

__all__ = ["calibrate"]


class RunByDefault(TyperGroup):
    """A group whose command ``run`` is meant where none is named: ``cascadia calibrate FILE --prompts F``."""

    # The base takes typer's private Context; the public one, its subclass, is what a typer command is given.
    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Put ``run`` before arguments that begin with neither a command nor a request for help."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)


calibrate = typer.Typer(
    cls=RunByDefault,
    help="Make calibration sets: requests that every model has answered, scored and judged. "
    "`cascadia calibrate FILE --prompts F` is short for `cascadia calibrate run FILE --prompts F`.",
)


@calibrate.command("run")
def make_set(
    file: Manifest,
    prompts: Annotated[str, typer.Option(metavar="F.jsonl", help="Prompts, one JSON object a line.")],
    target: Annotated[str, typer.Option("--output", "-o", metavar="OUT.jsonl", help="Set to write, or to go on with.")],
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="The running cascade: its stages are asked one by one; or")
    ] = None,
    stage: Annotated[
        list[str] | None, typer.Option(metavar="NAME=URL[#MODEL]", help="a stage's own endpoint; once a stage.")
    ] = None,
    judge: Annotated[JudgeKind, typer.Option(help="What says how good an answer is.")] = JudgeKind.reference,
    judge_endpoint: Annotated[str | None, typer.Option(metavar="URL", help="For --judge Endpoint.")] = None,
    judge_model: Annotated[str | None, typer.Option(metavar="M", help="For --judge Endpoint.")] = None,
    judge_template: Annotated[
        str | None, typer.Option(metavar="FILE", help="What the judge is asked, in place of Cascadia's words.")
    ] = None,
    judge_max_completion_tokens: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="For a judge that thinks first: its room, thinking included.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=1024, metavar="N", help="Prompts at once.")] = 8,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Take only the first N prompts.")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="Longest wait for one answer.")] = 600.0,
    attempts: Annotated[int, typer.Option(min=1, max=20, metavar="N", help="Times to try each request.")] = 4,
    scorer_secrets: ScorerSecrets = None,
    output: Annotated[ResultFormat, typer.Option("--format", help="How to print the summary.")] = ResultFormat.table,
) -> None:
    """Make a calibration set: ask every stage every prompt, score and judge the answers. Goes on after a break.

    API keys come from CASCADIA_API_KEY (stages) and CASCADIA_JUDGE_API_KEY. See docs/calibration.md.

    Examples:
        cascadia calibrate chat.yaml --prompts q.jsonl -o chat-calibration.jsonl
            --endpoint http://127.0.0.1:8080/v1
        cascadia calibrate chat.yaml --prompts q.jsonl -o set.jsonl
            --stage small=http://node1:30000 --stage large=http://node2:30000
            --judge Endpoint --judge-endpoint https://judge.example/v1 --judge-model J
    """
    from cascadia_cli.calibrating.command import Settings, calibrate

    settings = Settings(
        prompts=prompts,
        target=target,
        endpoint=endpoint,
        stages=stage or [],
        judge=judge.value,
        judge_endpoint=judge_endpoint,
        judge_model=judge_model,
        judge_template=judge_template,
        judge_max_completion_tokens=judge_max_completion_tokens,
        concurrency=concurrency,
        limit=limit,
        timeout_s=timeout,
        attempts=attempts,
        as_json=output is ResultFormat.json,
        scorer_secrets=scorer_secrets,
    )
    raise typer.Exit(calibrate(file, settings))


@calibrate.command("fit")
def fit_curves(
    file: Manifest,
    calibration: Annotated[str, typer.Option(metavar="SET.jsonl", help="Set that `calibrate run` has made with it.")],
    target: Annotated[
        str | None, typer.Option("--output", "-o", metavar="OUT.jsonl", help="Write the set with the new scores, too.")
    ] = None,
) -> None:
    """Calibrate the parts of a Composite scorer on a set; print the scorer for the manifest.

    Example:
        cascadia calibrate fit chat.yaml --calibration set.jsonl -o chat-calibration.jsonl
    """
    from cascadia_cli.calibrating.fitting import fit

    fit(file, calibration=calibration, target=target)


@calibrate.command("engine")
def learn_engine(
    metrics: Annotated[list[str], typer.Option(metavar="URL", help="/metrics of an engine; once a replica.")],
    model: Annotated[str, typer.Option(metavar="NAME|config.json", help="What they serve.")],
    gpu: Annotated[str, typer.Option(metavar="NAME", help="On which GPU.")],
    tensor_parallel: TensorParallel,
    engine: Annotated[str, typer.Option(metavar="ENGINE:VERSION", help="Which engine they are: sglang:0.5.23.")],
    live: Annotated[
        str, typer.Option(metavar="FILE", help="Where to keep what is learnt; goes on with what is there.")
    ],
    pipeline_parallel: PipelineParallel = 1,
    precision: WeightPrecision = None,
    prefix_cache_hit: PrefixCacheHit = 0,
    chunk_tokens: ChunkTokens = None,
    gpu_spec: GpuNumbers = None,
    windows: Annotated[int, typer.Option(min=1, max=10_000, metavar="N", help="Windows to learn from.")] = 20,
    interval: Annotated[float, typer.Option(min=0.1, max=86_400, metavar="SECONDS", help="Length of one.")] = 60.0,
    output: Annotated[ResultFormat, typer.Option("--format", help="How to print the summary.")] = ResultFormat.table,
) -> None:
    """Learn how far off the cost model is from engines that serve real traffic; `--live FILE` then corrects it.

    Example:
        cascadia calibrate engine --metrics http://10.0.0.7:30000/metrics
            --model meta-llama/Llama-3.1-8B-Instruct --gpu H100-SXM-80GB
            --tensor-parallel 1 --engine sglang:0.5.23 --live live.json
        cascadia plan chat.yaml --engine sglang:0.5.23 --live live.json
    """
    from cascadia_cli.learning import EngineFlags, learn_from_engines

    learn_from_engines(
        EngineFlags(
            metrics=metrics,
            model=model,
            gpu=gpu,
            gpu_spec=gpu_spec,
            tensor_parallel=tensor_parallel,
            pipeline_parallel=pipeline_parallel,
            precision=None if precision is None else precision.value,
            prefix_cache_hit=prefix_cache_hit,
            chunk_tokens=chunk_tokens,
            engine=engine,
            live=live,
            windows=windows,
            interval=interval,
            as_json=output is ResultFormat.json,
        )
    )


@calibrate.command("import")
def import_results(
    dataset: Annotated[Dataset, typer.Argument(help="Which public results the file holds.")],
    source: Annotated[str, typer.Option("--input", metavar="CSV", help="The results, one row a question and model.")],
    model: Annotated[
        list[str],
        typer.Option(metavar="STAGE=NAME", help="A model and its name in the file; once a model."),
    ],
    target: Annotated[str, typer.Option("--output", "-o", metavar="OUT.jsonl", help="Where to write; - is stdout.")],
    auroc: Annotated[
        float, typer.Option(min=0.5, max=0.99, help="How well the simulated scores tell right from wrong.")
    ] = 0.8,
    seed: Annotated[int, typer.Option(help="Seed of the simulated scores.")] = 0,
) -> None:
    """Turn public per-question results into a calibration set. They hold no scores: these are simulated.

    Example:
        cascadia calibrate import zeroeval
            --input zeroeval_gsm8k.csv -o gsm8k.jsonl
            --model small=Meta-Llama-3.1-8B-Instruct
            --model large=Meta-Llama-3.1-70B-Instruct
    """
    from cascadia_cli.importing import import_calibration

    import_calibration(dataset.value, source, models=model, target=target, auroc=auroc, seed=seed)
