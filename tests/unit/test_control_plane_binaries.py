"""The pure parts of building the control plane: cache key, choice of Go, progress."""

import io
from pathlib import Path

import pytest

from tests.support.control_plane.binaries import (
    CONTROL_PLANE_TOOLS,
    KUBERNETES,
    KUBERNETES_VERSION,
    TOOLS,
    BuildError,
    GoTool,
    built_folder,
    cache_key,
    cache_root,
    prebuilt,
)
from tests.support.control_plane.deadlines import DeadlineExceededError, wait_for
from tests.support.control_plane.kwok import render_stages
from tests.support.control_plane.nodes import GpuNode
from tests.support.control_plane.progress import BuildProgress, elapsed_words
from tests.support.control_plane.toolchain import (
    PYPI_GO,
    GoVersion,
    ToolchainError,
    go_environment,
    new_enough,
    parse_go_version,
    required_go_version,
)

TOOL = GoTool("tool", {"tool": "example.org/tool"})


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_cache_key_changes_with_everything_that_decides_the_binary() -> None:
    key = cache_key(TOOL, b"mod", b"sum", "Linux-x86_64")
    assert key == cache_key(TOOL, b"mod", b"sum", "Linux-x86_64")
    others = [
        cache_key(TOOL, b"mod2", b"sum", "Linux-x86_64"),
        cache_key(TOOL, b"mod", b"sum2", "Linux-x86_64"),
        cache_key(TOOL, b"mods", b"um", "Linux-x86_64"),
        cache_key(TOOL, b"mod", b"sum", "Linux-aarch64"),
        cache_key(GoTool("tool", {"tool": "example.org/tool"}, ldflags="-s"), b"mod", b"sum", "Linux-x86_64"),
        cache_key(GoTool("tool", {"tool": "example.org/tool/v2"}), b"mod", b"sum", "Linux-x86_64"),
    ]
    assert len({key, *others}) == 7


def test_cache_root_follows_the_environment() -> None:
    assert cache_root({"CASCADIA_TOOLS_CACHE": "/a", "XDG_CACHE_HOME": "/b"}) == Path("/a")
    assert cache_root({"XDG_CACHE_HOME": "/b"}) == Path("/b/cascadia/tools")
    assert cache_root({}) == Path.home() / ".cache" / "cascadia" / "tools"


def test_missing_pins_are_named(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"pins of tool are missing.*go\.mod"):
        built_folder(TOOL, tmp_path, tmp_path)


@pytest.mark.parametrize("tool", CONTROL_PLANE_TOOLS, ids=lambda tool: str(tool.name))
def test_pins_name_every_package_that_is_built(tool: GoTool) -> None:
    go_mod = (TOOLS / tool.name / "go.mod").read_text()
    assert all(package in go_mod for package in tool.packages.values())
    assert new_enough(parse_go_version(PYPI_GO), required_go_version(go_mod))


def test_kubernetes_calls_itself_by_the_pinned_version() -> None:
    assert f"k8s.io/kubernetes v{KUBERNETES_VERSION}" in (TOOLS / "kubernetes" / "go.mod").read_text()
    assert f"version.gitVersion=v{KUBERNETES_VERSION} " in KUBERNETES.ldflags


def test_assets_of_setup_envtest_are_used_and_checked(tmp_path: Path) -> None:
    assert prebuilt({}) == {}
    for name in ("kube-apiserver", "etcd"):
        (tmp_path / name).touch(mode=0o755)
    with pytest.raises(BuildError, match="lacks kubectl"):
        prebuilt({"KUBEBUILDER_ASSETS": str(tmp_path)})
    (tmp_path / "kubectl").touch(mode=0o755)
    found = prebuilt({"KUBEBUILDER_ASSETS": str(tmp_path)})
    assert set(found) == {"kube-apiserver", "etcd", "kubectl"}


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("go1.26.8", GoVersion(1, 26, 8)),
        ("go1.26.8\n", GoVersion(1, 26, 8)),
        ("1.26", GoVersion(1, 26, 0)),
        ("go1.27rc1", GoVersion(1, 27, 0, released=False)),
        ("go1.26.8-X:nocoverageredesign", GoVersion(1, 26, 8)),
        ("devel go1.27-abcdef1", GoVersion(1, 27, 0, released=False)),
        ("", None),
        ("nonsense", None),
    ],
)
def test_go_versions_are_read(text: str, version: GoVersion | None) -> None:
    assert parse_go_version(text) == version


