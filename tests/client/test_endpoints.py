"""The models list and the published endpoints."""

import gzip
import json
import threading
import tracemalloc

import pytest
from support.fake_gateway import JSON, FakeGateway

import prem_core
from prem_core import PremClient, discover_endpoints
from prem_core import _errors as errors
from prem_core._protocol.response_body import read_models

MODELS = [{"id": "m1", "model": "openai/gpt-oss-120b", "type": "CHAT"}]


def test_the_models_are_listed(api, make):
    body = json.dumps({"status": 200, "data": MODELS, "message": None, "env": "production"}).encode()
    with FakeGateway(other=lambda call: call.reply(body)) as gateway:
        client = make(gateway)
        assert [model.id for model in api.models(client)] == ["openai/gpt-oss-120b"]
        api.models(client, "CHAT")
    assert [(call.method, call.path, call.query) for call in gateway.calls] == [
        ("GET", "/models", ""),
        ("GET", "/models", "type=CHAT"),
    ]
    assert gateway.calls[0].headers["authorization"] == "Bearer sk_test_key"


def test_an_unknown_model_type_is_rejected(api, make):
    with (
        FakeGateway() as gateway,
        pytest.raises(errors.InvalidParameterError, match="AUDIO_SPEECH") as caught,
    ):
        api.models(make(gateway), "chat")
    assert caught.value.param == "type"
    assert gateway.calls == []


def test_a_models_list_of_10_000_entries_is_read_and_a_longer_one_rejected(api, make):
    body = b'{"data": [%b]}'
    with FakeGateway(other=lambda call: call.reply(body % b",".join([b"{}"] * 10_000))) as gateway:
        assert len(api.models(make(gateway))) == 10_000
        gateway.other = lambda call: call.reply(body % b",".join([b"{}"] * 10_001))
        with pytest.raises(errors.APIResponseValidationError, match="lists 10001 models; at most 10000"):
            api.models(make(gateway))
    assert len(gateway.calls) == 2


def test_no_model_is_made_from_a_list_that_is_too_long():
    body = b'{"data": [%b]}' % b",".join([b"{}"] * 1_000_000)
    read_models(b'{"data": []}')  # imports pydantic
    tracemalloc.start()
    try:
        with pytest.raises(errors.APIResponseValidationError, match="lists 1000000 models"):
            read_models(body)
        assert tracemalloc.get_traced_memory()[1] < 100 * len(body)
    finally:
        tracemalloc.stop()


BUILT_IN = {"gateway_url": "https://gateway.prem.io", "enclave_url": "https://conf-engine.prem.io"}


@pytest.fixture
def page(certificate, monkeypatch):
    """An https page whose body the test sets."""
    server, trusting = certificate
    monkeypatch.setattr("prem_core._transport.http.ssl_context", lambda: trusting)
    with FakeGateway(tls=server) as gateway:
        yield gateway


def test_the_published_endpoints_are_read(page):
    body = {"proxy": "https://new-gateway.prem.io/", "enclave": "https://new-enclave.prem.io"}
    page.other = lambda call: call.reply(json.dumps(body).encode())
    found = discover_endpoints(f"{page.url}/endpoints.json")
    assert found == {
        "gateway_url": "https://new-gateway.prem.io",
        "enclave_url": "https://new-enclave.prem.io",
    }
    assert page.paths() == ["/endpoints.json"]
    assert "authorization" not in page.calls[0].headers
    with PremClient(api_key="k", **found) as client:
        assert "new-gateway" in repr(client)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, b"{}"),
        (503, b""),
        (302, b""),
        (200, b""),
        (200, b"<html>"),
        (200, b"\xff"),
        (200, b"[]"),
        (200, b"null"),
        (200, b"{}"),
        (200, b'{"proxy": "https://a"}'),
        (200, b'{"proxy": null, "enclave": null}'),
        (200, b'{"proxy": "", "enclave": ""}'),
        (200, b'{"proxy": 1, "enclave": 2}'),
        (200, b'{"proxy": ["https://a"], "enclave": {}}'),
        (200, b'{"proxy": "http://gateway.prem.io", "enclave": "https://b"}'),
        (200, b'{"proxy": "http://127.0.0.1:8000", "enclave": "https://b"}'),
        (200, b'{"proxy": "https://a", "enclave": "http://localhost"}'),
        (200, b'{"proxy": "https://a", "enclave": "ftp://b"}'),
        (200, b'{"proxy": "https://router.prem.io", "enclave": "https://b"}'),
        (200, b'{"proxy": "https://a?key=b", "enclave": "https://b"}'),
        (200, b'{"proxy": "https://[", "enclave": "https://b"}'),
        (200, b'{"proxy": "https://a", "enclave": "https://b", "x": ' + b"[" * 50_000),
    ],
)
def test_an_invalid_endpoints_page_leaves_the_built_in_endpoints_and_a_warning(
    page, status, body, monkeypatch
):
    # The page is asked, not the environment: a page without a name must not fall back on that.
    monkeypatch.setenv("PREM_GATEWAY_URL", "https://environment")
    monkeypatch.setenv("PREM_ENCLAVE_URL", "https://environment")
    page.other = lambda call: call.reply(body, status, JSON)
    with pytest.warns(UserWarning, match="built-in"):
        assert discover_endpoints(page.url) == BUILT_IN
    assert page.paths() == ["/"]


