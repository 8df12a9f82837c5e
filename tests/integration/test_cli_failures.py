"""Every wrong file, flag and manifest: one clear message on standard error, the right exit code, no traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cascadia_api.errors import InfeasibleError, InputError, Problem, Shortfall
from cascadia_cli import files
from cascadia_cli.failures import describe
from cascadia_cli.main import kubectl_plugin as kubectl
from cascadia_cli.main import main
from tests.support.manifests import BROKEN, Broken, cascade_manifest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "chat.yaml"
    path.write_text(yaml.safe_dump(cascade_manifest()))
    return path


PREDICT = (
    "predict --model meta-llama/Llama-3.1-8B-Instruct --gpu H100-SXM-80GB --tensor-parallel 1 --input 9 --output 9"
)

CALIBRATE = "calibrate {file} --prompts "


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("bogus", "No such command 'bogus'"),
        ("plan", "cascadia plan: Missing argument 'FILE'"),
        ("plan {file} --colour blue", "cascadia plan: No such option: --colour"),
        ("plan {file} -o xml", "Invalid value for '--output' / '-o': 'xml' is not one of 'table', 'json', 'yaml'"),
        ("plan no-such.yaml", "no-such.yaml: no such file"),
        ("plan {folder}", "{folder}: is a folder"),
        ("plan {file} --plot out.bmp", "--plot: 'out.bmp' does not say the format: end it in .png"),
        ("plan {file} --plot {folder}/none/out.svg", "--plot: there is no folder {folder}/none: make it"),
        ("plan {file} --gpus many", "--gpus: 'many' is not a number of GPUs from 1 to 4096"),
        ("plan {file} --gpus 0", "--gpus: '0' is not a number of GPUs"),
        ("plan {file} --gpus a100=8", "--gpus: pool 'a100' is not in the manifest: write POOL=N with a pool of h100"),
        ("plan {file} --calibration no-such.jsonl", "no-such.jsonl: no such file"),
        ("plan {file} --calibration {file}", "{file}: "),
        ("plan {file} --trace {file}", "{file}: "),
        ("render {file} --plan {file}", "{file}: "),
        ("render no-such.yaml", "no-such.yaml: no such file"),
        ("validate", "cascadia validate: Missing argument 'FILE...'"),
        (PREDICT, "give exactly one of --concurrency and --rate"),
        (PREDICT + " --rate 1 --concurrency 1", "give exactly one of --concurrency and --rate"),
        (PREDICT + " --rate -1", "--rate: must be positive"),
        (PREDICT + " --concurrency 0", "--concurrency"),
        (
            PREDICT.replace("H100-SXM-80GB", "H100") + " --rate 1",
            "--gpu: GPU 'H100' is not in the catalogue; use H100-",
        ),
        (PREDICT.replace("8B-Instruct", "9B") + " --rate 1", "--model: model 'meta-llama/Llama-3.1-9B' is not in the"),
        (PREDICT.replace("parallel 1", "parallel 3") + " --rate 1", "--tensor-parallel: 3 does not divide the 32"),
        (PREDICT.replace("--input 9", "--input 999999") + " --rate 1", "exceed the context window"),
        (PREDICT + " --rate 1 --precision fp3", "'fp3' is not one of"),
        (
            PREDICT.replace("H100-SXM-80GB", "X --gpu-spec 1,2") + " --rate 1",
            "--gpu-spec: '1,2' is not five numbers",
        ),
        (PREDICT + " --gpu-spec 96,4000,148,296,450 --rate 1", "--gpu-spec: H100-SXM-80GB is in the catalogue: leave"),
        (
            PREDICT + " --rate 1 --engine x",
            "--engine: 'x' is no engine: use sglang, vllm, trtllm",
        ),
        ("predict --model {file}.json --gpu L4-24GB --tensor-parallel 1 --input 1 --output 1 --rate 1", "no such file"),
        ("calibrate import gsm8k --input {file} -o -", "'gsm8k' is not one of 'zeroeval', 'wildbench'"),
        ("calibrate import zeroeval --input {file} --model small -o -", "--model: 'small' is not STAGE=NAME"),
        ("calibrate import zeroeval --input {file} --model a=b --model a=c -o -", "the model 'a' is given twice"),
        ("calibrate import zeroeval --input {file} --model a=b -o -", "{file}: the CSV lacks the columns"),
        ("calibrate {file}", "cascadia calibrate run: Missing option '--prompts'"),
        (CALIBRATE + "no-such.jsonl -o x.jsonl --endpoint http://h", "no-such.jsonl: no such file"),
        (CALIBRATE + "{file} -o x.jsonl --endpoint http://h", "{file}: line 1: JSON is malformed"),
        (CALIBRATE + "{file} -o x.csv --endpoint http://h", "--output: 'x.csv': name a .jsonl file"),
        (CALIBRATE + "{file} -o x.jsonl", "--endpoint: where does small and large run? Give the running cascade's URL"),
        (CALIBRATE + "{file} -o x.jsonl --stage small=http://h", "--endpoint: where does large run?"),
        (
            CALIBRATE + "{file} -o x.jsonl --stage tiny=http://h",
            "--stage: 'tiny' is not a model of the manifest: it has",
        ),
        (CALIBRATE + "{file} -o x.jsonl --stage small", "--stage: 'small' is not NAME=URL"),
        (CALIBRATE + "{file} -o x.jsonl --endpoint h:80", "--endpoint: 'h:80' is not a URL"),
        (CALIBRATE + "{file} -o x.jsonl --judge Endpoint", "--judge-endpoint: --judge Endpoint needs it"),
        (CALIBRATE + "{file} -o x.jsonl --judge-model m", "--judge-model: goes with --judge Endpoint, not Reference"),
        (
            CALIBRATE + "{file} -o x.jsonl --judge Me",
            "'Me' is not one of 'Reference', 'Endpoint', 'AgreementWithLargest'",
        ),
        ("calibrate --prompts {file} {file} -o x.jsonl", "--endpoint: where does small and large run?"),
        ("calibrate run {file} --prompts {file} -o x.jsonl", "--endpoint: where does small and large run?"),
        ("up {file} --exit", "--exit: goes with --trace FILE"),
        ("up {file} --limit 5", "--limit: goes with --trace FILE"),
        ("up {file} --time-scale 0", "--time-scale: 0 is not between 0.1 and 100"),
        ("up {file} --port 99999", "--port: 99999 is not between 1 and 65535"),
        ("up {file} --gguf x.gguf", "--gguf: only --engine llamacpp"),
        ("up no-such.yaml", "no-such.yaml: no such file"),
        ("up {file} --api-keys no-such", "--api-keys: there is no no-such: name a file of keys"),
        ("operator --workers 0", "--workers: '0' is not a whole number from 1 to 256"),
        ("operator --resync-seconds soon", "--resync-seconds: 'soon' is not a number of seconds above 0"),
        ("operator --metrics-port 99999", "--metrics-port: '99999' is not a whole number from 0 to 65535"),
        ("operator --liveness healthz", "--liveness: 'healthz' is not http://HOST:PORT/PATH"),
    ],
)
def test_one_clear_error(
    arguments: str, said: str, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"file": str(manifest), "folder": str(tmp_path)}
    assert _code(arguments.format(**places)) == 2
    out, err = capsys.readouterr()
    assert said.format(**places) in err
    assert out == ""
    assert "Traceback" not in err
    assert "internal error" not in err


def _code(arguments: str) -> int:
    try:
        return main(arguments.split())
    except SystemExit as stop:  # as argparse does it, for the operator and the router
        return int(stop.code or 0)


@pytest.mark.parametrize(
    ("content", "arguments", "said"),
    [
        ("", "up {manifest} --api-keys {file}", "--api-keys: {file} holds none: write a key of 16 to 512 visible"),
        ("# none yet\nshort\n", "up {manifest} --api-keys {file}", "--api-keys: {file} holds none"),
        ("{}", "predict {facts} --model {file}.json", "{file}.json: hidden_size: is missing; give the model's own"),
        ("{", "predict {facts} --model {file}.json", "{file}.json: not JSON: line 1, column 2"),
        ("[" * 100_000, "predict {facts} --model {file}.json", "{file}.json: no JSON that can be read"),
        ("[1]", "render {manifest} --plan {file}", "{file}: no plan: write one with `cascadia plan FILE -o json`"),
        ("a: 1", "render {manifest} --plan {file}", "{file}: no plan: write one with `cascadia plan FILE -o json`"),
        (
            "",
            "import {file} -o -",
            "{file}: the CSV lacks the columns id, model, correct, prompt_chars, output_chars; it",
        ),
        ("{columns}1,b,yes,5,5\n", "import {file} -o -", "line 2: correct of b is 'yes'"),
        ("{columns}1,b,1,nan,5\n", "import {file} -o -", "line 2: prompt_chars of b is 'nan'"),
        ("{columns}1,b,1\n", "import {file} -o -", "line 2: prompt_chars of b is None"),
        ("{columns}1,b,1,5," + "x" * 200_000, "import {file} -o -", "{file}: line 1 is no CSV: field larger"),
        ("{columns}1,b,1,5,5\n", "import {file} -o {folder}/none/x", "{folder}/none/x: cannot be written: its folder"),
        ("{columns}1,b,1,5,5\n", "import {file} -o {folder}", "{folder}: cannot be written: Is a directory"),
    ],
    ids=lambda value: value[:30],
)
def test_odd_files(
    content: str, arguments: str, said: str, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = "id,model,correct,prompt_chars,output_chars\n"
    file = tmp_path / "odd"
    for name in ("odd", "odd.json"):
        (tmp_path / name).write_text(content.replace("{columns}", columns))
    places = {
        "file": str(file),
        "folder": str(tmp_path),
        "manifest": str(manifest),
        "facts": "--gpu H100-SXM-80GB --tensor-parallel 1 --input 9 --output 9 --rate 1",
    }
    if arguments.startswith("import"):
        arguments = "calibrate import zeroeval --model a=b --input" + arguments.removeprefix("import")
    assert _code(arguments.format(**places)) == 2
    out, err = capsys.readouterr()
    assert said.format(**places) in err
    assert out == ""


@pytest.mark.parametrize(
    ("config_map", "said"),
    [
        ({"metadata": {"name": "set"}, "data": {"a.jsonl": 5}}, "ConfigMap set: data: must map names of files to"),
        ({"metadata": {"name": "set"}, "data": ["a"]}, "ConfigMap set: data: must map names of files to texts"),
        ({"metadata": ["set"]}, "valid"),
    ],
)
def test_odd_config_maps_beside_the_manifest(
    config_map: dict[str, object], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "chat.yaml"
    document = cascade_manifest()
    document["spec"]["calibration"] = {"configMapRef": {"name": "set"}}
    path.write_text(yaml.safe_dump_all([document, {"kind": "ConfigMap"} | config_map]))
    main(["validate", str(path)])
    out, err = capsys.readouterr()
    assert f"{path}: {said}" in out + err


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00", b"a:\n\tb: c\n", b"[1]\n", b"", b"a: 1\n"])
@pytest.mark.parametrize("command", ["operator", "kubectl"])
def test_a_file_that_is_no_kubeconfig(
    command: str,
    content: bytes | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "kubeconfig"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv("KUBECONFIG", str(path))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert (_code("operator") if command == "operator" else kubectl(["status", "chat"])) == 2
    err = capsys.readouterr().err
    assert ("KUBECONFIG: no cluster to work on: " if command == "operator" else "kubectl cascadia: kubeconfig: ") in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("command", "broken"),
    [*(("validate", broken) for broken in BROKEN), ("plan -o json", BROKEN[0]), ("render", BROKEN[0])],
    ids=lambda value: value.id if isinstance(value, Broken) else str(value),
)
def test_broken_manifests_name_file_and_field(
    command: str, broken: Broken, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(yaml.safe_dump(broken.document()))
    verb, *flags = command.split()
    assert main([verb, str(path), *flags]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines, "something is said"
    assert all(line.startswith(f"{path}: ") for line in lines), err
    assert any(line.startswith(f"{path}: {broken.field}") and broken.message in line for line in lines), err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected exactly one object"),
        ("a: b: c", "not valid YAML: line 1"),
        ("[1, 2]", "expected a Kubernetes object, found list"),
        ("kind: Pod", "found Pod"),
        ("\x00", "not valid YAML"),
        ("a: " + "[" * 1000, "not valid YAML: it is nested too deeply"),
        ("a: 2026-13-45", "not valid YAML: month must be in 1..12: write it in quotes"),
        ("a: " + "9" * 5000, "not valid YAML: Exceeds the limit (4300 digits)"),
    ],
    ids=lambda value: value[:24],
)
def test_files_that_are_no_manifest(text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    assert main(["validate", str(path)]) == 2
    assert f"{path}: " in (err := capsys.readouterr().err)
    assert said in err


def test_binary_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"\xff\xfe\x00")
    assert main(["plan", str(path)]) == 2
    assert f"{path}: not UTF-8 text (byte 0)" in capsys.readouterr().err


def test_every_problem_gets_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    error = InputError([Problem("spec.a", "is wrong: mend it"), Problem("", "and so is this")], source="x.yaml")
    assert describe(error, "cascadia") == 2
    assert capsys.readouterr().err == "x.yaml: spec.a: is wrong: mend it\nx.yaml: and so is this\n"


def test_infeasible_says_what_is_missing_and_what_is_near(capsys: pytest.CaptureFixture[str]) -> None:
    error = InfeasibleError(
        "InsufficientGPUs",
        "the models do not fit",
        shortfalls=[Shortfall("GPUs of pool h100", 12, 8), Shortfall("bytes per GPU", 156.54e9, 85.52e9)],
        nearest="12 GPUs, p95 9 s",
    )
    assert describe(error, "cascadia") == 3
    err = capsys.readouterr().err
    assert "no plan is feasible (InsufficientGPUs): the models do not fit" in err
    assert "GPUs of pool h100: needed 12, available 8\n" in err
    assert "bytes per GPU: needed 156.5 G, available 85.5 G\n" in err
    assert "nearest feasible: 12 GPUs, p95 9 s" in err


def _process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cascadia_cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env=os.environ | environment,
        check=False,
    )


def _shell(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, check=False)


def test_unforeseen_errors_hide_their_traceback_unless_asked() -> None:
    """A folder where the output should go is foreseen; a broken installation is not."""
    script = (
        "import sys; sys.modules['cascadia_api.crd'] = None\n"
        "from cascadia_cli.main import main; sys.exit(main(['crd']))"
    )
    for debug in ("", "1"):
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ | {"CASCADIA_DEBUG": debug},
            check=False,
        )
        assert done.returncode == 1
        assert "cascadia: internal error: ModuleNotFoundError" in done.stderr
        assert ("Traceback" in done.stderr) == bool(debug)


_AT_WORK = "import cascadia_cli.validating as v; v.print_validation = interrupted"
_WHILE_LOADING = (
    "class Finder: find_spec = staticmethod(lambda name, *_: interrupted() if name == 'typer' else None)\n"
    "sys.meta_path.insert(0, Finder)"
)


@pytest.mark.parametrize(
    ("entry", "moment", "program"),
    [
        ("main", _AT_WORK, "cascadia"),
        ("main", _WHILE_LOADING, "cascadia"),
        ("kubectl_plugin", _WHILE_LOADING, "kubectl cascadia"),
    ],
    ids=["at work", "while modules are loaded", "while the plugin's modules are loaded"],
)
def test_interrupts_exit_with_130(entry: str, moment: str, program: str) -> None:
    script = (
        "import sys\n"
        f"from cascadia_cli.main import {entry} as main\n"
        "def interrupted(*_, **__): raise KeyboardInterrupt\n"
        f"{moment}\n"
        "sys.exit(main(['validate', 'x']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 130
    assert done.stderr == f"{program}: interrupted\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, the disk that is always full")
def test_a_full_disk_is_no_internal_error() -> None:
    done = _shell(f"{sys.executable} -m cascadia_cli crd > /dev/full")
    assert done.returncode == 1
    assert done.stderr.startswith("cascadia: the system refuses: [Errno 28]")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("streams", "code"), [("<&-", 2), (">&- 2>&- <&-", 2)])
def test_closed_streams_are_no_internal_error(streams: str, code: int) -> None:
    done = _shell(f"{sys.executable} -m cascadia_cli validate - {streams}")
    assert done.returncode == code
    assert done.stderr in ("-: there is no standard input: name a file\n", "")


def test_a_file_without_end_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(files, "_MOST_BYTES", 1 << 20)
    assert main(["validate", "/dev/zero"]) == 2
    assert capsys.readouterr().err == "/dev/zero: larger than 1 MiB: cut it\n"


def test_lines_end_where_files_end_them_and_a_byte_order_mark_is_no_part_of_them(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_bytes('\ufeff{"id": "\u2028\x85"}\r\nb\rc\n'.encode())
    assert files.read_lines(str(path)) == ['{"id": "\u2028\x85"}', "b", "c"]
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert files.read_json(str(path)) == {"a": 1}


def test_an_import_does_not_write_over_what_it_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results.csv"
    results.write_text("kept")
    arguments = ["calibrate", "import", "zeroeval", "--input", str(results), "--model", "small=A"]
    assert main([*arguments, "-o", f"{tmp_path}/../{tmp_path.name}/results.csv"]) == 2
    assert "is the file that is read: name another" in capsys.readouterr().err
    assert results.read_text() == "kept"


def test_a_reader_that_leaves_is_no_error() -> None:
    done = _shell(f"{sys.executable} -m cascadia_cli crd | head -1")
    assert done.stdout.startswith("# Generated from cascadia_api")
    assert done.stderr == ""


def test_router_and_operator_are_dispatched_without_the_command_lines_weight() -> None:
    """A router starts in every pod: neither typer nor rich nor pydantic may be loaded for it."""
    script = (
        "import sys\n"
        "from cascadia_cli.main import main\n"
        "try: code = main(['router', '--config', 'no-such.json'])\n"
        "except SystemExit as stop: code = stop.code\n"
        "heavy = {'typer', 'rich', 'pydantic', 'numpy', 'kubernetes'} & set(sys.modules)\n"
        "print(code, sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split("\n")[-2] == "2 []", done


def test_as_a_process() -> None:
    """Also on a terminal that cannot show every character."""
    assert _process("version").stdout.startswith("cascadia ")
    done = _process("validate", "examples/chat.yaml", PYTHONIOENCODING="ascii")
    assert "small ? medium ? large" in done.stdout
    done = _process("validate", "examples/chat.yaml", "-o", "json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["results"][0]["valid"] is True
    assert done.stderr == ""
