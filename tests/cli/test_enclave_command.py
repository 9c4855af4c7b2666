"""``prem enclave``: what it prints, its options, and how it stops."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from support.prem_program import Prem, ServerProcess
from support.raw_client import RawClient, params
from support.scripted_upstream import Upstream, chunk

from prem_core._crypto.xwing import PublicKey

Start = Callable[..., ServerProcess]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start ``prem enclave`` with these options and environment variables."""
    running: list[ServerProcess] = []

    def start(*options: str, **environment: str) -> ServerProcess:
        command = ["enclave", "--port", "0", "--enclave-port", "0", *options]
        running.append(ServerProcess(*command, ready="Ctrl-C", **environment))
        return running[-1]

    yield start
    for each in running:
        each.kill()


def wire(server: ServerProcess, http: httpx.Client) -> RawClient:
    key = http.get(f"{server.exports['PREM_ENCLAVE_URL']}/publicKey").json()["publicKey"]
    local: Any = SimpleNamespace(
        api_key=server.exports["PREM_API_KEY"],
        gateway_url=server.exports["PREM_GATEWAY_URL"],
        public_key=PublicKey(bytes.fromhex(key)),
    )
    return RawClient(local, http)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_prints_the_settings_of_a_client_and_stops_cleanly_on_a_signal(
    start: Start, http: httpx.Client, number: int
) -> None:
    server = start()
    client = wire(server, http)
    sealed, response = client.chat(params())
    assert sealed.chunks(response)
    assert f"gateway      {client.prem.gateway_url}\n" in server.output
    assert f"API key      {client.prem.api_key}\n" in server.output
    assert f"sha256:{client.prem.public_key.fingerprint()}\n" in server.output
    assert "another terminal" in server.output
    assert "\x1b" not in server.output
    assert server.stop(number) == 0
    assert server.errors == ""


def test_it_stops_cleanly_while_a_stream_is_open(
    start: Start, http: httpx.Client, upstream: Upstream
) -> None:
    upstream.stalls(chunk("hi"))
    server = start("--upstream", upstream.url, "--upstream-api-key-env", "UP", UP="sk-up")
    client = wire(server, http)
    with client.stream(params()) as (_, response):
        chunks = response.iter_raw()
        assert next(chunks)
        assert server.stop() == 0
        with pytest.raises(httpx.TransportError):
            list(chunks)
    assert server.errors == ""
    assert upstream.requests[0][0]["authorization"] == "Bearer sk-up"


def test_models_tier_and_api_key_are_options(start: Start, http: httpx.Client) -> None:
    models = ["--model", "a/one", "--model", "b/two"]
    server = start(*models, "--tier", "base", "--api-key-env", "MY_KEY", MY_KEY="sk_test_mine")
    assert server.exports["PREM_API_KEY"] == "sk_test_mine"
    client = wire(server, http)
    assert [entry["model"] for entry in client.get("/models").json()["data"]] == ["a/one", "b/two"]
    statuses = [client.chat(params(model="a/one"))[1].status_code for _ in range(8)]
    assert statuses[:5] == [200] * 5
    assert 429 in statuses


@pytest.mark.parametrize(
    ("options", "content_type"),
    [
        ([], "application/json"),
        (["--whole-replies", "envelope"], "application/json"),
        (["--whole-replies", "stream"], "text/event-stream"),
    ],
)
def test_whole_replies_selects_the_form_of_answers_that_are_not_requested_as_a_stream(
    start: Start, http: httpx.Client, options: list[str], content_type: str
) -> None:
    asked = {name: value for name, value in params().items() if name != "stream"}
    _, response = wire(start(*options), http).chat(asked)
    assert response.headers["content-type"].startswith(content_type)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--whole-replies", "xml"], "xml"),
        (["--tier", "gold"], "gold"),
        (["--port", "70000"], "65535"),
        (["--host", "0.0.0.0"], "--host"),
        (["--upstream", "localhost:11434", "--port", "0"], "--upstream must be an http or https URL"),
        (["--api-key-env", "NOT_SET_ANYWHERE"], "NOT_SET_ANYWHERE is not set"),
    ],
)
def test_a_wrong_option_is_a_usage_error_on_one_line(prem: Prem, options: list[str], message: str) -> None:
    prem("enclave", *options).assert_error(2, "prem enclave: ", message)


def test_a_port_in_use_is_a_usage_error_on_one_line(prem: Prem) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        prem("enclave", "--port", port).assert_error(2, "prem enclave: ", port)
