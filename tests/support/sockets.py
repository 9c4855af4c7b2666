"""The open descriptors and sockets of this process."""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from support.waiting import eventually


def descriptors(ports: Collection[int]) -> Counter[str]:
    """This process's open descriptors by kind; of sockets those that are connected to one of `ports`, at either end.

    Empty on systems without /proc.
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
    """A function that returns the descriptors opened since the start of the block and still open."""
    before = descriptors(ports)

    def left() -> dict[str, int]:
        eventually(lambda: not descriptors(ports) - before)
        return dict(descriptors(ports) - before)

    yield left
