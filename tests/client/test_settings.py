"""The clients' arguments and environment variables."""

import inspect
import pickle

import httpx
import pytest
from support.fake_gateway import FakeEnclave, FakeGateway, error_text

from prem_core import (
    AsyncPremClient,
    EncryptionKeys,
    PremClient,
    agenerate_encryption_keys,
    generate_encryption_keys,
)
from prem_core import _errors as errors
from prem_core._client.options import DEFAULTS, AsyncClientOptions, SyncClientOptions


@pytest.mark.parametrize("client_class", [PremClient, AsyncPremClient])
@pytest.mark.parametrize(
    ("settings", "kind", "name"),
    [
        ({"api_key": None}, errors.ConfigurationError, "PREM_API_KEY"),
        ({"api_key": "sk SECRET"}, errors.ConfigurationError, "API key"),
        ({"gateway_url": "http://gateway.prem.io"}, errors.ConfigurationError, "gateway_url"),
        ({"enclave_url": "http://conf-engine.prem.io"}, errors.ConfigurationError, "enclave_url"),
        ({"gateway_url": "gateway.prem.io"}, errors.ConfigurationError, "gateway_url"),
        ({"timeout": 0}, errors.ConfigurationError, "timeout"),
        ({"timeout": "30"}, errors.ConfigurationError, "timeout"),
        ({"max_retries": -1}, errors.ConfigurationError, "max_retries"),
        ({"max_retries": 1.5}, errors.ConfigurationError, "max_retries"),
        ({"max_buffer_size": 0}, errors.ConfigurationError, "max_buffer_size"),
        ({"max_buffer_size": 0.5}, errors.ConfigurationError, "max_buffer_size"),
        ({"encryption_keys": "00"}, errors.ConfigurationError, "encryption_keys"),
        ({"http_client": object()}, errors.ConfigurationError, "http_client"),
        ({"enclave_public_key": "00"}, errors.EnclaveKeyError, "1216 bytes"),
        ({"enclave_public_key": b""}, errors.EnclaveKeyError, "1216 bytes"),
    ],
)
def test_an_invalid_setting_is_rejected_by_name(client_class, settings, kind, name):
    with pytest.raises(kind, match=name) as caught:
        client_class(**{"api_key": "sk_test_key", **settings})
    assert "SECRET" not in error_text(caught.value)


def test_a_sync_client_rejects_an_async_http_client_and_the_reverse():
    with pytest.raises(errors.ConfigurationError, match="http_client"):
        PremClient(api_key="k", http_client=httpx.AsyncClient())
    with httpx.Client() as http, pytest.raises(errors.ConfigurationError, match="http_client"):
        AsyncPremClient(api_key="k", http_client=http)


def test_allow_insecure_permits_plain_http_to_another_machine():
    with PremClient(api_key="k", gateway_url="http://gateway.internal", allow_insecure=True) as client:
        assert "http://gateway.internal" in repr(client)


def test_settings_come_from_the_environment(api, monkeypatch):
    with FakeGateway() as gateway:
        monkeypatch.setenv("PREM_API_KEY", "sk_live_env")
        monkeypatch.setenv("PREM_GATEWAY_URL", gateway.url)
        monkeypatch.setenv("ENCLAVE_URL", gateway.url)
        client = api.client_class()
        api.create(client)
        api.close(client)
    assert gateway.chats()[0].headers["authorization"] == "Bearer sk_live_env"


@pytest.mark.parametrize("client_class", [PremClient, AsyncPremClient])
def test_the_repr_of_a_client_contains_neither_api_key_nor_encryption_keys(client_class):
    keys = EncryptionKeys.encapsulate(FakeEnclave().public)
    client = client_class(api_key="sk_test_SECRET", encryption_keys=keys)
    for shown in (repr(client), str(client), repr(vars(client))):
        assert "SECRET" not in shown
        assert keys.shared_secret.hex() not in shown
        assert repr(keys.shared_secret)[2:-1] not in shown


@pytest.mark.parametrize("client_class", [PremClient, AsyncPremClient])
def test_a_client_cannot_be_pickled(client_class):
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(client_class(api_key="sk_test_SECRET"))


def test_both_clients_take_the_same_arguments():

    def parameters(function):
        return {
            name: (parameter.kind, parameter.default)
            for name, parameter in inspect.signature(function).parameters.items()
        }

    assert SyncClientOptions.__optional_keys__ == AsyncClientOptions.__optional_keys__ == DEFAULTS.keys()
    assert parameters(generate_encryption_keys) == parameters(agenerate_encryption_keys)
    sync, asynchronous = (client(api_key="k") for client in (PremClient, AsyncPremClient))
    assert parameters(sync.chat.completions.create) == parameters(asynchronous.chat.completions.create)
    assert parameters(sync.models.list) == parameters(asynchronous.models.list)


@pytest.mark.parametrize("client_class", [PremClient, AsyncPremClient])
def test_an_unknown_option_is_a_type_error_that_names_it(client_class):
    with pytest.raises(TypeError, match=r"Client\(\) got an unexpected keyword argument 'api_kye'"):
        client_class(api_kye="sk_test_1")


@pytest.mark.parametrize("client_class", [PremClient, AsyncPremClient])
def test_proxy_url_is_another_name_of_gateway_url(client_class):
    client = client_class(api_key="sk_test_1", proxy_url="https://gateway.example")
    assert repr(client) == f"{client_class.__name__}(gateway_url='https://gateway.example')"
    with pytest.raises(errors.ConfigurationError, match="pass only gateway_url"):
        client_class(api_key="sk_test_1", proxy_url="https://a.example", gateway_url="https://b.example")
