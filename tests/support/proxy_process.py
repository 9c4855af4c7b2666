"""A proxy in its own process, which a test can inspect.

    python proxy_process.py '{"gateway_url": …}'

prints the base URL. After that, each line on standard input is a question with one line of JSON as its answer:
``holds TEXT``: the objects of the process that hold a string or bytes containing the text, which is written in reverse;
``files``: the files that it has opened for writing; ``peak``: its peak memory in bytes.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import Any, Self

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class ProxyProcess:
    """The process, with its `base_url`. After the ``with`` block, `errors` is its standard error."""

    def __init__(self, **options: Any) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        self.base_url: str = json.loads(self._out.readline())

    def holders(self, text: str) -> list[str]:
        """The types of the objects in the process that hold `text`."""
        # In reverse, so that the question itself is not found.
        found: list[str] = self._ask(f"holds {text[::-1]}")
        return found

    def files(self) -> list[str]:
        """The files that the process has opened for writing."""
        found: list[str] = self._ask("files")
        return found

    def peak(self) -> int:
        """The peak memory of the process, in bytes."""
        found: int = self._ask("peak")
        return found

    def _ask(self, question: str) -> Any:
        self._in.write(question + "\n")
        self._in.flush()
        return json.loads(self._out.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._in.close()
        self._process.wait(10)
        self._out.close()
        assert self._process.stderr is not None
        with closing(self._process.stderr) as stderr:
            self.errors = stderr.read()


def _holders(text: str) -> list[str]:
    """The types of the objects that hold `text`, without frames."""
    gc.collect()
    found = []
    for holder in gc.get_objects():
        if isinstance(holder, FrameType):
            continue
        for held in _with_untracked(gc.get_referents(holder)):
            data = held.encode("utf-8", "replace") if isinstance(held, str) else held
            if isinstance(data, bytes | bytearray) and text.encode() in data:
                found.append(f"{type(holder).__name__}: {type(held).__name__}")
    return found


def _with_untracked(held: list[Any]) -> Iterator[Any]:
    """`held`, and what is in its containers of plain values, which the garbage collector does not list."""
    for each in held:
        yield each
        if isinstance(each, dict | tuple) and not gc.is_tracked(each):
            yield from _with_untracked(gc.get_referents(each))


def _peak() -> int:
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the memory of the parent process
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    opened: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING:
            opened.append(str(arguments[0]))
        elif event.startswith("tempfile."):
            opened.append(event)

    from prem_core.proxy import LocalProxy

    with LocalProxy(**json.loads(sys.argv.pop())) as proxy:
        sys.addaudithook(watch)
        print(json.dumps(proxy.base_url), flush=True)
        for line in sys.stdin:
            question, _, text = line.strip().partition(" ")
            answer: Any = None
            if question == "holds":
                answer = _holders(text[::-1])
            elif question == "files":
                answer = opened
            elif question == "peak":
                answer = _peak()
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
