"""``--nonce-reuse``: what is requested, what is written, and what `prem doctor` reports about it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from support.prem_program import Prem, Result, client_environment, run, run_on_terminal
from support.screen import screen_rows

from prem_core import EncryptionKeys
from prem_core._protocol.masking import MIN_MASK
from prem_core._protocol.nonce_reuse import is_probe
from prem_core._protocol.routes import CHAT_ROUTE
from prem_core.enclave import EngineRequest, Exchange, LocalEnclave, QuotingEngine

OPENS = "Context:\nThe clinic opens at eight.\n\nQuestion: When does the clinic open?"


@pytest.fixture(scope="module")
def asked() -> list[dict[str, Any]]:
    """The parameters of every request that the enclaves `envelope` and `stream` opened, probes included."""
    return []


def _remembering(asked: list[dict[str, Any]], form: Literal["envelope", "stream"]) -> Iterator[LocalEnclave]:
    class Engine(QuotingEngine):
        async def chat(self, request: EngineRequest) -> AsyncGenerator[Any, None]:
            asked.append(request.params)
            async with contextlib.aclosing(super().chat(request)) as answer:
                async for chunk in answer:
                    yield chunk

    with LocalEnclave(engine=Engine(), whole_replies=form) as prem:
        yield prem


@pytest.fixture(scope="module")
def envelope(asked: list[dict[str, Any]]) -> Iterator[LocalEnclave]:
    """An enclave that gives whole answers a nonce of their own."""
    yield from _remembering(asked, "envelope")


@pytest.fixture(scope="module")
def stream(asked: list[dict[str, Any]]) -> Iterator[LocalEnclave]:
    """An enclave that answers everything as a stream, under the request's nonce."""
    yield from _remembering(asked, "stream")


@pytest.fixture(autouse=True)
def nothing_asked(asked: list[dict[str, Any]]) -> None:
    asked.clear()


def screen(terminal: str) -> list[str]:
    """The lines that the terminal shows at the end."""
    return [row.rstrip() for row in screen_rows(terminal, 100) if not row.isspace()]


def streams(asked: list[dict[str, Any]]) -> list[bool]:
    """For each request: whether it asks for a stream."""
    return [each.get("stream") is True for each in asked]


def test_a_terminal_gets_a_stream_and_one_warning_that_the_gateway_can_read_it(
    envelope: LocalEnclave, asked: list[dict[str, Any]]
) -> None:
    shown = run_on_terminal("chat", OPENS, "--no-reasoning", columns=300, **client_environment(envelope))
    assert shown.status == 0
    assert streams(asked) == [True]
    warning, answer = shown.terminal.splitlines()
    assert answer == "The clinic opens at eight."
    assert warning.startswith("prem chat: warning: the gateway can read and replace this answer and, ")
    assert "--nonce-reuse error" in warning
    assert "--nonce-reuse allow" in warning


@pytest.mark.parametrize(
    ("options", "variables"), [(["--nonce-reuse", "allow"], {}), ([], {"PREM_NONCE_REUSE": "allow"})]
)
def test_nonce_reuse_allow_streams_without_a_warning(
    envelope: LocalEnclave, asked: list[dict[str, Any]], options: list[str], variables: dict[str, str]
) -> None:
    shown = run_on_terminal(
        "chat", OPENS, "--no-reasoning", *options, **variables, **client_environment(envelope)
    )
    assert (shown.status, shown.terminal) == (0, "The clinic opens at eight.\n")
    assert streams(asked) == [True]


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_in_a_pipe_no_stream_is_requested(
    envelope: LocalEnclave, asked: list[dict[str, Any]], options: list[str]
) -> None:
    result = run("chat", OPENS, *options, **client_environment(envelope))
    assert (result.returncode, result.stderr) == (0, b"")
    assert b"The clinic opens at eight." in result.stdout
    assert streams(asked) == [False]
    assert "stream_options" not in asked[0]


def test_a_file_gets_a_whole_answer_and_the_terminal_a_spinner_until_it_comes(
    envelope: LocalEnclave, asked: list[dict[str, Any]], tmp_path: Path
) -> None:
    shown = run_on_terminal("chat", OPENS, stdout=tmp_path / "out", **client_environment(envelope))
    assert shown.status == 0
    assert (tmp_path / "out").read_text() == "The clinic opens at eight.\n"
    assert streams(asked) == [False]
    assert "waiting for the answer" in shown.terminal
    assert screen(shown.terminal) == []


