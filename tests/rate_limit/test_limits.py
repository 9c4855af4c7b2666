import asyncio
import copy
import gc
import os
import pickle
import random
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.fake_gateway import KEY_ROTATED, FlowHarness, ScriptedResponse, default_settings, error_reply
from support.waiting import eventually

from prem_core import ConfigurationError, Limits, RateLimitError, Stats
from prem_core import _errors as errors
from prem_core._protocol.flow import Acquire, FetchKey, ReadWithin, Release, Send, Sleep
from prem_core._protocol.retry import FIRST_DELAY, MAX_RETRY_AFTER, RetryPolicy, shared_backoff
from prem_core._rate_limit.limiter import (
    LEAST_RECOVERY,
    LEAST_SPACING,
    MOST_RECOVERY,
    MOST_SPACING,
    Gate,
    Pace,
    Ticket,
)
from prem_core._rate_limit.limits import Turn, check_one_source, limits_of
from prem_core.enclave.quota import LimitReached, Tier
from prem_core.enclave.quota import Limits as TierLimits

SOON = 3.0


# --- when the next request may begin


def begun(pace, now, count=1):
    for _ in range(count):
        pace.begin(now)


def test_without_a_rate_nothing_is_held_back():
    pace = Pace(None, 0.0)
    begun(pace, 0.0, 1000)
    assert pace.wait(0.0) <= 0


@pytest.mark.parametrize(("rate", "burst", "wait"), [(0.5, 1, 2.0), (1.0, 1, 1.0), (4.0, 4, 0.25)])
def test_a_rate_lets_a_second_of_it_begin_at_once_and_then_one_after_the_other(rate, burst, wait):
    pace = Pace(rate, 0.0)
    for _ in range(burst):
        assert pace.wait(0.0) <= 0
        pace.begin(0.0)
    assert pace.wait(0.0) == pytest.approx(wait, rel=1e-3)
    # Exactly as long as told is long enough, whatever the rounding.
    assert pace.wait(pace.wait(0.0)) <= 0
    # A long pause saves up no more than the burst.
    assert pace.wait(1000.0) <= 0
    begun(pace, 1000.0, burst)
    assert pace.wait(1000.0) > 0


def test_nobody_begins_before_a_hold_is_over():
    pace = Pace(None, 0.0)
    pace.hold(10.0, 3.0)
    pace.hold(10.0, 1.0)  # a shorter one does not shorten it
    assert pace.wait(10.0) == 3.0
    assert pace.wait(12.9) > 0
    assert pace.wait(13.0) <= 0


def test_after_a_rate_limit_requests_begin_a_retry_after_apart():
    pace = Pace(None, 0.0)
    gap = pace.begin(0.0)
    pace.refused(0.1, 0.0, gap, 2.0)
    pace.hold(0.1, 2.0)
    assert pace.wait(2.1) <= 0
    pace.begin(2.1)
    assert pace.wait(2.1) == pytest.approx(2.0)
    assert pace.wait(4.1) <= 0


def limited_pace(spacing=1.0):
    pace = Pace(None, 0.0)
    pace.refused(0.0, 0.0, pace.begin(0.0), spacing)
    return pace


def spacing_at(pace, now):
    pace.begin(now)
    return max(0.0, pace.wait(now))


def test_the_spacing_narrows_slowly_and_then_fast_until_it_is_gone():
    pace = limited_pace()
    found = [spacing_at(pace, LEAST_RECOVERY * share) for share in (0.1, 0.5, 1.0, 2.0, 3.0)]
    assert found == sorted(found, reverse=True)
    assert found[0] > 0.99
    assert found[2] == pytest.approx(0.5)
    assert found[3] == pytest.approx(1 / 9)
    assert spacing_at(pace, LEAST_RECOVERY * 5) == 0.0
    assert spacing_at(pace, LEAST_RECOVERY * 5 + 0.001) == 0.0


