"""An embedded enclave in its own process, which searches its memory on request.

It prints the options for a client. Then it responds to each line of standard input, a JSON list of words, with a JSON
object: the words that are still in some object of the process, the files opened for writing, and the addresses of
connections. The words are reversed, so that the search does not find itself.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
written: list[str] = []
connected: list[str] = []


def watch(event: str, args: tuple[Any, ...]) -> None:
    if event == "open":
        path, mode, flags = args
        if (isinstance(mode, str) and set(mode) & set("wax+")) or (
            isinstance(flags, int) and flags & WRITING
        ):
            written.append(str(path))
    elif event in ("os.mkdir", "os.rename", "os.link", "os.symlink", "tempfile.mkstemp", "tempfile.mkdtemp"):
        written.append(f"{event} {args[0]}")
    elif event == "socket.connect":
        connected.append(str(args[1]))


def texts() -> Iterator[str | bytes]:
    """Every `str` and `bytes` that an object of this process refers to."""
    gc.collect()
    seen: set[int] = set()
    pending = gc.get_objects()
    while pending:
        thing = pending.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, str | bytes):
            yield thing
        elif isinstance(thing, bytearray | memoryview):
            yield bytes(thing)
        else:
            pending += gc.get_referents(thing)


def main() -> None:
    sys.addaudithook(watch)
    from prem_core.enclave import LocalEnclave

    with LocalEnclave() as prem:
        print(json.dumps(prem.client_options), flush=True)
        for line in sys.stdin:
            backwards: list[str] = json.loads(line)
            held: set[str] = set()
            for text in texts():
                shown = text if isinstance(text, str) else text.decode("latin-1")
                reversed_text = shown[::-1].lower()
                held |= {word for word in backwards if word in reversed_text and shown != line}
                del shown, reversed_text, text
            print(json.dumps({"held": sorted(held), "written": written, "connected": connected}), flush=True)


if __name__ == "__main__":
    main()
