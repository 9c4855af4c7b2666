"""The script of the shared limits: what each call grants. It runs in a real server, else in fakeredis."""

import json
import re
import time
from importlib.resources import files

import pytest
from support.redis_server import PROGRAM, RedisServer

from prem_core._rate_limit import admission

SCRIPT = files("prem_core._rate_limit").joinpath("shared.lua").read_text("utf-8")
KEYS = [f"prem:{{acme}}:{part}" for part in ("limits", "leases", "line")]


@pytest.fixture(scope="module")
def server():
    if PROGRAM is None:
        fakeredis = pytest.importorskip("fakeredis")
        yield fakeredis.FakeRedis(decode_responses=True)
        return
    with RedisServer() as running:
        yield running.client()


@pytest.fixture
def store(server):
    server.flushall()
    return server


class Process:
    """A process that calls the script. Its requests are numbered."""

    def __init__(self, store, name, **config):
        self.store, self.name = store, name
        self.config = {"burst": 1, "lease": 600, **config}
        self.held, self.streams, self.want, self.number, self.wait = [], 0, [], 0, -1

    def ask(self, *items, done=(), known=False):
        """Ask for requests (tokens, stream, audio) as well, and return the numbers of those that are granted."""
        for item in items:
            self.number += 1
            self.want.append(
                [self.number, int(item.get("stream", 0)), item.get("tokens", 0), item.get("audio", 0)]
            )
        ask = {
            "config": self.config, "held": len(self.held), "streams": self.streams, "want": self.want,
            "done": list(done), "known": known, "ttl": 600,
        }  # fmt: skip
        text = self.store.eval(SCRIPT, len(KEYS), *KEYS, self.name, json.dumps(ask))
        answer = json.loads(text)
        numbers = [number for number, _ in answer["granted"] or ()]
        self.reserved = [reserved for _, reserved in answer["granted"] or ()]
        self.streams += sum(item[1] for item in self.want if item[0] in numbers)
        self.want = [item for item in self.want if item[0] not in numbers]
        self.held += numbers
        self.wait = answer["wait"]
        return numbers

    def end(self, *, stream=False, **outcome):
        """End the oldest request."""
        self.held.pop(0)
        self.streams -= stream
        return self.ask(done=[outcome] if outcome else [])


REQUEST = {}
STREAM = {"stream": True}


def test_no_more_requests_are_open_than_slots_over_all_processes(store):
    a, b = Process(store, "a", slots=3), Process(store, "b", slots=3)
    assert a.ask(REQUEST, REQUEST) == [1, 2]
    assert b.ask(REQUEST, REQUEST) == [1]
    a.end()
    assert b.ask() == [2]


def test_a_freed_slot_goes_to_the_process_that_waits_and_a_message_says_so(store):
    a, b = Process(store, "a", slots=1), Process(store, "b", slots=1)
    messages = store.pubsub(ignore_subscribe_messages=True)
    messages.subscribe("prem:{acme}:limits:b")
    messages.get_message(timeout=5)
    a.ask(REQUEST)
    assert b.ask(REQUEST) == []
    a.end()
    assert messages.get_message(timeout=5)["data"] == "granted"
    assert a.ask(REQUEST) == []
    assert b.ask() == [1]
    messages.close()


def test_permits_go_round_between_processes(store):
    batch, web = Process(store, "batch", slots=1), Process(store, "web", slots=1)
    assert batch.ask(*[REQUEST] * 10) == [1]
    assert web.ask(REQUEST) == []
    assert batch.end() == [2]
    assert batch.end() == []
    assert web.ask() == [1]
    web.end()
    assert batch.ask() == [3]


def test_a_rate_spaces_the_requests_of_all_processes(store):
    a, b = (Process(store, name, rate=0.1, burst=2) for name in "ab")
    assert a.ask(REQUEST) == [1]
    assert b.ask(REQUEST, REQUEST) == [1]
    assert 9 < b.wait <= 10
    assert a.ask(REQUEST) == []


def test_one_pause_holds_back_all_processes(store):
    a, b = Process(store, "a"), Process(store, "b")
    a.ask(REQUEST)
    a.end(pause=30)
    assert b.ask(REQUEST) == []
    assert 29 < b.wait <= 30


def test_a_429_spaces_the_requests_of_all_processes(store):
    a, b = Process(store, "a"), Process(store, "b")
    a.ask(REQUEST)
    a.end(spacing=10, age=0.001)
    assert b.ask(REQUEST) == []
    assert 1 < b.wait < 10
    assert json.loads(store.hget(KEYS[0], "state"))["rate"] == pytest.approx(0.1, abs=0.05)


def test_a_second_429_for_requests_of_the_same_time_does_not_slow_down_again(store):
    a = Process(store, "a")
    a.ask(REQUEST, REQUEST)
    a.end(spacing=10, age=0.001)
    rate = json.loads(store.hget(KEYS[0], "state"))["rate"]
    a.end(spacing=10, age=60)
    assert json.loads(store.hget(KEYS[0], "state"))["rate"] >= rate


