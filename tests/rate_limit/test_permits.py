"""`Limits` and `Permit`: threads, tasks, garbage collection and forks."""

import _thread
import asyncio
import copy
import gc
import os
import pickle
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from support.waiting import SOON, eventually

from prem_core import APITimeoutError, ConfigurationError, Limits, Stats
from prem_core._protocol.steps import Release
from prem_core._rate_limit.permits import Permit, check_one_source, resolve_limits


def soon():
    return time.monotonic() + SOON


def acquired(limits):
    permit = Permit(limits)
    permit.acquire(soon())
    return permit


async def use(limits, log=None):
    permit = Permit(limits)
    await asyncio.wait_for(permit.acquire_async(), SOON)
    if log is not None:
        log.append(time.monotonic())
    permit.release()


async def waiting(limits, count=1):
    """Let the event loop run until so many requests wait."""
    while limits.stats.waiting < count:  # noqa: ASYNC110 - changed by tasks of this event loop
        await asyncio.sleep(0)


# --- waiting for a permit


def test_threads_and_tasks_are_served_first_come_first_served():
    limits = Limits(1)
    holder = acquired(limits)
    served, threads = [], []

    def in_thread(n):
        permit = acquired(limits)
        served.append(n)
        permit.release()

    async def in_task(n):
        permit = Permit(limits)
        await permit.acquire_async()
        served.append(n)
        permit.release()

    for n in range(12):
        run = in_thread if n % 3 else lambda n: asyncio.run(in_task(n))
        threads.append(threading.Thread(target=run, args=(n,)))
        threads[-1].start()
        assert eventually(lambda n=n: limits.stats.waiting == n + 1)
    holder.release()
    for thread in threads:
        thread.join(SOON)
    assert served == list(range(12))
    assert limits.stats == Stats(requests=13)


def test_never_more_than_max_concurrency_permits_are_held_by_threads_and_tasks():
    limits = Limits(3)
    changes, counts, lock = [], [], threading.Lock()

    def note(change):
        with lock:
            changes.append(change)
            counts.append(sum(changes))

    def in_thread():
        for _ in range(40):
            permit = acquired(limits)
            note(1)
            note(-1)
            permit.release()

    async def in_task():
        permit = Permit(limits)
        await permit.acquire_async()
        note(1)
        await asyncio.sleep(0)
        note(-1)
        permit.release()

    async def in_tasks():
        await asyncio.gather(*(in_task() for _ in range(100)))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            jobs = [pool.submit(in_thread) for _ in range(6)]
            jobs += [pool.submit(lambda: asyncio.run(in_tasks())) for _ in range(2)]
            for job in jobs:
                job.result(60)
    finally:
        sys.setswitchinterval(interval)
    assert max(counts) <= 3  # how many are held at once depends on the scheduler
    assert limits.stats == Stats(requests=6 * 40 + 200)


def test_a_thread_stops_waiting_at_its_deadline():
    limits = Limits(1)
    holder = acquired(limits)
    with pytest.raises(APITimeoutError, match="total_timeout"):
        Permit(limits).acquire(time.monotonic() + 0.05)
    assert limits.stats == Stats(requests=1, in_flight=1)
    holder.release()


async def test_a_cancelled_task_gives_its_place_in_the_queue_up():
    limits = Limits(1)
    holder = acquired(limits)
    cancelled = asyncio.create_task(use(limits))
    await waiting(limits)
    behind = asyncio.create_task(use(limits))
    await waiting(limits, 2)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert limits.stats.waiting == 1
    holder.release()
    await behind
    assert limits.stats == Stats(requests=2)


async def test_a_task_that_is_cancelled_just_after_its_permit_was_granted_releases_it():
    limits = Limits(1)
    holder = acquired(limits)
    task = asyncio.create_task(Permit(limits).acquire_async())
    await waiting(limits)
    holder.release()
    assert limits.stats.in_flight == 1  # the task's, which has not run since
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert limits.stats.in_flight == 0


