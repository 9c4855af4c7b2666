"""The header that states how an answer was protected."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from support.paths import CLINIC_NOTE
from support.proxies import WHISPER, StartProxy, chat, headers

from prem_core._apis.handlers import protection_text
from prem_core._protocol.protection import Protection
from prem_core.enclave import LocalEnclave
from prem_core.proxy import LocalProxy, RequestLog, RequestRecord

CHAT = "/v1/chat/completions"
HEADER = "x-prem-protection"


def shown(response: httpx.Response) -> dict[str, str]:
    """The header's values by name."""
    return dict(each.split("=") for each in response.headers[HEADER].split("; "))


@pytest.mark.parametrize(("streamed", "nonce"), [(False, "own"), (True, "request's")])
def test_a_chat_states_its_key_where_it_comes_from_and_the_nonce(
    http: httpx.Client, enclave: LocalEnclave, proxy: LocalProxy, streamed: bool, nonce: str
) -> None:
    response = http.post(CHAT, json=chat(stream=streamed))
    assert shown(response) == {
        "key": enclave.public_key.fingerprint(),
        "source": "fetched",
        "attested": "no",
        "nonce": nonce,
    }
    record = proxy.log.latest()[0]
    assert record.protection is not None
    assert protection_text(record.protection) == response.headers[HEADER]


def test_the_support_id_of_an_answer_is_recorded() -> None:
    record = RequestRecord(CHAT)
    protection = Protection(
        key_fingerprint=None, key_source="fetched", reply_nonce="own", support_id="support_1"
    )
    record.set_protection(protection)
    RequestLog().end(record, "done")
    assert record.support_id == "support_1"
    assert record.as_dict()["protection"] == protection.as_dict()


@pytest.mark.parametrize("form", [None, "json", "text", "verbose_json", "srt", "vtt"])
def test_a_transcription_states_it_in_every_response_format(
    http: httpx.Client, enclave: LocalEnclave, form: str | None
) -> None:
    with CLINIC_NOTE.open("rb") as file:
        response = http.post(
            "/v1/audio/transcriptions",
            files={"file": file},
            data={"model": WHISPER, **({"response_format": form} if form else {})},
        )
    assert response.status_code == 200
    values = shown(response)
    assert (values["key"], values["nonce"]) == (enclave.public_key.fingerprint(), "own")


def test_a_pinned_key_is_stated_as_pinned(start_proxy: StartProxy, enclave: LocalEnclave) -> None:
    proxy = start_proxy(enclave, enclave_public_key=enclave.public_key)
    response = httpx.post(proxy.url + CHAT, json=chat(), headers=headers(enclave), trust_env=False)
    assert shown(response)["source"] == "pinned"


def test_what_was_not_sealed_states_no_protection(http: httpx.Client) -> None:
    for response in (http.get("/v1/models"), http.get("/health"), http.post(CHAT, json=chat(temperature=9))):
        assert HEADER not in response.headers


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({}, "source=fetched; attested=no; nonce=own"),
        (
            {"key_fingerprint": "ab", "attested": True},
            "key=ab; source=fetched; attested=yes; key-bound=no; nonce=own",
        ),
        (
            {"attested": True, "key_bound": True},
            "source=fetched; attested=yes; key-bound=yes; nonce=own",
        ),
        (
            {"support_id": "support_1; nonce=own\r\nx: é"},
            "source=fetched; attested=no; nonce=own; support-id=support_1??nonce?own??x:??",
        ),
        ({"support_id": "a" * 500}, "source=fetched; attested=no; nonce=own; support-id=" + "a" * 100),
    ],
)
def test_a_support_id_cannot_add_a_value_and_what_is_not_known_is_left_out(
    values: dict[str, Any], text: str
) -> None:
    given = {"key_fingerprint": None, "key_source": "fetched", "reply_nonce": "own", **values}
    assert protection_text(Protection(**given)) == text
