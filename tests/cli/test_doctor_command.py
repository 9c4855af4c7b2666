"""``prem doctor``: each check when it succeeds and when it fails."""

from __future__ import annotations

import datetime
import json
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from support.paths import ROOT
from support.prem_program import Prem, client_environment, run_on_terminal
from support.scripted_upstream import Upstream

from prem_core import EncryptionKeys
from prem_core._crypto.xwing import PrivateKey
from prem_core._protocol import assumptions as assumed
from prem_core._version import __version__
from prem_core.enclave import LocalEnclave
from prem_core.enclave.quota import BASE, Tier

UNUSED = "http://127.0.0.1:9"
OTHER = PrivateKey(bytes(32)).public_key()
README = (ROOT / "README.md").read_text(encoding="utf-8")

Checks = dict[str, tuple[str, str]]


def run_doctor(prem: Prem, *arguments: str, status: int, **environment: str) -> Checks:
    """The state and the detail of each check, by name. A failed check has a remedy."""
    result = prem("doctor", "--json", *arguments, **environment)
    assert result.status == status, result
    report = json.loads(result.out)
    assert report["ok"] is (status == 0)
    checks = {each["name"]: (each["state"], each["detail"]) for each in report["checks"]}
    failed = [each["name"] for each in report["checks"] if each["state"] == "failed"]
    assert all(each.get("remedy") for each in report["checks"] if each["state"] == "failed")
    assert result.err == (f"prem doctor: failed: {', '.join(failed)}\n" if failed else "")
    assert bool(failed) is (status == 1)
    return checks


def states(checks: Checks, *names: str) -> list[str]:
    return [checks[name][0] for name in names]


def test_every_check_succeeds_or_reports_what_is_not_verified(
    prem: Prem, enclave_env: dict[str, str], enclave: LocalEnclave
) -> None:
    checks = run_doctor(prem, "--audio", status=0, **enclave_env)
    well = ["python", "package", "gateway URL", "enclave URL", "gateway", "enclave", "enclave key", "API key"]
    calls = ["chat nonce", "chat", "audio nonce", "audio"]
    assert states(checks, *well, "models", *calls) == ["ok"] * 13
    assert __version__ in checks["package"][1]
    assert checks["gateway URL"][1] == f"{enclave_env['PREM_GATEWAY_URL']} (from PREM_GATEWAY_URL)"
    assert re.search(r"responded in \d+ ms \(status 401\); plain http on this machine", checks["gateway"][1])
    assert checks["enclave key"][1] == f"sha256:{enclave.public_key.fingerprint()} (fetched)"
    assert checks["API key"][1] == "sk_test…: accepted by the gateway"
    assert "openai/gpt-oss-120b" in checks["chat"][1]
    unverified = states(checks, "attestation", "streamed replies", "key origin", "assumptions")
    assert unverified == ["not verified"] * 4


def test_verbose_lists_the_assumptions_of_the_readme(prem: Prem, enclave_env: dict[str, str]) -> None:
    detail = run_doctor(prem, "--no-calls", "--verbose", status=0, **enclave_env)["assumptions"][1]
    named = detail.partition("README: ")[2].split(", ")
    assert set(named) == {name for name in dir(assumed) if re.search(rf"`{name}`[,| ]", README)}
    assert detail.startswith(f"{len(named)} ")


def test_no_calls_skips_chat_and_audio(prem: Prem, upstream_env: dict[str, str], upstream: Upstream) -> None:
    checks = run_doctor(prem, "--no-calls", status=0, **upstream_env)
    assert states(checks, "chat", "audio") == ["skipped"] * 2
    assert upstream.requests == []
    assert run_doctor(prem, status=0, **upstream_env)["chat"][0] == "ok"
    (_, probe), (_, body) = upstream.requests
    assert (probe["max_tokens"], body["max_tokens"]) == (16, 1)


def test_a_wrong_api_key_fails_and_skips_the_calls(prem: Prem, enclave_env: dict[str, str]) -> None:
    checks = run_doctor(prem, status=1, **{**enclave_env, "PREM_API_KEY": "sk_live_wrong"})
    state, detail = checks["API key"]
    assert state == "failed"
    assert detail.startswith("sk_live…: rejected by the gateway")
    assert "support_" in detail
    assert states(checks, "gateway", "enclave key", "chat", "audio") == ["ok", "ok", "skipped", "skipped"]


def test_a_missing_api_key_fails_with_a_remedy(prem: Prem, enclave_env: dict[str, str]) -> None:
    checks = run_doctor(prem, status=1, **{**enclave_env, "PREM_API_KEY": ""})
    assert checks["API key"] == ("failed", "PREM_API_KEY is not set")
    assert "not set: PREM_API_KEY" in checks["environment"][1]


