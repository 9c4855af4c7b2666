"""TLS: https works and an untrusted certificate is rejected."""

import pytest
from support.fake_gateway import FakeGateway

from prem_core import _errors as errors


def test_https_works(api, certificate):
    server, trusting = certificate
    with FakeGateway(tls=server) as gateway:
        http = api.http_class(verify=trusting)
        client = api.client_class(**gateway.settings(http_client=http))
        assert api.create(client).choices[0].message.content == "Hello"
        api.close_http(http)


def test_an_untrusted_certificate_is_rejected(api, make, certificate):
    with FakeGateway(tls=certificate[0]) as gateway, pytest.raises(errors.APIConnectionError):
        api.create(make(gateway, max_retries=0))
    assert gateway.calls == []
