import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from cascadia_api.errors import CascadiaError
from cascadia_local.loopback_http import UnreachableError, ask
from cascadia_local.ports import PortAllocator, is_free
from cascadia_local.processes import ChildProcess, Command, ProcessFailedError, describe_exit
from tests.support.embedded import until


@pytest.fixture(autouse=True)
def _modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def sleeper(tmp_path: Path) -> Command:
    """A module that says it is there and waits."""
    return _module(tmp_path, "sleeper", "import time; print('here', flush=True); time.sleep(600)")


def _module(tmp_path: Path, name: str, code: str) -> Command:
    (tmp_path / f"{name}.py").write_text(code)
    return Command(name)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_killed_process_is_started_again_and_a_stopped_one_is_not(tmp_path: Path) -> None:
    exits: list[int] = []
    child = ChildProcess("sleeper", sleeper(tmp_path), tmp_path, on_exit=lambda _, code: exits.append(code))
    await child.start()
    first = child.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until(lambda: child.restarts == 1 and child.pid is not None, "a restart")
    assert child.pid != first
    assert exits == [-signal.SIGKILL]
    second = child.pid
    assert second is not None
    await child.stop()
    assert not alive(second)
    assert child.pid is None
    assert len(exits) == 1, "a stop that was asked for is no crash"


async def test_a_process_that_refuses_its_configuration_is_given_up_with_its_log(tmp_path: Path) -> None:
    command = _module(tmp_path, "refuser", "import sys; sys.exit('' if print('bad port', flush=True) else 2)")
    child = ChildProcess("refuser", command, tmp_path)
    await child.start()

    async def never() -> bool:
        return False

    with pytest.raises(ProcessFailedError, match=r"(?s)refuser exited with code 2.*bad port"):
        await child.wait_until(never, deadline_s=30)
    assert child.restarts == 0
    await child.stop()


async def test_a_process_that_does_not_get_ready_is_named(tmp_path: Path) -> None:
    child = ChildProcess("sleeper", sleeper(tmp_path), tmp_path)
    await child.start()

    async def never() -> bool:
        return False

    with pytest.raises(ProcessFailedError, match="sleeper was not ready within 0 s"):
        await child.wait_until(never, deadline_s=0.2)
    await child.stop()


async def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('here', flush=True); time.sleep(600)"
    child = ChildProcess("stubborn", _module(tmp_path, "stubborn", code), tmp_path)
    await child.start()
    await until(lambda: "here" in child.log.read_text(), "its first words")
    pid = child.pid
    assert pid is not None
    await child.stop(grace_s=0.2)
    assert not alive(pid)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's death signal is Linux's")
async def test_children_die_with_a_killed_parent(tmp_path: Path) -> None:
    code = f"""
import asyncio, pathlib
from cascadia_local.processes import ChildProcess, Command
async def main():
    child = ChildProcess("sleeper", Command("sleeper"), pathlib.Path({str(tmp_path)!r}))
    await child.start()
    print(child.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""
    sleeper(tmp_path)
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    assert alive(pid)
    await until(lambda: "here" in (tmp_path / "sleeper.log").read_text(), "the child has asked for its death signal")
    parent.kill()
    await parent.wait()
    await until(lambda: not alive(pid), "the child's end")


def test_exits_in_words() -> None:
    assert describe_exit(3) == "exited with code 3"
    assert describe_exit(-9) == "was killed by SIGKILL"


def test_ports_are_free_distinct_and_given_back() -> None:
    ports = PortAllocator()
    taken = [ports.take() for _ in range(20)]
    assert len(set(taken)) == 20
    assert all(is_free(port) for port in taken)
    with socket.socket() as server:
        server.bind(("127.0.0.1", taken[0]))
        server.listen()
        assert not is_free(taken[0])


async def test_ask_reads_plain_and_chunked_answers_and_names_who_is_unreachable() -> None:
    answers = {
        b"/plain": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        b"/chunked": b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n",
        b"/nonsense": b"what?",
    }

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        path = head.split(b" ")[1]
        if path == b"/silent":
            await reader.read()
        else:
            writer.write(answers[path])
        writer.close()

    port = PortAllocator().take()
    async with await asyncio.start_server(serve, "127.0.0.1", port):
        address = f"127.0.0.1:{port}"
        assert await ask(address, "/plain") == (200, b"ok")
        assert await ask(address, "/chunked") == (503, b"abcde")
        with pytest.raises(UnreachableError, match="nonsense"):
            await ask(address, "/nonsense")
        with pytest.raises(UnreachableError, match="TimeoutError"):
            await ask(address, "/silent", deadline_s=0.1)
    with pytest.raises(CascadiaError, match=str(port)):
        await ask(address, "/plain")
