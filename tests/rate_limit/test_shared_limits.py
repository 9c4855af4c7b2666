"""Limits that processes share in a real Redis or Valkey server."""

import asyncio
import copy
import json
import logging
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.client_api import AsyncApi, SyncApi
from support.fake_gateway import PARAMS, FakeGateway, stream_hello
from support.redis_server import PROGRAM, RedisServer
from support.waiting import SOON, eventually

from langchain_prem import ChatPremEncrypted
from prem_core import APIConnectionError, ConfigurationError, Limits, PremClient, SharedLimits, Stats
from prem_core._protocol.charge import Charge
from prem_core._protocol.steps import Release
from prem_core._rate_limit.permits import Permit
from prem_core._rate_limit.store import LimitsStore

needs_server = pytest.mark.skipif(PROGRAM is None, reason="needs redis-server or valkey-server")
LIMITS, LEASES = "prem:{acme}:limits", "prem:{acme}:leases"

#: Another process: it prints a line once it holds a permit, and acts on what it reads.
HOLDER = """
import sys, time
from prem_core import SharedLimits
from prem_core._rate_limit.permits import Permit
permit = Permit(SharedLimits(sys.argv[1], name="acme", max_concurrency=1, lease=float(sys.argv[2])))
permit.acquire()
print("held", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def server():
    with RedisServer() as running:
        yield running


@pytest.fixture
def shared(server):
    """Makes limits as another process would: each is a holder of its own. They leave at the end."""
    made = []

    def make(**options):
        limits = SharedLimits(server.url, **{"name": "acme", **options})
        limits._store = LimitsStore(limits._store._settings)
        made.append(limits)
        return limits

    yield make
    for limits in made:
        limits._store.leave()


@pytest.fixture
def other_process(server):
    started = []

    def start(lease=15.0):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, server.url, str(lease)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def acquired(limits, **charge):
    permit = Permit(limits)
    permit.acquire(time.monotonic() + SOON, Charge(**charge))
    return permit


def blocked(limits):
    with pytest.raises(Exception, match="total_timeout"):
        Permit(limits).acquire(time.monotonic() + 0.2)
    return True


# --- permits over processes


@needs_server
def test_processes_have_no_more_than_max_concurrency_requests_open(shared):
    a, b = shared(max_concurrency=2), shared(max_concurrency=2)
    first, second = acquired(a), acquired(b)
    assert blocked(a)
    second.release()
    acquired(a).release()
    first.release()


@needs_server
def test_a_permit_that_is_released_in_one_process_wakes_a_task_of_another(shared):
    a, b = shared(max_concurrency=1), shared(max_concurrency=1)
    first = acquired(a)

    async def wait():
        permit = Permit(b)
        task = asyncio.create_task(permit.acquire_async())
        assert await asyncio.to_thread(eventually, lambda: b.stats.waiting == 1)
        first.release()
        await asyncio.wait_for(task, SOON)
        permit.release()

    asyncio.run(wait())
    assert a.stats == Stats(requests=1)
    assert eventually(lambda: b.stats == Stats(requests=1))


@needs_server
def test_a_cancelled_task_gives_its_permit_back(shared):
    a, b = shared(max_concurrency=1), shared(max_concurrency=1)
    first = acquired(a)

    async def cancel():
        task = asyncio.create_task(Permit(b).acquire_async())
        assert await asyncio.to_thread(eventually, lambda: b.stats.waiting == 1)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(cancel())
    first.release()
    acquired(a).release()
    acquired(b).release()


@needs_server
def test_a_permit_that_is_garbage_collected_is_released(shared):
    limits = shared(max_concurrency=1)
    acquired(limits)
    acquired(limits).release()


@needs_server
def test_a_pause_of_one_process_holds_back_another(shared):
    a, b = shared(), shared()
    start = time.monotonic()
    acquired(a).release(Release(pause=0.3))
    acquired(b).release()
    assert time.monotonic() - start >= 0.3


@needs_server
def test_requests_start_at_the_rate_of_all_processes_together(shared):
    a, b = (shared(requests_per_second=20, burst=1, max_concurrency=None) for _ in range(2))
    start = time.monotonic()
    for _ in range(5):
        acquired(a)
        acquired(b)
    assert time.monotonic() - start >= 0.44


@needs_server
def test_one_caller_does_not_wait_behind_all_callers_of_another_process(server, shared):
    batch, web = shared(max_concurrency=1), shared(max_concurrency=1)
    started, first = [], acquired(batch)

    def call(limits, name):
        permit = acquired(limits)
        started.append((permit._waiter.started, name))
        permit.release()

    with ThreadPoolExecutor(41) as pool:
        jobs = [pool.submit(call, batch, "batch") for _ in range(40)]
        assert eventually(lambda: batch.stats.waiting == 40)
        jobs.append(pool.submit(call, web, "web"))
        assert eventually(lambda: server.client().zcard("prem:{acme}:line") == 2)
        first.release()
        for job in jobs:
            job.result(SOON)
    assert [name for _, name in sorted(started)][:3] == ["batch", "web", "batch"]


@needs_server
def test_threads_and_tasks_get_every_permit_once(shared):
    processes = [shared(max_concurrency=3) for _ in range(2)]
    held, most, lock = 0, 0, threading.Lock()

    def note(change):
        nonlocal held, most
        with lock:
            held += change
            most = max(most, held)

    def in_thread(limits):
        for _ in range(30):
            permit = acquired(limits)
            note(1)
            note(-1)
            permit.release()

    async def in_tasks(limits):
        async def one():
            permit = Permit(limits)
            await permit.acquire_async()
            note(1)
            await asyncio.sleep(0)
            note(-1)
            permit.release()

        await asyncio.gather(*(one() for _ in range(60)))

    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(in_thread, limits) for limits in processes for _ in range(2)]
        jobs += [pool.submit(lambda limits=limits: asyncio.run(in_tasks(limits))) for limits in processes]
        for job in jobs:
            job.result(SOON)
    assert most <= 3
    assert all(eventually(lambda limits=limits: limits.stats == Stats(requests=120)) for limits in processes)


# --- tokens


@needs_server
@pytest.mark.parametrize("api", [SyncApi, AsyncApi])
@pytest.mark.parametrize("stream", [False, True])
def test_the_usage_of_an_answer_is_charged_without_code_of_the_caller(server, shared, api, stream):
    limits = shared(tokens_per_minute=60_000)
    with asyncio.Runner() as runner, FakeGateway() as gateway:
        api = api(runner) if api is AsyncApi else api()
        client = api.client_class(**gateway.settings(limits=limits))
        messages = [{"role": "user", "content": "word " * 40_000}]
        (api.stream if stream else api.create)(client, messages=messages)
        api.close(client)

    def state():
        return json.loads(server.client().hget(LIMITS, "state"))

    assert eventually(lambda: state()["open"] == 0)
    # 50,000 were reserved, and 5 used. Without the correction the bucket would need 40 seconds to be as full.
    assert state()["tokens"] > 50_000
    assert state()["answer"] == pytest.approx(0.2 * (5 - 50_000), rel=0.01)


@needs_server
def test_a_process_waits_for_the_tokens_that_another_used(shared):
    a, b = (shared(tokens_per_minute=60_000) for _ in range(2))
    permit = acquired(a, tokens=60_000)
    permit._waiter.charge.used_tokens = 60_000
    permit.release()
    start = time.monotonic()
    acquired(b, tokens=300).release()
    assert time.monotonic() - start >= 0.25


# --- the end of a process


@needs_server
def test_the_permit_of_a_killed_process_comes_back_when_its_lease_ends(shared, other_process):
    other = other_process(lease=1.0)
    limits = shared(max_concurrency=1, lease=1.0)
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(acquired, limits)
        assert eventually(lambda: limits.stats.waiting == 1)
        other.kill()
        killed = time.monotonic()
        job.result(SOON).release()
    assert time.monotonic() - killed < 1.0 + 1


@needs_server
def test_a_lease_is_renewed_for_as_long_as_the_answer_takes(shared):
    a, b = (shared(max_concurrency=1, lease=0.3) for _ in range(2))
    permit = acquired(a)
    time.sleep(0.9)
    assert blocked(b)
    permit.release()
    acquired(b).release()


@needs_server
@pytest.mark.parametrize("end", ["exit", "interrupt"])
def test_no_lease_is_left_after_a_process_ends(server, other_process, end):
    other = other_process()
    assert server.client().zcard(LEASES) == 1
    if end == "exit":
        other.stdin.close()
    else:
        other.send_signal(signal.SIGINT)
    other.wait(SOON)
    assert server.client().zcard(LEASES) == 0


def _hold_one(url, answers):
    Permit(SharedLimits(url, name="acme", max_concurrency=2)).acquire()
    answers.put(os.getpid())


@needs_server
@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_no_lease_is_left_after_a_multiprocessing_child_ends(server, shared, method):
    holder = acquired(shared(max_concurrency=2))
    context = multiprocessing.get_context(method)
    answers = context.Queue()
    child = context.Process(target=_hold_one, args=(server.url, answers))
    child.start()
    assert answers.get(timeout=SOON) == child.pid
    child.join(SOON)
    assert server.client().zcard(LEASES) == 1  # this process's own
    holder.release()


@needs_server
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_is_a_holder_of_its_own(server):
    limits = SharedLimits(server.url, name="acme", max_concurrency=2)
    permit = acquired(limits)
    pid = os.fork()
    if pid == 0:  # pragma: no cover - another process
        code = 1
        try:
            own = acquired(limits)
            permit.release()  # the parent's: frees nothing here
            code = 0 if server.client().zcard(LEASES) == 2 else 2
            own.release()
            limits._store.leave()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert limits.stats == Stats(requests=1, in_flight=1)
    assert server.client().zcard(LEASES) == 1
    permit.release()
    limits._store.leave()


# --- an unreachable store


@needs_server
def test_requests_wait_until_an_unreachable_store_is_back_with_one_warning(server, shared, caplog):
    limits = shared(requests_per_second=100)
    acquired(limits).release()
    holder = acquired(limits)
    server.kill()
    with ThreadPoolExecutor(3) as pool, caplog.at_level(logging.WARNING, "prem_core.limits"):
        jobs = [pool.submit(acquired, limits) for _ in range(3)]
        assert eventually(lambda: len(caplog.messages) == 1)
        holder.release()
        time.sleep(0.5)
        assert not any(job.done() for job in jobs)
        server.start()
        for job in jobs:
            job.result(SOON).release()
        assert len(caplog.messages) == 1
    assert eventually(lambda: limits.stats == Stats(requests=5))


@needs_server
@pytest.mark.parametrize("on_unreachable", ["wait", "local", "error"])
def test_a_store_that_was_unreachable_while_nothing_was_open_is_used_again(server, shared, on_unreachable):
    limits = shared(on_unreachable=on_unreachable)
    acquired(limits).release()
    assert eventually(lambda: server.client().zcard(LEASES) == 0)
    server.kill()
    server.start()
    permit = acquired(limits)
    assert eventually(lambda: server.client().zcard(LEASES) == 1)
    permit.release()


@needs_server
def test_waiting_callers_that_give_up_during_an_outage_leave_nothing_behind(server, shared):
    limits = shared()
    server.kill()
    assert blocked(limits)
    assert eventually(lambda: limits.stats == Stats())
    server.start()
    acquired(limits).release()


@needs_server
def test_each_process_applies_the_limits_by_itself_while_the_store_is_unreachable(server, shared, caplog):
    limits = shared(max_concurrency=2, on_unreachable="local")
    first = acquired(limits)
    server.kill()
    second = acquired(limits)
    assert blocked(limits)
    first.release()
    acquired(limits).release()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    server.start()
    assert eventually(lambda: server.client().hexists(LIMITS, "state"))
    assert eventually(lambda: json.loads(server.client().hget(LIMITS, "state"))["open"] == 1)
    second.release()
    acquired(limits).release()


@needs_server
def test_with_on_unreachable_error_a_call_fails_and_works_again_when_the_store_is_back(server, shared):
    limits = shared(on_unreachable="error")
    with FakeGateway() as gateway, PremClient(**gateway.settings(limits=limits)) as client:
        client.chat.completions.create(**PARAMS)
        server.kill()
        with pytest.raises(
            APIConnectionError, match=r"shared limits at redis://127.0.0.1:\d+ is unreachable"
        ) as caught:
            client.chat.completions.create(**PARAMS)
        assert not caught.value.request_sent
        server.start()
        client.chat.completions.create(**PARAMS)
        assert len(gateway.chats()) == 2


@needs_server
async def test_a_wrong_password_is_an_error_that_does_not_show_it():
    with RedisServer("--requirepass", "sesame") as server:
        url = server.url.replace("://", "://:swordfish@")
        for wrong in (url, server.url):
            limits = SharedLimits(wrong, name="acme")
            for _ in range(2):
                with pytest.raises(ConfigurationError, match="rejected the request") as caught:
                    await Permit(limits).acquire_async()
                assert "swordfish" not in str(caught.value)
        right = SharedLimits(url.replace("swordfish", "sesame"), name="acme")
        permit = Permit(right)
        await permit.acquire_async()
        permit.release()


# --- what the store holds


@needs_server
def test_the_store_holds_no_prompt_answer_or_api_key(server, shared):
    seen = []

    def secret(call):
        call.stream(
            call.opened().stream(
                {"choices": [{"index": 0, "delta": {"content": "swordfish"}, "finish_reason": "stop"}]}
            )
        )

    with server.client().monitor() as monitor, FakeGateway(secret) as gateway:
        limits = shared(tokens_per_minute=38_000)
        settings = gateway.settings(limits=limits, api_key="sk_test_swordfish")
        with PremClient(**settings) as client:
            for stream in (False, True):
                answer = client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": "swordfish"}], stream=stream
                )
                if stream:
                    list(answer)
        limits._store.leave()
        server.client().set("the", "end")
        for command in monitor.listen():
            seen.append(command["command"])
            if command["command"] == "SET the end":
                break
    assert any("EVALSHA" in command for command in seen)
    assert not any("swordfish" in command or b"swordfish".hex() in command for command in seen)


# --- identity


@needs_server
def test_limits_with_equal_settings_are_one_holder_in_a_process(server, monkeypatch):
    monkeypatch.setenv("PREM_API_KEY", "sk_test_key")
    first = SharedLimits(server.url, name="acme", max_concurrency=4)
    second = SharedLimits(f"{server.url}?name=acme&max_concurrency=4")
    task = pickle.dumps(ChatPremEncrypted(model="m", limits=first))
    assert first._store is second._store is pickle.loads(task).limits._store
    assert first._store is not SharedLimits(server.url, name="acme")._store


@needs_server
def test_models_that_each_task_unpickles_share_a_client(server, monkeypatch):
    monkeypatch.setenv("PREM_API_KEY", "sk_test_key")
    with FakeGateway(stream_hello) as gateway:
        llm = ChatPremEncrypted(
            model="m",
            gateway_url=gateway.url,
            enclave_url=gateway.url,
            limits=SharedLimits(server.url, name="acme"),
        )
        task = pickle.dumps(llm)
        for _ in range(5):
            pickle.loads(task).invoke("Hello")
        assert gateway.paths().count("/publicKey") == 1


@needs_server
def test_the_variable_gives_all_clients_and_models_the_shared_limits(server, monkeypatch):
    monkeypatch.setenv("PREM_LIMITS_URL", f"{server.url}/0?name=acme&requests_per_second=50&burst=4&lease=9")
    with FakeGateway() as gateway:
        llm = ChatPremEncrypted(model="m", **gateway.settings())
        with PremClient(**gateway.settings()) as client:
            assert isinstance(client.limits, SharedLimits)
            llm.invoke("Hello")
            assert client.stats.requests == llm.stats.requests
        own = Limits(1)
        with PremClient(**gateway.settings(limits=own)) as client:
            assert client.limits is own
        with pytest.raises(ConfigurationError, match="pass max_concurrency in PREM_LIMITS_URL"):
            PremClient(**gateway.settings(max_concurrency=3))


# --- settings: no server is needed


URL = "redis://localhost:1"


def test_a_pickle_has_no_password_and_the_variable_supplies_it(monkeypatch):
    limits = SharedLimits("rediss://me:swordfish@store.example/2?name=acme", burst=3)
    assert b"swordfish" not in pickle.dumps(limits)
    assert "swordfish" not in repr(limits)
    assert repr(limits) == "SharedLimits('rediss://me@store.example/2', name='acme', burst=3)"
    assert pickle.loads(pickle.dumps(limits)) == copy.deepcopy(limits) == limits
    sent, own_store = pickle.dumps(limits), limits._store
    monkeypatch.setattr("prem_core._rate_limit.shared._stores", {})  # as in another process
    assert pickle.loads(sent)._store._settings.url == "rediss://me@store.example/2"
    monkeypatch.setenv("PREM_LIMITS_URL", "rediss://me:swordfish@store.example/2?name=other")
    assert pickle.loads(sent)._store._settings == own_store._settings


def test_the_options_may_be_in_the_url_and_arguments_override_them():
    limits = SharedLimits(
        f"{URL}?name=acme&max_concurrency=7&max_streams=2&tokens_per_minute=1e4", max_concurrency=9
    )
    assert (limits.name, limits.max_concurrency, limits.max_streams) == ("acme", 9, 2)
    assert limits._options["tokens_per_minute"] == 10_000


@pytest.mark.parametrize("url", ["redis://store.example", "redis://:secret@10.0.0.1:6379/0"])
def test_redis_without_tls_to_another_machine_needs_allow_insecure(url):
    with pytest.raises(ConfigurationError, match="rediss://, or pass allow_insecure=True") as caught:
        SharedLimits(url, name="acme")
    assert "secret" not in str(caught.value)
    SharedLimits(url, name="acme", allow_insecure=True)
    SharedLimits(f"{url}?name=acme&allow_insecure=true")
    SharedLimits(url.replace("redis:", "rediss:"), name="acme")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"name": ""}, "name"),
        ({"name": "a b"}, "name"),
        ({"name": "{acme}"}, "name"),
        ({}, "name"),
        ({"name": "acme", "max_concurrency": 0}, "max_concurrency"),
        ({"name": "acme", "max_streams": 1.5}, "max_streams"),
        ({"name": "acme", "requests_per_second": -1}, "requests_per_second"),
        ({"name": "acme", "burst": 0.5}, "burst"),
        ({"name": "acme", "tokens_per_minute": 0}, "tokens_per_minute"),
        ({"name": "acme", "audio_seconds_per_minute": "ten"}, "audio_seconds_per_minute"),
        ({"name": "acme", "lease": 0}, "lease"),
        ({"name": "acme", "on_unreachable": "hope"}, "on_unreachable"),
        ({"name": "acme", "allow_insecure": "no"}, "allow_insecure"),
    ],
)
def test_an_invalid_option_is_an_error_that_names_it(options, named):
    with pytest.raises(ConfigurationError, match=named):
        SharedLimits(URL, **options)


@pytest.mark.parametrize(
    "url", ["http://localhost", "redis://", "redis://[", "localhost:6379", "redis://localhost:port"]
)
def test_a_url_of_another_kind_is_an_error(url):
    with pytest.raises(ConfigurationError, match="URL"):
        SharedLimits(url, name="acme")


def test_an_invalid_option_in_the_variable_is_an_error_that_names_both(monkeypatch):
    monkeypatch.setenv("PREM_LIMITS_URL", f"{URL}?name=acme&burst=many")
    with pytest.raises(ConfigurationError, match="PREM_LIMITS_URL has an invalid value for burst"):
        SharedLimits()


def test_without_a_url_the_error_names_the_variable():
    with pytest.raises(ConfigurationError, match="PREM_LIMITS_URL"):
        SharedLimits(name="acme")


def test_an_unknown_option_is_a_type_error():
    with pytest.raises(TypeError, match="requests"):
        SharedLimits(URL, name="acme", requests=5)


def test_without_the_extra_the_error_has_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ConfigurationError, match=r'pip install "prem-encrypted\[redis\]"'):
        SharedLimits("redis://localhost:2", name="acme")


def test_redis_is_not_imported_without_shared_limits():
    code = (
        "import sys, prem_core, prem_core._rate_limit.shared; from prem_core import SharedLimits; "
        "prem_core.PremClient(api_key='k').close(); assert 'redis' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
