"""Progress on standard error: bars for recordings that are being transcribed, a spinner for an answer."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import sys
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any, Final, Self

from prem_core.cli.output import is_terminal, one_line

if TYPE_CHECKING:
    from prem_core._audio.sources import AudioSource

#: Characters of a recording's name that are shown.
MAX_NAME: Final = 40


class ProgressBars:
    """One bar for all recordings, and one for each in progress. Use it as a context manager.

    No bars are shown where `has_place` is false.

    Args:
        total: The number of recordings.
    """

    def __init__(self, total: int) -> None:
        self._progress: Any = None
        self._live: Any = None
        self._tasks: dict[AudioSource, Any] = {}
        if not has_place():
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

        self._console = Console(stderr=True)
        # Only drawn: `_show` displays it.
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=self._console,
        )
        self._all = self._progress.add_task("recordings", total=total) if total > 1 else None

    def __enter__(self) -> Self:
        self._show()
        return self

    def __exit__(self, *_: object) -> None:
        self._hide()

    def on_progress(self, source: AudioSource, done: float) -> None:
        """Show how much of a recording is done. Its bar appears at 0 and is removed at 1."""
        if self._progress is None:
            return
        if done == 0:
            # Without a total the bar only pulses: how long one request takes is unknown.
            self._tasks[source] = self._progress.add_task(_shortened(one_line(source.source)), total=None)
        elif done < 1:
            self._progress.update(self._tasks[source], completed=done, total=1)
        else:
            self._progress.remove_task(self._tasks.pop(source))
            if self._all is not None:
                self._progress.advance(self._all)

    @contextlib.contextmanager
    def hidden(self) -> Iterator[None]:
        """Remove the bars from the terminal while something else is written to it."""
        self._hide()
        try:
            yield
        finally:
            self._show()

    def _show(self) -> None:
        if self._progress is not None:
            from rich.live import Live

            # A new one every time: a Live that is started again erases as many lines as it had before.
            self._live = Live(
                self._progress,
                console=self._console,
                refresh_per_second=10,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start(refresh=True)

    def _hide(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


@contextlib.contextmanager
def spinner(text: str) -> Iterator[None]:
    """Show `text` with a spinner while the block runs, if there is a place for it."""
    if not has_place():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield


def has_place() -> bool:
    """Whether standard error is a terminal that no other program writes to.

    If standard output is a pipe, the program that reads from it may write to the same terminal.
    """
    return is_terminal(sys.stderr) and not _is_pipe(sys.stdout)


def _is_pipe(stream: IO[str] | None) -> bool:
    try:
        mode = os.fstat(stream.fileno()).st_mode if stream is not None else 0
    except (OSError, ValueError, io.UnsupportedOperation):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _shortened(name: str) -> str:
    """The end of a path, which tells files apart; the bar needs the rest of the line."""
    return name if len(name) <= MAX_NAME else f"…{name[1 - MAX_NAME :]}"


class BatchBar:
    """One bar with a line of counts. Use it as a context manager. Nothing is shown where `has_place` is false."""

    def __init__(self) -> None:
        self._progress: Any = None
        if not has_place():
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        self._progress = Progress(
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            TextColumn("{task.description}", markup=False),
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._progress.add_task("", total=None)

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def update(self, completed: int, total: int | None, text: str) -> None:
        """Show how many requests have ended, and the counts."""
        if self._progress is not None:
            self._progress.update(self._task, completed=completed, total=total, description=one_line(text))