def test_a_refusal_on_the_way_sets_the_spacing_back():
    pace = limited_pace()
    pace.begin(1.0)
    at = LEAST_RECOVERY
    for _ in range(5):
        pace.refused(at, at, pace.begin(at), 1.0)
        assert spacing_at(pace, at + 1) == pytest.approx(1.0, abs=0.01)
        at += LEAST_RECOVERY
    # Each took twice as long to recover from as the one before, up to a bound.
    assert spacing_at(pace, at - LEAST_RECOVERY + MOST_RECOVERY) == pytest.approx(0.5)


def test_a_refusal_of_the_first_request_after_the_pause_doubles_the_spacing_up_to_a_bound():
    pace = limited_pace()
    at = 0.0
    found = []
    for _ in range(9):
        at += 1.0
        gap = pace.begin(at)
        pace.refused(at, at, gap, 1.0)
        found.append(spacing_at(pace, at))
        pace.refused(at, -1.0, 0.0, 0.0)  # one that was on its way all along changes nothing
    assert found[:3] == pytest.approx([2.0, 4.0, 8.0])
    assert found[-1] == MOST_SPACING


def test_requests_that_were_on_their_way_together_are_one_refusal():
    pace = Pace(None, 0.0)
    gaps = [pace.begin(0.0) for _ in range(5)]
    for n, gap in enumerate(gaps):
        pace.refused(0.1 + n / 100, 0.0, gap, 1.0)
    assert spacing_at(pace, 0.2) == pytest.approx(1.0)


def test_a_retry_after_that_shrinks_while_it_is_waited_for_does_not_narrow_the_spacing():
    # Of a service that lets one in every five seconds: told to wait 1 after having waited 4.
    pace = limited_pace(4.0)
    pace.begin(4.0)
    pace.begin(8.0)
    pace.refused(8.0, 8.0, 4.0, 1.0)
    assert spacing_at(pace, 8.0) == pytest.approx(4.0)


def test_no_retry_after_is_too_short_to_matter():
    assert spacing_at(limited_pace(0.0), 0.0) == pytest.approx(LEAST_SPACING)


# --- who begins


def line(gate, count, now=0.0):
    tickets = [Ticket() for _ in range(count)]
    for ticket in tickets:
        gate.ask(ticket, now)
    return tickets


def test_slots_are_given_in_the_order_of_asking():
    gate = Gate(2, None, 0.0)
    tickets = line(gate, 5)
    assert [gate.holds(ticket) for ticket in tickets] == [True, True, False, False, False]
    assert gate.due(0.0) == []
    gate.leave(tickets[1])
    assert gate.due(0.0) == [tickets[2]]
    gate.leave(tickets[0])
    gate.leave(tickets[2])
    assert gate.due(0.0) == tickets[3:]
    assert gate.stats == Stats(requests=5, in_flight=2)


def test_who_comes_later_does_not_pass_those_who_wait():
    gate = Gate(1, None, 0.0)
    first, second = line(gate, 2)
    gate.leave(first)  # a slot is free, and nobody has been served yet
    late = Ticket()
    gate.ask(late, 0.0)
    assert not gate.holds(late)
    assert gate.due(0.0) == [second]


def test_any_number_of_slots_is_no_limit():
    gate = Gate(None, None, 0.0)
    assert all(map(gate.holds, line(gate, 500)))
    assert gate.wait(0.0) is None


def test_a_slot_is_given_back_once():
    gate = Gate(1, None, 0.0)
    first, second, third = line(gate, 3)
    for _ in range(3):
        gate.leave(first)
    assert gate.due(0.0) == [second]
    gate.leave(first)
    assert gate.due(0.0) == []
    assert gate.stats.in_flight == 1
    assert not gate.holds(third)


def test_a_place_that_is_given_up_is_skipped():
    gate = Gate(1, None, 0.0)
    tickets = line(gate, 4)
    gate.leave(tickets[1])
    gate.leave(tickets[1])
    assert gate.stats.waiting == 2
    gate.leave(tickets[0])
    assert gate.due(0.0) == [tickets[2]]
    gate.leave(tickets[3])
    assert gate.stats == Stats(requests=2, in_flight=1)
    assert not gate.starved