@pytest.mark.parametrize("party", ["gateway", "enclave"])
def test_an_unreachable_party_fails_and_independent_checks_still_run(
    prem: Prem, enclave_env: dict[str, str], party: str
) -> None:
    option = {"gateway": "--gateway-url", "enclave": "--enclave-url"}[party]
    checks = run_doctor(prem, option, UNUSED, status=1, **enclave_env)
    assert checks[f"{party} URL"] == ("ok", f"{UNUSED} (from {option})")
    assert checks[party] == ("failed", "connection refused: no server listens there")
    other, known = (("enclave", "API key"), ("gateway", "enclave key"))[party == "enclave"]
    assert checks[other][0] == "ok"
    assert checks[known][0] != "ok"
    assert checks["chat"][0] == "skipped"


def test_a_url_with_a_password_fails_and_is_not_shown(prem: Prem, enclave_env: dict[str, str]) -> None:
    checks = run_doctor(prem, status=1, **{**enclave_env, "PREM_GATEWAY_URL": "https://me:hunter2@gateway"})
    state, detail = checks["gateway URL"]
    assert (state, "PREM_GATEWAY_URL" in detail) == ("failed", True)
    assert "hunter2" not in str(checks)
    assert states(checks, "gateway", "API key", "chat") == ["skipped"] * 3


def test_a_fingerprint_that_differs_fails(
    prem: Prem, enclave_env: dict[str, str], enclave: LocalEnclave
) -> None:
    right = enclave.public_key.fingerprint()
    for spelled in (right, f"SHA256:{right.upper()}"):
        checks = run_doctor(prem, "--no-calls", "--fingerprint", spelled, status=0, **enclave_env)
        assert checks["enclave key"][0] == "ok"
    checks = run_doctor(prem, "--no-calls", "--fingerprint", OTHER.fingerprint(), status=1, **enclave_env)
    assert checks["enclave key"] == ("failed", f"sha256:{right} differs from --fingerprint")


def test_a_pinned_enclave_key_must_be_the_published_one(
    prem: Prem, enclave_env: dict[str, str], enclave: LocalEnclave
) -> None:
    pinned = ["--enclave-public-key", bytes(enclave.public_key).hex()]
    checks = run_doctor(prem, *pinned, status=0, **enclave_env)
    assert checks["enclave key"][1].endswith("(pinned)")
    assert "key origin" not in checks
    checks = run_doctor(prem, "--enclave-public-key", bytes(OTHER).hex(), status=1, **enclave_env)
    assert f"sha256:{OTHER.fingerprint()} is pinned, but" in checks["enclave key"][1]
    assert checks["chat"][0] == "skipped"
    checks = run_doctor(prem, "--enclave-public-key", "abc", status=1, **enclave_env)
    assert checks["enclave key"][1].startswith("--enclave-public-key: ")


def test_a_missing_scope_fails_and_is_named(prem: Prem) -> None:
    with LocalEnclave(scopes=["audio.transcription"]) as narrow:
        checks = run_doctor(prem, "--audio", status=1, **client_environment(narrow))
    assert states(checks, "API key", "chat", "audio") == ["ok", "failed", "ok"]
    assert checks["chat"][1].startswith("the API key lacks the scope chats.completion: ")


def test_a_rate_limit_does_not_fail_the_check(prem: Prem) -> None:
    with LocalEnclave(tier=Tier(BASE._replace(concurrent=0))) as full:
        checks = run_doctor(prem, status=0, **client_environment(full))
    assert checks["chat"][0] == "not verified"


def test_keys_from_a_file_must_match_the_enclave(
    prem: Prem, enclave_env: dict[str, str], enclave: LocalEnclave, tmp_path: Path
) -> None:
    kek = bytes(range(32)).hex()
    for name, key in (("right", enclave.public_key), ("wrong", OTHER)):
        EncryptionKeys.encapsulate(key).save(tmp_path / name, kek)
    checks = run_doctor(prem, "--keys", str(tmp_path / "right"), status=0, CLIENT_KEK=kek, **enclave_env)
    assert states(checks, "KEK", "keys", "chat") == ["ok"] * 3
    checks = run_doctor(prem, "--keys", str(tmp_path / "wrong"), status=1, CLIENT_KEK=kek, **enclave_env)
    assert f"another enclave key, sha256:{OTHER.fingerprint()}" in checks["keys"][1]


