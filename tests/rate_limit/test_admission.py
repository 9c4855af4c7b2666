"""The rate limiter and the admission queue, on a clock of the test's own."""

import copy
import heapq
import itertools
import random

import pytest

from prem_core import RateLimitError, Stats
from prem_core._protocol.charge import Charge
from prem_core._protocol.retry import RetryPolicy, shared_backoff
from prem_core._rate_limit.admission import (
    FAST_INCREASE,
    INCREASE_SHARE,
    MAX_RATE,
    MIN_INCREASE,
    MIN_RATE,
    STREAM_INCREASE_SECONDS,
    AdmissionQueue,
    RateLimiter,
    Waiter,
)
from prem_core.enclave.quota import LimitReached, QuotaLimits, Tier

# --- the rate limiter


def rate_limited(retry_after=1.0, *, rate=None):
    """A limiter whose first request was answered 429 at time 0; its Retry-After is over at `retry_after`."""
    limiter = RateLimiter(rate, 0.0)
    limiter.start(0.0)
    limiter.slow_down(0.0, 0.0, retry_after)
    limiter.pause(0.0, retry_after)
    return limiter


def starts(limiter, start, end):
    """When requests start between two times, if callers always wait."""
    found, now = [], start
    while (now := now + max(0.0, limiter.wait(now))) < end:
        limiter.start(now)
        found.append(now)
    return found


def test_without_a_rate_no_request_waits():
    limiter = RateLimiter(None, 0.0)
    for _ in range(1000):
        limiter.start(0.0)
    assert limiter.wait(0.0) <= 0


@pytest.mark.parametrize(("rate", "burst", "wait"), [(0.5, 1, 2.0), (1.0, 1, 1.0), (4.0, 4, 0.25)])
def test_a_configured_rate_allows_one_seconds_requests_at_once_and_then_one_after_the_other(
    rate, burst, wait
):
    limiter = RateLimiter(rate, 0.0)
    for now in (0.0, 1000.0):  # a long idle time saves up no more than the burst
        for _ in range(burst):
            assert limiter.wait(now) <= 0
            limiter.start(now)
        assert limiter.wait(now) == pytest.approx(wait)
    assert limiter.wait(1000.0 + limiter.wait(1000.0)) <= 0


def test_no_request_starts_before_a_pause_is_over():
    limiter = RateLimiter(None, 0.0)
    limiter.pause(10.0, 3.0)
    limiter.pause(10.0, 1.0)  # a shorter pause does not shorten it
    assert limiter.wait(10.0) == 3.0
    assert limiter.wait(12.9) > 0
    assert limiter.wait(13.0) <= 0


@pytest.mark.parametrize("rate", [None, 0.5, 3.0])
@pytest.mark.parametrize("retry_after", [0.0, 0.5, 1.0, 7.0, 60.0])
def test_a_request_may_start_exactly_when_the_computed_wait_is_over(rate, retry_after):
    limiter = rate_limited(retry_after, rate=rate)
    now = 0.0
    for _ in range(300):
        wait = limiter.wait(now)
        if wait > 1e-3:
            assert copy.copy(limiter).wait(now + wait * 0.999) > 0
        now += max(0.0, wait)
        assert limiter.wait(now) <= 0
        limiter.start(now)


def test_after_a_429_requests_start_about_one_retry_after_apart():
    first, second, third = starts(rate_limited(4.0), 0.0, 10.0)[:3]
    assert first == pytest.approx(4.0)
    # Closer together from the start, since the rate grows.
    assert 4.0 > second - first > third - second


def test_the_rate_grows_by_the_same_amount_each_second_until_it_is_no_limit_any_more():
    found = starts(rate_limited(1.0), 0.0, 60.0)[:1000]
    for second in (4, 10, 20):
        count = sum(second <= at < second + 1 for at in found)
        assert count == pytest.approx(1 + FAST_INCREASE * (second - 0.5), abs=1)
    limiter = rate_limited(1.0)
    limiter.wait(1 + (MAX_RATE - 1) / FAST_INCREASE + 0.1)
    assert limiter.wait(1000.0) <= 0
    for _ in range(1000):
        limiter.start(1000.0)
    assert limiter.wait(1000.0) <= 0


