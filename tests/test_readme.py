"""The README's code runs, and its tables say what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import prem_core._assumed as assumed
from prem_core import _config
from prem_core.enclave import LocalEnclave

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def section(title: str) -> str:
    return README.split(f"## {title}\n")[1].split("\n## ")[0]


# LlamaIndex's agents read an attribute that pydantic deprecates.
@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")
@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_block_of_the_readme_runs(
    number: int, enclave: LocalEnclave, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREM_API_KEY", enclave.api_key)
    monkeypatch.setenv("PREM_PROXY_URL", enclave.proxy_url)
    monkeypatch.setenv("PREM_ENCLAVE_URL", enclave.enclave_url)
    # Not to inherit: this file's own __future__ import would reach into the block.
    monkeypatch.chdir(ROOT)
    code = compile(BLOCKS[number], f"README.md, block {number}", "exec", dont_inherit=True)
    exec(code, {"__name__": "readme"})
    assert "print(" not in BLOCKS[number] or capsys.readouterr().out.strip()


def test_what_is_assumed_is_listed_in_the_readme_and_nothing_else() -> None:
    listed = re.findall(
        r"`([A-Za-z_]+)`",
        "".join(
            re.findall(
                r"^\| (.*?) \|", section("What we could not check against the live service"), re.MULTILINE
            )
        ),
    )
    names = {name for name in vars(assumed) if not name.startswith("_")} - {"annotations", "re", "unhexlify"}
    assert set(listed) == names


@pytest.mark.parametrize("setting", sorted(_config.VARIABLES))
def test_the_readme_names_the_variables_of_a_setting(setting: str) -> None:
    row = re.search(rf"^\| `{setting}` \| (.*?) \|", section("Settings"), re.MULTILINE)
    assert row is not None
    assert tuple(re.findall(r"`(\w+)`", row[1])) == _config.VARIABLES[setting]


def test_the_readmes_commands_are_the_makefiles() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z]+)", README)) <= targets
