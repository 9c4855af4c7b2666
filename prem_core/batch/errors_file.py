"""The file of a batch's errors, which stands next to its output."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from prem_core.batch.journal import Journal, Path, read_lines


def errors_path(output: Path) -> str:
    """The path of the errors: ``OUT.errors.jsonl`` for ``OUT.jsonl``."""
    return os.fsdecode(output).removesuffix(".jsonl") + ".errors.jsonl"


class ErrorsFile:
    """One line for each error. The file is made with the first one.

    Args:
        path: The file.
        kek: Seal the lines.
    """

    def __init__(self, path: str, kek: bytes | None = None) -> None:
        self._path = path
        self._kek = kek
        self._journal: Journal | None = None

    def compact(self, keep: Callable[[bytes], bool]) -> None:
        """Write the file anew with only those of its lines that `keep` accepts. Call it before `append`.

        Raises:
            ConfigurationError: The file cannot be read with this KEK.
            OSError: It cannot be written; it stays as it was.
        """
        if not os.path.exists(self._path):
            return
        temporary = self._path + ".tmp"
        with contextlib.suppress(FileNotFoundError):  # left by a process that was killed
            os.unlink(temporary)
        try:
            with Journal.open(temporary, kek=self._kek, lock=False) as kept:
                for line in read_lines(self._path, self._kek):
                    if keep(line):
                        kept.append(line)
            if kept.count:
                os.replace(temporary, self._path)
            else:
                os.unlink(self._path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)

    def append(self, line: bytes) -> None:
        """Write one error.

        Raises:
            OSError: It cannot be written.
        """
        if self._journal is None:
            self._journal = Journal.open(self._path, kek=self._kek, lock=False)
        self._journal.append(line)

    def sync(self) -> None:
        """Wait until the disk has what was written."""
        if self._journal is not None:
            self._journal.sync()

    def close(self) -> None:
        """Write what is left to the disk."""
        if self._journal is not None:
            self._journal.close()
