"""A bar on standard error for the recordings that are being heard, while somebody watches."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, Final, Self

from prem_core.cli.output import is_terminal, one_line

#: Characters of a recording's name.
MAX_NAME: Final = 40


class Bars:
    """A line for all recordings, and one for each that is being heard. Nothing at all where nobody watches.

    Args:
        total: How many recordings there are.
    """

    def __init__(self, total: int) -> None:
        self._progress: Any = None
        if not is_terminal(sys.stderr):
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            # It goes when it is done, and never takes what is written to standard output.
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._all = self._progress.add_task("recordings", total=total) if total > 1 else None

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    @contextlib.contextmanager
    def hearing(self, name: str) -> Iterator[Bar]:
        """The line of one recording, while it is heard."""
        if self._progress is None:
            yield Bar(None, None)
            return
        # Without a total it moves without saying how far: it is not known before the first part was heard.
        task = self._progress.add_task(_short(one_line(name)), total=None)
        try:
            yield Bar(self._progress, task)
        finally:
            self._progress.remove_task(task)
            if self._all is not None:
                self._progress.advance(self._all)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Out of the way, while something is written to the terminal."""
        if self._progress is None:
            yield
            return
        self._progress.stop()
        try:
            yield
        finally:
            self._progress.start()


def _short(name: str) -> str:
    """The end of a path: it tells one file from another, and leaves room for the bar."""
    return name if len(name) <= MAX_NAME else f"…{name[1 - MAX_NAME :]}"


class Bar:
    """One recording's line."""

    def __init__(self, progress: Any, task: Any) -> None:
        self._progress = progress
        self._task = task

    def reached(self, done: int, total: int) -> None:
        """So much of it has been heard."""
        if self._progress is not None:
            self._progress.update(self._task, completed=done, total=total)
