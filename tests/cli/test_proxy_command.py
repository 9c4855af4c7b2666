"""``prem proxy``: what it prints, its options, and how it stops."""

from __future__ import annotations

import re
import shlex
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from support.prem_program import Prem, ServerProcess
from support.proxies import chat
from support.scripted_upstream import Upstream, chunk
from support.wire_schemas import Opened

from prem_core import EncryptionKeys
from prem_core.cli.commands.proxy import _size
from prem_core.enclave import LocalEnclave

Start = Callable[..., ServerProcess]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start ``prem proxy`` with these options and environment variables."""
    running: list[ServerProcess] = []

    def start(*options: str, before: tuple[str, ...] = (), **environment: str) -> ServerProcess:
        command = [*before, "proxy", "--port", "0", *options]
        running.append(ServerProcess(*command, ready="Ctrl-C", **environment))
        return running[-1]

    yield start
    for each in running:
        each.kill()


def base_url(server: ServerProcess) -> str:
    return server.output.split()[2]


def urls(enclave: LocalEnclave) -> dict[str, str]:
    return {"PREM_GATEWAY_URL": enclave.gateway_url, "PREM_ENCLAVE_URL": enclave.enclave_url}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_prints_its_url_and_stops_cleanly_on_a_signal(
    start: Start, enclave: LocalEnclave, number: int
) -> None:
    server = start(**urls(enclave))
    with openai.OpenAI(base_url=base_url(server), api_key=enclave.api_key) as client:
        assert client.chat.completions.create(**chat()).choices
    assert server.stop(number) == 0
    assert server.errors == ""
    assert "their own API keys" in server.output
    assert server.output.splitlines()[-1] == "prem proxy: Ctrl-C stops it"


def test_it_prints_the_url_of_the_page_and_no_page_turns_it_off(start: Start, enclave: LocalEnclave) -> None:
    server = start(**urls(enclave))
    assert server.stop() == 0
    page = server.output.splitlines()[1].split()[2]
    assert page.startswith(base_url(server).replace("/v1", "/page/"))
    other = start("--no-page", **urls(enclave))
    assert httpx.get(base_url(other).replace("/v1", "/"), trust_env=False).status_code == 404
    assert other.stop() == 0
    assert "/page/" not in other.output


def test_it_prints_the_gateway_the_fingerprint_of_the_key_and_a_curl_line_that_works(
    start: Start, enclave: LocalEnclave
) -> None:
    server = start(**urls(enclave))
    lines = [line.removeprefix("prem proxy: ") for line in server.output.splitlines()]
    assert f"gateway: {enclave.gateway_url}" in lines
    assert f"enclave key: sha256:{enclave.public_key.fingerprint()} (fetched, not attested)" in lines
    (line,) = (each.removeprefix("try: ") for each in lines if each.startswith("try: "))
    curl, url, option, header = shlex.split(line)
    assert (curl, option) == ("curl", "-H")
    name, _, value = header.partition(": ")
    value = value.replace("$PREM_API_KEY", enclave.api_key)
    assert httpx.get(url, headers={name: value}, trust_env=False).status_code == 200


def test_it_starts_without_the_enclave_and_prints_that_the_key_is_not_known(
    start: Start, enclave: LocalEnclave
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
    server = start(PREM_GATEWAY_URL=enclave.gateway_url, PREM_ENCLAVE_URL=address)
    assert "enclave key: not known yet (enclave: the connection could not be opened)" in server.output


def test_log_prints_a_line_for_each_request_without_content(start: Start, enclave: LocalEnclave) -> None:
    server = start("--log", **urls(enclave))
    with openai.OpenAI(base_url=base_url(server), api_key=enclave.api_key, max_retries=0) as client:
        client.chat.completions.create(**chat("The word is zebra. What is the word?"))
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(**chat(), temperature=9)
    assert server.stop() == 0
    first, second = server.errors.splitlines()
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d /v1/chat/completions \S+ 200 done \d+\.\d\d s \d+ \+ \d+ tokens", first
    )
    assert "400 failed" in second
    assert "InvalidParameterError" in second
    assert "zebra" not in server.errors
    assert enclave.api_key not in server.errors


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["openai"], ["OPENAI_BASE_URL=http://127.0.0.1:3000/v1", 'OPENAI_API_KEY="$PREM_API_KEY"']),
        (["anthropic"], ["ANTHROPIC_BASE_URL=http://127.0.0.1:3000", 'ANTHROPIC_API_KEY="$PREM_API_KEY"']),
        (
            ["openai", "--port", "8080", "--host", "::1", "--api-key-from-env"],
            ["OPENAI_BASE_URL=http://[::1]:8080/v1", "OPENAI_API_KEY=unused"],
        ),
    ],
)
def test_env_prints_the_variables_of_a_client_without_the_key(
    prem: Prem, arguments: list[str], expected: list[str]
) -> None:
    printed = prem("proxy", "--env", *arguments, PREM_API_KEY="sk_test_secret")
    assert printed.status == 0
    assert printed.out.splitlines() == [f"export {line}" for line in expected]


def test_compat_serves_one_api_only(start: Start, enclave: LocalEnclave) -> None:
    server = start("--compat", "openai", **urls(enclave))
    auth = {"authorization": f"Bearer {enclave.api_key}"}
    root = base_url(server).removesuffix("/v1")
    for path, status in (("/v1/models", 200), ("/openai/v1/models", 200), ("/anthropic/v1/models", 404)):
        assert httpx.get(root + path, headers=auth, trust_env=False).status_code == status


def test_it_stops_cleanly_while_a_stream_is_open(
    start: Start, upstream_enclave: LocalEnclave, upstream: Upstream
) -> None:
    upstream.stalls(chunk("Hel"))
    server = start(**urls(upstream_enclave))
    key = upstream_enclave.api_key
    with openai.OpenAI(base_url=base_url(server), api_key=key, max_retries=0) as client:
        stream = client.chat.completions.create(**chat(), stream=True)
        next(stream)
        assert server.stop() == 0
        with pytest.raises(openai.APIError):
            next(stream)
    (line,) = server.errors.splitlines()
    assert line.startswith("prem proxy: a response is sealed under its request's nonce")
    assert upstream.left.wait(60)


def test_api_key_from_env_uses_the_key_of_the_environment_for_every_caller(
    start: Start, enclave: LocalEnclave
) -> None:
    server = start("--api-key-from-env", "--api-key-env", "MINE", MINE=enclave.api_key, **urls(enclave))
    assert httpx.get(f"{base_url(server)}/models", trust_env=False).status_code == 200
    assert "your API key" in server.output
    assert enclave.api_key not in server.output
    other = start(PREM_API_KEY=enclave.api_key, **urls(enclave))
    assert httpx.get(f"{base_url(other)}/models", trust_env=False).status_code == 401


def test_the_options_reach_the_proxy(start: Start, enclave: LocalEnclave) -> None:
    server = start("--strict", "--body-limit", "1kb", "--allow-host", "proxy.local:1", **urls(enclave))
    headers = {"authorization": f"Bearer {enclave.api_key}", "host": "proxy.local:1"}
    url = f"{base_url(server)}/chat/completions"
    reply = httpx.post(url, json=chat(user="anna"), headers=headers, trust_env=False)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "user")
    assert httpx.post(url, json=chat("a" * 1024), headers=headers, trust_env=False).status_code == 413


def test_nonce_reuse_error_requests_no_stream_for_a_caller_that_asks_for_one(
    start: Start, enclave: LocalEnclave, seen: Any
) -> None:
    server = start("--nonce-reuse", "error", **urls(enclave))
    with openai.OpenAI(base_url=base_url(server), api_key=enclave.api_key, max_retries=0) as client:
        assert list(client.chat.completions.create(**chat(), stream=True))
    assert server.stop() == 0
    assert server.errors == ""
    assert len(seen.chats) == 2  # the probe and the prompt
    for each in seen.chats:
        assert "stream" not in Opened.request(each.request_body).params


def test_local_needs_no_api_key_and_takes_an_upstream(start: Start, upstream: Upstream) -> None:
    server = start(before=("--local", "--upstream", upstream.url))  # type: ignore[arg-type]
    assert "embedded enclave" in server.output
    response = httpx.post(f"{base_url(server)}/chat/completions", json=chat(), trust_env=False)
    assert response.json()["choices"][0]["message"]["content"] == "Hello"
    assert server.stop() == 0
    assert server.errors == ""


def test_allow_remote_prints_a_warning(start: Start, enclave: LocalEnclave) -> None:
    server = start("--host", "0.0.0.0", "--allow-remote", **urls(enclave))
    assert httpx.get(base_url(server).replace("/v1", "/health"), trust_env=False).status_code == 200
    assert server.stop() == 0
    (line,) = server.errors.splitlines()
    assert "unencrypted" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "--allow-remote"),
        (["--host", "no.such.host.invalid", "--allow-remote"], "no.such.host.invalid"),
        (["--port", "70000"], "65535"),
        (["--nonce-reuse", "never"], "--nonce-reuse"),
        (["--body-limit", "much"], "--body-limit"),
        (["--body-limit", "0"], "--body-limit"),
        (["--timeout", "0"], "--timeout"),
        (["--audio-timeout", "0"], "--audio-timeout"),
        (["--enclave-public-key", "abc"], "--enclave-public-key"),
        (["--gateway-url", "http://gateway.example"], "--gateway-url is plain http"),
        (["--api-key-from-env"], "PREM_API_KEY"),
        (["--api-key-env", "MINE"], "--api-key-from-env"),
        (["--keys", "/no/such/file"], "KEK"),
    ],
)
def test_a_wrong_option_is_a_usage_error_on_one_line(prem: Prem, options: list[str], message: str) -> None:
    prem("proxy", "--port", "0", *options).assert_error(2, "prem proxy: ", message)


def test_keys_need_one_api_key_for_all_callers(prem: Prem, tmp_path: Path) -> None:
    kek = bytes(range(32)).hex()
    EncryptionKeys(b"s" * 32, b"c" * 1120).save(tmp_path / "keys", bytes.fromhex(kek))
    result = prem("proxy", "--port", "0", "--keys", str(tmp_path / "keys"), CLIENT_KEK=kek)
    result.assert_error(2, "prem proxy: ", "--keys needs --api-key-from-env")


def test_a_port_in_use_is_a_usage_error_on_one_line(prem: Prem) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        prem("proxy", "--port", port).assert_error(2, "prem proxy: ", port)


@pytest.mark.parametrize(
    ("text", "size"), [("7", 7), ("500kb", 512_000), ("32MB", 32 << 20), ("1 GiB", 1 << 30), ("2m", 2 << 20)]
)
def test_sizes_are_read_in_their_usual_spellings(text: str, size: int) -> None:
    assert _size(text) == size
