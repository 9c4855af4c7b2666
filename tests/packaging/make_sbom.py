"""Write build/prem-encrypted.cdx.json: what an installation of the package with all extras consists of.

    python tests/packaging/make_sbom.py

The bill of materials is CycloneDX 1.6. It is made from the wheel, installed with constraints.txt into an empty
environment, and checked against the schema and pyproject.toml. Exit status 1 if something is missing or not pinned.
"""

from __future__ import annotations

import json
import re
import tempfile
import tomllib
from pathlib import Path

from check_installs import CONSTRAINTS, ROOT, VERSION, built, run

OUTPUT = ROOT / "build/prem-encrypted.cdx.json"


def normalized(requirement: str) -> str:
    """The name in a requirement, as packages are compared."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\s\[<>=!~;@]", requirement, maxsplit=1)[0]).lower()


def environment(folder: Path, requirement: str) -> Path:
    """Install a requirement into an empty environment. Returns its folder of programs."""
    run("uv", "venv", "--quiet", folder)
    python = folder / "bin/python"
    run("uv", "pip", "install", "--quiet", "--python", python, "-c", CONSTRAINTS, requirement)
    return python.parent


def make() -> None:
    """Write the bill of materials."""
    OUTPUT.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = built(folder / "dist")
        runtime = environment(folder / "runtime", f"prem-encrypted[all] @ {wheel.as_uri()}")
        tool = environment(folder / "tool", "cyclonedx-bom")
        # The tool reads no dynamic version.
        project = folder / "pyproject.toml"
        text = (ROOT / "pyproject.toml").read_text()
        project.write_text(text.replace('dynamic = ["version"]', f'version = "{VERSION}"'))
        options = ("--mc-type", "library", "--sv", "1.6", "--validate")
        run(
            tool / "cyclonedx-py", "environment", runtime / "python",
            *options, "--pyproject", project, "--output-file", OUTPUT,
        )  # fmt: skip


def check() -> None:
    """Compare the bill of materials with pyproject.toml and constraints.txt.

    Raises:
        SystemExit: Something is missing or has a version that is not pinned.
    """
    document = json.loads(OUTPUT.read_text())
    root = document["metadata"]["component"]
    if (root["name"], root.get("version")) != ("prem-encrypted", VERSION):
        raise SystemExit(f"the bill of materials describes {root['name']} {root.get('version')}")
    # What attests a release takes a document without one of these for another format.
    if missing := {"bomFormat", "serialNumber", "specVersion"} - document.keys():
        raise SystemExit(f"the bill of materials has no {sorted(missing)}")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    installed = re.findall(r"[\w-]+", extras["all"][0].partition("[")[2])
    requirements = project["dependencies"] + [each for name in installed for each in extras[name]]
    needed = {normalized(each) for each in requirements} - {"prem-encrypted"}
    (depends_on,) = (each["dependsOn"] for each in document["dependencies"] if each["ref"] == root["bom-ref"])
    components = {normalized(each["name"]): each for each in document["components"]}
    direct = {name for name, each in components.items() if each["bom-ref"] in depends_on}
    if direct != needed:
        raise SystemExit(f"direct dependencies differ from pyproject.toml: {sorted(direct ^ needed)}")
    lines = [line for line in CONSTRAINTS.read_text().splitlines() if not line.startswith("#")]
    pinned = {normalized(line): line.partition("==")[2] for line in lines}
    floating = [name for name, each in components.items() if pinned.get(name) != each["version"]]
    if floating:
        raise SystemExit(f"not pinned in constraints.txt: {sorted(floating)}")
    print(f"{OUTPUT.relative_to(ROOT)}: {root['name']} {VERSION}, {len(components)} components")


if __name__ == "__main__":
    make()
    check()