def test_a_request_that_was_granted_too_late_gives_its_place_in_the_rate_back(store):
    a = Process(store, "a", rate=0.01, burst=1)
    assert a.ask(REQUEST) == [1]
    assert a.end(unused=True) == []
    assert a.ask(REQUEST) == [2]


# --- streams


def test_no_more_streams_are_open_than_max_streams_and_other_requests_pass(store):
    a, b = (Process(store, name, slots=5, streams=1) for name in "ab")
    assert a.ask(STREAM) == [1]
    assert b.ask(STREAM, REQUEST) == [2]
    a.end(stream=True)
    assert b.ask() == [1]


def test_a_refused_stream_delays_the_streams_of_all_processes_and_nothing_else(store):
    a, b = Process(store, "a"), Process(store, "b")
    a.ask(STREAM, STREAM)
    a.end(stream=True, refused=True, pause=20)
    assert b.ask(STREAM, REQUEST) == [2]
    assert b.wait >= 19


# --- tokens and audio


def test_tokens_are_reserved_and_corrected_by_the_usage(store):
    a, b = (Process(store, name, tokens=1000) for name in "ab")
    assert a.ask({"tokens": 600}) == [1]
    assert b.ask({"tokens": 600}) == []
    assert 11 < b.wait <= 12  # 200 of 1,000 a minute are missing
    a.end(reserved=600, used=100, estimate=600)
    assert b.ask() == [1]


def test_a_request_that_waits_for_tokens_is_not_overtaken_by_smaller_ones(store):
    a, b = (Process(store, name, tokens=1000) for name in "ab")
    a.ask({"tokens": 900})
    assert a.ask({"tokens": 500}) == []
    assert b.ask({"tokens": 50}) == []


def test_a_request_larger_than_a_minute_starts_when_all_tokens_are_there(store):
    a = Process(store, "a", tokens=1000)
    assert a.ask({"tokens": 5000}) == [1]
    assert a.ask({"tokens": 1}) == []
    assert a.wait > 230


def test_the_length_of_answers_is_learned(store):
    a = Process(store, "a", tokens=100_000)
    for _ in range(20):
        a.ask({"tokens": 100})
        a.end(reserved=a.reserved[0], used=400, estimate=100)
    a.ask({"tokens": 100})
    assert a.reserved[0] == pytest.approx(400, abs=10)


def test_a_rejected_request_costs_no_tokens(store):
    a = Process(store, "a", tokens=1000)
    a.ask({"tokens": 1000})
    reserved = a.reserved[0]
    a.end(reserved=reserved, used=0, estimate=1000)
    assert a.ask({"tokens": 1000}) == [2]


def test_seconds_of_audio_hold_back_recordings_only(store):
    a = Process(store, "a", audio=10)
    assert a.ask({"audio": 8}) == [1]
    assert a.ask({"audio": 5}, REQUEST) == [3]
    a.end(audio=-6)  # it was shorter than its header says
    assert a.held == [3, 2]


# --- what a killed process and a lost store leave


def test_the_permits_of_a_process_that_stops_renewing_its_lease_go_to_others(store):
    dead, alive = Process(store, "dead", slots=1, lease=0.05), Process(store, "alive", slots=1)
    dead.ask(REQUEST)
    assert alive.ask(REQUEST) == []
    assert 0 < alive.wait < 0.1
    time.sleep(0.1)
    assert alive.ask() == [1]


def test_a_process_that_comes_back_after_its_lease_ended_is_counted_again(store):
    slow, other = Process(store, "slow", slots=1, lease=0.05), Process(store, "other", slots=1)
    slow.ask(REQUEST)
    time.sleep(0.1)
    other.ask(REQUEST)
    slow.config["lease"] = 600
    slow.ask()
    other.end()
    assert other.ask(REQUEST) == []
    slow.end()
    assert other.ask() == [2]


def test_a_lost_response_costs_no_slot(store):
    a = Process(store, "a", slots=1)
    a.ask(REQUEST)
    a.held, a.want = [], [[1, 0, 0, 0]]  # as though the response had not arrived
    assert a.ask() == [1]


def test_after_the_store_lost_its_state_nothing_starts_until_all_could_report(store):
    a, b = (Process(store, name, slots=2, rate=1, burst=4) for name in "ab")
    a.ask(REQUEST)
    store.flushall()
    assert b.ask(REQUEST, known=True) == []
    assert 1 <= b.wait <= 2.1
    a.ask(known=True)
    assert json.loads(store.hget(KEYS[0], "state"))["open"] == 1


def test_nothing_is_kept_without_an_expiry_and_no_lease_without_a_permit(store):
    a = Process(store, "a", slots=1)
    a.ask(REQUEST, REQUEST)
    assert sorted(store.keys()) == sorted(KEYS)
    assert all(0 < store.ttl(key) <= 600 for key in KEYS)
    a.want = []
    a.end()
    assert store.keys() == KEYS[:1]
    assert list(store.hgetall(KEYS[0])) == ["state"]


def test_the_constants_of_the_script_are_those_of_the_limits_of_one_process():
    for name, value in re.findall(r"^local ([A-Z_]+) = (.+)$", SCRIPT, re.MULTILINE):
        if hasattr(admission, name) and name != "ROUNDING":
            assert eval(value) == getattr(admission, name)