def test_who_is_sent_back_stands_where_it_stood():
    gate = Gate(2, None, 0.0)
    tickets = line(gate, 4)
    for ticket in reversed(tickets[:2]):
        gate.hold(ticket, 0.0, 1.0, 1.0)
        gate.leave(ticket)
        gate.ask(ticket, 0.0)
    assert gate.due(0.0) == []
    order = []
    for now in range(1, 9):
        for ticket in gate.due(float(now)):
            order.append(ticket)
            gate.leave(ticket)
    assert order == tickets
    assert gate.stats == Stats(requests=6, retries=2, rate_limited=2)


def test_one_retry_after_holds_back_all():
    gate = Gate(None, None, 0.0)
    (first,) = line(gate, 1)
    gate.hold(first, 0.0, 5.0, 5.0)
    gate.leave(first)
    others = line(gate, 3, now=1.0)
    assert not any(map(gate.holds, others))
    assert gate.wait(1.0) == pytest.approx(4.0)
    assert gate.due(4.9) == []
    assert gate.due(5.0) == [others[0]]  # and not all at once
    assert gate.wait(5.0) == pytest.approx(5.0)


def test_an_unavailable_service_holds_back_all_and_lets_all_begin_then():
    gate = Gate(5, None, 0.0)
    tickets = line(gate, 3)
    gate.hold(tickets[0], 0.0, 2.0, None)
    for ticket in tickets:
        gate.leave(ticket)
        gate.ask(ticket, 0.0)
    assert gate.due(1.9) == []
    assert gate.due(2.0) == tickets
    assert gate.stats.rate_limited == 0


def test_who_waits_for_a_slot_has_no_time_to_wait_for():
    gate = Gate(1, None, 0.0)
    line(gate, 2)
    assert gate.wait(0.0) is None
    assert gate.starved


def simulated(prompts, *, slots=5, rate=None, tier=None, answer=0.3, refusal=0.02, retries=2, seed=0):
    """Callers against a tier, on a clock of their own. Gives seconds, failures, the gate's counts, most in flight."""
    now, events, dice = [0.0], [], random.Random(seed)
    service = Tier(tier or TierLimits(5, 1, 10**9, 10**9, 5), lambda: now[0])
    gate = Gate(slots, rate, 0.0)
    failures, policy, most = {}, RetryPolicy(retries, dice.random), 0

    def later(seconds, call, *args):
        events.append((now[0] + seconds, len(events) + dice.random(), call, args))

    def arrive(ticket):
        admission = service.request()
        try:
            admission.__enter__()
        except LimitReached as limit:
            later(refusal / 2, refused, ticket, limit.retry_after)
        else:
            later(answer * (0.5 + dice.random()), answered, ticket, admission)

    def answered(ticket, admission):
        admission.__exit__(None, None, None)
        gate.leave(ticket)

    def refused(ticket, seconds):
        error = RateLimitError("", status_code=429, retry_after=float(seconds))
        delay = policy.delay(ticket.starts - 1, error)
        gate.hold(ticket, now[0], shared_backoff(error, delay), float(seconds))
        gate.leave(ticket)
        if delay is None:
            failures[ticket] = error
        else:
            ask(ticket)

    def ask(ticket):
        gate.ask(ticket, now[0])
        if gate.holds(ticket):
            later(refusal / 2, arrive, ticket)

    for _ in range(prompts):
        ask(Ticket())
    while True:
        for ticket in gate.due(now[0]):
            later(refusal / 2, arrive, ticket)
        most = max(most, gate.stats.in_flight)
        wait = gate.wait(now[0])
        if not events and wait is None:
            return now[0], len(failures), gate.stats, most
        event = min(events) if events else None
        if event is None or (wait is not None and now[0] + wait < event[0]):
            now[0] += max(wait, 1e-6)
            continue
        events.remove(event)
        now[0] = max(now[0], event[0])
        event[2](*event[3])


