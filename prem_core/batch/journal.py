"""The output of a batch, which is its journal, too: what it holds is done.

Each answer is one line, written with one call. A process that is killed leaves at most an incomplete last line; the
next run cuts it off and asks again.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Callable, Iterator
from typing import IO, Final, Self

from prem_core._crypto.keyfile import quote_path
from prem_core._errors import ConfigurationError
from prem_core.batch.seal import LineSeal, is_sealed

Path = str | os.PathLike[str]

_BLOCK: Final = 1 << 16


class Journal:
    """An append-only file of lines. Use `open`.

    Attributes:
        path: The file's path.
        count: The number of complete lines.
    """

    def __init__(self, path: str, descriptor: int, seal: LineSeal | None) -> None:
        self.path = path
        self.count = 0
        self._descriptor = descriptor
        self._seal = seal
        self._size = 0
        self._unsynced = False

    @classmethod
    def open(
        cls,
        path: Path,
        on_line: Callable[[bytes], object] = lambda line: None,
        *,
        kek: bytes | None = None,
        lock: bool = True,
    ) -> Self:
        """Open a file or create it, readable only by its owner. Cut off an incomplete last line.

        Args:
            path: The file.
            on_line: Called with each line that the file has, opened.
            kek: Seal the lines. A file keeps its form: a sealed one cannot be continued without the KEK, nor a plain
                one with it.
            lock: Refuse a file that another process has locked.

        Raises:
            ConfigurationError: The file is locked, is not a regular file, or cannot be read with this KEK.
            OSError: It cannot be opened or written.
        """
        path = os.fsdecode(path)
        flags = (
            os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        )
        descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o600)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ConfigurationError(f"{quote_path(path)} is not a regular file, so it cannot be resumed")
            if lock and not _lock(descriptor):
                raise ConfigurationError(f"{quote_path(path)} is being written by another process")
            made = cls(path, descriptor, None)
            made._size = _cut_incomplete_line(descriptor)
            made._read(kek, on_line)
        except BaseException:
            os.close(descriptor)
            raise
        return made

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(self, line: bytes) -> None:
        """Write one line, without a line break.

        Raises:
            OSError: It cannot be written, for example because the disk is full. The file is as it was before.
        """
        self._write(line if self._seal is None else self._seal.seal(self.count + 1, line))
        self.count += 1

    def sync(self) -> None:
        """Wait until the disk has what was written.

        Raises:
            OSError: The disk reports an error.
        """
        if self._unsynced:
            self._unsynced = False
            getattr(os, "fdatasync", os.fsync)(self._descriptor)

    def close(self) -> None:
        """Write what is left to the disk, and unlock the file."""
        if self._descriptor >= 0:
            try:
                self.sync()
            finally:
                os.close(self._descriptor)
                self._descriptor = -1

    def _read(self, kek: bytes | None, on_line: Callable[[bytes], object]) -> None:
        name = quote_path(self.path)
        if not self._size:
            if kek is not None:
                self._seal = LineSeal(kek)
                self._write(self._seal.header())
            return
        with open(self.path, "rb") as file:
            self._seal = _seal_of(
                file, kek, name, "continue it with seal and the KEK that it was sealed with"
            )
            if self._seal is None and kek is not None:
                raise ConfigurationError(
                    f"{name} is not sealed: continue it without seal, or write another file"
                )
            for line in _lines(file, self._seal, name):
                on_line(line)
                self.count += 1

    def _write(self, line: bytes) -> None:
        data = memoryview(line + b"\n")
        written = 0
        try:
            while written < len(data):
                written += os.write(self._descriptor, data[written:])
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
            raise OSError(error.errno, error.strerror, self.path) from None
        self._size += written
        self._unsynced = True


def read_lines(path: Path, kek: bytes | None = None) -> Iterator[bytes]:
    """The complete lines of a journal, opened. An incomplete last line is left out.

    Raises:
        ConfigurationError: The file is sealed and there is no KEK, or a line does not open.
        OSError: It cannot be read.
    """
    name = quote_path(path)
    with open(path, "rb") as file:
        seal = _seal_of(file, kek, name, "it needs the KEK that it was sealed with (CLIENT_KEK)")
        yield from _lines(file, seal, name)


def _seal_of(file: IO[bytes], kek: bytes | None, name: str, advice: str) -> LineSeal | None:
    """The seal of a file's lines; None for a plain file, from its start."""
    first = file.readline(_BLOCK)
    if not (is_sealed(first) and first.endswith(b"\n")):
        file.seek(0)
        return None
    if kek is None:
        raise ConfigurationError(f"{name} is sealed: {advice}")
    return LineSeal.from_header(first, kek, name)


def _lines(file: IO[bytes], seal: LineSeal | None, name: str) -> Iterator[bytes]:
    for number, line in enumerate(file, 1):
        if not line.endswith(b"\n"):
            return
        yield line[:-1] if seal is None else seal.open(number, line[:-1], name)


def _cut_incomplete_line(descriptor: int) -> int:
    """Cut the file after its last line break. Returns its new size."""
    size = end = os.fstat(descriptor).st_size
    while end:
        start = max(0, end - _BLOCK)
        os.lseek(descriptor, start, os.SEEK_SET)
        found = os.read(descriptor, end - start).rfind(b"\n")
        if found >= 0:
            end = start + found + 1
            break
        end = start
    if end != size:
        os.ftruncate(descriptor, end)
    return end


if sys.platform == "win32":  # pragma: no cover
    import msvcrt

    def _lock(descriptor: int) -> bool:
        # One byte far behind the end: a locked byte cannot be read by others.
        os.lseek(descriptor, 1 << 30, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