def test_a_malformed_kek_fails(prem: Prem, enclave_env: dict[str, str]) -> None:
    assert run_doctor(prem, "--no-calls", status=0, **enclave_env)["KEK"][0] == "info"
    state, detail = run_doctor(prem, "--no-calls", status=1, CLIENT_KEK="hunter2", **enclave_env)["KEK"]
    assert (state, "32 bytes" in detail, "hunter2" in detail) == ("failed", True, False)


def test_http_proxies_are_shown_without_their_password(prem: Prem, enclave_env: dict[str, str]) -> None:
    on_the_way = {"HTTPS_PROXY": "http://me:hunter2@proxy.example:3128", "no_proxy": "127.0.0.1"}
    checks = run_doctor(prem, "--no-calls", status=0, **enclave_env, **on_the_way)
    assert "HTTPS_PROXY (proxy.example:3128)" in checks["network"][1]
    assert "no_proxy" in checks["network"][1]
    assert "hunter2" not in str(checks)


def test_local_checks_an_embedded_enclave(prem: Prem) -> None:
    result = prem("--local", "doctor", "--json", PREM_API_KEY="sk_live_of_the_user")
    assert result.status == 0, result
    checks = {each["name"]: each for each in json.loads(result.out)["checks"]}
    assert checks["gateway URL"]["detail"].endswith("(from --local)")
    assert checks["API key"]["detail"].startswith("sk_test…")
    assert checks["chat"]["state"] == "ok"
    assert checks["Prem's service"]["state"] == "skipped"


def test_in_a_pipe_each_check_is_one_line(prem: Prem, enclave_env: dict[str, str]) -> None:
    result = prem("doctor", "--no-calls", "--timeout", "0", **enclave_env)
    *lines, empty, counts = result.out.splitlines()
    assert all(re.match(r"(ok|failed|not verified|skipped|info) |  +→ ", line) for line in lines)
    failed = next(index for index, line in enumerate(lines) if line.startswith("failed "))
    assert lines[failed + 1].strip() == "→ Correct this setting"
    assert empty == ""
    assert re.fullmatch(r"\d+ ok, \d+ failed, \d+ not verified, \d+ skipped", counts)
    assert "\x1b" not in result.out


def test_on_a_terminal_lines_are_coloured_and_wrapped_with_an_indent(
    prem: Prem, enclave_env: dict[str, str], enclave: LocalEnclave
) -> None:
    shown = run_on_terminal("doctor", "--no-calls", columns=80, **enclave_env)
    assert shown.status == 0
    assert "\x1b[32mok" in shown.terminal
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown.terminal)
    fingerprint = f"sha256:{enclave.public_key.fingerprint()}"
    assert f" {fingerprint}\n" in plain  # whole, although it is too long for the line
    *lines, _, _ = (line for line in plain.splitlines() if fingerprint not in line)
    assert max(map(len, lines)) <= 80
    assert all(re.match(r"(ok|failed|not verified|skipped|info) | {31}\S", line) for line in lines)
    assert enclave_env["PREM_API_KEY"] not in shown.terminal


@pytest.mark.filterwarnings("ignore:PROXY_URL")
def test_a_plain_proxy_url_is_named_with_a_remedy(prem: Prem, enclave_env: dict[str, str]) -> None:
    environment = {**enclave_env, "PROXY_URL": enclave_env["PREM_GATEWAY_URL"], "PREM_GATEWAY_URL": ""}
    result = prem("doctor", "--json", "--no-calls", **environment)
    (check,) = (each for each in json.loads(result.out)["checks"] if each["name"] == "gateway URL")
    assert check["detail"].endswith("(from PROXY_URL)")
    assert "PREM_GATEWAY_URL" in check["remedy"]


@pytest.fixture
def untrusted(tmp_path: Path) -> Iterator[str]:
    """The URL of a TLS server with a self-signed certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (tmp_path / "pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(pem)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pem")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        stopped = threading.Event()

        def serve() -> None:
            while not stopped.is_set():
                try:
                    accepted: Any = listening.accept()[0]
                except OSError:
                    return
                with accepted:
                    try:
                        context.wrap_socket(accepted, server_side=True).close()
                    except OSError:
                        continue  # the client rejects the certificate

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"https://localhost:{port}"
        stopped.set()
        socket.create_connection(("127.0.0.1", port)).close()  # wakes it
        thread.join()


def test_an_untrusted_certificate_fails(prem: Prem, enclave_env: dict[str, str], untrusted: str) -> None:
    checks = run_doctor(prem, "--enclave-url", untrusted, status=1, **enclave_env)
    state, detail = checks["enclave"]
    assert (state, "is not trusted" in detail, "self" in detail) == ("failed", True, True)
    assert checks["enclave key"][0] == "skipped"