@pytest.mark.parametrize(
    ("options", "least"),
    [
        ({}, 195),
        ({"answer": 0.01, "refusal": 0.005}, 195),
        ({"answer": 4.0}, 195),
        ({"refusal": 0.6}, 195),
        ({"slots": None}, 195),
        ({"rate": 2.0}, 195),
        ({"tier": TierLimits(50, 10, 10**9, 10**9, 50), "slots": 50}, 15),
        ({"tier": TierLimits(2, 0.5, 10**9, 10**9, 5), "slots": 3}, 396),
    ],
    ids=str,
)
def test_two_hundred_callers_get_through_a_tier_without_an_error_and_without_wasting_its_time(options, least):
    for seed in range(3):
        took, failed, stats, most = simulated(200, seed=seed, **options)
        assert failed == 0
        assert took < least * 1.05 + 25
        assert stats.retries == stats.rate_limited
        assert most <= (options.get("slots", 5) or 200)


def test_a_rate_that_the_service_takes_is_never_refused():
    took, failed, stats, _ = simulated(60, rate=1.0)
    assert (failed, stats.rate_limited) == (0, 0)
    assert took == pytest.approx(59, abs=2)


# --- what the exchange does with it


class Gated(FlowHarness):
    """A `Pair` whose client waits for turns."""

    def __init__(self, **values):
        answers = values.pop("answers", ())
        super().__init__(default_settings(limited=True, **values), answers=answers)
        self.steps = []

    def _perform(self, step):
        self.steps.append(step)
        if isinstance(step, Acquire | Release | ReadWithin):
            return None
        return super()._perform(step)

    def kinds(self):
        return [
            type(step)
            for step in self.steps
            if not hasattr(step, "__len__") and type(step).__name__ != "Read"
        ]


#: What comes before each try.
ASKED = (FetchKey, Acquire, FetchKey)

LIMITED = ScriptedResponse([b""], 429, {"retry-after": "3"})
BUSY = ScriptedResponse([b""], 503, {"retry-after": "2"})


def whole(opened):
    return opened.stream()


def test_a_key_is_there_before_the_turn_and_asked_for_again_in_it_since_it_may_have_been_turned():
    harness = Gated()
    harness.complete()
    assert harness.kinds() == [*ASKED, Send]
    assert harness.fetches == [FetchKey()]


def test_a_429_gives_the_turn_back_with_a_pause_for_all_and_waits_with_them():
    harness = Gated(answers=[LIMITED, whole])
    harness.complete()
    assert harness.kinds() == [*ASKED, Send, Release, *ASKED, Send]
    assert Release(3.0 + 0.5 / 4, 3.0) in harness.steps
    assert harness.sleeps == []


def test_a_503_with_a_retry_after_is_a_pause_for_all_and_leaves_no_spacing():
    harness = Gated(answers=[BUSY, whole])
    harness.complete()
    assert Release(2.0 + 0.5 / 4, None) in harness.steps
    assert harness.sleeps == []


@pytest.mark.parametrize(
    "answer", [error_reply(503, "busy"), error_reply(500, "no"), errors.APITimeoutError("gateway: slow")]
)
def test_another_failure_is_its_callers_own(answer):
    harness = Gated(answers=[answer, whole])
    harness.complete()
    assert harness.kinds() == [*ASKED, Send, Release, Sleep, *ASKED, Send]
    assert Release() in harness.steps


def test_the_turn_is_given_back_after_a_turned_key_was_replaced_so_that_nobody_else_seals_to_it():
    harness = Gated(answers=[KEY_ROTATED, whole])
    harness.complete()
    assert harness.kinds() == [*ASKED, Send, FetchKey, Release, *ASKED, Send]


