"""A real exchange, recorded from the wire, replayed without a service.

Recorded with ``make record``: from the embedded enclave, or from the live service when PREM_API_KEY is set. A cassette
is sealed to the tests' own key in either case.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from support.cassettes import CASSETTES, cassette, resealing, under_the_test_key
from vcr.errors import CannotOverwriteExistingCassetteException

from langchain_prem import ChatPremEncrypted
from prem_core.enclave import LocalEnclave

QUESTION = "Context: The clinic opens at eight. Parking is free. Question: When does the clinic open?"
RECORD = os.environ.get("PREM_RECORD") == "1"
#: Taken before the fixture that clears the environment.
LIVE = {
    name: value
    for name, variable in (
        ("api_key", "PREM_API_KEY"),
        ("gateway_url", "PREM_GATEWAY_URL"),
        ("enclave_url", "PREM_ENCLAVE_URL"),
    )
    if (value := os.environ.get(variable))
}


@pytest.fixture(autouse=True)
def answer_under_the_requests_own_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    resealing(monkeypatch)


@pytest.fixture
def options(enclave: LocalEnclave, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    if RECORD:
        under_the_test_key(monkeypatch)
        return LIVE if "api_key" in LIVE else enclave.client_options
    # Nothing listens there: what answers is the cassette.
    here = "http://127.0.0.1:9"
    return {"api_key": "sk_test_replayed", "gateway_url": here, "enclave_url": here, "max_retries": 0}


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


@pytest.mark.skipif(RECORD, reason="recording: this test records by itself, elsewhere")
async def test_what_another_enclave_answered_is_kept_as_the_test_enclaves(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "elsewhere.yaml"
    with monkeypatch.context() as recording, LocalEnclave(whole_replies="envelope") as elsewhere:
        under_the_test_key(recording)
        with cassette(path, record=True):
            model = ChatPremEncrypted(model="openai/gpt-oss-120b", **elsewhere.client_options)
            answer = (await model.ainvoke(QUESTION)).text
        text = path.read_text()
        assert elsewhere.api_key not in text
        assert bytes(elsewhere.public_key).hex() not in text
        assert text.count("uri:") == 2  # the key, and one exchange
    with cassette(path):
        assert (
            await ChatPremEncrypted(model="openai/gpt-oss-120b", **options).ainvoke(QUESTION)
        ).text == answer


@pytest.mark.parametrize("path", sorted(CASSETTES.glob("*.yaml")), ids=lambda path: path.name)
def test_a_cassette_holds_no_key_and_no_plaintext(path: Any) -> None:
    text = path.read_text().lower()
    for secret in ("sk_test", "authorization", "clinic", "parking", "story about a cat"):
        assert secret not in text
