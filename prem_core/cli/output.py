"""Writing to standard output and standard error.

A terminal gets no control characters and no invisible ones from a service, a model or a file name. They could take it
over, show text in another order, or hide text that is copied along with what is seen. A pipe or a file gets the exact
text, in UTF-8.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from typing import IO, Any, Final

#: ESC, CSI (U+009B), carriage return and the other control characters, except line breaks and tabs.
_CONTROLS: Final = {code for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}

#: Invisible characters that scripts and emoji need: ZWNJ and ZWJ, the selectors of a text or emoji form, Mongolian's.
_NEEDED: Final = {0x200C, 0x200D, 0xFE0E, 0xFE0F, *range(0x180B, 0x1810)}

#: Unicode's Default_Ignorable_Code_Point (version 16), which has the bidi controls and the tag characters, and the
#: interlinear annotation marks. The flags of England, Scotland and Wales, drawn with tags, become black flags.
_INVISIBLE: Final = {
    *(0xAD, 0x34F, 0x61C, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFEFF, 0xFFA0),
    *range(0x180B, 0x1810),
    *range(0x200B, 0x2010),
    *range(0x202A, 0x202F),
    *range(0x2060, 0x2070),
    *range(0xFE00, 0xFE10),
    *range(0xFFF0, 0xFFFC),
    *range(0x1BCA0, 0x1BCA4),
    *range(0x1D173, 0x1D17B),
    *range(0xE0000, 0xE1000),
} - _NEEDED

_REMOVED: Final = dict.fromkeys(_CONTROLS | _INVISIBLE)


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
    """Remove the control characters that a terminal would obey, and the invisible ones that deceive its reader."""
    return text.translate(_REMOVED)


def one_line(text: str) -> str:
    """Put `text` on one line, with a space for each character that is not printable or not visible."""
    return " ".join("".join(char if _is_shown(char) else " " for char in text).split())


def _is_shown(char: str) -> bool:
    code = ord(char)
    return code in _NEEDED or (char.isprintable() and code not in _REMOVED)


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
