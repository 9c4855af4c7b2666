"""What is open: this process's sockets, and a little patience."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

#: Seconds a busy machine may take for what is done at once.
SOON = 3.0


def eventually(true: Callable[[], bool], seconds: float = SOON) -> bool:
    """Whether `true` comes to be, while other threads work."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.001)
    return True


def descriptors(ports: Collection[int]) -> Counter[str]:
    """This process's open descriptors by kind; of sockets those that are connected to one of `ports`, at either end.

    Empty where the system does not say (it has no /proc).
    """
    if not Path("/proc/self/fd").is_dir():
        return Counter()
    ours = _inodes(ports)
    found: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            inode = re.fullmatch(r"socket:\[(\d+)\]", target)
            if inode is None:
                found[re.sub(r"\d+", "N", target)] += 1
            elif inode[1] in ours:
                found["socket"] += 1
    return found


def _inodes(ports: Collection[int]) -> set[str]:
    wanted = {f"{port:04X}" for port in ports}
    found = set()
    for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        ends = {fields[1].rpartition(":")[2], fields[2].rpartition(":")[2]}
        if ends & wanted and fields[3] != "0A":  # listening
            found.add(fields[9])
    return found


@contextlib.contextmanager
def leaking(ports: Collection[int]) -> Iterator[Callable[[], dict[str, int]]]:
    """A function that says what is open and was not before the block."""
    before = descriptors(ports)

    def left() -> dict[str, int]:
        eventually(lambda: not descriptors(ports) - before)
        return dict(descriptors(ports) - before)

    yield left
