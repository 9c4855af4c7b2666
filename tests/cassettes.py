"""vcrpy cassettes of encrypted exchanges.

A recorded body never comes again: each request has a fresh secret and nonce. So a cassette is matched on
the request's parameters, opened with the test key, and its reply is sealed again for the request
that asks. The client under test is the one users have; only the key is the tests' own.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import vcr
from vcr.cassette import Cassette
from vcr.request import Request
from wire import DATA, Opened

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


def cassette(name: str, *, record: bool = False) -> Any:
    """A context manager in which httpx plays `name` back; with `record`, writes it anew."""
    path = Path(CASSETTES / name)
    if record:
        path.unlink(missing_ok=True)
    recorder = vcr.VCR(
        record_mode="once" if record else "none", match_on=_MATCH_ON, filter_headers=["authorization"]
    )
    recorder.register_matcher("prem_params", same_params)
    return recorder.use_cassette(str(path))