def test_a_closed_event_loop_does_not_keep_the_permit_of_its_task():
    limits = Limits(1)
    holder = acquired(limits)
    loop = asyncio.new_event_loop()
    task = loop.create_task(Permit(limits).acquire_async())
    loop.run_until_complete(waiting(limits))
    loop.close()
    holder.release()
    acquired(limits).release()
    assert limits.stats.in_flight == 0
    task._log_destroy_pending = False  # no warning about the task that never ended


def test_a_blocked_event_loop_does_not_delay_the_permits_of_other_threads():
    limits = Limits(None, 20)
    for _ in range(20):
        acquired(limits)
    unblock = threading.Event()

    async def block():
        task = asyncio.create_task(use(limits))
        await waiting(limits)
        unblock.wait(SOON)
        await task

    with ThreadPoolExecutor(1) as pool:
        blocked = pool.submit(asyncio.run, block())
        assert eventually(lambda: limits.stats.waiting == 1)
        acquired(limits)
        assert not blocked.done()
        unblock.set()
        blocked.result(SOON)


# --- pauses and rates


def test_a_pause_holds_back_threads_and_tasks_of_all_event_loops():
    limits, started = Limits(), []

    def in_thread():
        acquired(limits)
        started.append(time.monotonic())

    start = time.monotonic()
    acquired(limits).release(Release(pause=0.2))
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(in_thread) for _ in range(2)]
        jobs += [pool.submit(lambda: asyncio.run(use(limits, started))) for _ in range(2)]
        for job in jobs:
            job.result(SOON)
    assert min(started) - start >= 0.2


def test_a_configured_rate_spaces_the_requests_of_threads():
    limits = Limits(None, 20)
    start = time.monotonic()
    for _ in range(24):
        acquired(limits)
    assert time.monotonic() - start >= 0.199


def test_every_429_is_counted_whether_or_not_its_retry_after_is_waited_for():
    limits = Limits()
    acquired(limits).release(Release(pause=0.01, rate_limited=True, spacing=0.01))
    acquired(limits).release(Release(rate_limited=True))
    acquired(limits).release(Release(pause=0.01))
    assert limits.stats == Stats(requests=3, rate_limited=2)


def test_a_retry_waits_for_the_pause_even_if_the_release_is_still_in_the_list_of_operations():
    limits = Limits(1)
    permit = acquired(limits)
    start = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        with limits._lock:  # as though another thread were at work
            permit.release(Release(pause=0.2))
            again = pool.submit(permit.acquire, soon())
            assert eventually(lambda: len(limits._operations) == 3)
            assert not again.done()
        limits._do()
        again.result(SOON)
    assert time.monotonic() - start >= 0.2
    assert limits.stats == Stats(requests=2, retries=1, in_flight=1)


async def test_one_timer_thread_runs_while_callers_wait_for_a_time_and_none_afterwards(monkeypatch):
    running = []

    def start_counted(run, args):
        def counted():
            running.append(run)
            run(*args)
            running.remove(run)

        return _thread.start_new_thread(counted, ())

    module = SimpleNamespace(start_new_thread=start_counted)
    monkeypatch.setattr("prem_core._rate_limit.permits._thread", module)
    limits = Limits()
    acquired(limits).release(Release(pause=60.0))
    tasks = [asyncio.create_task(use(limits)) for _ in range(4)]
    await waiting(limits, 4)
    assert eventually(lambda: len(running) == 1)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert eventually(lambda: not running)


# --- release


def test_a_permit_is_released_once():
    limits = Limits(2)
    first, second = acquired(limits), acquired(limits)
    for _ in range(3):
        first.release()
    assert limits.stats.in_flight == 1
    second.release()


def test_a_permit_that_is_garbage_collected_is_released():
    limits = Limits(1)
    acquired(limits)
    assert limits.stats.in_flight == 0


def leave_in_a_cycle(limits):
    holder = {"permit": acquired(limits)}
    holder["holder"] = holder


def test_a_permit_in_a_reference_cycle_is_released_by_the_garbage_collector():
    limits = Limits(1)
    gc.disable()
    try:
        leave_in_a_cycle(limits)
        assert limits.stats.in_flight == 1
        gc.collect()
        assert limits.stats.in_flight == 0
    finally:
        gc.enable()


