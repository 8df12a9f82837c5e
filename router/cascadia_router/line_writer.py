"""Lines for a reader that may be slow: written by a thread, bounded, dropped where there is no room.

A pipe that nobody reads blocks whoever writes to it, and making standard output non-blocking would make
it so for every process that shares it. So one thread writes, and only it ever waits.
"""

from __future__ import annotations

import os
import queue
import threading

__all__ = ["LineWriter"]

MOST_BYTES = 1024 * 1024
"""Of lines that are not written yet, those being written included."""


class LineWriter:
    """Writes lines to a file descriptor. All methods are for one thread, the event loop's.

    Args:
        descriptor: Where to.
        most: Bytes that may wait.

    """

    def __init__(self, descriptor: int, most: int = MOST_BYTES) -> None:
        self._refused = 0  # lines that there was no room for
        self._lost = 0  # lines that could not be written; the thread counts them
        self._descriptor = descriptor
        self._most = most
        self._lines: list[bytes] = []
        self._size = 0
        self._batches: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._writing = 0  # bytes that the thread has
        self._thread: threading.Thread | None = None

    @property
    def dropped(self) -> int:
        """Lines that were not written: there was no room, or the reader was gone."""
        return self._refused + self._lost

    def put(self, line: bytes) -> None:
        """Take a line, its end included, to be written after the next `flush`."""
        if self._size + self._writing + len(line) > self._most:
            self._refused += 1
            return
        self._lines.append(line)
        self._size += len(line)

    def flush(self) -> None:
        """Hand the lines to the thread if it has written those before."""
        if not self._lines or self._writing:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
            self._thread.start()
        batch = b"".join(self._lines)
        self._lines.clear()
        self._size, self._writing = 0, len(batch)
        self._batches.put(batch)

    def close(self, seconds: float) -> None:
        """Write what is there, for at most so long (wall s); what is not written by then is lost."""
        self.flush()
        thread = self._thread
        if thread is None:
            return
        if self._lines:  # the thread has not written those before: it takes these after them
            self._batches.put(b"".join(self._lines))
            self._lines.clear()
            self._size = 0
        self._batches.put(None)
        thread.join(seconds)
        self._thread = None

    def _run(self) -> None:
        while (batch := self._batches.get()) is not None:
            rest = memoryview(batch)
            try:
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
            except OSError:  # the reader is gone
                self._lost += bytes(rest).count(b"\n")
            self._writing = 0
