"""The fixture `prem_enclave`, in pytest runs of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from support.paths import ROOT

PLUGIN = "prem_core.enclave.pytest_plugin"

USE = """
from langchain_prem import ChatPremEncrypted

def test_greeting(prem_enclave):
    prem_enclave.reply("Hello")
    assert ChatPremEncrypted(model="openai/gpt-oss-120b").invoke("Hi").text == "Hello"
    assert prem_enclave.requests[0].text == "Hi"
"""


def run(folder: Path, test: str, *arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run pytest with the plugin on a test file of this text. `before` is run before pytest."""
    (folder / "test_it.py").write_text(test, encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n", encoding="utf-8")
    program = f"{before}\nimport sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", program, "-p", PLUGIN, "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        # The plugin is named above: its entry point is there only once the package is installed.
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_fixture_answers_the_users_code_with_the_replies_of_the_test(tmp_path: Path) -> None:
    result = run(tmp_path, USE)
    assert result.returncode == 0, result.stdout


def test_every_test_has_a_fresh_enclave_and_the_environment_is_restored(tmp_path: Path) -> None:
    result = run(
        tmp_path,
        """
import os
seen = []

def test_one(prem_enclave):
    prem_enclave.replies = ["a", "b"]
    seen.append(os.environ["PREM_API_KEY"])

def test_two(prem_enclave):
    assert prem_enclave.replies == []
    seen.append(os.environ["PREM_API_KEY"])

def test_three():
    assert len(set(seen)) == 2
    assert "PREM_API_KEY" not in os.environ
""",
    )
    assert result.returncode == 0, result.stdout


def test_without_a_reply_the_error_says_so(tmp_path: Path) -> None:
    result = run(tmp_path, USE.replace('    prem_enclave.reply("Hello")\n', ""))
    assert result.returncode == 1
    assert "no reply left for request 1 (0 given)" in result.stdout


def test_the_plugin_imports_nothing_before_the_fixture_is_used(tmp_path: Path) -> None:
    unwanted = ["httpx", "pydantic", "starlette", "uvicorn", "cryptography", "nacl", "jsonschema"]
    result = run(tmp_path, f"import sys\ndef test_it():\n    assert not set({unwanted}) & set(sys.modules)\n")
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("absent", ["starlette", "uvicorn", "jsonschema"])
def test_without_the_extra_the_fixture_names_the_install_command(tmp_path: Path, absent: str) -> None:
    result = run(tmp_path, USE, before=f"import sys; sys.modules[{absent!r}] = None")
    assert result.returncode == 1
    assert f'the embedded enclave needs {absent}: pip install "prem-encrypted[enclave]"' in result.stdout


def test_without_the_extra_other_tests_run(tmp_path: Path) -> None:
    result = run(tmp_path, "def test_it(): pass", before="import sys; sys.modules['starlette'] = None")
    assert result.returncode == 0, result.stdout


def test_the_fixture_is_listed_with_its_docstring(tmp_path: Path) -> None:
    result = run(tmp_path, "", "--fixtures")
    assert "prem_enclave" in result.stdout
    assert "A running `LocalEnclave`" in result.stdout


def test_pytest_finds_the_plugin_by_its_entry_point() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["pytest11"] == {"prem_enclave": PLUGIN}
