"""Models with equal settings share one client, and models of one organisation share one `Limits`."""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import pickle
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from langchain_core.runnables import ConfigurableField
from support.fake_gateway import FakeGateway

from langchain_prem import ChatPremEncrypted
from llama_index_prem import PremEncrypted
from prem_core import ConfigurationError, EncryptionKeys, Limits, PremClient, Stats
from prem_core._adapters import client_cache
from prem_core._adapters.client_cache import CLIENTS, MAX_IDLE_CLIENTS, ClientCache
from prem_core.enclave import LocalEnclave
from prem_core.enclave.quota import BASE, Tier

MODEL = "openai/gpt-oss-120b"


def model(**settings: Any) -> ChatPremEncrypted:
    return ChatPremEncrypted(**{"model": MODEL, "api_key": "sk_test_a", **settings})


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    with FakeGateway() as running:
        yield running


def key_fetches(gateway: FakeGateway) -> int:
    return gateway.paths().count("/publicKey")


# --- one client for equal settings


def test_five_configured_calls_fetch_the_enclaves_key_once(gateway: FakeGateway) -> None:
    llm = model(**gateway.settings()).configurable_fields(temperature=ConfigurableField(id="t"))
    for i in range(5):
        assert llm.with_config(configurable={"t": i / 10}).invoke("Hello").content
    assert len(gateway.chats()) == 5
    assert key_fetches(gateway) == 1
    assert gateway.connections == 1


async def test_five_configured_async_calls_fetch_the_enclaves_key_once(gateway: FakeGateway) -> None:
    llm = model(**gateway.settings()).configurable_fields(temperature=ConfigurableField(id="t"))
    for i in range(5):
        assert (await llm.with_config(configurable={"t": i / 10}).ainvoke("Hello")).content
    assert key_fetches(gateway) == 1


def test_a_batch_of_configured_calls_keeps_to_the_rate_limit() -> None:
    with LocalEnclave(tier=Tier(BASE._replace(requests=100, requests_per_second=100))) as prem:
        llm = model(max_retries=0, **prem.client_options)
        configured = llm.configurable_fields(temperature=ConfigurableField(id="t"))
        answers = configured.with_config(configurable={"t": 0.1}).batch(["Hello " * 50] * 12)
        assert len(answers) == 12
        assert llm.stats.requests == 12
        assert llm.stats.rate_limited == 0


def test_a_model_constructed_for_each_call_finds_the_open_connection(gateway: FakeGateway) -> None:
    for _ in range(3):
        model(**gateway.settings()).invoke("Hello")
        gc.collect()
    assert key_fetches(gateway) == 1
    assert gateway.connections == 1


def test_models_of_both_frameworks_share_a_client(enclave: LocalEnclave) -> None:
    index_llm = PremEncrypted(model=MODEL, **enclave.client_options)
    assert model(**enclave.client_options)._client() is index_llm._client()


def duplicates(llm: Any) -> list[Any]:
    return [copy.copy(llm), copy.deepcopy(llm), llm.model_copy(deep=True), pickle.loads(pickle.dumps(llm))]


def test_copies_and_unpickled_models_share_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREM_API_KEY", "sk_test_a")
    llm = model(temperature=0.5)
    for again in duplicates(llm):
        assert again._client() is llm._client()
        assert again._async_client() is llm._async_client()
    assert llm._client().limits is llm._async_client().limits


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("api_key", "sk_test_b"),
        ("gateway_url", "http://127.0.0.1:9"),
        ("enclave_url", "http://127.0.0.1:9"),
        ("timeout", 5),
        ("max_retries", 0),
        ("max_concurrency", 3),
        ("requests_per_second", 4),
        ("total_timeout", 5),
        ("stream_chunk_timeout", 5),
        ("max_buffer_size", 5000),
        ("allow_insecure", True),
        ("limits", Limits()),
        ("http_client", httpx.Client()),
        ("encryption_keys", EncryptionKeys(bytes(32), bytes(1120))),
    ],
)
def test_another_setting_is_another_client(setting: str, value: Any) -> None:
    llm = model()
    other = model(**{setting: value})
    assert other._client() is not llm._client()
    changed = model()
    assert changed._client() is llm._client()
    setattr(changed, setting, other.__dict__[setting])
    assert changed._client() is other._client()


def test_the_environment_is_part_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREM_API_KEY", "sk_test_a")
    monkeypatch.setenv("PREM_GATEWAY_URL", "http://127.0.0.1:8")
    first = PremEncrypted(model=MODEL)._client()
    assert (
        PremEncrypted(model=MODEL, gateway_url="http://127.0.0.1:8", api_key="sk_test_a")._client() is first
    )
    monkeypatch.setenv("PREM_GATEWAY_URL", "http://127.0.0.1:9")
    assert PremEncrypted(model=MODEL)._client() is not first