@pytest.mark.parametrize(
    ("found", "required", "enough"),
    [
        ("go1.26.8", "1.26.0", True),
        ("go1.26.0", "1.26.0", True),
        ("go1.27.0", "1.26.6", True),
        ("go1.26.5", "1.26.6", False),
        ("go1.25.12", "1.26.0", False),
        ("go1.26rc2", "1.26.0", False),
        ("go1.27rc1", "1.26.6", True),
        ("nonsense", "1.26.0", False),
    ],
)
def test_go_is_chosen_by_version(found: str, required: str, enough: bool) -> None:
    asked = parse_go_version(required)
    assert asked is not None
    assert new_enough(parse_go_version(found), asked) is enough


def test_go_line_of_a_module_is_read() -> None:
    assert required_go_version("module m\n\ngo 1.26.0\n\ngodebug default=go1.25\n") == GoVersion(1, 26, 0)
    with pytest.raises(ToolchainError, match="no `go` line"):
        required_go_version("module m\n")


def test_go_environment_is_the_same_on_every_machine() -> None:
    environment = go_environment({"HOME": "/h", "GOOS": "plan9", "GOFLAGS": "-race", "CGO_ENABLED": "1"})
    assert environment["HOME"] == "/h"
    assert "GOOS" not in environment
    assert (environment["CGO_ENABLED"], environment["GOTOOLCHAIN"]) == ("0", "local")
    assert "-race" not in environment["GOFLAGS"]


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0s"), (59.9, "59s"), (60, "1m00s"), (605, "10m05s"), (3725, "1h02m")]
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert elapsed_words(seconds) == words


def test_progress_without_a_terminal_is_a_line_every_ten_seconds() -> None:
    now, stream = [0.0], io.StringIO()
    progress = BuildProgress("kwok", stream, clock=lambda: now[0])
    progress.start("about a minute")
    progress.saw("go: downloading k8s.io/api v0.36.3\n")
    for second in range(1, 26):
        now[0] = second
        progress.saw(f"k8s.io/api/part{second}\n")
        progress.tick()
    progress.done()
    assert stream.getvalue().splitlines() == [
        "building kwok (about a minute)",
        "building kwok: 1 modules downloaded, 10 packages compiled, 10s (k8s.io/api/part10)",
        "building kwok: 1 modules downloaded, 20 packages compiled, 20s (k8s.io/api/part20)",
        "built kwok: 1 modules downloaded, 25 packages compiled, 25s",
    ]


def test_progress_on_a_terminal_rewrites_one_line_within_its_width() -> None:
    now, stream = [0.0], Terminal()
    progress = BuildProgress("kwok", stream, clock=lambda: now[0], width=40)
    now[0] = 1.0
    progress.saw("k8s.io/a/very/long/import/path/of/a/package")
    progress.tick()
    assert stream.getvalue().startswith("\r\x1b[K")
    assert "\n" not in stream.getvalue()
    assert len(stream.getvalue().removeprefix("\r\x1b[K")) <= 39


def test_complaints_of_the_compiler_are_kept_and_package_names_are_not() -> None:
    progress = BuildProgress("kwok", io.StringIO())
    for line in ("sync", "k8s.io/api/core/v1", "# example.org/tool", "./main.go:3:15: undefined: x", "go: no network"):
        progress.saw(line)
    assert progress.tail.splitlines() == ["# example.org/tool", "./main.go:3:15: undefined: x", "go: no network"]


def test_waiting_returns_what_the_probe_found_and_fails_in_words() -> None:
    answers = iter([None, [], ["found"]])
    assert wait_for("an answer", lambda: next(answers), timeout_s=5, interval_s=0) == ["found"]

    def refuse() -> bool:
        raise ValueError("not yet")

    with pytest.raises(DeadlineExceededError, match=r"waited 0 s for rain; last error: not yet; last seen: sun"):
        wait_for("rain", refuse, timeout_s=0, ignore=(ValueError,), seen=lambda: "sun")
    with pytest.raises(ValueError, match="not yet"):
        wait_for("rain", refuse, timeout_s=0)


def test_stages_take_the_time_that_pods_load(tmp_path: Path) -> None:
    written = render_stages(tmp_path, 0.0000001)
    text = "".join(path.read_text() for path in written)
    assert '{{ $load := "0.000" }}' in text
    assert "@" not in text
    with pytest.raises(ValueError, match="0 or more"):
        render_stages(tmp_path, -1)


def test_node_without_gpus_offers_none() -> None:
    assert GpuNode("big", 16).manifest()["status"]["allocatable"]["nvidia.com/gpu"] == "16"
    plain = GpuNode("plain", 0).manifest()
    assert "nvidia.com/gpu" not in plain["status"]["allocatable"]
    assert "nvidia.com/gpu.product" not in plain["metadata"]["labels"]
