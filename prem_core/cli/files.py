"""Files that a command writes: whole or not at all, with the permissions that the umask says."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from prem_core.cli import FAILURE
from prem_core.cli.errors import Ending


def write_file(path: Path, text: str, *, overwrite: bool = False) -> None:
    """Write `text`, in UTF-8, to a file that appears whole or not at all.

    Raises:
        Ending: A file is there and `overwrite` is False, or it cannot be written.
    """
    # In the same folder, because a rename within one file system is atomic.
    temporary = path.with_name(f".prem-{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("x", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            file.write(text)
        _place(temporary, path, overwrite=overwrite)
    except FileExistsError:
        raise Ending(taken(path), FAILURE) from None
    except OSError as error:
        raise Ending(f"{path} cannot be written ({error.strerror})", FAILURE) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def taken(path: Path) -> str:
    """What to say of a file that is not replaced."""
    return f"{path} is there already, and is not replaced without --force"


def _place(temporary: Path, path: Path, *, overwrite: bool) -> None:
    if not overwrite:
        try:
            os.link(temporary, path)  # of two writers at once, one is told
            return
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            if os.path.lexists(path):
                raise FileExistsError from None
    os.replace(temporary, path)
