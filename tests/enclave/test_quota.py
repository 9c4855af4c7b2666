"""The BASE tier's token buckets and open requests, with a fake clock."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from support.clock import Clock

from prem_core.enclave.quota import BASE, CONCURRENCY_MESSAGE, RATE_MESSAGE, LimitReached, QuotaLimits, Tier


def use(tier: Tier, times: int = 1) -> None:
    for _ in range(times):
        with tier.request():
            pass


def refused(tier: Tier) -> LimitReached:
    with pytest.raises(LimitReached) as caught, tier.request():
        pass
    return caught.value


def test_the_base_tier_is_the_documented_one() -> None:
    documented = QuotaLimits(
        requests=5,
        requests_per_second=1,
        tokens_per_minute=38_000,
        audio_seconds_per_minute=10,
        concurrent=5,
    )
    assert documented == BASE


def test_five_requests_are_admitted_at_once_and_the_sixth_waits_a_second(clock: Clock) -> None:
    tier = Tier(BASE, clock)
    use(tier, 5)
    limit = refused(tier)
    assert (str(limit), limit.retry_after) == (RATE_MESSAGE, 1)


def test_waiting_for_retry_after_is_enough(clock: Clock) -> None:
    tier = Tier(BASE, clock)
    use(tier, 5)
    for _ in range(100):
        clock.now += refused(tier).retry_after
        use(tier)


def test_the_request_bucket_does_not_fill_beyond_five(clock: Clock) -> None:
    tier = Tier(BASE, clock)
    clock.now += 3600
    use(tier, 5)
    refused(tier)


def test_a_rejected_request_costs_nothing(clock: Clock) -> None:
    tier = Tier(BASE, clock)
    use(tier, 5)
    for _ in range(50):
        refused(tier)
    clock.now += 1
    use(tier)


def test_tokens_are_charged_at_the_end_and_an_overdraft_delays_later_requests(clock: Clock) -> None:
    tier = Tier(BASE, clock)
    use(tier)
    tier.spend_tokens(38_000 * 2)
    limit = refused(tier)
    assert str(limit) == RATE_MESSAGE
    assert 60 <= limit.retry_after <= 61
    clock.now += limit.retry_after - 1.5
    refused(tier)
    clock.now += 1.5
    use(tier)


def test_seconds_of_audio_have_their_own_bucket(clock: Clock) -> None:
    tier = Tier(BASE, clock)
    tier.spend_audio(9.5)
    with pytest.raises(LimitReached) as caught, tier.request("audio"):
        pass
    assert (str(caught.value), caught.value.retry_after) == (RATE_MESSAGE, 3)
    use(tier)
    clock.now += 3
    with tier.request("audio"):
        tier.spend_audio(31)
    clock.now += 185
    with pytest.raises(LimitReached), tier.request("audio"):
        pass
    clock.now += 1
    with tier.request("audio"):
        pass


def test_a_sixth_open_request_is_rejected_until_another_ends(clock: Clock) -> None:
    tier = Tier(BASE, clock)
    with ExitStack() as open_requests:
        for _ in range(5):
            open_requests.enter_context(tier.request())
        clock.now += 60
        limit = refused(tier)
        assert (str(limit), limit.retry_after) == (CONCURRENCY_MESSAGE, 1)
    use(tier)


def test_a_failed_request_frees_its_slot(clock: Clock) -> None:
    tier = Tier(BASE._replace(requests=100, concurrent=1), clock)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), tier.request():
            raise ZeroDivisionError
