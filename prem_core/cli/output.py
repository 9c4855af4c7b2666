"""Writing to standard output and standard error.

A terminal gets no control characters from a service or a model, which could take it over. A pipe or a file gets the
exact text, in UTF-8.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from typing import IO, Any, Final

#: ESC, CSI (U+009B), carriage return and the other control characters, except line breaks and tabs.
_CONTROLS: Final = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


def configure_stdout() -> None:
    """Set the encoding and buffering of standard output."""
    out = sys.stdout
    if not isinstance(out, io.TextIOWrapper):  # None, or replaced by the program that runs us
        return
    if isinstance(out.buffer, io.RawIOBase):
        # python -u, as in many containers: without a buffer, what a pipe does not take at once would be lost.
        out = sys.stdout = io.TextIOWrapper(io.BufferedWriter(out.detach()), out.encoding)
    if is_terminal(out):
        out.reconfigure(errors="replace")
    else:
        # A file name may contain bytes that are not text: write them unchanged.
        out.reconfigure(encoding="utf-8", errors="surrogateescape", newline="\n")


def is_terminal(stream: IO[str] | None) -> bool:
    """Whether the stream is an interactive terminal."""
    with contextlib.suppress(ValueError):  # it is closed
        return stream is not None and stream.isatty()
    return False


def strip_controls(text: str) -> str:
    """Remove the control characters that a terminal would obey."""
    return text.translate(_CONTROLS)


def one_line(text: str) -> str:
    """Put `text` on one line, without characters that are not printable."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def write(text: str) -> None:
    """Write `text` to standard output and flush."""
    sys.stdout.write(strip_controls(text) if is_terminal(sys.stdout) else text)
    sys.stdout.flush()


def write_stderr(text: str) -> None:
    """Write one line to standard error."""
    if sys.stderr is not None:
        sys.stderr.write(one_line(text) + "\n")
        sys.stderr.flush()


def write_json(value: Any) -> None:
    """Write `value` as JSON: indented on a terminal, otherwise on one line."""
    write(as_json(value, indent=2 if is_terminal(sys.stdout) else None) + "\n")


def as_json(value: Any, *, indent: int | None = None) -> str:
    """Serialise `value` as JSON that UTF-8 can encode."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    try:
        text.encode()
    except UnicodeEncodeError:  # a file name with bytes that are not text
        return json.dumps(value, indent=indent)
    return text
