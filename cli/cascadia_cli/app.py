"""The commands of `cascadia`: their flags and their help. What they do is imported when they run."""

from __future__ import annotations

from typing import Annotated

import typer

from cascadia_cli.calibrating.app import calibrate
from cascadia_cli.options import (
    Calibration,
    ChunkTokens,
    CostSource,
    Engine,
    EngineKind,
    Format,
    Gguf,
    GpuNumbers,
    Keep,
    Live,
    LocalEngine,
    Manifest,
    MilpSolver,
    PipelineParallel,
    PlanFormat,
    PlannedEngine,
    PlannedStepTimes,
    Port,
    PrefixCacheHit,
    ResultFormat,
    Secrets,
    StepTimes,
    TensorParallel,
    Trace,
    WeightPrecision,
)

__all__ = ["app"]

app = typer.Typer(
    name="cascadia",
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(calibrate, name="calibrate")


def _show_version(wanted: bool) -> None:
    if wanted:
        version()
        raise typer.Exit


@app.callback()
def cascadia(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Serve a family of language models as one endpoint: as good as you ask, on the GPUs you have.

    Start here:

        cascadia plan examples/chat.yaml     what would run where, how well
        cascadia up examples/chat.yaml       run it here, with simulated GPUs
        cascadia render examples/chat.yaml   the Kubernetes manifests

    Exit codes: 0 ok, 2 bad input, 3 infeasible, 130 interrupted. Results go to stdout, everything else to stderr.
    """


@app.command()
def plan(
    file: Manifest,
    calibration: Calibration = None,
    trace: Trace = None,
    gpus: Annotated[
        list[str] | None,
        typer.Option(metavar="N", help="Plan for N GPUs, not maxGpus; POOL=N for several pools."),
    ] = None,
    free: Annotated[
        list[str] | None,
        typer.Option(metavar="N,N,...", help="Free GPUs of each node, as 8,8,4; POOL=N,N for several pools."),
    ] = None,
    solver: Annotated[
        MilpSolver, typer.Option(help="Certifies the allocation; highs needs pip install 'cascadia\\[highs]'.")
    ] = MilpSolver.cbc,
    frontier: Annotated[bool, typer.Option("--frontier", help="List the plans that no other beats.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Say what binds, and why not another plan.")] = False,
    plot: Annotated[
        str | None, typer.Option(metavar="OUT.png|svg|html", help="Draw the frontier and the GPUs.")
    ] = None,
    cost_source: PlannedStepTimes = None,
    engine: PlannedEngine = None,
    live: Live = None,
    output: Annotated[PlanFormat, typer.Option("--output", "-o", help="How to print the plan.")] = PlanFormat.table,
) -> None:
    """Plan a cascade: GPUs, parallelism and thresholds; predicted quality, latency and cost. No cluster needed.

    Examples:
        cascadia plan chat.yaml --calibration chat-calibration.jsonl
        cascadia plan chat.yaml --trace azure.csv --explain --plot chat.png
        cascadia plan chat.yaml -o json | jq .stages
    """
    from cascadia_cli.planning import print_plan

    print_plan(
        file,
        calibration=calibration,
        trace=trace,
        gpus=gpus or [],
        free=free or [],
        solver="HiGHS" if solver is MilpSolver.highs else "CBC",
        frontier=frontier,
        explained=explain,
        plot=plot,
        cost=(None if cost_source is None else cost_source.value, engine, live),
        output=output.value,
    )


@app.command()
def validate(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Manifests; - reads stdin.")],
    output: Format = ResultFormat.table,
) -> None:
    """Check manifests: every rule of the API server in the same words, and that models and GPUs are known.

    Examples:
        cascadia validate chat.yaml
        cascadia validate cascades/*.yaml -o json
    """
    from cascadia_cli.validating import print_validation

    raise typer.Exit(print_validation(files, as_json=output is ResultFormat.json))


@app.command()
def render(
    file: Manifest,
    plan: Annotated[
        str | None, typer.Option(metavar="FILE", help="A plan that `cascadia plan -o json` wrote; else one is made.")
    ] = None,
    calibration: Calibration = None,
    engine_image: Annotated[
        str | None, typer.Option(metavar="IMAGE", help="SGLang, for models that name none.")
    ] = None,
    router_image: Annotated[str | None, typer.Option(metavar="IMAGE", help="Cascadia image, for the routers.")] = None,
) -> None:
    """Print the Kubernetes manifests that the operator would apply, to review and keep in Git.

    Examples:
        cascadia render chat.yaml > chat-rendered.yaml
        cascadia plan chat.yaml -o json > plan.json
        cascadia render chat.yaml --plan plan.json
    """
    from cascadia_cli.planning import print_manifests

    print_manifests(file, plan_file=plan, calibration=calibration, engine_image=engine_image, router_image=router_image)


@app.command()
def crd() -> None:
    """Print the custom resource definitions.

    Example:
        cascadia crd | kubectl apply --server-side -f -
    """
    import sys

    from cascadia_api.crd import as_yaml, crds

    sys.stdout.write("---\n".join(as_yaml(definition) for definition in crds().values()))


@app.command()
def predict(
    model: Annotated[str, typer.Option(metavar="NAME|config.json", help="Repository in the catalogue, or a file.")],
    gpu: Annotated[str, typer.Option(metavar="NAME", help="GPU of the catalogue, as in H100-SXM-80GB.")],
    tensor_parallel: TensorParallel,
    input_tokens: Annotated[int, typer.Option("--input", min=1, metavar="N", help="Prompt length, tokens.")],
    output_tokens: Annotated[int, typer.Option("--output", min=1, metavar="N", help="Answer length, tokens.")],
    pipeline_parallel: PipelineParallel = 1,
    precision: WeightPrecision = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, metavar="C", help="Clients that ask again as soon as they are answered; or")
    ] = None,
    rate: Annotated[float | None, typer.Option(metavar="R", help="Requests per second, arriving at random.")] = None,
    prefix_cache_hit: PrefixCacheHit = 0,
    chunk_tokens: ChunkTokens = None,
    gpu_spec: GpuNumbers = None,
    cost_source: StepTimes = CostSource.roofline,
    engine: Engine = "sglang",
    live: Live = None,
    output: Annotated[ResultFormat, typer.Option("-o", "--format", help="How to print it.")] = ResultFormat.table,
) -> None:
    """Predict what one replica of a model would do: memory, latencies, throughput.

    Examples:
        cascadia predict --model meta-llama/Llama-3.1-70B-Instruct
            --gpu H100-SXM-80GB --tensor-parallel 4
            --input 1155 --output 211 --rate 2
        cascadia predict --model ./config.json --gpu H200-SXM-141GB
            --tensor-parallel 8 --precision fp8
            --input 1024 --output 512 --concurrency 16 -o json
        cascadia predict --model Qwen/Qwen3-32B --gpu H20-96GB
            --gpu-spec 96,4000,148,296,450 --tensor-parallel 2
            --input 1024 --output 512 --rate 1 --engine vllm
    """
    from cascadia_cli.predicting import print_prediction

    print_prediction(
        model=model,
        gpu=gpu,
        tensor_parallel=tensor_parallel,
        pipeline_parallel=pipeline_parallel,
        precision=None if precision is None else precision.value,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        concurrency=concurrency,
        rate=rate,
        prefix_cache_hit=prefix_cache_hit,
        chunk_tokens=chunk_tokens,
        gpu_spec=gpu_spec,
        cost=(cost_source.value, engine, live),
        as_json=output is ResultFormat.json,
    )


@app.command()
def up(
    file: Manifest,
    calibration: Calibration = None,
    trace: Trace = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Replay at most N requests.")] = None,
    leave: Annotated[bool, typer.Option("--exit", help="End after the trace; do not stay up.")] = False,
    engine: LocalEngine = EngineKind.simulated,
    gguf: Gguf = None,
    time_scale: Annotated[float, typer.Option(metavar="X", help="Seconds of service in one real second.")] = 1.0,
    port: Port = None,
    keep: Keep = False,
    api_keys: Annotated[
        str | None, typer.Option(metavar="PATH", help="Serve only clients with a key of this file or folder.")
    ] = None,
    secrets: Secrets = None,
    live: Annotated[
        str | None, typer.Option(metavar="FILE", help="Correct the cost model by what the engines showed; kept there.")
    ] = None,
) -> None:
    """Run a cascade on this machine: plan, replicas and routers on loopback, one endpoint. No GPU needed.

    With --trace it replays the trace first and compares what was predicted with what was measured.

    Ctrl-C finishes the requests in flight, says what was served and exits with 0; again, it cuts them off: 130.

    Examples:
        cascadia up examples/pair.yaml
        cascadia up chat.yaml --trace azure.csv --limit 2000 --time-scale 10 --exit
        cascadia up pair.yaml --engine llamacpp
    """
    from cascadia_cli.running import run_up

    code = run_up(
        file,
        calibration=calibration,
        trace=trace,
        limit=limit,
        leave=leave,
        engine=engine.value,
        model_file=gguf,
        time_scale=time_scale,
        port=port,
        keep=keep,
        api_keys=api_keys,
        secrets=secrets,
        live=live,
    )
    raise typer.Exit(code)


@app.command()
def demo(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Manifest.")] = "examples/chat.yaml",
    calibration: Calibration = None,
    trace: Trace = None,
    engine: LocalEngine = EngineKind.simulated,
    gguf: Gguf = None,
    time_scale: Annotated[
        float | None,
        typer.Option(metavar="X", help="Seconds of service in one real second; the demo's own if not given."),
    ] = None,
    port: Port = None,
    keep: Keep = False,
) -> None:
    """See it all on this machine: plan, traffic, a change of the traffic, a re-plan while requests flow.

    Examples:
        cascadia demo
        cascadia demo chat.yaml --trace azure.csv
    """
    from cascadia_cli.running import run_demo

    code = run_demo(
        file,
        calibration=calibration,
        trace=trace,
        engine=engine.value,
        model_file=gguf,
        time_scale=time_scale,
        port=port,
        keep=keep,
    )
    raise typer.Exit(code)


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []})
def router() -> None:
    """Run one router (the data plane); the operator and `cascadia up` do this for you.

    Example:
        cascadia router --config router.json
    """


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []})
def operator() -> None:
    """Run the Kubernetes operator in a cluster or against the current kubeconfig.

    Example:
        cascadia operator --namespace chat
    """


@app.command()
def version() -> None:
    """Print the version.

    Example:
        cascadia version
    """
    import sys

    from cascadia_api import __version__

    sys.stdout.write(f"cascadia {__version__}\n")
