"""What the embedded enclave owes this machine, as far as its own tests do not hold it.

`tests/enclave/test_gateway.py` has the foreign Host, the bounded body, the wrong key and the loopback address.
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
from support.paths import CLINIC_NOTE, TESTS
from support.raw_client import RawClient, eventually
from support.wire_schemas import DATA

import prem_core
from prem_core import PremClient
from prem_core.enclave import LocalEnclave, ScriptedEngine
from prem_core.enclave.enclave import Enclave
from prem_core.enclave.gateway import Gateway

PNG = DATA / "media" / "pixels.png"


@pytest.fixture(scope="module")
def shared() -> Iterator[RawClient]:
    with LocalEnclave() as prem, httpx.Client(trust_env=False, timeout=10) as client:
        yield RawClient(prem, client)


# --- it keeps nothing


class Watched:
    """An enclave in a process of its own, in an empty folder."""

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
        self.options: dict[str, str] = self._told()

    def _told(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def look_for(self, *words: str) -> dict[str, list[str]]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([word.lower()[::-1] for word in words]) + "\n")
        self._process.stdin.flush()
        seen: dict[str, list[str]] = self._told()
        return {**seen, "held": [word[::-1] for word in seen["held"]]}

    def end(self) -> str:
        """What it wrote to standard output and error besides."""
        out, err = self._process.communicate(timeout=30)
        assert self._process.returncode == 0, err
        return out + err


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    watched = Watched(tmp_path)
    yield watched
    if watched._process.poll() is None:
        watched._process.kill()
        watched._process.communicate()


WORDS = ["Quillonbury", "Tarnivolesk", "Wexlothar", "Mardlestone", "Oskiburrow", "Clupperdow"]


def _converse(client: PremClient) -> None:
    question = "Context: The ward of Quillonbury closes at nine. Question: When does Quillonbury close?"
    asked: dict[str, Any] = {
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
    assert "Quillonbury" in str(client.chat.completions.create(**asked).choices[0].message.content)
    with client.chat.completions.create(**asked, stream=True) as stream:
        next(stream)  # and leave
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
    called = client.chat.completions.create(**asked, tools=[tool], tool_choice="required")
    call = called.choices[0].message.tool_calls
    assert call
    result = {"role": "tool", "content": "Oskiburrow is far.", "tool_call_id": call[0].id}
    client.chat.completions.create(
        **{**asked, "messages": [*asked["messages"], called.choices[0].message, result]}
    )
    form = {
        "type": "json_schema",
        "json_schema": {
            "name": "ward",
            "schema": {"type": "object", "properties": {"ward": {"type": "string"}}, "required": ["ward"]},
        },
    }
    client.chat.completions.create(**asked, response_format=form)
    with pytest.raises(prem_core.BadRequestError):
        client.chat.completions.create(**asked, extra_body={"temperature": "Quillonbury"})
    with pytest.raises(prem_core.NotFoundError):
        client.chat.completions.create(**{**asked, "model": "Quillonbury"})


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def test_the_search_finds_what_the_process_does_hold(watched: Watched) -> None:
    assert watched.look_for(watched.options["api_key"], WORDS[0])["held"] == [
        watched.options["api_key"].lower()
    ]


def _held(watched: Watched, *words: str) -> list[str]:
    """The words that are held once the enclave is through with its work."""
    seen: list[list[str]] = []

    def nothing() -> bool:
        seen.append(watched.look_for(*words)["held"])
        return not seen[-1]

    eventually(nothing, 2)
    return seen[-1]


def test_after_an_exchange_no_object_of_the_enclave_holds_its_words(watched: Watched) -> None:
    with PremClient(**watched.options) as client:
        _converse(client)
    assert _held(watched, *WORDS) == []


def test_after_a_recording_no_object_of_the_enclave_holds_anything_of_it(watched: Watched) -> None:
    recording = CLINIC_NOTE.read_bytes()
    words = _heard(watched, recording).split()
    middle = len(words) // 2
    phrases = [" ".join(words[i : i + 3]) for i in (0, middle, len(words) - 3)]
    samples = [recording[at : at + 24].decode("latin-1") for at in (10_000, len(recording) // 2)]
    assert _held(watched, "Clupperdow", "Quillonbury", *phrases, *samples) == []


def test_exchanges_write_no_file_print_nothing_and_lead_nowhere_else(watched: Watched) -> None:
    with PremClient(**watched.options) as client:
        _converse(client)
    _heard(watched, CLINIC_NOTE.read_bytes())
    seen = watched.look_for()
    assert [path for path in seen["written"] if path != os.devnull] == []
    assert {address.split(",")[0] for address in seen["connected"]} == {"('127.0.0.1'"}
    assert list(watched.folder.iterdir()) == []
    assert watched.end() == ""


def _heard(watched: Watched, recording: bytes) -> str:
    with PremClient(**watched.options, timeout=120) as client:
        said = client.audio.transcriptions.create(
            file=("Clupperdow.wav", recording), prompt="Quillonbury", response_format="verbose_json"
        )
    return said.text


# --- who may ask


def _routes(app: Any) -> list[tuple[str, str]]:
    return [
        (method, route.path) for route in app._router.routes for method in sorted(route.methods - {"HEAD"})
    ]


def test_every_route_of_the_gateway_needs_the_key(shared: RawClient) -> None:
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


def test_every_route_of_the_enclave_but_its_key_answers_the_gateway_only(shared: RawClient) -> None:
    enclave = Enclave(
        private_key=shared.prem._private_key,
        engine=ScriptedEngine(),
        models=(),
        response_form="stream",
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
def test_both_servers_bound_the_body(url: str) -> None:
    with LocalEnclave(body_limit=1000) as prem, httpx.Client(trust_env=False) as http:
        headers = {"Authorization": f"Bearer {prem.api_key}"}
        target = getattr(prem, url) + "/rvenc/chat/completions"
        # The enclave's does not even look at a body that does not come from the gateway.
        refused = 413 if url == "gateway_url" else 403
        for body in (b"x" * 1001, b"x" * 5_000_000):
            assert http.post(target, content=body, headers=headers).status_code == refused


def _raw(url: str, request: str) -> bytes:
    address = urlsplit(url)
    with socket.create_connection((str(address.hostname), address.port or 0), timeout=10) as sock:
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
def test_a_request_that_does_not_name_this_machine_is_refused(
    shared: RawClient, url: str, request_text: str
) -> None:
    assert _raw(getattr(shared.prem, url), request_text).startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize("url", ["gateway_url", "enclave_url"])
def test_a_request_that_names_two_machines_is_refused(shared: RawClient, url: str) -> None:
    two = "GET /publicKey HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nHost: evil.example\r\n\r\n"
    assert _raw(getattr(shared.prem, url), two).startswith(b"HTTP/1.1 400 ")


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="the kernel's list of sockets is Linux's")
def test_the_kernel_lists_its_sockets_on_loopback_alone(shared: RawClient) -> None:
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