def test_threads_that_call_at_once_make_one_client() -> None:
    models = [model() for _ in range(16)]
    found: list[PremClient] = []
    start = threading.Barrier(len(models))

    def find(llm: ChatPremEncrypted) -> None:
        start.wait()
        found.append(llm._client())

    threads = [threading.Thread(target=find, args=(llm,)) for llm in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1


# --- limits


def test_models_of_one_organisation_share_their_limits() -> None:
    limits = model()._client().limits
    assert model(timeout=5)._client().limits is limits
    assert model(model="another")._async_client().limits is limits
    for other in ({"api_key": "sk_test_b"}, {"gateway_url": "http://127.0.0.1:9"}, {"max_concurrency": 4}):
        assert model(**other)._client().limits is not limits


def test_limits_that_are_passed_are_shared_with_nothing_else() -> None:
    limits = Limits(5)
    assert model(limits=limits)._client().limits is limits
    assert model()._client().limits is not limits
    assert model(limits=Limits(5))._client() is not model(limits=limits)._client()


def test_stats_are_those_of_the_shared_limits(enclave: LocalEnclave) -> None:
    llm, other = model(**enclave.client_options), model(timeout=7, **enclave.client_options)
    before = other.stats.requests
    llm.invoke("Hello")
    assert llm.stats == other.stats
    assert other.stats.requests == before + 1
    # Without an API key.
    assert PremEncrypted(model=MODEL).stats == Stats()
    assert PremEncrypted(model=MODEL, limits=llm._client().limits).stats == llm.stats


# --- lifetimes


def options(**more: Any) -> dict[str, Any]:
    return model(**more)._client_options("http_client")


def test_a_client_is_closed_when_neither_a_model_nor_the_recently_used_ones_refer_to_it() -> None:
    cache = ClientCache()
    held = cache.client(PremClient, options(timeout=1))
    dropped = weakref.ref(cache.client(PremClient, options(timeout=2)))
    connections = dropped()._requester._http  # type: ignore[union-attr]
    for i in range(MAX_IDLE_CLIENTS):
        assert dropped() is not None
        cache.client(PremClient, options(timeout=10 + i))
    gc.collect()
    assert dropped() is None
    assert connections.is_closed
    assert not held._requester._http.is_closed
    assert cache.client(PremClient, options(timeout=1)) is held


def test_a_cleared_cache_makes_new_clients_and_limits() -> None:
    llm = model()
    client = llm._client()
    CLIENTS.clear()
    assert llm._client() is client
    assert model()._client() is not client
    assert model()._client().limits is not client.limits


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_fork_while_another_thread_makes_a_client_leaves_no_lock_behind() -> None:
    holding, release = threading.Event(), threading.Event()

    def hold() -> None:
        with CLIENTS._lock:
            holding.set()
            release.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    holding.wait()
    child = os.fork()
    if child == 0:
        found = CLIENTS._lock.acquire(blocking=False) and model()._client() is not None
        os._exit(0 if found else 1)
    release.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# --- secrets


def test_no_form_of_the_cache_shows_an_api_key() -> None:
    llm = model(api_key="sk_test_SECRET")
    llm._client()
    held = (CLIENTS.__dict__, list(CLIENTS._clients), list(CLIENTS._limits), list(CLIENTS._recent))
    assert "SECRET" not in repr(held) + repr(llm._derived) + repr(llm._client_options("http_client"))


def test_a_missing_key_is_an_error_without_a_frame_of_the_cache() -> None:
    with pytest.raises(ConfigurationError, match="PREM_API_KEY") as caught:
        PremEncrypted(model=MODEL)._client()
    assert client_cache.__file__ not in {str(entry.path) for entry in caught.traceback}


def test_one_client_serves_several_event_loops(gateway: FakeGateway) -> None:
    llm = model(**gateway.settings())
    for _ in range(3):
        assert asyncio.run(llm.ainvoke("Hello")).content
    assert key_fetches(gateway) == 1


# --- tasks that a scheduler sends to a worker process


@pytest.mark.parametrize("explicit", [False, True])
def test_a_model_that_each_task_unpickles_has_one_client_and_one_limits(
    gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch, explicit: bool
) -> None:
    monkeypatch.setenv("PREM_API_KEY", "sk_test_key")
    urls = {"gateway_url": gateway.url, "enclave_url": gateway.url}
    given = {"limits": Limits(2)} if explicit else {}
    task = pickle.dumps(ChatPremEncrypted(model=MODEL, **urls, **given))
    del given
    gc.collect()
    for n in range(20):
        llm = pickle.loads(task)
        if n % 2:
            llm = llm.configurable_fields(temperature=ConfigurableField(id="t")).with_config(
                configurable={"t": n / 40}
            )
        assert llm.invoke("Hello").content
        del llm
        gc.collect()
    assert pickle.loads(task).stats.requests == 20
    assert key_fetches(gateway) == 1
    assert gateway.connections == 1
