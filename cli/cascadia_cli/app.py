"""The commands of `cascadia`: their flags and their help. What they do is imported when they run."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer
from typer.core import TyperGroup

__all__ = ["app"]


class RunByDefault(TyperGroup):
    """A group whose command ``run`` is meant where none is named: ``cascadia calibrate FILE --prompts F``."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Put ``run`` before arguments that begin with neither a command nor a request for help."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="cascadia",
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
calibrate = typer.Typer(
    cls=RunByDefault,
    help="Make calibration sets: requests that every model has answered, scored and judged. "
    "`cascadia calibrate FILE --prompts F` is short for `cascadia calibrate run FILE --prompts F`.",
)
app.add_typer(calibrate, name="calibrate")


class PlanFormat(StrEnum):
    """How a plan is printed."""

    table = "table"
    json = "json"
    yaml = "yaml"


class MilpSolver(StrEnum):
    """Solvers of the MILP."""

    cbc = "cbc"
    highs = "highs"


class ResultFormat(StrEnum):
    """How other results are printed."""

    table = "table"
    json = "json"


class Precision(StrEnum):
    """Precisions of weights."""

    bf16 = "bf16"
    fp16 = "fp16"
    fp8 = "fp8"
    int8 = "int8"
    int4 = "int4"
    fp4 = "fp4"


class CostSource(StrEnum):
    """Where step times come from."""

    roofline = "roofline"
    measured = "measured"


class Dataset(StrEnum):
    """Public results that can be imported."""

    zeroeval = "zeroeval"
    wildbench = "wildbench"


class JudgeKind(StrEnum):
    """What judges answers."""

    reference = "Reference"
    endpoint = "Endpoint"
    agreement = "AgreementWithLargest"


class EngineKind(StrEnum):
    """What answers requests in embedded mode."""

    simulated = "simulated"
    llamacpp = "llamacpp"


Manifest = Annotated[str, typer.Argument(metavar="FILE", help="Manifest with a CascadeDeployment; - reads stdin.")]
Calibration = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Calibration set (.jsonl, .csv, .parquet); else the manifest's ConfigMap."),
]
ScorerSecrets = Annotated[
    str | None, typer.Option(metavar="FOLDER", help="The scorer's keys and certificates: files SECRET.KEY.")
]
Format = Annotated[ResultFormat, typer.Option("--output", "-o", help="How to print the result.")]
StepTimes = Annotated[
    CostSource,
    typer.Option(help="The built-in roofline, or aiconfigurator's tables (pip install 'cascadia[measured]')."),
]
Engine = Annotated[str, typer.Option(metavar="ENGINE[:VERSION]", help="sglang, vllm or trtllm.")]
Live = Annotated[str | None, typer.Option(metavar="FILE", help="Corrections that `cascadia calibrate engine` learnt.")]
Trace = Annotated[
    str | None, typer.Option(metavar="FILE", help="Real traffic: Azure's CSV, or JSONL. Takes the place of workload.")
]


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

    Exit codes: 0 ok, 2 bad input, 3 infeasible. Results go to stdout, everything else to stderr.
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
        MilpSolver, typer.Option(help="Certifies the allocation; highs needs pip install 'cascadia[highs]'.")
    ] = MilpSolver.cbc,
    frontier: Annotated[bool, typer.Option("--frontier", help="List the plans that no other beats.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Say what binds, and why not another plan.")] = False,
    plot: Annotated[
        str | None, typer.Option(metavar="OUT.png|svg|html", help="Draw the frontier and the GPUs.")
    ] = None,
    cost_source: StepTimes = CostSource.roofline,
    engine: Engine = "sglang",
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
        cost=(cost_source.value, engine, live),
        output=output.value,
    )


