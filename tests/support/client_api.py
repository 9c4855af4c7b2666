"""`SyncApi` and `AsyncApi`: one interface to both clients, so that one test covers both."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import httpx

from prem_core import AsyncPremClient, PremClient, agenerate_encryption_keys, generate_encryption_keys
from support.fake_gateway import PARAMS, FakeGateway, ReceivedRequest

#: A chunk with one letter.
CHUNK: dict[str, Any] = {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]}


class SyncApi:
    """Calls the synchronous client."""

    client_class = PremClient
    http_class = httpx.Client
    generate = staticmethod(generate_encryption_keys)

    @staticmethod
    def create(client: PremClient, **params: Any) -> Any:
        return client.chat.completions.create(**{**PARAMS, **params})

    @staticmethod
    def stream(client: PremClient, **params: Any) -> list[Any]:
        return list(client.chat.completions.create(**{**PARAMS, **params}, stream=True))

    @staticmethod
    def models(client: PremClient, *kind: Any) -> list[Any]:
        return client.models.list(*kind)

    @staticmethod
    def close(client: PremClient) -> None:
        client.close()

    @staticmethod
    def close_http(http: httpx.Client) -> None:
        http.close()


class AsyncApi:
    """Calls the asynchronous client, on one event loop that lasts as long as the test."""

    client_class = AsyncPremClient
    http_class = httpx.AsyncClient

    def __init__(self, runner: asyncio.Runner) -> None:
        self._run = runner.run

    def generate(self, **values: Any) -> Any:
        return self._run(agenerate_encryption_keys(**values))

    def create(self, client: AsyncPremClient, **params: Any) -> Any:
        return self._run(client.chat.completions.create(**{**PARAMS, **params}))

    def stream(self, client: AsyncPremClient, **params: Any) -> list[Any]:
        async def collect() -> list[Any]:
            stream = await client.chat.completions.create(**{**PARAMS, **params}, stream=True)
            return [chunk async for chunk in stream]

        return self._run(collect())

    def models(self, client: AsyncPremClient, *kind: Any) -> list[Any]:
        return self._run(client.models.list(*kind))

    def close(self, client: AsyncPremClient) -> None:
        self._run(client.aclose())

    def close_http(self, http: httpx.AsyncClient) -> None:
        self._run(http.aclose())


class StallingStream:
    """A chat handler that sends `first` and then nothing until the client disconnects."""

    def __init__(self, first: dict[str, Any] | None = CHUNK) -> None:
        self.first = first
        #: Set once the first chunk was sent.
        self.started = threading.Event()
        #: Set once the client has disconnected.
        self.disconnected = threading.Event()

    def __call__(self, call: ReceivedRequest) -> None:
        opened = call.opened()
        call.begin()
        if self.first is not None:
            call.piece(opened.events(self.first))
        self.started.set()
        if call.wait_for_disconnect():
            self.disconnected.set()
        else:
            call.disconnect()


class HeldKey:
    """Makes `gateway` hold its key responses for `seconds`, or until `release()`, so that requests share a fetch."""

    def __init__(self, gateway: FakeGateway, seconds: float = 0.1) -> None:
        self._respond = gateway.key
        self._seconds = seconds
        self._released = threading.Event()
        #: Set once a key request has arrived.
        self.requested = threading.Event()
        gateway.key = self

    def __call__(self, call: ReceivedRequest) -> None:
        self.requested.set()
        self._released.wait(self._seconds)
        self._respond(call)

    def release(self) -> None:
        """Respond to the requests that are held, and to later ones at once."""
        self._released.set()
