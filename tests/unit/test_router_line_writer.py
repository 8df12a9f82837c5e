"""The access log's lines: in order, whole, bounded, and nobody waits for who reads them."""

import os
import threading

from cascadia_router.line_writer import LineWriter


def read_to_end(descriptor: int) -> bytes:
    parts = []
    while part := os.read(descriptor, 65_536):
        parts.append(part)
    os.close(descriptor)
    return b"".join(parts)


def test_lines_come_whole_and_in_order() -> None:
    reader, end = os.pipe()
    writer = LineWriter(end)
    lines = [b"%d\n" % number for number in range(1000)]
    for line in lines:
        writer.put(line)
        writer.flush()
    writer.close(10.0)
    os.close(end)
    assert read_to_end(reader) == b"".join(lines)
    assert writer.dropped == 0


def test_a_reader_that_does_not_read_costs_lines_and_nothing_else() -> None:
    reader, end = os.pipe()
    writer = LineWriter(end, most=300_000)
    line = b"x" * 999 + b"\n"
    for _ in range(1000):
        writer.put(line)
        writer.flush()
    assert 1000 - 300 <= writer.dropped <= 1000 - 300 + 1
    seen: list[bytes] = []
    drained = threading.Thread(target=lambda: seen.append(read_to_end(reader)))
    drained.start()
    writer.close(10.0)
    os.close(end)
    drained.join(10.0)
    assert seen[0] == line * (1000 - writer.dropped)


def test_lines_for_a_reader_that_is_gone_are_counted() -> None:
    reader, end = os.pipe()
    os.close(reader)
    writer = LineWriter(end)
    writer.put(b"one\n")
    writer.put(b"two\n")
    writer.close(10.0)
    os.close(end)
    assert writer.dropped == 2


def test_without_lines_there_is_no_thread() -> None:
    before = threading.active_count()
    writer = LineWriter(1)
    writer.flush()
    assert threading.active_count() == before
    writer.close(0.0)