def test_the_last_refusal_holds_the_others_back_too():
    harness = Gated(max_retries=0, answers=[LIMITED])
    with pytest.raises(RateLimitError):
        harness.complete()
    assert harness.steps[-1] == Release(3.0, 3.0)


@pytest.mark.parametrize(
    ("status", "retry_after", "delay", "pause"),
    [
        (429, 3.0, 3.1, 3.1),
        (429, 3.0, None, 3.0),
        (429, None, 0.4, 0.4),
        (429, None, None, FIRST_DELAY),
        (429, MAX_RETRY_AFTER + 1, None, None),
        (503, 3.0, 3.1, 3.1),
        (503, None, 0.4, None),
        (500, 3.0, 3.1, None),
    ],
)
def test_what_is_a_pause_for_all(status, retry_after, delay, pause):
    error = errors.APIStatusError("", status_code=status, retry_after=retry_after)
    assert shared_backoff(error, delay) == pause


def test_a_broken_connection_is_no_pause_for_all():
    assert shared_backoff(errors.APIConnectionError("x"), 0.5) is None


class Clock:
    def __init__(self, *times):
        self.times = list(times)

    def __call__(self):
        return self.times.pop(0) if len(self.times) > 1 else self.times[0]


def test_a_retry_that_would_come_after_the_deadline_is_not_waited_for():
    harness = Gated(deadline=10.0, clock=Clock(8.0), answers=[LIMITED])
    with pytest.raises(errors.APITimeoutError, match="total_timeout") as caught:
        harness.complete()
    assert isinstance(caught.value.__cause__, RateLimitError)
    assert len(harness.sent) == 1


def test_a_timeout_at_the_deadline_is_raised_as_it_is():
    failure = errors.APITimeoutError("the call took longer than total_timeout")
    harness = Gated(deadline=10.0, clock=Clock(10.0), answers=[failure])
    with pytest.raises(errors.APITimeoutError) as caught:
        harness.complete()
    assert caught.value is failure
    assert len(harness.sent) == 1


def test_comments_without_a_chunk_are_a_stall():
    def comments(opened):
        return ScriptedResponse([b": keep-alive\n\n"] * 50)

    harness = Gated(chunk_timeout=5.0, max_retries=0, clock=Clock(*range(100)), answers=[comments])
    for ask in (harness.complete, lambda: list(harness.stream())):
        harness.reads = 0
        with pytest.raises(errors.APITimeoutError, match="next chunk"):
            ask()
        assert 5 <= harness.reads <= 7


def test_chunks_that_come_in_time_are_no_stall_however_long_they_take_together():
    def slow(opened):
        text = {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]}
        return ScriptedResponse([opened.events(text)] * 50 + [opened.stream()])

    harness = Gated(chunk_timeout=5.0, clock=Clock(*range(1000)), answers=[slow])
    assert harness.complete().choices[0].message.content.startswith("a" * 50)


def test_the_bytes_of_a_stream_are_waited_for_no_longer_than_its_chunks():
    harness = Gated(chunk_timeout=5.0, clock=Clock(0.0))
    harness.complete()
    assert ReadWithin(5.0) in harness.steps


# --- threads and tasks


def test_threads_and_tasks_are_served_in_the_order_they_came():
    limits = Limits(1)
    holder = Turn(limits)
    holder.take()
    served, turns = [], []

    def by_thread(n):
        turn = Turn(limits)
        turn.take()
        served.append(n)
        turn.give_back()

    async def by_task(n):
        turn = Turn(limits)
        await turn.atake()
        served.append(n)
        turn.give_back()

    for n in range(12):
        run = by_thread if n % 3 else lambda n: asyncio.run(by_task(n))
        turns.append(threading.Thread(target=run, args=(n,)))
        turns[-1].start()
        assert eventually(lambda n=n: limits.stats.waiting == n + 1)
    holder.give_back()
    for thread in turns:
        thread.join(SOON)
    assert served == list(range(12))
    assert limits.stats == Stats(requests=13)


