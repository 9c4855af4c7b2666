"""``prem doctor``: each check against something that is well, and against something that is not."""

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

NOBODY = "http://127.0.0.1:9"
OTHER = PrivateKey(bytes(32)).public_key()
README = (ROOT / "README.md").read_text(encoding="utf-8")

Checks = dict[str, tuple[str, str]]


def examined(prem: Prem, *arguments: str, status: int, **environment: str) -> Checks:
    """The checks by name: how each went, and what it says."""
    result = prem("doctor", "--json", *arguments, **environment)
    assert result.status == status, result
    told = json.loads(result.out)
    assert told["ok"] is (status == 0)
    checks = {each["name"]: (each["state"], each["detail"]) for each in told["checks"]}
    failed = [name for name, (state, _) in checks.items() if state == "failed"]
    assert result.err == (f"prem doctor: failed: {', '.join(failed)}\n" if failed else "")
    assert bool(failed) is (status == 1)
    return checks


def states(checks: Checks, *names: str) -> list[str]:
    return [checks[name][0] for name in names]


def test_where_all_is_well_it_says_so_and_what_is_not_verified(
    prem: Prem, enclave_env: dict[str, str], enclave: LocalEnclave
) -> None:
    checks = examined(prem, "--audio", status=0, **enclave_env)
    well = ["python", "package", "gateway URL", "enclave URL", "gateway", "enclave", "enclave key", "API key"]
    assert states(checks, *well, "models", "chat", "audio") == ["ok"] * 11
    assert __version__ in checks["package"][1]
    assert checks["gateway URL"][1] == f"{enclave_env['PREM_GATEWAY_URL']} (PREM_GATEWAY_URL)"
    assert re.search(r"answered in \d+ ms \(status 401\); plain http, on this machine", checks["gateway"][1])
    assert checks["enclave key"][1] == f"sha256:{enclave.public_key.fingerprint()} (fetched)"
    assert checks["API key"][1] == "sk_test…: the gateway takes it"
    assert "openai/gpt-oss-120b" in checks["chat"][1]
    assert states(checks, "attestation", "key's origin", "assumptions") == ["not verified"] * 3


def test_the_assumptions_are_those_of_the_readme(prem: Prem, enclave_env: dict[str, str]) -> None:
    detail = examined(prem, "--no-calls", status=0, **enclave_env)["assumptions"][1]
    named = detail.partition("(README): ")[2].split(", ")
    assert set(named) == {name for name in dir(assumed) if re.search(rf"`{name}`[,| ]", README)}
    assert detail.startswith(f"{len(named)} ")


def test_what_costs_is_left_out_where_it_is_not_wanted(
    prem: Prem, upstream_env: dict[str, str], upstream: Upstream
) -> None:
    checks = examined(prem, "--no-calls", status=0, **upstream_env)
    assert states(checks, "chat", "audio") == ["not tried"] * 2
    assert upstream.requests == []
    assert examined(prem, status=0, **upstream_env)["chat"][0] == "ok"
    ((_, body),) = upstream.requests
    assert body["max_tokens"] == 1


def test_a_wrong_key_fails_and_nothing_is_asked_with_it(prem: Prem, enclave_env: dict[str, str]) -> None:
    checks = examined(prem, status=1, **{**enclave_env, "PREM_API_KEY": "sk_live_wrong"})
    state, detail = checks["API key"]
    assert state == "failed"
    assert detail.startswith("sk_live…: the gateway does not know it")
    assert "support_" in detail
    assert states(checks, "gateway", "enclave key", "chat", "audio") == ["ok", "ok", "not tried", "not tried"]


def test_a_missing_key_fails(prem: Prem, enclave_env: dict[str, str]) -> None:
    checks = examined(prem, status=1, **{**enclave_env, "PREM_API_KEY": ""})
    assert "PREM_API_KEY is not set" in checks["settings"][1]
    assert "not set: PREM_API_KEY" in checks["environment"][1]


@pytest.mark.parametrize("party", ["gateway", "enclave"])
def test_whoever_cannot_be_reached_fails_and_the_rest_is_still_checked(
    prem: Prem, enclave_env: dict[str, str], party: str
) -> None:
    option = {"gateway": "--gateway-url", "enclave": "--enclave-url"}[party]
    checks = examined(prem, option, NOBODY, status=1, **enclave_env)
    assert checks[f"{party} URL"] == ("ok", f"{NOBODY} ({option})")
    assert checks[party] == ("failed", "nobody listens there (connection refused)")
    other, known = (("enclave", "API key"), ("gateway", "enclave key"))[party == "enclave"]
    assert checks[other][0] == "ok"
    assert checks[known][0] != "ok"
    assert checks["chat"][0] == "not tried"


def test_an_unusable_url_is_said_and_not_shown_with_its_password(
    prem: Prem, enclave_env: dict[str, str]
) -> None:
    checks = examined(prem, status=1, **{**enclave_env, "PREM_GATEWAY_URL": "https://me:hunter2@gateway"})
    state, detail = checks["gateway URL"]
    assert (state, "PREM_GATEWAY_URL" in detail) == ("failed", True)
    assert "hunter2" not in str(checks)
    assert "gateway" not in checks


def test_another_fingerprint_than_the_one_wanted_fails(
    prem: Prem, enclave_env: dict[str, str], enclave: LocalEnclave
) -> None:
    right = enclave.public_key.fingerprint()
    for spelled in (right, f"SHA256:{right.upper()}"):
        assert (
            examined(prem, "--no-calls", "--fingerprint", spelled, status=0, **enclave_env)["enclave key"][0]
            == "ok"
        )
    checks = examined(prem, "--no-calls", "--fingerprint", OTHER.fingerprint(), status=1, **enclave_env)
    assert checks["enclave key"] == ("failed", f"sha256:{right} is not what --fingerprint says")