def test_a_further_429_halves_the_rate_and_the_rate_then_grows_slowly():
    limiter = rate_limited(1.0)
    at = 1.0 + (8.0 - 1.0) / FAST_INCREASE  # 8 requests a second
    limiter.wait(at)
    limiter.start(at)
    limiter.slow_down(at, at, 1.0)
    found = starts(limiter, at, at + 30)
    assert sum(each < at + 1 for each in found) == pytest.approx(4.0, abs=1)
    grown = 4.0 * (1 + INCREASE_SHARE * 25)
    assert sum(at + 25 <= each < at + 26 for each in found) == pytest.approx(grown, abs=1)


def test_the_rate_recovers_from_many_429s_within_minutes():
    limiter = rate_limited(1.0)
    for now in range(1, 40):
        limiter.start(now)
        limiter.slow_down(now, now, 1.0)
    assert limiter.wait(39.0) <= 1 / MIN_RATE
    recovered = 39.0 + 0.5 / MIN_INCREASE
    assert sum(recovered <= at < recovered + 10 for at in starts(limiter, 39.0, recovered + 10)) >= 5


def test_a_longer_retry_after_sets_the_rate_where_half_of_it_is_too_fast():
    limiter = rate_limited(1.0)
    limiter.wait(15.0)  # 8 requests a second
    limiter.start(15.0)
    limiter.slow_down(15.0, 15.0, 11.0)
    limiter.pause(15.0, 11.0)
    first, second = starts(limiter, 15.0, 40.0)[:2]
    assert first == pytest.approx(26.0)
    assert second - first > 5


def test_requests_that_were_open_together_count_as_one_429():
    one, many = RateLimiter(None, 0.0), RateLimiter(None, 0.0)
    for limiter, answers in ((one, 1), (many, 5)):
        for _ in range(5):
            limiter.start(0.0)
        for n in range(answers):
            limiter.slow_down(0.1 + n / 100, 0.0, 1.0)
    assert starts(one, 1.0, 20.0) == pytest.approx(starts(many, 1.0, 20.0), abs=0.2)


def test_the_rate_does_not_grow_during_a_pause():
    short, long = rate_limited(1.0), rate_limited(1.0)
    long.pause(0.0, 30.0)
    assert len(starts(short, 1.0, 11.0)) == pytest.approx(len(starts(long, 30.0, 40.0)), abs=1)


def test_the_rate_never_grows_beyond_the_configured_one():
    limiter = rate_limited(1.0, rate=2.0)
    assert sum(100 <= at < 200 for at in starts(limiter, 0.0, 200.0)) == pytest.approx(200, abs=2)
    # The burst is back, too.
    assert limiter.wait(300.0) <= 0
    limiter.start(300.0)
    assert limiter.wait(300.0) <= 0


# --- the admission queue


def enqueued(queue, count):
    waiters = [Waiter() for _ in range(count)]
    for waiter in waiters:
        queue.enqueue(waiter)
    return waiters


def test_slots_are_granted_first_come_first_served():
    queue = AdmissionQueue(2, None, 0.0)
    waiters = enqueued(queue, 5)
    assert queue.pop_ready(0.0) == waiters[:2]
    assert queue.pop_ready(0.0) == []
    assert [waiter.granted for waiter in waiters] == [True, True, False, False, False]
    queue.remove(waiters[1])
    assert queue.pop_ready(0.0) == [waiters[2]]
    assert queue.stats == Stats(requests=3, in_flight=2, waiting=2)


def test_a_later_caller_does_not_overtake_one_that_waits():
    queue = AdmissionQueue(1, None, 0.0)
    first, second = enqueued(queue, 2)
    queue.pop_ready(0.0)
    queue.remove(first)
    enqueued(queue, 1)
    assert queue.pop_ready(0.0) == [second]


def test_without_max_concurrency_any_number_of_requests_may_be_open():
    queue = AdmissionQueue(None, None, 0.0)
    enqueued(queue, 500)
    assert len(queue.pop_ready(0.0)) == 500
    assert queue.wait(0.0) is None


def test_a_slot_is_freed_once():
    queue = AdmissionQueue(1, None, 0.0)
    first, second, third = enqueued(queue, 3)
    queue.pop_ready(0.0)
    for _ in range(3):
        queue.remove(first)
    assert queue.pop_ready(0.0) == [second]
    queue.remove(first)
    assert queue.pop_ready(0.0) == []
    assert (queue.stats.in_flight, third.granted) == (1, False)


def test_a_waiter_that_gave_up_is_skipped():
    queue = AdmissionQueue(1, None, 0.0)
    waiters = enqueued(queue, 4)
    queue.pop_ready(0.0)
    queue.remove(waiters[1])
    queue.remove(waiters[1])
    assert queue.stats.waiting == 2
    queue.remove(waiters[0])
    assert queue.pop_ready(0.0) == [waiters[2]]
    queue.remove(waiters[3])
    queue.remove(waiters[2])
    assert queue.stats == Stats(requests=2)
    assert queue.wait(0.0) is None