@app.command()
def validate(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Manifests; - reads stdin.")],
    output: Annotated[
        ResultFormat, typer.Option("--output", "-o", help="How to print the result.")
    ] = ResultFormat.table,
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
    tensor_parallel: Annotated[int, typer.Option(min=1, max=64, metavar="N", help="GPUs that share each layer.")],
    input_tokens: Annotated[int, typer.Option("--input", min=1, metavar="N", help="Prompt length, tokens.")],
    output_tokens: Annotated[int, typer.Option("--output", min=1, metavar="N", help="Answer length, tokens.")],
    pipeline_parallel: Annotated[int, typer.Option(min=1, max=16, metavar="N", help="Groups of layers in a row.")] = 1,
    precision: Annotated[
        Precision | None, typer.Option(help="Precision of the weights; by default that of the published ones.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, metavar="C", help="Clients that ask again as soon as they are answered; or")
    ] = None,
    rate: Annotated[float | None, typer.Option(metavar="R", help="Requests per second, arriving at random.")] = None,
    prefix_cache_hit: Annotated[
        int, typer.Option(min=0, max=100, metavar="PERCENT", help="Share of prompt tokens in the prefix cache.")
    ] = 0,
    chunk_tokens: Annotated[
        int | None,
        typer.Option(
            "--chunked-prefill-size", min=1, metavar="N", help="Most prompt tokens in one step; else SGLang's default."
        ),
    ] = None,
    gpu_spec: Annotated[
        str | None,
        typer.Option(metavar="GB,GB/s,BF16,FP8,LINK", help="For another GPU: memory, bandwidth, teraflops, link GB/s."),
    ] = None,
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
    engine: Annotated[EngineKind, typer.Option(help="Simulated GPUs, or real small models.")] = EngineKind.simulated,
    gguf: Annotated[str | None, typer.Option(metavar="PATH", help="Model for llamacpp; else SmolLM2-135M.")] = None,
    time_scale: Annotated[float, typer.Option(metavar="X", help="Seconds of service in one real second.")] = 1.0,
    port: Annotated[int | None, typer.Option(metavar="P", help="Port of the endpoint; else 8080 or any.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the run's folder: configurations and logs.")] = False,
    api_keys: Annotated[
        str | None, typer.Option(metavar="PATH", help="Serve only clients with a key of this file or folder.")
    ] = None,
    scorer_secrets: ScorerSecrets = None,
    live: Annotated[
        str | None, typer.Option(metavar="FILE", help="Correct the cost model by what the engines showed; kept there.")
    ] = None,
) -> None:
    """Run a cascade on this machine: plan, replicas and routers on loopback, one endpoint. No GPU needed.

    With --trace it replays the trace first and compares what was predicted with what was measured.

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
        scorer_secrets=scorer_secrets,
        live=live,
    )
    raise typer.Exit(code)


@app.command()
def demo(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Manifest.")] = "examples/chat.yaml",
    calibration: Calibration = None,
    trace: Trace = None,
    engine: Annotated[EngineKind, typer.Option(help="Simulated GPUs, or real small models.")] = EngineKind.simulated,
    gguf: Annotated[str | None, typer.Option(metavar="PATH", help="Model for llamacpp; else SmolLM2-135M.")] = None,
    time_scale: Annotated[
        float | None,
        typer.Option(metavar="X", help="Seconds of service in one real second; the demo's own if not given."),
    ] = None,
    port: Annotated[int | None, typer.Option(metavar="P", help="Port of the endpoint; else 8080 or any.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the run's folder: configurations and logs.")] = False,
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
    tensor_parallel: Annotated[int, typer.Option(min=1, max=64, metavar="N", help="GPUs that share each layer.")],
    engine: Annotated[str, typer.Option(metavar="ENGINE:VERSION", help="Which engine they are: sglang:0.5.23.")],
    live: Annotated[
        str, typer.Option(metavar="FILE", help="Where to keep what is learnt; goes on with what is there.")
    ],
    pipeline_parallel: Annotated[int, typer.Option(min=1, max=16, metavar="N", help="Groups of layers in a row.")] = 1,
    precision: Annotated[
        Precision | None, typer.Option(help="Precision of the weights; by default that of the published ones.")
    ] = None,
    gpu_spec: Annotated[
        str | None,
        typer.Option(metavar="GB,GB/s,BF16,FP8,LINK", help="For another GPU: memory, bandwidth, teraflops, link GB/s."),
    ] = None,
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
