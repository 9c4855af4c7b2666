"""The embedded enclave keeps nothing in memory, writes nothing to disk, and serves this machine only.

`tests/enclave/test_gateway.py` tests the Host header, the body limit, the API key and the loopback address as well.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from support.paths import CLINIC_NOTE, DATA, TESTS
from support.raw_client import RawClient, eventually

import prem_core
from prem_core import PremClient
from prem_core.enclave import LocalEnclave, ScriptedEngine
from prem_core.enclave.enclave import Enclave
from prem_core.enclave.gateway import Gateway

PNG = DATA / "media" / "pixels.png"


@pytest.fixture(scope="module")
def shared() -> Iterator[RawClient]:
    with LocalEnclave() as prem, httpx.Client(trust_env=False, timeout=60) as client:
        yield RawClient(prem, client)


# --- memory and disk


class WatchedEnclave:
    """An enclave in its own process and in an empty folder, whose memory can be searched."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        places = {name: str(folder) for name in ("HOME", "TMPDIR", "TMP", "TEMP", "XDG_CACHE_HOME")}
        package = str(Path(prem_core.__file__).parents[1])
        self._process = subprocess.Popen(
            [sys.executable, "-B", str(TESTS / "support" / "security" / "enclave_process.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**os.environ, **places, "PYTHONPATH": package, "PYTHONWARNINGS": "error"},
        )
        self.options: dict[str, str] = self._read_line()

    def _read_line(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def search_memory(self, *words: str) -> dict[str, list[str]]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([word.lower()[::-1] for word in words]) + "\n")
        self._process.stdin.flush()
        seen: dict[str, list[str]] = self._read_line()
        return {**seen, "held": [word[::-1] for word in seen["held"]]}

    def end(self) -> str:
        """Stop it, and return its other output."""
        out, err = self._process.communicate(timeout=30)
        assert self._process.returncode == 0, err
        return out + err


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[WatchedEnclave]:
    watched = WatchedEnclave(tmp_path)
    yield watched
    if watched._process.poll() is None:
        watched._process.kill()
        watched._process.communicate()


WORDS = ["Quillonbury", "Tarnivolesk", "Wexlothar", "Mardlestone", "Oskiburrow", "Clupperdow"]


def _chat(client: PremClient) -> None:
    question = "Context: The ward of Quillonbury closes at nine. Question: When does Quillonbury close?"
    params: dict[str, Any] = {
        "model": "openai/gpt-oss-120b",
        "messages": [
            {"role": "system", "content": "You speak for Tarnivolesk."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": question},
                    {"type": "image_url", "image_url": {"url": _data_url("image/png", PNG.read_bytes())}},
                    {
                        "type": "file",
                        "file": {
                            "file_data": _data_url("text/plain", b"The bridge is in Wexlothar."),
                            "filename": "Clupperdow.txt",
                        },
                    },
                ],
            },
        ],
    }
    assert "Quillonbury" in str(client.chat.completions.create(**params).choices[0].message.content)
    with client.chat.completions.create(**params, stream=True) as stream:
        next(stream)  # and disconnect
    tool = {
        "type": "function",
        "function": {
            "name": "look_up",
            "description": "Look up the city of Mardlestone",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
    called = client.chat.completions.create(**params, tools=[tool], tool_choice="required")
    call = called.choices[0].message.tool_calls
    assert call
    result = {"role": "tool", "content": "Oskiburrow is far.", "tool_call_id": call[0].id}
    client.chat.completions.create(
        **{**params, "messages": [*params["messages"], called.choices[0].message, result]}
    )
    form = {
        "type": "json_schema",
        "json_schema": {
            "name": "ward",
            "schema": {"type": "object", "properties": {"ward": {"type": "string"}}, "required": ["ward"]},
        },
    }
    client.chat.completions.create(**params, response_format=form)
    with pytest.raises(prem_core.BadRequestError):
        client.chat.completions.create(**params, extra_body={"temperature": "Quillonbury"})
    with pytest.raises(prem_core.NotFoundError):
        client.chat.completions.create(**{**params, "model": "Quillonbury"})


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def test_the_memory_search_finds_a_value_in_memory(watched: WatchedEnclave) -> None:
    assert watched.search_memory(watched.options["api_key"], WORDS[0])["held"] == [
        watched.options["api_key"].lower()
    ]


def _held(watched: WatchedEnclave, *words: str) -> list[str]:
    """The words still in memory once the enclave has finished its work."""
    seen: list[list[str]] = []

    def nothing() -> bool:
        seen.append(watched.search_memory(*words)["held"])
        return not seen[-1]

    eventually(nothing)
    return seen[-1]


def test_no_text_of_a_chat_stays_in_the_enclaves_memory(watched: WatchedEnclave) -> None:
    with PremClient(**watched.options) as client:
        _chat(client)
    assert _held(watched, *WORDS) == []


def test_nothing_of_a_transcription_stays_in_the_enclaves_memory(watched: WatchedEnclave) -> None:
    recording = CLINIC_NOTE.read_bytes()
    words = _transcribe(watched, recording).split()
    middle = len(words) // 2
    phrases = [" ".join(words[i : i + 3]) for i in (0, middle, len(words) - 3)]
    samples = [recording[at : at + 24].decode("latin-1") for at in (10_000, len(recording) // 2)]
    assert _held(watched, "Clupperdow", "Quillonbury", *phrases, *samples) == []


def test_the_enclave_writes_no_file_prints_nothing_and_connects_to_loopback_only(
    watched: WatchedEnclave,
) -> None:
    with PremClient(**watched.options) as client:
        _chat(client)
    _transcribe(watched, CLINIC_NOTE.read_bytes())
    seen = watched.search_memory()
    assert [path for path in seen["written"] if path != os.devnull] == []
    assert {address.split(",")[0] for address in seen["connected"]} == {"('127.0.0.1'"}
    assert list(watched.folder.iterdir()) == []
    assert watched.end() == ""


def _transcribe(watched: WatchedEnclave, recording: bytes) -> str:
    with PremClient(**watched.options, timeout=120) as client:
        transcription = client.audio.transcriptions.create(
            file=("Clupperdow.wav", recording), prompt="Quillonbury", response_format="verbose_json"
        )
    return transcription.text


# --- access


def _routes(app: Any) -> list[tuple[str, str]]:
    return [
        (method, route.path) for route in app._router.routes for method in sorted(route.methods - {"HEAD"})
    ]


def test_every_route_of_the_gateway_requires_the_api_key(shared: RawClient) -> None:
    async def models() -> tuple[str, ...]:
        return ()

    gateway = Gateway(
        api_key="k", scopes=None, models=models, tier=None, enclave=httpx.AsyncClient(), forwarding_secret="h"
    )
    routes = _routes(gateway)
    assert len(routes) >= 4
    for method, path in routes:
        for headers in ({}, {"Authorization": "Bearer sk_test_guess"}):
            answer = shared.http.request(
                method, shared.prem.gateway_url + path, headers=headers, content=b"{}"
            )
            assert answer.status_code == 401, path


def test_the_enclave_serves_everything_but_its_public_key_to_the_gateway_only(shared: RawClient) -> None:
    enclave = Enclave(
        private_key=shared.prem._private_key,
        engine=ScriptedEngine(),
        models=(),
        whole_replies="stream",
        forwarding_secret="h",
        meter=lambda tokens: None,
        audio_meter=lambda seconds: None,
    )
    for method, path in _routes(enclave):
        answer = shared.http.request(
            method, shared.prem.enclave_url + path, headers=shared.headers, content=b"{}"
        )
        assert answer.status_code == (200 if path == "/publicKey" else 403), path


@pytest.mark.parametrize("url", ["gateway_url", "enclave_url"])
def test_both_servers_limit_the_body_size(url: str) -> None:
    with LocalEnclave(body_limit=1000) as prem, httpx.Client(trust_env=False) as http:
        headers = {"Authorization": f"Bearer {prem.api_key}"}
        target = getattr(prem, url) + "/rvenc/chat/completions"
        # The enclave does not read a body that does not come from the gateway.
        refused = 413 if url == "gateway_url" else 403
        for body in (b"x" * 1001, b"x" * 5_000_000):
            assert http.post(target, content=body, headers=headers).status_code == refused


def _raw(url: str, request: str) -> bytes:
    address = urlsplit(url)
    with socket.create_connection((str(address.hostname), address.port or 0), timeout=60) as sock:
        sock.sendall(request.format(port=address.port).encode())
        answer = b""
        while b"\r\n\r\n" not in answer and (piece := sock.recv(65536)):
            answer += piece
        return answer


@pytest.mark.parametrize("url", ["gateway_url", "enclave_url"])
@pytest.mark.parametrize(
    "request_text",
    [
        "GET /publicKey HTTP/1.0\r\n\r\n",
        "GET /publicKey HTTP/1.1\r\nHost: evil.example:{port}\r\n\r\n",
        "GET http://127.0.0.1:{port}/publicKey HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        "GET /publicKey HTTP/1.1\r\nHost: 127.0.0.1:{port}.evil.example\r\n\r\n",
        "GET /publicKey HTTP/1.1\r\nHost: 127.0.0.1:{port}@evil.example\r\n\r\n",
        "GET /publicKey HTTP/1.1\r\nHost: 127.0.0.1:{port}, evil.example\r\n\r\n",
    ],
)
def test_a_request_with_another_host_is_rejected(shared: RawClient, url: str, request_text: str) -> None:
    assert _raw(getattr(shared.prem, url), request_text).startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize("url", ["gateway_url", "enclave_url"])
def test_a_request_with_two_hosts_is_rejected(shared: RawClient, url: str) -> None:
    two = "GET /publicKey HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nHost: evil.example\r\n\r\n"
    assert _raw(getattr(shared.prem, url), two).startswith(b"HTTP/1.1 400 ")


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="the kernel's list of sockets is Linux's")
def test_the_servers_listen_on_loopback_only(shared: RawClient) -> None:
    listening: dict[int, set[str]] = {}
    for family in ("tcp", "tcp6"):
        path = Path("/proc/net") / family
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            _, local, _, state, *_ = line.split()
            if state == "0A":
                host, _, port = local.partition(":")
                listening.setdefault(int(port, 16), set()).add(host)
    for url in (shared.prem.gateway_url, shared.prem.enclave_url):
        assert listening[urlsplit(url).port or 0] == {"0100007F"}