def test_a_retry_keeps_its_place_in_the_queue():
    queue = AdmissionQueue(2, None, 0.0)
    waiters = enqueued(queue, 4)
    queue.pop_ready(0.0)
    for waiter in reversed(waiters[:2]):
        queue.count_rate_limit(waiter, 0.0, 1.0)
        queue.pause(0.0, 1.0)
        queue.remove(waiter)
        queue.enqueue(Waiter(waiter))
    assert queue.pop_ready(0.0) == []
    order = []
    for now in range(1, 9):
        for waiter in queue.pop_ready(float(now)):
            order.append(waiter.position)
            queue.remove(waiter)
    assert order == [waiter.position for waiter in waiters]
    assert queue.stats == Stats(requests=6, retries=2, rate_limited=2)


def test_one_retry_after_pauses_all_waiters_and_they_start_one_by_one():
    queue = AdmissionQueue(None, None, 0.0)
    (first,) = enqueued(queue, 1)
    queue.pop_ready(0.0)
    queue.count_rate_limit(first, 0.0, 5.0)
    queue.pause(0.0, 5.0)
    queue.remove(first)
    others = enqueued(queue, 3)
    assert queue.wait(1.0) == pytest.approx(4.0)
    assert queue.pop_ready(4.9) == []
    assert queue.pop_ready(5.0) == [others[0]]


def test_a_503_pauses_all_waiters_and_they_start_together():
    queue = AdmissionQueue(5, None, 0.0)
    waiters = enqueued(queue, 3)
    queue.pause(0.0, 2.0)
    assert queue.pop_ready(1.9) == []
    assert queue.pop_ready(2.0) == waiters
    assert queue.stats.rate_limited == 0


def test_a_429_without_spacing_is_counted_and_changes_no_rate():
    queue = AdmissionQueue(None, None, 0.0)
    (waiter,) = enqueued(queue, 1)
    queue.pop_ready(0.0)
    queue.count_rate_limit(waiter, 0.0, None)
    enqueued(queue, 3)
    assert len(queue.pop_ready(0.0)) == 3
    assert queue.stats.rate_limited == 1


def test_a_waiter_without_a_slot_has_no_time_to_wait_for():
    queue = AdmissionQueue(1, None, 0.0)
    enqueued(queue, 2)
    queue.pop_ready(0.0)
    assert queue.wait(0.0) is None


# --- both, against a simulated tier


def simulate(prompts, *, slots=5, rate=None, tier=None, answer=0.3, rejection=0.02, seed=0):
    """Callers against a tier, on a simulated clock.

    Returns:
        Seconds until the last answer, the number of failed calls, and the queue's counts.
    """
    now, last, order, rng = 0.0, 0.0, itertools.count(), random.Random(seed)
    service = Tier(tier or QuotaLimits(5, 1, 10**9, 10**9, 5), lambda: now)
    queue = AdmissionQueue(slots, rate, 0.0)
    policy = RetryPolicy(2, rng.random)
    events, retries, failed = [], {}, 0

    def after(seconds, call, *args):
        heapq.heappush(events, (now + seconds, next(order), call, args))

    def arrive(waiter):
        admission = service.request()
        try:
            admission.__enter__()
        except LimitReached as limit:
            after(rejection / 2, rejected, waiter, float(limit.retry_after))
        else:
            after(answer * (0.5 + rng.random()), answered, waiter, admission)

    def answered(waiter, admission):
        nonlocal last
        admission.__exit__(None, None, None)
        queue.remove(waiter)
        last = now

    def rejected(waiter, retry_after):
        nonlocal failed
        error = RateLimitError("", status_code=429, retry_after=retry_after)
        count = retries.pop(waiter, 0)
        delay = policy.delay(count, error)
        queue.count_rate_limit(waiter, now, retry_after)
        queue.pause(now, shared_backoff(error, delay))
        queue.remove(waiter)
        if delay is None:
            failed += 1
            return
        again = Waiter(waiter)
        retries[again] = count + 1
        queue.enqueue(again)

    for _ in range(prompts):
        queue.enqueue(Waiter())
    while True:
        for waiter in queue.pop_ready(now):
            after(rejection / 2, arrive, waiter)
        wait = queue.wait(now)
        if wait is not None and (not events or now + wait < events[0][0]):
            now += wait
        elif events:
            now, _, call, args = heapq.heappop(events)
            call(*args)
        else:
            return last, failed, queue.stats


