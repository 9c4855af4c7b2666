"""A real exchange, recorded from the wire, replayed without a service.

Recorded with ``make record`` from the embedded enclave under the tests' own key.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from cassettes import CASSETTES, cassette, resealing
from vcr.errors import CannotOverwriteExistingCassetteException

from langchain_prem import ChatPremEncrypted
from prem_core.enclave import LocalEnclave

QUESTION = "Context: The clinic opens at eight. Parking is free. Question: When does the clinic open?"
RECORD = os.environ.get("PREM_RECORD") == "1"


@pytest.fixture(autouse=True)
def answer_under_the_requests_own_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    resealing(monkeypatch)


@pytest.fixture
def options(enclave: LocalEnclave) -> dict[str, Any]:
    if RECORD:
        return enclave.client_options
    # Nothing listens there: what answers is the cassette.
    here = "http://127.0.0.1:9"
    return {"api_key": "sk_test_replayed", "proxy_url": here, "enclave_url": here, "max_retries": 0}


def test_a_recorded_exchange_is_replayed_on_its_decrypted_parameters(options: dict[str, Any]) -> None:
    with cassette("chat.yaml", record=RECORD):
        model = ChatPremEncrypted(model="openai/gpt-oss-120b", temperature=0, **options)
        assert "opens at eight" in "".join(chunk.text for chunk in model.stream(QUESTION))


async def test_a_recorded_exchange_is_replayed_asynchronously(options: dict[str, Any]) -> None:
    with cassette("chat_async.yaml", record=RECORD):
        model = ChatPremEncrypted(model="openai/gpt-oss-120b", temperature=0, **options)
        assert "opens at eight" in (await model.ainvoke(QUESTION)).text


@pytest.mark.skipif(RECORD, reason="recording: there is nothing to compare with yet")
def test_a_changed_parameter_does_not_match(options: dict[str, Any]) -> None:
    with cassette("chat.yaml"):
        model = ChatPremEncrypted(model="openai/gpt-oss-120b", temperature=1, **options)
        with pytest.raises(CannotOverwriteExistingCassetteException):
            list(model.stream(QUESTION))


@pytest.mark.parametrize("path", sorted(CASSETTES.glob("*.yaml")), ids=lambda path: path.name)
def test_a_cassette_holds_no_key_and_no_plaintext(path: Any) -> None:
    text = path.read_text().lower()
    for secret in ("sk_test", "authorization", "clinic", "parking", "story about a cat"):
        assert secret not in text
