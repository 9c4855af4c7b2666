"""Fixtures that run a test with the synchronous and the asynchronous client."""

import asyncio
import contextlib
import ssl

import pytest
from support.client_api import AsyncApi, SyncApi
from support.security.certificates import Authority


@pytest.fixture(params=["sync", "async"])
def api(request):
    """The interface to one of the two clients."""
    if request.param == "sync":
        yield SyncApi()
    else:
        with asyncio.Runner() as runner:
            yield AsyncApi(runner)


@pytest.fixture
def make(api):
    """Make clients of a gateway; they are closed at the end of the test."""
    with contextlib.ExitStack() as stack:

        def make_client(gateway, **values):
            client = api.client_class(**gateway.settings(**values))
            stack.callback(api.close, client)
            return client

        yield make_client


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """The TLS context of a server on this machine, and a context that trusts it."""
    authority = Authority(tmp_path_factory.mktemp("tls"), "authority")
    return authority.server(), ssl.create_default_context(cafile=str(authority.path))
