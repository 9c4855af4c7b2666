"""Many prompts at once against an organisation's rate limit: all are answered, and permits limit those in flight."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from langchain_prem import ChatPremEncrypted, PremWhisperParser
from llama_index_prem import PremEncrypted
from prem_core import Limits, Stats
from prem_core.enclave import LocalEnclave
from prem_core.enclave.quota import BASE, LimitReached, Metered, QuotaLimits, Tier

MODEL = "openai/gpt-oss-120b"
PROMPTS = [f"Hello, {n}!" for n in range(40)]

#: Like BASE, but faster: 40 prompts empty the bucket, and are let in within seconds all the same.
QUICK = BASE._replace(requests=36, requests_per_second=2, tokens_per_minute=10**6)


class WatchedTier(Tier):
    """Counts what it refuses, and how many requests are on their way at once, whether it admits them or not."""

    def __init__(self, limits: QuotaLimits) -> None:
        super().__init__(limits)
        self.refused = self.open = self.most = 0

    @contextmanager
    def request(self, metered: Metered = "tokens") -> Iterator[None]:
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            with super().request(metered):
                yield
        except LimitReached:
            self.refused += 1
            raise
        finally:
            self.open -= 1


@pytest.fixture
def tier() -> WatchedTier:
    return WatchedTier(QUICK)


@pytest.fixture
def limited(tier: WatchedTier) -> Iterator[LocalEnclave]:
    with LocalEnclave(tier=tier) as prem:
        yield prem


def model(prem: LocalEnclave, **settings: Any) -> ChatPremEncrypted:
    return ChatPremEncrypted(model=MODEL, **prem.client_options, **settings)


def batch(llm: ChatPremEncrypted) -> list[Any]:
    return llm.batch(PROMPTS, {"max_concurrency": 20})


def abatch(llm: ChatPremEncrypted) -> list[Any]:
    return asyncio.run(llm.abatch(PROMPTS))


def fan_out(llm: ChatPremEncrypted) -> list[Any]:
    async def run() -> list[Any]:
        return await asyncio.gather(*map(llm.ainvoke, PROMPTS))

    return asyncio.run(run())


def streams(llm: ChatPremEncrypted) -> list[Any]:
    async def one(prompt: str) -> Any:
        return [chunk async for chunk in llm.astream(prompt)]

    async def run() -> list[Any]:
        return await asyncio.gather(*map(one, PROMPTS))

    return asyncio.run(run())


@pytest.mark.parametrize("way", [batch, abatch, fan_out, streams])
def test_forty_prompts_keep_to_the_rate_limit_and_are_all_answered(
    way: Callable[[ChatPremEncrypted], list[Any]], limited: LocalEnclave, tier: WatchedTier
) -> None:
    llm = model(limited)
    answers = way(llm)
    assert len(answers) == len(PROMPTS)
    assert tier.most <= 5
    # On a machine so slow that the bucket never empties, nothing is refused.
    assert llm.stats == Stats(
        requests=len(PROMPTS) + tier.refused, retries=tier.refused, rate_limited=tier.refused
    )


def test_threads_and_tasks_of_a_model_share_its_permits(tier: WatchedTier) -> None:
    tier = WatchedTier(QUICK._replace(requests=1000, concurrent=50))
    with LocalEnclave(tier=tier) as prem:
        llm = model(prem, max_concurrency=2)
        jobs = [threading.Thread(target=way, args=(llm,)) for way in (batch, abatch, streams)]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()
    assert (tier.most, tier.refused) == (2, 0)


def test_models_of_both_frameworks_share_the_limits_passed_to_them(tier: WatchedTier) -> None:
    tier = WatchedTier(QUICK._replace(requests=1000, concurrent=50))
    limits = Limits(2)
    with LocalEnclave(tier=tier) as prem:
        llm = model(prem, limits=limits)
        other = PremEncrypted(model=MODEL, limits=limits, **prem.client_options)
        job = threading.Thread(target=batch, args=(llm,))
        job.start()

        async def complete() -> None:
            await asyncio.gather(*(other.acomplete(prompt) for prompt in PROMPTS))

        asyncio.run(complete())
        job.join()
    assert (tier.most, tier.refused) == (2, 0)
    assert limits.stats.requests == 2 * len(PROMPTS)


def test_a_stream_that_is_closed_early_releases_its_permit(enclave: LocalEnclave) -> None:
    llm = model(enclave, max_concurrency=1)
    for _ in range(4):
        for _ in llm.stream("Hello!"):
            break
    assert llm.invoke("Hello!").content

    async def run() -> None:
        for _ in range(4):
            stream = llm.astream("Hello!")
            await anext(stream)
            await stream.aclose()
        assert (await llm.ainvoke("Hello!")).content

    asyncio.run(run())


# --- settings, copies and pickles


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda each: each.model_copy(deep=True)])
def test_copies_share_the_limits_that_were_passed(duplicate: Any) -> None:
    limits = Limits(3)
    given = ChatPremEncrypted(model=MODEL, api_key="k", limits=limits)
    assert duplicate(given).limits is limits
    assert duplicate(given)._client().limits is limits
    assert duplicate(given).stats == limits.stats == Stats()


def test_a_model_that_is_unpickled_in_the_process_has_the_same_limits() -> None:
    limits = Limits(3, 2.0)
    again = pickle.loads(pickle.dumps(ChatPremEncrypted(model=MODEL, api_key="k", limits=limits))).limits
    assert again is limits


def test_limits_are_in_no_repr_and_no_serialised_form() -> None:
    llm = ChatPremEncrypted(model=MODEL, api_key="k", limits=Limits(3))
    assert "limits" not in repr(llm)
    assert "limits" not in llm.model_dump()
    assert "limits" not in str(llm.to_json()["kwargs"])


@pytest.mark.parametrize("kind", [ChatPremEncrypted, PremEncrypted, PremWhisperParser])
@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"max_concurrency": 0}, "max_concurrency"),
        ({"max_concurrency": True}, "max_concurrency"),
        ({"requests_per_second": 0}, "requests_per_second"),
        ({"total_timeout": -1}, "total_timeout"),
        ({"stream_chunk_timeout": 0}, "stream_chunk_timeout"),
        ({"limits": 5}, "limits"),
        ({"limits": Limits(), "max_concurrency": 2}, "max_concurrency"),
        ({"limits": Limits(), "requests_per_second": 2}, "requests_per_second"),
    ],
)
def test_an_invalid_limit_or_timeout_is_named_in_the_error(
    kind: Any, settings: dict[str, Any], name: str
) -> None:
    with pytest.raises(ValueError, match=name):
        kind(**{"model": MODEL, "api_key": "k", **settings})


def test_every_timeout_and_limit_reaches_the_client() -> None:
    settings = {
        "total_timeout": 7.0,
        "stream_chunk_timeout": 3.0,
        "max_concurrency": 2,
        "requests_per_second": 4.0,
    }
    models = [kind(model=MODEL, api_key="k", **settings) for kind in (ChatPremEncrypted, PremEncrypted)]
    parser = PremWhisperParser(api_key="k", **settings)
    for client in (*(each._client() for each in models), parser._client()):
        assert client._requester.call_settings().chunk_timeout == 3.0
        assert client._requester.call_settings().deadline is not None
        assert (client.limits.max_concurrency, client.limits.requests_per_second) == (2, 4.0)