@pytest.mark.parametrize(
    ("options", "variables"), [(["--nonce-reuse", "error"], {}), ([], {"PREM_NONCE_REUSE": "error"})]
)
def test_nonce_reuse_error_probes_and_shows_the_whole_answer_even_on_a_terminal(
    envelope: LocalEnclave, asked: list[dict[str, Any]], options: list[str], variables: dict[str, str]
) -> None:
    shown = run_on_terminal(
        "chat", OPENS, "--no-reasoning", *options, **variables, **client_environment(envelope)
    )
    assert shown.status == 0
    assert screen(shown.terminal) == ["The clinic opens at eight."]
    assert streams(asked) == [False, False]
    probe, question = asked
    assert is_probe(probe)
    assert question["messages"][0]["content"] == OPENS


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_nonce_reuse_error_refuses_a_service_that_reuses_nonces_and_sends_no_prompt(
    stream: LocalEnclave, asked: list[dict[str, Any]], options: list[str]
) -> None:
    ran = run("chat", OPENS, "--nonce-reuse", "error", *options, **client_environment(stream))
    result = Result(ran.returncode, ran.stdout.decode(), ran.stderr.decode())
    assert result.out == ""
    result.assert_error(
        1, "prem chat: ", "under the nonce of their request", "--nonce-reuse warn", "another model"
    )
    assert len(asked) == 1
    assert is_probe(asked[0])


def test_a_whole_answer_under_the_nonce_of_its_request_is_written_with_a_warning(
    stream: LocalEnclave,
) -> None:
    result = run("chat", OPENS, "--json", **client_environment(stream))
    assert result.returncode == 0
    assert json.loads(result.stdout)["prem"]["reply_nonce"] == "request's"
    (line,) = result.stderr.decode().splitlines()
    assert line.startswith("prem chat: warning: the gateway can read and replace this answer")


