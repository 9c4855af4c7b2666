"""What a terminal shows after a program has written to it: a VT emulator reads the bytes."""

from __future__ import annotations

import pyte


def screen_rows(written: str, columns: int, rows: int = 40) -> list[str]:
    """The rows on the screen, each as wide as the terminal.

    Args:
        written: What the terminal received, with its line ends as "\\n".
        columns: Characters of a row.
        rows: Rows of the terminal.
    """
    screen = pyte.Screen(columns, rows)
    pyte.Stream(screen).feed(written.replace("\n", "\r\n"))
    return list(screen.display)