@pytest.mark.parametrize(
    ("options", "most", "most_rejected"),
    [
        # The tier admits 200 requests within 195 seconds at best.
        ({}, 195 * 1.03, 14),
        ({"answer": 0.01, "rejection": 0.005}, 195 * 1.03, 16),
        ({"answer": 4.0}, 195 * 1.03 + 6, 14),
        ({"rejection": 0.6}, 195 * 1.03, 20),
        ({"slots": None}, 195 * 1.03, 210),  # nothing prevents 195 requests too many at the start
        ({"rate": 2.0}, 195 * 1.03, 14),
        ({"rate": 1.0}, 202, 0),
        ({"tier": QuotaLimits(50, 10, 10**9, 10**9, 50), "slots": 50}, 28, 10),
        ({"tier": QuotaLimits(10, 10, 10**9, 10**9, 50), "slots": 20}, 38, 15),
        ({"tier": QuotaLimits(2, 0.5, 10**9, 10**9, 5), "slots": 3}, 460, 30),
    ],
    ids=str,
)
def test_two_hundred_callers_pass_a_tier_without_an_error_and_in_little_more_than_its_least_time(
    options, most, most_rejected
):
    for seed in range(5):
        took, failed, stats = simulate(200, seed=seed, **options)
        assert failed == 0
        assert took <= most
        assert stats.retries == stats.rate_limited <= most_rejected


def test_callers_of_a_tier_of_one_request_a_minute_pass_too():
    took, failed, stats = simulate(15, tier=QuotaLimits(5, 1 / 60, 10**9, 10**9, 5))
    assert failed == 0
    assert took <= 600 * 1.03
    assert stats.rate_limited <= 15


# --- streams


def enqueued_streams(queue, count):
    waiters = [Waiter(charge=Charge(stream=True)) for _ in range(count)]
    for waiter in waiters:
        queue.enqueue(waiter)
    return waiters


def test_no_more_than_max_streams_are_open_and_other_requests_pass_those_that_wait():
    queue = AdmissionQueue(5, None, 0.0, max_streams=1)
    first, second = enqueued_streams(queue, 2)
    (other,) = enqueued(queue, 1)
    assert queue.pop_ready(0.0) == [first, other]
    assert queue.wait(0.0) is None
    queue.remove(first)
    assert queue.pop_ready(0.0) == [second]


def test_streams_and_other_requests_start_in_the_order_of_arrival():
    queue = AdmissionQueue(1, None, 0.0)
    waiters = [*enqueued_streams(queue, 1), *enqueued(queue, 1), *enqueued_streams(queue, 1)]
    served = []
    for _ in waiters:
        served += queue.pop_ready(0.0)
        queue.remove(served[-1])
    assert served == waiters


def test_after_a_refused_stream_one_less_is_open():
    queue = AdmissionQueue(5, None, 0.0)
    waiters = enqueued_streams(queue, 5)
    queue.pop_ready(0.0)
    for refused in waiters[1:]:
        queue.refuse_stream(0.0, None)
        queue.remove(refused)
    enqueued_streams(queue, 2)
    assert queue.pop_ready(1.0) == []
    queue.remove(waiters[0])
    assert len(queue.pop_ready(2.0)) == 1


def test_a_refused_stream_pauses_streams_and_no_other_request():
    queue = AdmissionQueue(5, None, 0.0)
    (stream,) = enqueued_streams(queue, 1)
    queue.pop_ready(0.0)
    queue.refuse_stream(0.0, 3.0)  # another process has the stream
    queue.remove(stream)
    (again,) = enqueued_streams(queue, 1)
    (other,) = enqueued(queue, 1)
    assert queue.pop_ready(0.0) == [other]
    assert queue.wait(1.0) == 2.0
    assert queue.pop_ready(3.0) == [again]


def test_one_stream_more_is_allowed_a_minute_after_a_refusal():
    queue = AdmissionQueue(5, None, 0.0)
    waiters = enqueued_streams(queue, 2)
    queue.pop_ready(0.0)
    queue.refuse_stream(0.0, None)
    queue.remove(waiters[0])
    enqueued_streams(queue, 5)
    assert queue.wait(0.0) == STREAM_INCREASE_SECONDS
    assert len(queue.pop_ready(STREAM_INCREASE_SECONDS)) == 1
    assert len(queue.pop_ready(2 * STREAM_INCREASE_SECONDS)) == 1
