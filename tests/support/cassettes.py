"""vcrpy cassettes of encrypted exchanges.

Each request has a fresh secret and nonce, so no two bodies are equal. A cassette therefore matches requests by their
parameters, which the test key decrypts, and seals the recorded response again for the new request.

An exchange with the embedded enclave is recorded as it was sent. An exchange with the live service, whose private key
is not known, is decrypted with the secret that this process made for it, and recorded as if it were sealed to the test
key. A cassette contains no secret of the service.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import vcr
from vcr.cassette import Cassette
from vcr.request import Request

from prem_core._crypto.keys import EncryptionKeys
from prem_core._crypto.xwing import PublicKey
from prem_core._protocol.assumptions import PUBLIC_KEY_PATH
from support.paths import DATA
from support.wire_schemas import TEST_KEY, Opened

CASSETTES = DATA / "cassettes"

_MATCH_ON = ["method", "path", "prem_params"]


def same_params(one: Request, other: Request) -> None:
    """Match two requests with the same sealed parameters."""
    if not (one.body and other.body):
        assert not (one.body or other.body)
        return
    assert Opened.request(one.body).params == Opened.request(other.body).params


def resealing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seal the responses of cassettes for the request that is played."""
    plain = Cassette.play_response

    def play_response(self: Cassette, request: Request) -> dict[str, Any]:
        response = plain(self, request)
        recorded = self._played_interactions[-1][0]
        if not request.body:
            return response
        sealed = copy.deepcopy(response)
        body = Opened.request(recorded.body).resealed(
            Opened.request(request.body), response["body"]["string"]
        )
        sealed["body"]["string"] = body
        # The replayed body is not chunked.
        sealed["headers"].pop("transfer-encoding", None)
        return sealed

    monkeypatch.setattr(Cassette, "play_response", play_response)


def under_the_test_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Record exchanges as if they were sealed to the test key."""
    made: dict[str, EncryptionKeys] = {}
    encapsulate = EncryptionKeys.encapsulate.__func__
    append = Cassette.append

    def encapsulate_and_keep(cls: type[EncryptionKeys], public_key: PublicKey) -> EncryptionKeys:
        keys = encapsulate(cls, public_key)
        made[keys.cipher_text.hex()] = keys
        return keys

    def append_resealed(self: Cassette, request: Request, response: dict[str, Any]) -> None:
        # The other headers are not needed, and some of them identify the account.
        headers = {name: each for name, each in response["headers"].items() if name.lower() == "content-type"}
        response = copy.deepcopy(response) | {"headers": headers}
        if request.path == PUBLIC_KEY_PATH:
            text = json.dumps({"publicKey": bytes(TEST_KEY.public_key()).hex()})
            response["body"]["string"] = text.encode()
        elif "authorization" not in request.headers:
            return  # a request of the embedded gateway to its enclave
        elif request.body:
            live = Opened.request(request.body, made[json.loads(request.body)["cipherText"]])
            request = copy.deepcopy(request)
            here, request.body = Opened.sealed(live.params)
            response["body"]["string"] = live.resealed(here, response["body"]["string"])
        append(self, request, response)

    monkeypatch.setattr(EncryptionKeys, "encapsulate", classmethod(encapsulate_and_keep))
    monkeypatch.setattr(Cassette, "append", append_resealed)


def cassette(name: str | Path, *, record: bool = False) -> Any:
    """A context manager in which httpx replays the cassette `name`, or records it again."""
    path = CASSETTES / name
    if record:
        path.unlink(missing_ok=True)
    recorder = vcr.VCR(
        record_mode="once" if record else "none", match_on=_MATCH_ON, filter_headers=["authorization"]
    )
    recorder.register_matcher("prem_params", same_params)
    return recorder.use_cassette(str(path))
