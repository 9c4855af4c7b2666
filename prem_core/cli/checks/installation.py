"""Checks of the installed packages."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections.abc import Iterator
from typing import Final

from prem_core._version import __version__
from prem_core.cli.checks.check import Check, State

DISTRIBUTION: Final = "prem-encrypted"

#: The packages that every use needs, by their names on the package index.
_REQUIRED: Final = ("httpx", "pynacl", "cryptography", "pydantic")


def checks() -> Iterator[Check]:
    """Check Python, this package, its requirements and its extras."""
    yield Check(
        "python", State.OK, f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    )
    found = ", ".join(f"{name} {_version(name) or 'is missing'}" for name in _REQUIRED)
    detail = f"{DISTRIBUTION} {__version__}; {found}"
    if all(map(_version, _REQUIRED)):
        yield Check("package", State.OK, detail)
    else:
        yield Check("package", State.FAILED, detail, f"pip install --force-reinstall {DISTRIBUTION}")
    extras = _extras()
    complete = [name for name, missing in extras.items() if not missing]
    partial = [f"{name} (needs {', '.join(missing)})" for name, missing in extras.items() if missing]
    detail = f"installed: {', '.join(complete) or 'none'}"
    yield Check("extras", State.INFO, detail + (f"; not installed: {', '.join(partial)}" if partial else ""))


def _extras() -> dict[str, list[str]]:
    """The package's extras, and for each the requirements that are not installed."""
    try:
        requirements = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:  # run from source
        return {}
    extras: dict[str, list[str]] = {}
    for requirement in requirements:
        name = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"""extra\s*==\s*['"]([\w-]+)['"]""", requirement)
        if name and extra and extra[1] != "all":
            missing = extras.setdefault(extra[1], [])
            if _version(name[0]) is None:
                missing.append(name[0])
    return extras


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
