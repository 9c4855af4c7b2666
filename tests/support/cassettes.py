"""vcrpy cassettes of encrypted exchanges.

A recorded body never comes again: each request has a fresh secret and nonce. So a cassette is matched on
the request's parameters, opened with the test key, and its reply is sealed again for the request
that asks. The client under test is the one users have; only the key is the tests' own.

Recorded from the embedded enclave, an exchange is kept as it went over the wire. The live service's private key nobody
has: there the exchange is opened with the secret that this process made for it, and kept as it would have
been with an enclave that has the tests' key. No secret of the service's, or for it, is in a cassette.
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
from support.wire_schemas import DATA, TEST_KEY, Opened

CASSETTES = DATA / "cassettes"

_MATCH_ON = ["method", "path", "prem_params"]


def same_params(one: Request, other: Request) -> None:
    """Two requests ask for the same: what they seal is the same."""
    if not (one.body and other.body):
        assert not (one.body or other.body)
        return
    assert Opened.request(one.body).params == Opened.request(other.body).params


def resealing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make cassettes answer a request under its own secret."""
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
        # The one framing header a recorded stream has; the replayed body comes whole.
        sealed["headers"].pop("transfer-encoding", None)
        return sealed

    monkeypatch.setattr(Cassette, "play_response", play_response)


def under_the_test_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make cassettes keep whatever is recorded as an exchange with the test enclave."""
    made: dict[str, EncryptionKeys] = {}
    encapsulate = EncryptionKeys.encapsulate.__func__
    append = Cassette.append

    def remembered(cls: type[EncryptionKeys], public_key: PublicKey) -> EncryptionKeys:
        keys = encapsulate(cls, public_key)
        made[keys.cipher_text.hex()] = keys
        return keys

    def kept(self: Cassette, request: Request, response: dict[str, Any]) -> None:
        # Of the service's headers nothing else is needed, and some of them tell of whom they answered.
        headers = {name: each for name, each in response["headers"].items() if name.lower() == "content-type"}
        response = copy.deepcopy(response) | {"headers": headers}
        if request.path == PUBLIC_KEY_PATH:
            text = json.dumps({"publicKey": bytes(TEST_KEY.public_key()).hex()})
            response["body"]["string"] = text.encode()
        elif "authorization" not in request.headers:
            return  # the embedded gateway's own call of its enclave
        elif request.body:
            live = Opened.request(request.body, made[json.loads(request.body)["cipherText"]])
            request = copy.deepcopy(request)
            here, request.body = Opened.sealed(live.params)
            response["body"]["string"] = live.resealed(here, response["body"]["string"])
        append(self, request, response)

    monkeypatch.setattr(EncryptionKeys, "encapsulate", classmethod(remembered))
    monkeypatch.setattr(Cassette, "append", kept)


def cassette(name: str | Path, *, record: bool = False) -> Any:
    """A context manager in which httpx plays `name` back; with `record`, writes it anew."""
    path = CASSETTES / name
    if record:
        path.unlink(missing_ok=True)
    recorder = vcr.VCR(
        record_mode="once" if record else "none", match_on=_MATCH_ON, filter_headers=["authorization"]
    )
    recorder.register_matcher("prem_params", same_params)
    return recorder.use_cassette(str(path))
