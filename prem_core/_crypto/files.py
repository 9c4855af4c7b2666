"""Atomic file writes, for key files and for what the command line writes."""

from __future__ import annotations

import contextlib
import os
import secrets


def write_atomically(path: str | os.PathLike[str], data: bytes, *, overwrite: bool = False) -> None:
    """Write a file atomically: it appears complete or not at all, and only its owner can read it.

    Its mode is 0600, or less if the umask is stricter, because it holds keys or the words of a recording.

    If a file is replaced, every other process sees the old content or the new, never a mix. A symbolic link at
    `path` is replaced, not followed.

    Args:
        path: The file to write. Its directory must exist.
        data: The whole content.
        overwrite: Replace an existing file.

    Raises:
        FileExistsError: Something exists at `path` and `overwrite` is False.
        OSError: The file cannot be written.
        ValueError: `path` contains a null character.
    """
    path = os.fsdecode(path)
    directory = os.path.dirname(path) or os.curdir
    # A rename is atomic only within one file system, so the temporary file is in the same directory.
    temporary = os.path.join(directory, f".prem-{secrets.token_hex(8)}.tmp")
    # O_EXCL: never open a file that someone else put there, and never follow a link.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        _move(temporary, path, overwrite=overwrite)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
    _sync_directory(directory)


def _move(temporary: str, path: str, *, overwrite: bool) -> None:
    if not overwrite:
        try:
            os.link(temporary, path)  # fails if `path` exists, even if another process created it just now
            return
        except FileExistsError:
            raise
        except OSError:
            # No hard links on this file system. Two processes that write at once may then replace each other's file.
            if os.path.lexists(path):
                raise FileExistsError(path) from None
    os.replace(temporary, path)


def _sync_directory(directory: str) -> None:
    """Make the new name survive a power cut. Windows and some network shares cannot do this."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
