"""Errors as OpenAI's clients expect them: a status for every error class, and no retries of retries."""

from __future__ import annotations

import inspect
from typing import Any

import httpx
import openai
import pytest
from support.proxies import StartProxy, chat

from prem_core import _errors as errors
from prem_core._apis.errors import TABLE, api_error
from prem_core._apis.openai.form import error_body
from prem_core.enclave import EngineError, LocalEnclave, ScriptedEngine
from prem_core.proxy import LocalProxy

CHAT = "/v1/chat/completions"
EVERY = [
    kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.PremError)
]


def official(proxy: LocalProxy, prem: LocalEnclave, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(**{"base_url": proxy.base_url, "api_key": prem.api_key, "max_retries": 0, **options})


# The table


@pytest.mark.parametrize("kind", EVERY)
def test_every_error_class_has_its_own_row(kind: type[errors.PremError]) -> None:
    first = next(row[0] for row in TABLE if issubclass(kind, row[0]))
    assert first is kind


@pytest.mark.parametrize("kind", EVERY)
def test_every_error_class_becomes_an_openai_error_object_with_a_status(kind: type[errors.PremError]) -> None:
    given = (
        {"status_code": 418, "param": "p", "retry_after": 1.2}
        if issubclass(kind, errors.APIStatusError)
        else {}
    )
    if issubclass(kind, errors.APIError):
        given |= {"support_id": "support_1"}
    made = api_error(kind("what went wrong", **given), retried=False)
    assert 400 <= made.status < 600
    assert made.name == kind.__name__
    if issubclass(kind, errors.APIStatusError):
        assert made.status == 418
        assert made.headers["retry-after"] == "2"
    if issubclass(kind, errors.APIError):
        assert made.headers["x-request-id"] == made.headers["x-prem-support-id"] == "support_1"
    reply = httpx.Response(
        made.status, content=error_body(made), headers=made.headers, request=httpx.Request("POST", "http://x")
    )
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "what went wrong" in error["message"]
    assert error["type"]
    # OpenAI's clients use this header where it is present, and otherwise the status.
    theirs = openai.OpenAI(api_key="k", base_url="http://x")._should_retry(reply)
    if made.status != 418:
        assert theirs is kind.is_retryable


def test_the_type_and_code_of_the_service_win_over_the_table() -> None:
    error = errors.RateLimitError("slow down", status_code=429, type="tokens", code="tpm")
    assert b'"type":"tokens","param":null,"code":"tpm"' in error_body(api_error(error, retried=True))


def test_a_redirect_of_the_gateway_is_502() -> None:
    assert api_error(errors.APIStatusError("moved", status_code=302), retried=True).status == 502


def test_a_support_id_with_invalid_header_characters_is_cleaned() -> None:
    made = api_error(errors.APIError("x", support_id="support_\x00é\u2028\n1"), retried=True)
    assert made.headers["x-prem-support-id"] == "support_????1"


# API keys


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Basic eDp5", "sk_test_bare", "Bearer two words", "Bearer ÿ"]
)
@pytest.mark.parametrize("route", [("POST", CHAT), ("POST", "/v1/audio/translations"), ("GET", "/v1/models")])
def test_a_missing_or_malformed_api_key_is_401_without_a_request_to_the_gateway(
    proxy: LocalProxy, seen: Any, header: str | None, route: tuple[str, str]
) -> None:
    headers = {} if header is None else {"authorization": header.encode("latin-1")}
    reply = httpx.request(route[0], proxy.url + route[1], headers=headers, trust_env=False)
    assert reply.status_code == 401
    assert reply.json()["error"]["code"] == "invalid_api_key"
    assert seen.exchanges == []


def test_a_401_of_the_gateway_has_its_support_id(client: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError) as caught:
        client.with_options(api_key="sk_test_wrong").chat.completions.create(**chat())
    support_id = caught.value.response.headers["x-prem-support-id"]
    assert support_id.startswith("support_")
    assert caught.value.request_id == support_id
    assert support_id in caught.value.message


def test_a_missing_scope_is_403_and_an_unknown_model_404(
    start_proxy: StartProxy, client: openai.OpenAI
) -> None:
    with LocalEnclave(scopes=[]) as prem, official(start_proxy(prem), prem) as scopeless:
        with pytest.raises(openai.PermissionDeniedError, match=r"chats\.completion"):
            scopeless.chat.completions.create(**chat())
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**chat(model="no/such"))


# Rate limits and retries


def test_a_rate_limit_passes_retry_after_to_the_caller(
    start_proxy: StartProxy, scripted_enclave: LocalEnclave, script: ScriptedEngine
) -> None:
    script.respond = lambda request: errors.RateLimitError(retry_after=17)
    # In a proxy of its own: all requests with this API key wait now.
    with official(start_proxy(scripted_enclave, max_retries=0), scripted_enclave) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            client.with_options(timeout=5).chat.completions.create(**chat())
    assert caught.value.response.headers["retry-after"] == "17"


@pytest.mark.parametrize("max_retries", [0, 1, 2])
def test_retries_of_proxy_and_client_do_not_multiply(
    start_proxy: StartProxy, scripted_enclave: LocalEnclave, script: ScriptedEngine, max_retries: int
) -> None:
    script.respond = lambda request: EngineError("overloaded", status=503)
    proxy = start_proxy(scripted_enclave, max_retries=max_retries)
    # The official client would make three attempts of its own.
    with official(proxy, scripted_enclave, max_retries=2) as patient:
        with pytest.raises(openai.InternalServerError):
            patient.chat.completions.create(**chat())
    assert len(script.requests) == (1 + max_retries if max_retries else 3)
    assert sum(record.attempts for record in proxy.log.latest()) == len(script.requests)


def test_a_response_after_a_retry_reaches_the_caller(
    start_proxy: StartProxy, scripted_enclave: LocalEnclave, script: ScriptedEngine
) -> None:
    script.replies = [errors.RateLimitError(retry_after=0)] * 2
    with official(start_proxy(scripted_enclave), scripted_enclave) as patient:
        assert patient.chat.completions.create(**chat()).choices[0].message.content == "Hello"


def test_a_failed_decryption_tells_clients_not_to_retry() -> None:
    assert api_error(errors.DecryptionError(), retried=False).headers["x-should-retry"] == "false"


# Internal errors


def test_an_internal_error_does_not_quote_the_response(
    http: httpx.Client, proxy: LocalProxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(answer: Any) -> bytes:
        raise KeyError(answer.choices[0].message.content)

    monkeypatch.setattr("prem_core._apis.openai.chat.whole_body", broken)
    reply = http.post(CHAT, json=chat("The word is zebra. What is the word?"))
    assert reply.status_code == 500
    assert "KeyError" in caplog.text
    assert "zebra" not in caplog.text + reply.text
    assert proxy.log.latest()[0].error == "KeyError"


def test_an_unreachable_gateway_is_502(start_proxy: StartProxy) -> None:
    with LocalEnclave() as prem:
        gone = start_proxy(prem, max_retries=0)
    with official(gone, prem) as client, pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(**chat())
    assert caught.value.status_code == 502
    assert caught.value.code == "upstream_unreachable"