@pytest.mark.parametrize("rate", [None, 2000])
def test_the_garbage_collector_may_release_permits_at_any_point_without_a_deadlock(rate):
    limits = Limits(3, rate)
    thresholds = gc.get_threshold()
    gc.set_threshold(1, 1, 1)  # also within the code of the limits
    try:
        with ThreadPoolExecutor(2) as pool:
            jobs = [pool.submit(lambda: [leave_in_a_cycle(limits) for _ in range(150)]) for _ in range(2)]
            for _ in range(150):
                acquired(limits).release()
            for job in jobs:
                job.result(SOON)
    finally:
        gc.set_threshold(*thresholds)
    gc.collect()
    assert eventually(lambda: limits.stats == Stats(requests=450))


def test_limits_and_a_permit_do_not_keep_each_other_alive():
    limits = Limits()
    permit = acquired(limits)
    reference = weakref.ref(limits)
    del limits, permit
    gc.collect()
    assert reference() is None


# --- forks


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("locked", [False, True])
def test_a_forked_process_waits_neither_for_its_parents_requests_nor_for_its_lock(locked):
    limits = Limits(1)
    permit = acquired(limits)
    if locked:
        limits._lock.acquire()  # as though another thread were at work in the moment of the fork
    pid = os.fork()
    if pid == 0:  # pragma: no cover - another process
        code = 1
        try:
            own = acquired(limits)
            permit.release()  # the parent's: frees nothing here
            code = 0 if limits.stats == Stats(requests=1, in_flight=1) else 2
            own.release()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    if locked:
        limits._lock.release()
    assert limits.stats.in_flight == 1
    permit.release()


# --- the object


def test_the_repr_has_the_settings():
    assert repr(Limits(3, 0.5)) == "Limits(max_concurrency=3, requests_per_second=0.5, max_streams=None)"
    assert (Limits().max_concurrency, Limits().requests_per_second) == (5, None)


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda limits: pickle.loads(pickle.dumps(limits))]
)
def test_a_copy_is_the_same_limits(duplicate):
    limits = Limits(1, 2.0, 1)
    permit = acquired(limits)
    assert duplicate(limits) is limits
    permit.release()


def test_limits_that_are_unpickled_again_and_again_are_one_object_with_their_counts():
    sent = pickle.dumps(Limits(2, 0.5, 1))
    gc.collect()  # as in a worker process, where the original is not
    acquired(pickle.loads(sent)).release()
    gc.collect()
    again = pickle.loads(sent)
    assert again.stats.requests == 1
    assert (again.max_concurrency, again.requests_per_second, again.max_streams) == (2, 0.5, 1)


def test_two_limits_with_equal_settings_are_not_one_after_unpickling():
    first, second = pickle.loads(pickle.dumps((Limits(), Limits())))
    assert first is not second


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"max_concurrency": 0}, "max_concurrency"),
        ({"max_concurrency": -1}, "max_concurrency"),
        ({"max_concurrency": 1.5}, "max_concurrency"),
        ({"max_concurrency": True}, "max_concurrency"),
        ({"max_streams": 0}, "max_streams"),
        ({"requests_per_second": 0}, "requests_per_second"),
        ({"requests_per_second": float("inf")}, "requests_per_second"),
        ({"requests_per_second": float("nan")}, "requests_per_second"),
        ({"requests_per_second": "1"}, "requests_per_second"),
    ],
)
def test_an_invalid_value_is_an_error_that_names_the_parameter(settings, name):
    with pytest.raises(ConfigurationError, match=name):
        Limits(**settings)


def test_a_setting_next_to_limits_is_an_error_that_names_it():
    limits = Limits(7)
    assert resolve_limits(limits, 5, None) is limits
    with pytest.raises(ConfigurationError, match=r"pass max_concurrency to Limits\(\), not together with"):
        resolve_limits(limits, 6, None)
    with pytest.raises(ConfigurationError, match=r"pass requests_per_second to Limits\(\)"):
        check_one_source(limits, 5, 1.0)
    with pytest.raises(ConfigurationError, match="limits must be"):
        resolve_limits(5, 5, None)
