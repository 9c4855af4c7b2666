"""Build the sdist and the wheel, and install the wheel into empty environments: alone, and with each extra alone.

    python tests/packaging/check_installs.py [--python 3.11] [EXTRA ...]

In each environment every public name of what should be there is imported, what needs another extra says which one, and
`prem` runs or says what it needs. Exit status 1 if anything is not so.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONSTRAINTS = ROOT / "constraints.txt"
VERSION = (ROOT / "prem_core/_version.py").read_text().split('"')[-2]

#: Module, and the extra that it needs.
MODULES = {
    "prem_core": None,
    "prem_core.attestation": None,
    "langchain_prem": "langchain",
    "llama_index_prem": "llama-index",
    "prem_core.enclave": "enclave",
    "prem_core.proxy": "proxy",
}
#: Extras that bring others with them.
BRINGS = {
    "proxy": {"cli"},
    "enclave": {"cli"},
    "all": {"langchain", "llama-index", "cli", "proxy", "enclave", "audio", "attestation", "redis"},
}

#: Run in the environment: imports every public name of the first modules, and wants an error from the others.
CHECK = """
import importlib, sys
there, missing = (part.split(",") if part else [] for part in sys.argv[1:])
for name in there:
    module = importlib.import_module(name)
    for public in module.__all__:
        getattr(module, public)
for each in missing:
    name, extra = each.split(":")
    try:
        module = importlib.import_module(name)
        for public in module.__all__:
            getattr(module, public)
    except ImportError as error:
        assert f"prem-encrypted[{extra}]" in str(error), f"{name}: {error}"
    else:
        raise SystemExit(f"{name} needs nothing of the extra {extra}")
"""


def run(*command: str | Path, cwd: Path = ROOT, status: int = 0) -> str:
    """What a command prints.

    Raises:
        SystemExit: It ended with another status.
    """
    # Without the checkout on the path: what is tried is what was installed.
    done = subprocess.run(
        [str(each) for each in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    if done.returncode != status:
        shown = " ".join(str(each) for each in command)[:200]
        raise SystemExit(f"status {done.returncode}: {shown}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout + done.stderr


def built(folder: Path) -> Path:
    """The wheel, made of the sdist."""
    run("uv", "build", "--quiet", "--build-constraints", CONSTRAINTS, "--out-dir", folder)
    (sdist,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    assert sdist.name == f"prem_encrypted-{VERSION}.tar.gz", sdist.name
    names = zipfile.ZipFile(wheel).namelist()
    for package in ("prem_core", "langchain_prem", "llama_index_prem"):
        assert f"{package}/py.typed" in names, package
    assert not [name for name in names if name.startswith(("tests/", "docs/", "examples/"))]
    return wheel


def check(wheel: Path, extra: str, python: str, folder: Path) -> None:
    """Install the wheel with one extra into an empty environment, and use it there."""
    venv = folder / (extra or "none")
    run("uv", "venv", "--quiet", "--python", python, venv)
    bin_ = venv / ("Scripts" if sys.platform == "win32" else "bin")
    wanted = f"prem-encrypted[{extra}] @ {wheel.as_uri()}" if extra else str(wheel)
    run("uv", "pip", "install", "--quiet", "--python", bin_ / "python", "-c", CONSTRAINTS, wanted)
    brought = {extra} | BRINGS.get(extra, set())
    there = [name for name, needed in MODULES.items() if needed is None or needed in brought]
    missing = [f"{name}:{needed}" for name, needed in MODULES.items() if name not in there]
    run(bin_ / "python", "-W", "error", "-c", CHECK, ",".join(there), ",".join(missing), cwd=folder)
    if "cli" in brought:
        assert run(bin_ / "prem", "--version", cwd=folder).strip() == f"prem {VERSION}"
        run(bin_ / "prem", "--help", cwd=folder)
    else:
        said = run(bin_ / "prem", "--version", cwd=folder, status=2)
        assert "prem-encrypted[cli]" in said, said
    print(f"{extra or '(no extra)':12} {', '.join(there)}", flush=True)


def main() -> None:
    """Check what is named, or everything."""
    parser = argparse.ArgumentParser()
    parser.add_argument("extras", nargs="*", help="by default none, and each of pyproject.toml")
    parser.add_argument("--python", default=sys.executable)
    given = parser.parse_args()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = given.extras or ["", *project["optional-dependencies"]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = built(folder / "dist")
        for extra in extras:
            check(wheel, extra, given.python, folder)


if __name__ == "__main__":
    main()