def test_no_more_than_the_slots_are_held_whatever_is_done_at_once():
    limits = Limits(3)
    inside, most, lock = [], [], threading.Lock()

    def note(change):
        with lock:
            inside.append(change)
            most.append(sum(inside))

    def by_thread(_):
        for _ in range(40):
            turn = Turn(limits)
            turn.take()
            note(1)
            note(-1)
            turn.give_back()

    async def by_task():
        turn = Turn(limits)
        await turn.atake()
        note(1)
        await asyncio.sleep(0)
        note(-1)
        turn.give_back()

    async def tasks():
        await asyncio.gather(*(by_task() for _ in range(100)))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            jobs = [pool.submit(by_thread, n) for n in range(6)]
            jobs += [pool.submit(lambda: asyncio.run(tasks())) for _ in range(2)]
            for job in jobs:
                job.result(60)
    finally:
        sys.setswitchinterval(interval)
    assert max(most) == 3
    assert limits.stats == Stats(requests=6 * 40 + 200)


async def test_a_task_that_is_cancelled_gives_its_place_up():
    limits = Limits(1)
    holder, later = Turn(limits), Turn(limits)
    holder.take()
    task = asyncio.create_task(Turn(limits).atake())
    await asyncio.sleep(0.01)
    behind = asyncio.create_task(later.atake())
    await asyncio.sleep(0.01)
    assert limits.stats.waiting == 2
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert limits.stats.waiting == 1
    holder.give_back()
    await asyncio.wait_for(behind, SOON)
    later.give_back()
    assert limits.stats == Stats(requests=2)


async def test_a_task_that_is_cancelled_in_the_moment_of_its_turn_gives_it_back():
    limits = Limits(1)
    holder, turn = Turn(limits), Turn(limits)
    holder.take()
    task = asyncio.create_task(turn.atake())
    await asyncio.sleep(0.01)
    holder.give_back()
    assert limits.stats.in_flight == 1  # the task's, which has not run since
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert limits.stats.in_flight == 0


def test_a_thread_waits_no_longer_than_its_deadline():
    limits = Limits(1)
    holder = Turn(limits)
    holder.take()
    start = time.monotonic()
    with pytest.raises(errors.APITimeoutError, match="total_timeout"):
        Turn(limits).take(start + 0.1)
    assert 0.1 <= time.monotonic() - start < SOON
    assert limits.stats == Stats(requests=1, in_flight=1)


def test_a_turn_that_is_forgotten_is_given_back():
    limits = Limits(1)
    Turn(limits).take()
    assert limits.stats.in_flight == 0


def test_turns_given_back_in_the_middle_of_anything_block_nobody():
    # A collection may run on a thread that is inside the limits' own code.
    limits = Limits(2)

    class Box:
        pass

    thresholds = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:
        for _ in range(300):
            box = Box()
            box.itself, box.turn = box, Turn(limits)
            del box
            turn = Turn(limits)
            turn.take(time.monotonic() + SOON)
            turn.give_back()
    finally:
        gc.set_threshold(*thresholds)
    assert eventually(lambda: limits.stats.in_flight == 0)


def test_turns_that_only_a_collection_finds_are_found_when_they_are_missed():
    limits = Limits(2)

    class Box:
        pass

    def forget():
        box = Box()
        box.itself, box.turn = box, Turn(limits)
        box.turn.take(time.monotonic() + 10)

    gc.collect()
    for _ in range(6):
        forget()

    async def one():
        await asyncio.wait_for(Turn(limits).atake(), 10)

    forget()
    asyncio.run(one())


def test_a_loop_that_is_gone_does_not_keep_its_turn():
    limits = Limits(1)
    holder = Turn(limits)
    holder.take()
    loop = asyncio.new_event_loop()
    task = loop.create_task(Turn(limits).atake())
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()
    assert limits.stats.waiting == 1
    holder.give_back()  # to nobody
    turn = Turn(limits)
    turn.take(time.monotonic() + SOON)
    turn.give_back()
    assert limits.stats.in_flight == 0
    # What asyncio says of a task that nobody finished is not this test's.
    task._log_destroy_pending = False


