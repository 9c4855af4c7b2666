"""What all commands of `prem` share: help, errors, exit codes, output and missing packages."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from support.paths import ROOT
from support.prem_program import PREM, TIMEOUT, Prem, environment, run, run_on_terminal
from support.scripted_upstream import Upstream
from typer.testing import CliRunner

from prem_core import (
    APIConnectionError,
    AuthenticationError,
    ConfigurationError,
    EnclaveKeyError,
    InvalidParameterError,
    NonceReuseError,
)
from prem_core._protocol.steps import Send
from prem_core._version import __version__
from prem_core.cli import COMMANDS, DEFAULT_CHAT_MODEL
from prem_core.cli.app import application
from prem_core.cli.connection import Connection, with_connection_options
from prem_core.cli.errors import CliError, error_boundary, exit_with, use_cli_names, warnings_on_one_line
from prem_core.cli.output import as_json, one_line, strip_controls


def commands(command: Any, *path: str) -> Iterator[tuple[list[str], Any]]:
    yield list(path), command
    for name, each in getattr(command, "commands", {}).items():
        yield from commands(each, *path, name)


ALL = {
    " ".join(path) or "prem": (path, each) for path, each in commands(typer.main.get_command(application()))
}


# --- help -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_the_help_documents_every_option_and_fits_80_columns(prem: Prem, name: str) -> None:
    path, command = ALL[name]
    # CI systems set these, and programs then write colours into a pipe.
    shown = prem(*path, "--help", FORCE_COLOR="1", GITHUB_ACTIONS="1", COLUMNS="80")
    assert (shown.status, shown.err) == (0, "")
    words = shown.out.replace(",", " ").split()
    for parameter in command.params:
        assert not getattr(parameter, "hidden", False)
        assert getattr(parameter, "help", None), parameter.name
        for option in (*parameter.opts, *parameter.secondary_opts):
            assert option in words or parameter.metavar in words, option
    for subcommand in getattr(command, "commands", ()):
        assert subcommand in words
    assert max(map(len, shown.out.splitlines())) <= 80
    assert "\x1b" not in shown.out
    assert "…" not in shown.out
    assert not re.search(r"<(bool|str|float|int|list)", shown.out)  # types of Python
    assert not re.search(r"--\w+-$", shown.out, re.MULTILINE)  # an option broken at its hyphen
    assert "Exit codes: 0 success, 1 failure" in " ".join(shown.out.split())
    if not hasattr(command, "commands"):
        assert f"  prem {name}" in shown.out.partition("Example")[2]


def test_the_help_names_the_default_model(prem: Prem) -> None:
    assert DEFAULT_CHAT_MODEL in prem("chat", "--help", COLUMNS="80").out


def test_every_command_is_there() -> None:
    assert set(COMMANDS) == {path[0] for path, _ in ALL.values() if path}


def test_no_option_takes_a_secret() -> None:
    options = {option for _, command in ALL.values() for each in command.params for option in each.opts}
    assert {each for each in options if "key" in each or "secret" in each or "kek" in each} == {
        # Names of variables, a public key, files, and what an attestation must prove.
        "--api-key-env", "--api-key-from-env", "--upstream-api-key-env",
        "--enclave-public-key", "--keys", "--kek-file", "--new-kek",
        "--require-key-binding",
    }  # fmt: skip


def test_the_help_on_a_terminal_is_plain_text_in_sections() -> None:
    shown = run_on_terminal("chat", "--help", columns=80)
    assert shown.status == 0
    assert "\nOptions:\n" in shown.terminal
    assert "\nConnection:\n" in shown.terminal
    assert DEFAULT_CHAT_MODEL in shown.terminal
    assert max(map(len, shown.terminal.splitlines())) <= 80
    assert strip_controls(shown.terminal) == shown.terminal


def test_without_a_command_it_shows_the_help(prem: Prem) -> None:
    result = prem()
    assert (result.status, result.out) == (2, "")
    assert "transcribe" in result.err


def test_the_version_is_shown(prem: Prem) -> None:
    assert prem("--version").out == f"prem {__version__}\n"


def test_a_shell_can_complete_it() -> None:
    def completed(words: str, at: int) -> list[str]:
        asked = {"_PREM_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(at)}
        return run(**asked).stdout.decode().split()

    assert completed("prem tr", 1) == ["transcribe"]
    assert "--output-dir" in completed("prem transcribe --o", 2)
    assert completed("prem transcribe --format s", 3) == ["srt"]
    script = run(_PREM_COMPLETE="source_bash").stdout
    assert subprocess.run(["bash", "-n"], input=script, check=True, capture_output=True).stderr == b""


# --- errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["cht"], ["prem: ", "'cht'", "Did you mean 'chat'?", "prem --help"]),
        (["chat", "--modle", "m"], ["prem chat: ", "--modle", "prem chat --help"]),
        (["models", "--type", "video\x1b[2J"], ["prem models: ", "--type", "chat"]),
        (["chat", "Hi", "--local"], ["prem --local chat"]),
        (["models", "--upstream", "http://x"], ["prem --local --upstream URL models"]),
        (["keys", "inspect", "k", "--debug"], ["prem --debug keys inspect"]),
        (["keys", "show"], ["prem keys: ", "'show'"]),
        (["--local", "enclave"], ["prem enclave: ", "--local", "chat"]),
        (["--local", "keys", "inspect", "k"], ["prem keys inspect: ", "--local"]),
    ],
)
def test_a_usage_error_is_one_line_with_a_hint(prem: Prem, arguments: list[str], parts: list[str]) -> None:
    result = prem(*arguments)
    result.assert_error(2, *parts)
    assert "\x1b" not in result.err


def test_debug_prints_a_traceback_without_values() -> None:
    result = run(
        "--debug", "chat", "a private question", "--max-retries", "0",
        PREM_API_KEY="sk_test_private", PREM_ENCLAVE_URL="http://127.0.0.1:9",
    )  # fmt: skip
    assert result.returncode == 1
    message = result.stderr.decode()
    assert message.startswith("Traceback")
    assert "chat.py" in message
    assert message.splitlines()[-1].startswith("prem chat: enclave: ")
    assert "private" not in message


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ConfigurationError("a setting"), 2, "prem x: a setting"),
        (InvalidParameterError("a parameter", param="p"), 2, "prem x: a parameter"),
        (
            APIConnectionError("gateway: broke", support_id="support_1"),
            1,
            "prem x: gateway: broke (support_1)",
        ),
        (
            AuthenticationError("line one\nline\x1b\u3164\u202e two", status_code=401),
            1,
            "prem x: line one line two",
        ),
        (EnclaveKeyError("rotated"), 1, "prem x: rotated"),
        (
            NonceReuseError(),
            1,
            "prem x: the service seals this model's replies under the nonce of their request, so the gateway could "
            "read and replace them: use another model, or accept this with --nonce-reuse warn",
        ),
        (CliError("enough", 3), 3, "prem x: enough"),
        (ImportError('needs y: pip install "z[y]"'), 2, 'prem x: needs y: pip install "z[y]"'),
        (
            ModuleNotFoundError("No module named 'rich'", name="rich"),
            2,
            'prem x: this command needs rich: pip install "prem-encrypted[cli]"',
        ),
        (RuntimeError("sk_live_1"), 1, "prem x: internal error: RuntimeError (prem --debug shows where)"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_an_error_is_an_exit_code_and_one_line(
    capsys: pytest.CaptureFixture[str], error: BaseException, status: int, message: str
) -> None:
    with pytest.raises(typer.Exit) as ending, error_boundary("prem x"):
        raise error
    assert ending.value.exit_code == status
    assert capsys.readouterr().err == (f"{message}\n" if message else "")


def test_an_error_can_get_another_exit_code() -> None:
    with pytest.raises(CliError, match="a setting") as ending, exit_with(1):
        raise ConfigurationError("a setting")
    assert ending.value.status == 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("gateway_url is not a URL", "PROXY_URL is not a URL"),
        ("gateway_url (from PROXY_URL) is not a URL", "PROXY_URL is not a URL"),
        ("use https, or allow_insecure=True", "use https, or --allow-insecure"),
        ("pass allow_remote (--allow-remote)", "pass --allow-remote"),
        ("cannot be combined with nonce_reuse='error'", "cannot be combined with --nonce-reuse error"),
        ("timeout must be a number above 0", "--timeout must be a number above 0"),
        ("the timeout is over", "the timeout is over"),
        ("keys.prem is damaged", "keys.prem is damaged"),
    ],
)
def test_an_error_names_options_and_variables_not_python_parameters(text: str, shown: str) -> None:
    names = {
        "gateway_url": "PROXY_URL",
        "allow_insecure": "--allow-insecure",
        "allow_remote": "--allow-remote",
        "nonce_reuse": "--nonce-reuse",
        "timeout": "--timeout",
        "keys": "--keys",
    }
    assert use_cli_names(text, names) == shown


@pytest.mark.parametrize(("options", "requests"), [([], 1), (["--retry-after-send"], 2)])
def test_a_request_that_may_have_been_accepted_is_sent_again_only_with_retry_after_send(
    prem: Prem, enclave_env: dict[str, str], options: list[str], requests: int
) -> None:
    received = 0

    def accept() -> None:
        nonlocal received
        for _ in range(requests):
            connection = listening.accept()[0]
            with connection, connection.makefile("rb") as request:
                while (line := request.readline()) not in (b"\r\n", b""):
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                request.read(length)
                received += 1

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=accept)
        thread.start()
        gateway = f"http://127.0.0.1:{listening.getsockname()[1]}"
        given = ["chat", "Hi", "--max-retries", "1", "--gateway-url", gateway, *options]
        result = prem(*given, **enclave_env)
        thread.join()
    assert received == requests
    result.assert_error(1, "prem chat: gateway: ")
    advice = (
        "The service may have accepted the request, so it was not sent again. With --retry-after-send it is."
    )
    assert (advice in result.err) is not bool(options)


@pytest.mark.parametrize(("options", "seconds"), [([], (30.0, 600.0)), (["--timeout", "40"], (40.0, 40.0))])
def test_a_whole_answer_may_take_longer_to_start_than_a_stream(
    monkeypatch: pytest.MonkeyPatch, options: list[str], seconds: tuple[float, float]
) -> None:
    monkeypatch.setenv("PREM_API_KEY", "sk_test_1")
    waits: list[float] = []

    @with_connection_options()
    def command(connection: Connection) -> None:
        """Note how long a client waits for the start of a response."""
        with connection.client() as client:
            requester = client._requester
            for whole in (False, True):
                step = Send("POST", "gateway", "/", b"", whole=whole)
                request = requester.build_request(requester._http, step)
                waits.append(request.extensions["timeout"]["read"])

    app = typer.Typer()
    app.command()(command)
    assert CliRunner().invoke(app, options).exit_code == 0
    assert tuple(waits) == seconds


def test_a_plain_proxy_url_is_warned_of_on_one_line(enclave_env: dict[str, str]) -> None:
    variables = {**enclave_env, "PROXY_URL": enclave_env["PREM_GATEWAY_URL"], "PREM_GATEWAY_URL": ""}
    command = [sys.executable, "-m", "prem_core.cli", "models"]
    result = subprocess.run(
        command, capture_output=True, text=True, env=environment(variables), timeout=TIMEOUT
    )
    assert result.returncode == 0
    (line,) = result.stderr.splitlines()
    assert line.startswith("prem models: warning: PROXY_URL ")
    assert "PREM_GATEWAY_URL" in line


@pytest.mark.filterwarnings("default")
def test_a_warning_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    before = warnings.showwarning
    with warnings_on_one_line("prem x"):
        warnings.warn("a\nb", stacklevel=1)
    assert capsys.readouterr().err == "prem x: warning: a b\n"
    assert warnings.showwarning is before


@pytest.mark.parametrize(
    ("absent", "arguments", "extra"),
    [
        ("typer", ["--version"], "cli"),
        ("uvicorn", ["enclave"], "enclave"),
        ("jsonschema", ["enclave"], "enclave"),
        ("starlette", ["--local", "chat", "Hi"], "enclave"),
        ("starlette", ["proxy"], "proxy"),
        ("uvicorn", ["proxy"], "proxy"),
        ("python_multipart", ["proxy"], "proxy"),
    ],
)
def test_a_missing_package_is_one_line_with_the_install_command(
    absent: str, arguments: list[str], extra: str
) -> None:
    program = f"import sys; sys.modules[{absent!r}] = None; sys.argv[1:] = {arguments!r}\n"
    program += "from prem_core.cli import main; main()"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=TIMEOUT)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert absent in line
    assert f'pip install "prem-encrypted[{extra}]"' in line


def test_the_help_needs_typer_only() -> None:
    # A command imports the packages of an extra only when it runs.
    absent = [
        "uvicorn",
        "starlette",
        "jsonschema",
        "pypdf",
        "pocketsphinx",
        "soundfile",
        "numpy",
        "rich",
        "tqdm",
    ]
    program = f"import sys; sys.modules.update(dict.fromkeys({absent!r})); sys.argv[1:] = ['--help']\n"
    program += "from prem_core.cli import main; main()"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=TIMEOUT)
    assert (result.returncode, result.stderr) == (0, "")
    assert all(name in result.stdout for name in COMMANDS)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["--help"], ["--local", "models"], ["--local", "chat", "Hi"]])
def test_a_full_disk_is_an_error_on_one_line(arguments: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        result = subprocess.run(
            [*PREM, *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            env=environment({}),
            stdin=subprocess.DEVNULL,
        )
    assert result.returncode == 1
    (line,) = result.stderr.decode().splitlines()
    assert line.startswith("prem")
    assert "No space left" in line


def test_help_into_a_broken_pipe_is_quiet() -> None:
    script = f"{' '.join(PREM)} --help | head -1"
    result = subprocess.run(["sh", "-c", script], capture_output=True, env=environment({}), timeout=TIMEOUT)
    assert (result.returncode, result.stderr) == (0, b"")


# --- prem --local --upstream ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (["chat", "Hi"], "Hello"),
        (["transcribe", str(ROOT / "examples" / "clinic_note.wav")], "Good morning."),
        (["doctor"], "0 failed"),
    ],
)
def test_every_command_that_calls_the_service_works_with_a_local_upstream(
    prem: Prem, upstream: Upstream, arguments: list[str], output: str
) -> None:
    upstream.transcribe_with({"text": "Good morning."})
    result = prem("--local", "--upstream", upstream.url, *arguments)
    assert (result.status, result.err) == (0, "")
    assert output in result.out


# --- output -----------------------------------------------------------------------------------------------


def test_strip_controls_leaves_line_breaks_and_tabs() -> None:
    every = "".join(map(chr, range(0x100)))
    left = strip_controls(every)
    assert [char for char in left if not char.isprintable()] == ["\t", "\n", "\xa0"]


@pytest.mark.parametrize(
    ("what", "codes"),
    [
        ("bidi controls", [0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]),
        ("tag characters", range(0xE0000, 0xE0080)),
        ("zero-width spaces", [0x200B, 0x2060, 0xFEFF]),
        ("fillers", [0x115F, 0x1160, 0x3164, 0xFFA0]),
        ("selectors that can carry hidden bytes", [*range(0xFE00, 0xFE0E), *range(0xE0100, 0xE01F0)]),
        ("format characters", [0xAD, 0x34F, *range(0x2061, 0x2066), *range(0x206A, 0x2070)]),
        ("annotation marks", range(0xFFF9, 0xFFFC)),
    ],
)
def test_invisible_characters_reach_no_terminal(what: str, codes: Iterable[int]) -> None:
    for code in codes:
        assert strip_controls(f"a{chr(code)}b") == "ab", f"{what}: U+{code:04X}"
        assert one_line(f"a{chr(code)}b") == "a b", f"{what}: U+{code:04X}"


@pytest.mark.parametrize(
    "text",
    ["né à 東京", "👩\u200d🔬", "❤\ufe0f", "می\u200cش", "ക്\u200d", "ᠮᠣᠩᠭᠣᠯ ᠪᠢᠴᠢᠭ\u180c", "ة\u0600"],
    ids=["letters", "emoji", "selector", "Persian", "Malayalam", "Mongolian", "Arabic number sign"],
)
def test_what_scripts_and_emoji_need_stays_on_a_terminal(text: str) -> None:
    assert strip_controls(text) == text


def test_one_line_removes_line_breaks_and_control_characters() -> None:
    assert one_line(" a\r\nb\x1b[2J\u2028c\x00 ") == "a b [2J c"


def test_json_can_always_be_encoded_as_utf_8() -> None:
    assert as_json({"a": "é"}) == '{"a": "é"}'
    assert as_json({"a": "\udcff"}) == '{"a": "\\udcff"}'
