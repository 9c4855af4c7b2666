"""What is written to standard output and to standard error.

The rule of this file: a terminal gets no control characters that are not ours, because text of a service or a model
could drive it with them; whoever reads from a pipe or a file gets the exact text, in UTF-8.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from typing import IO, Any, Final

#: ESC, CSI (U+009B), carriage return and their kind; a terminal obeys them. Line breaks and tabs stay.
_CONTROLS: Final = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


def configure_stdout() -> None:
    """Settle how standard output is written to: as a terminal wants it, or in UTF-8."""
    out = sys.stdout
    if not isinstance(out, io.TextIOWrapper):  # None, or somebody's own
        return
    if isinstance(out.buffer, io.RawIOBase):
        # python -u, as in many containers: what a pipe does not take at once would be lost.
        out = sys.stdout = io.TextIOWrapper(io.BufferedWriter(out.detach()), out.encoding)
    if is_terminal(out):
        out.reconfigure(errors="replace")
    else:
        # A file's name may hold bytes that are no text: they go out as they came in.
        out.reconfigure(encoding="utf-8", errors="surrogateescape", newline="\n")


def is_terminal(stream: IO[str] | None) -> bool:
    """Whether somebody sees what is written here."""
    with contextlib.suppress(ValueError):  # it is closed
        return stream is not None and stream.isatty()
    return False


def strip_controls(text: str) -> str:
    """`text` without what a terminal would obey."""
    return text.translate(_CONTROLS)


def one_line(text: str) -> str:
    """`text` on one line, without anything that does not print."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def write(text: str) -> None:
    """Write `text` to standard output, at once."""
    sys.stdout.write(strip_controls(text) if is_terminal(sys.stdout) else text)
    sys.stdout.flush()


def write_stderr(text: str) -> None:
    """Write a line to standard error."""
    if sys.stderr is not None:
        sys.stderr.write(one_line(text) + "\n")
        sys.stderr.flush()


def write_json(value: Any) -> None:
    """Write `value` as JSON: on one line, or laid out where somebody reads it."""
    write(as_json(value, indent=2 if is_terminal(sys.stdout) else None) + "\n")


def as_json(value: Any, *, indent: int | None = None) -> str:
    """`value` as JSON text that UTF-8 can hold."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    try:
        text.encode()
    except UnicodeEncodeError:  # a file's name with bytes that are no text
        return json.dumps(value, indent=indent)
    return text