@pytest.mark.parametrize(("options", "masked"), [([], True), (["--no-masking"], False)])
def test_a_request_is_masked_unless_no_masking_is_given(options: list[str], masked: bool) -> None:
    sizes: list[int] = []

    def record(exchange: Exchange) -> None:
        if exchange.path == CHAT_ROUTE:
            sizes.append(len(json.loads(exchange.request_body)["encryptedInference"]) // 2)

    with LocalEnclave(on_exchange=record) as prem:
        assert run("chat", OPENS, *options, **client_environment(prem)).returncode == 0
    (size,) = sizes
    assert (size > MIN_MASK) is masked


def test_local_works_with_nonce_reuse_error() -> None:
    result = run("--local", "chat", OPENS, "--nonce-reuse", "error")
    assert (result.returncode, result.stdout, result.stderr) == (0, b"The clinic opens at eight.\n", b"")


@pytest.mark.parametrize(
    ("options", "variables", "message"),
    [
        (["--nonce-reuse", "never"], {}, "'--nonce-reuse': 'never' is not one of"),
        (
            [],
            {"PREM_NONCE_REUSE": "never"},
            "PREM_NONCE_REUSE must be 'warn', 'error' or 'allow', not 'never'",
        ),
    ],
)
def test_a_wrong_nonce_reuse_is_a_usage_error(
    prem: Prem, enclave_env: dict[str, str], options: list[str], variables: dict[str, str], message: str
) -> None:
    prem("chat", "Hi", *options, **variables, **enclave_env).assert_error(2, "prem chat: ", message)


def test_keys_from_a_file_cannot_be_combined_with_nonce_reuse_error(
    prem: Prem, enclave_env: dict[str, str], enclave: LocalEnclave, tmp_path: Path
) -> None:
    kek = bytes(range(32)).hex()
    EncryptionKeys.encapsulate(enclave.public_key).save(tmp_path / "k", kek)
    given = ["chat", OPENS, "--keys", str(tmp_path / "k")]
    prem(*given, "--nonce-reuse", "error", CLIENT_KEK=kek, **enclave_env).assert_error(
        2, "--keys cannot be combined with --nonce-reuse error"
    )
    prem(*given, CLIENT_KEK=kek, PREM_NONCE_REUSE="error", **enclave_env).assert_error(
        2, "--keys cannot be combined with PREM_NONCE_REUSE=error"
    )


# --- prem doctor --------------------------------------------------------------------------------------------


def doctor_checks(enclave: LocalEnclave, *options: str, status: int = 0) -> dict[str, dict[str, str]]:
    """The checks of ``prem doctor --json``, by name."""
    result = run("doctor", "--json", *options, **client_environment(enclave))
    report = json.loads(result.stdout)
    failed = [each["name"] for each in report["checks"] if each["state"] == "failed"]
    expected = f"prem doctor: failed: {', '.join(failed)}\n" if failed else ""
    assert (result.returncode, result.stderr.decode()) == (status, expected)
    return {each["name"]: each for each in report["checks"]}


def test_doctor_probes_and_reports_replies_with_a_nonce_of_their_own(
    envelope: LocalEnclave, asked: list[dict[str, Any]]
) -> None:
    checks = doctor_checks(envelope, "--audio")
    for name, model in (("chat nonce", "openai/gpt-oss-120b"), ("audio nonce", "openai/whisper-large-v3")):
        assert checks[name]["state"] == "ok"
        detail = (
            f"{model}: replies in one piece come under a nonce of their own: the gateway cannot read them"
        )
        assert checks[name]["detail"].startswith(detail)
    assert [is_probe(each) for each in asked] == [True, False]
    assert checks["streamed replies"]["state"] == "not verified"
    assert "the gateway can read and replace them" in checks["streamed replies"]["detail"]


def test_doctor_reports_replies_under_the_nonce_of_their_request_and_does_not_fail(
    stream: LocalEnclave,
) -> None:
    checks = doctor_checks(stream)
    assert checks["chat nonce"]["state"] == "not verified"
    assert (
        "under the request's nonce: the gateway can read and replace them" in checks["chat nonce"]["detail"]
    )
    assert "--nonce-reuse error" in checks["chat nonce"]["detail"]
    assert checks["chat"]["state"] == "ok"


def test_doctor_with_nonce_reuse_error_fails_on_such_a_service_and_sends_only_the_probe(
    stream: LocalEnclave, asked: list[dict[str, Any]]
) -> None:
    checks = doctor_checks(stream, "--nonce-reuse", "error", status=1)
    assert checks["chat nonce"]["state"] == "not verified"
    assert checks["chat"]["state"] == "failed"
    assert "--nonce-reuse warn" in checks["chat"]["remedy"]
    assert "streamed replies" not in checks  # none is requested
    assert [is_probe(each) for each in asked] == [True]


def test_doctor_with_no_calls_sends_no_probe(envelope: LocalEnclave, asked: list[dict[str, Any]]) -> None:
    checks = doctor_checks(envelope, "--no-calls")
    assert {checks[name]["state"] for name in ("chat nonce", "chat", "audio nonce", "audio")} == {"skipped"}
    assert asked == []


def test_doctor_probes_with_encryption_keys_from_a_file(
    envelope: LocalEnclave, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kek = bytes(range(32)).hex()
    monkeypatch.setenv("CLIENT_KEK", kek)
    EncryptionKeys.encapsulate(envelope.public_key).save(tmp_path / "k", kek)
    checks = doctor_checks(envelope, "--keys", str(tmp_path / "k"))
    assert [checks[name]["state"] for name in ("keys", "chat nonce", "chat")] == ["ok"] * 3


def test_a_missing_scope_of_the_probe_is_reported_as_for_the_call() -> None:
    with LocalEnclave(scopes=["audio.transcription"]) as narrow:
        checks = doctor_checks(narrow, "--audio", status=1)
    assert checks["chat nonce"]["state"] == "failed"
    assert checks["chat nonce"]["detail"].startswith("the API key lacks the scope chats.completion: ")
    assert checks["audio nonce"]["state"] == "ok"


def test_a_wrong_variable_fails_the_settings_alone(
    enclave: LocalEnclave, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREM_NONCE_REUSE", "never")
    checks = doctor_checks(enclave, status=1)
    assert checks["settings"]["detail"].startswith("PREM_NONCE_REUSE must be 'warn', 'error' or 'allow'")
    assert checks["enclave key"]["state"] == "ok"