def test_a_pinned_key_is_held_against_the_published_one(
    prem: Prem, enclave_env: dict[str, str], enclave: LocalEnclave
) -> None:
    pinned = ["--enclave-public-key", bytes(enclave.public_key).hex()]
    checks = examined(prem, *pinned, status=0, **enclave_env)
    assert checks["enclave key"][1].endswith("(the pinned one)")
    assert "key's origin" not in checks
    checks = examined(prem, "--enclave-public-key", bytes(OTHER).hex(), status=1, **enclave_env)
    assert f"pinned sha256:{OTHER.fingerprint()}, but" in checks["enclave key"][1]
    assert checks["chat"][0] == "not tried"
    checks = examined(prem, "--enclave-public-key", "abc", status=1, **enclave_env)
    assert "1216 bytes" in checks["enclave key"][1]


def test_a_missing_scope_is_named(prem: Prem) -> None:
    with LocalEnclave(scopes=["audio.transcription"]) as narrow:
        checks = examined(prem, "--audio", status=1, **client_environment(narrow))
    assert states(checks, "API key", "chat", "audio") == ["ok", "failed", "ok"]
    assert checks["chat"][1].startswith("the key lacks the scope chats.completion: ")


def test_a_limit_that_is_reached_says_nothing_of_the_key(prem: Prem) -> None:
    with LocalEnclave(tier=Tier(BASE._replace(concurrent=0))) as full:
        checks = examined(prem, status=0, **client_environment(full))
    assert checks["chat"][0] == "not verified"


def test_keys_from_a_file_are_held_against_the_enclave(
    prem: Prem, enclave_env: dict[str, str], enclave: LocalEnclave, tmp_path: Path
) -> None:
    kek = bytes(range(32)).hex()
    for name, key in (("right", enclave.public_key), ("wrong", OTHER)):
        EncryptionKeys.encapsulate(key).save(tmp_path / name, kek)
    checks = examined(prem, "--keys", str(tmp_path / "right"), status=0, CLIENT_KEK=kek, **enclave_env)
    assert states(checks, "KEK", "keys", "chat") == ["ok"] * 3
    checks = examined(prem, "--keys", str(tmp_path / "wrong"), status=1, CLIENT_KEK=kek, **enclave_env)
    assert f"another enclave key, sha256:{OTHER.fingerprint()}" in checks["keys"][1]


def test_a_kek_of_a_wrong_form_fails(prem: Prem, enclave_env: dict[str, str]) -> None:
    assert examined(prem, "--no-calls", status=0, **enclave_env)["KEK"][0] == "info"
    state, detail = examined(prem, "--no-calls", status=1, CLIENT_KEK="hunter2", **enclave_env)["KEK"]
    assert (state, "32 bytes" in detail, "hunter2" in detail) == ("failed", True, False)


def test_proxies_are_shown_without_their_password(prem: Prem, enclave_env: dict[str, str]) -> None:
    on_the_way = {"HTTPS_PROXY": "http://me:hunter2@proxy.example:3128", "no_proxy": "127.0.0.1"}
    checks = examined(prem, "--no-calls", status=0, **enclave_env, **on_the_way)
    assert "HTTPS_PROXY (proxy.example:3128)" in checks["network"][1]
    assert "no_proxy" in checks["network"][1]
    assert "hunter2" not in str(checks)


def test_local_examines_an_embedded_enclave(prem: Prem) -> None:
    result = prem("--local", "doctor", "--json", PREM_API_KEY="sk_live_of_the_user")
    assert result.status == 0, result
    checks = {each["name"]: each for each in json.loads(result.out)["checks"]}
    assert checks["gateway URL"]["detail"].endswith("(--local)")
    assert checks["API key"]["detail"].startswith("sk_test…")
    assert checks["chat"]["state"] == "ok"
    assert checks["Prem's service"]["state"] == "not tried"


def test_a_line_for_each_check_plain_in_a_pipe_and_coloured_on_a_terminal(
    prem: Prem, enclave_env: dict[str, str]
) -> None:
    piped = prem("doctor", "--no-calls", **enclave_env)
    lines = piped.out.splitlines()
    assert all(re.match(r"(ok|failed|not verified|not tried|info) ", line) for line in lines)
    assert "\x1b" not in piped.out
    shown = run_on_terminal("doctor", "--no-calls", **enclave_env)
    assert shown.status == 0
    assert "\x1b[32mok" in shown.terminal
    assert len(shown.terminal.splitlines()) == len(lines)
    assert enclave_env["PREM_API_KEY"] not in shown.terminal


@pytest.fixture
def untrusted(tmp_path: Path) -> Iterator[str]:
    """The URL of a TLS server whose certificate nobody has signed but itself."""
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
        over = threading.Event()

        def serve() -> None:
            while not over.is_set():
                try:
                    accepted: Any = listening.accept()[0]
                except OSError:
                    return
                with accepted:
                    try:
                        context.wrap_socket(accepted, server_side=True).close()
                    except OSError:
                        continue  # the client has left, as it should

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"https://localhost:{port}"
        over.set()
        socket.create_connection(("127.0.0.1", port)).close()  # wakes it
        thread.join()


def test_a_certificate_that_nobody_vouches_for_fails(
    prem: Prem, enclave_env: dict[str, str], untrusted: str
) -> None:
    checks = examined(prem, "--enclave-url", untrusted, status=1, **enclave_env)
    state, detail = checks["enclave"]
    assert (state, "not to be trusted" in detail, "self" in detail) == ("failed", True, True)
    assert checks["enclave key"][0] == "failed"