ENDPOINTS = b'{"proxy": "https://new-gateway.prem.io", "enclave": "https://new-enclave.prem.io"}'


def test_a_redirect_of_the_endpoints_page_is_not_followed(page):
    page.other = lambda call: call.reply(ENDPOINTS, 302, {"location": f"{page.url}/moved"})
    with pytest.warns(UserWarning, match="built-in"):
        assert discover_endpoints(f"{page.url}/endpoints.json") == BUILT_IN
    assert page.paths() == ["/endpoints.json"]


def test_a_compressed_endpoints_page_is_not_used(page):
    headers = {**JSON, "content-encoding": "gzip"}
    page.other = lambda call: call.reply(gzip.compress(ENDPOINTS), headers=headers)
    with pytest.warns(UserWarning, match=r"APIResponseValidationError.*built-in"):
        assert discover_endpoints(page.url) == BUILT_IN


def test_an_endpoints_page_of_more_than_64_kib_is_not_used(page):
    page.other = lambda call: call.reply(ENDPOINTS.ljust(64 * 1024))
    assert discover_endpoints(page.url) != BUILT_IN
    page.other = lambda call: call.reply(ENDPOINTS.ljust(64 * 1024 + 1))
    with pytest.warns(UserWarning, match=r"ResponseTooLargeError.*built-in"):
        assert discover_endpoints(page.url) == BUILT_IN


def test_an_endpoints_page_that_arrives_slowly_is_not_waited_for(page):
    given_up = threading.Event()

    def slowly(call):
        call.head(200, {"content-length": str(len(ENDPOINTS))})
        for place in range(len(ENDPOINTS)):  # each byte arrives within the timeout
            call.raw(ENDPOINTS[place : place + 1])
            given_up.wait(0.05)

    page.other = slowly
    with pytest.warns(UserWarning, match=r"APITimeoutError.*built-in"):
        assert discover_endpoints(page.url, timeout=0.5) == BUILT_IN
    given_up.set()


def test_an_endpoints_page_with_an_untrusted_certificate_is_not_used(certificate):
    with FakeGateway(tls=certificate[0]) as gateway, pytest.warns(UserWarning, match="built-in"):
        assert discover_endpoints(gateway.url) == BUILT_IN
    assert gateway.calls == []


def test_an_unreachable_endpoints_page_leaves_the_built_in_endpoints_and_a_warning():
    with FakeGateway() as closed:
        url = closed.url.replace("http:", "https:")
    with pytest.warns(UserWarning, match="APIConnectionError"):
        assert discover_endpoints(url) == BUILT_IN


@pytest.mark.parametrize("url", ["https://", "https://user:SECRET@host", "https://host/?key=SECRET"])
def test_an_invalid_endpoints_url_is_rejected(url):
    with pytest.raises(errors.ConfigurationError, match="url must be") as caught:
        discover_endpoints(url)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://dashboard.prem.io/endpoints.json", "file:///etc/passwd", "dashboard.prem.io", ""]
)
def test_endpoints_are_read_over_https_only(url):
    with pytest.raises(errors.ConfigurationError, match="https"):
        discover_endpoints(url)


def test_the_version_is_a_version():
    assert prem_core.__version__.count(".") == 2