def test_a_pause_holds_threads_and_tasks_of_every_loop_back():
    limits = Limits()
    refused = Turn(limits)
    refused.take()
    refused.pause(0.4, None)
    start = time.monotonic()

    def thread():
        Turn(limits).take()
        return time.monotonic() - start

    async def task():
        await Turn(limits).atake()
        return time.monotonic() - start

    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(thread), pool.submit(thread)]
        jobs += [pool.submit(lambda: asyncio.run(task())) for _ in range(2)]
        assert all(0.4 <= job.result(SOON) < 0.4 + SOON for job in jobs)


def test_a_turn_that_is_asked_for_again_is_not_the_one_that_is_being_given_back():
    limits = Limits(1)
    turn = Turn(limits)
    turn.take()
    limits._lock.acquire()  # another thread is at it, and what follows stays in the inbox
    turn.pause(0.2, None)
    start = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        again = pool.submit(turn.take)
        time.sleep(0.05)
        assert not again.done()
        limits._lock.release()
        limits._do(int)
        again.result(SOON)
    assert time.monotonic() - start >= 0.2
    assert limits.stats == Stats(requests=2, retries=1, in_flight=1)


def test_a_rate_spaces_the_requests_of_threads():
    limits = Limits(None, 20)
    for _ in range(20):
        Turn(limits).take()
    start = time.monotonic()
    for _ in range(4):
        Turn(limits).take()
    assert 0.15 < time.monotonic() - start < SOON


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_does_not_wait_for_its_parents_requests():
    limits = Limits(1)
    turn = Turn(limits)
    turn.take()
    pid = os.fork()
    if pid == 0:  # pragma: no cover - another process
        code = 1
        try:
            Turn(limits).take(time.monotonic() + SOON)
            turn.give_back()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert limits.stats.in_flight == 1


# --- the object


def test_the_figures_are_shown_and_nothing_else():
    assert repr(Limits(3, 0.5)) == "Limits(max_concurrency=3, requests_per_second=0.5)"
    assert (Limits().max_concurrency, Limits().requests_per_second) == (5, None)


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))]
)
def test_a_copy_has_the_same_figures_and_counts_of_its_own(duplicate):
    limits = Limits(1, 2.0)
    turn = Turn(limits)
    turn.take()
    again = duplicate(limits)
    assert (again.max_concurrency, again.requests_per_second) == (1, 2.0)
    assert again.stats == Stats()
    Turn(again).take(time.monotonic() + SOON)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"max_concurrency": 0}, "max_concurrency"),
        ({"max_concurrency": -1}, "max_concurrency"),
        ({"max_concurrency": 1.5}, "max_concurrency"),
        ({"max_concurrency": True}, "max_concurrency"),
        ({"requests_per_second": 0}, "requests_per_second"),
        ({"requests_per_second": float("inf")}, "requests_per_second"),
        ({"requests_per_second": float("nan")}, "requests_per_second"),
        ({"requests_per_second": "1"}, "requests_per_second"),
    ],
)
def test_a_figure_that_cannot_work_is_named(settings, name):
    with pytest.raises(ConfigurationError, match=name):
        Limits(**settings)


def test_a_figure_has_one_place():
    limits = Limits(7)
    assert limits_of(limits, 5, None) is limits
    with pytest.raises(ConfigurationError, match="max_concurrency"):
        limits_of(limits, 6, None)
    with pytest.raises(ConfigurationError, match="requests_per_second"):
        check_one_source(limits, 5, 1.0)
    with pytest.raises(ConfigurationError, match="limits must be"):
        limits_of(5, 5, None)


def test_limits_are_not_kept_by_their_alarm_or_their_turns():
    limits = Limits()
    Turn(limits).take()
    reference = weakref.ref(limits)
    del limits
    gc.collect()
    assert reference() is None
