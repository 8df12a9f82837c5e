"""Progress of a build that takes minutes: one line that moves on a terminal, a line now and then elsewhere."""

import time
from collections import deque
from collections.abc import Callable
from typing import TextIO


def elapsed_words(seconds: float) -> str:
    """Say a duration as people do: `8s`, `2m05s`, `1h02m`."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class BuildProgress:
    """Counts what `go build -v` says on its stderr and shows it.

    Args:
        title: What is being built.
        stream: Where to write, normally `sys.stderr`.
        interval_s: Seconds between two lines when the stream is no terminal; a terminal is updated every 0.1 s.
        clock: Monotonic seconds.
        width: Columns of the terminal; a longer line is cut, because a wrapped line cannot be rewritten in place.
    """

    def __init__(
        self,
        title: str,
        stream: TextIO,
        *,
        interval_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        width: int = 100,
    ) -> None:
        self._title = title
        self._stream = stream
        self._live = stream.isatty()
        self._interval_s = 0.1 if self._live else interval_s
        self._clock = clock
        self._width = width
        self._started = clock()
        self._shown = self._started
        self._downloads = 0
        self._packages = 0
        self._current = "starting"
        self._tail: deque[str] = deque(maxlen=40)

    @property
    def tail(self) -> str:
        """The last 40 lines that were no progress: the compiler's or downloader's complaint, if any."""
        return "\n".join(self._tail)

    def start(self, note: str) -> None:
        """Announce the build, with a note on how long it may take."""
        self._write(f"building {self._title} ({note})", final=True)

    def saw(self, line: str) -> None:
        """Take in one line of the build's stderr."""
        text = line.strip()
        if text.startswith("go: downloading "):
            self._downloads += 1
            self._current = text.removeprefix("go: ")
        elif text and " " not in text and "/" in text and ":" not in text:
            self._packages += 1
            self._current = text
        elif text and " " not in text and text.isidentifier():
            self._packages += 1  # a package of the standard library without a slash, such as `sync`
        elif text:
            self._tail.append(text)

    def tick(self) -> None:
        """Show where the build is, if the last sign of life is long enough ago."""
        if self._clock() - self._shown >= self._interval_s:
            self._write(f"building {self._title}: {self._counts()}, {self._elapsed()} ({self._current})", final=False)

    def done(self) -> None:
        """Say that the build is done and how long it took."""
        self._write(f"built {self._title}: {self._counts()}, {self._elapsed()}", final=True)

    def failed(self, why: str) -> None:
        """Say that the build failed."""
        self._write(f"building {self._title} failed after {self._elapsed()}: {why}", final=True)

    def _counts(self) -> str:
        downloads = f"{self._downloads} modules downloaded, " if self._downloads else ""
        return f"{downloads}{self._packages} packages compiled"

    def _elapsed(self) -> str:
        return elapsed_words(self._clock() - self._started)

    def _write(self, text: str, *, final: bool) -> None:
        self._shown = self._clock()
        if self._live:
            self._stream.write("\r\x1b[K" + text[: self._width - 1] + ("\n" if final else ""))
        else:
            self._stream.write(text + "\n")
        self._stream.flush()
