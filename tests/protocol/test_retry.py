import os
import time
from datetime import UTC, datetime
from email.utils import format_datetime, formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fake_gateway import PARAMS, FlowHarness, ScriptedResponse, default_settings

from prem_core import _errors as errors
from prem_core._protocol.retry import (
    FIRST_DELAY,
    MAX_DELAY,
    MAX_RATE_LIMITED,
    MAX_RETRY_AFTER,
    RetryPolicy,
    parse_retry_after,
    shared_backoff,
)

NOW = 1_700_000_000.0
DICE = st.floats(0, 1, exclude_max=True)
BROKEN = errors.APIConnectionError("the connection broke")


def limited(retry_after=None):
    return errors.RateLimitError("slow down", status_code=429, retry_after=retry_after)


def test_the_backoff_doubles_up_to_its_limit():
    policy = RetryPolicy(max_retries=8, rng=lambda: 0.0)
    assert [policy.delay(n, BROKEN) for n in range(7)] == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]


@given(retries=st.integers(0, 100_000), dice=DICE)
def test_the_backoff_is_always_between_a_quarter_second_and_the_limit(retries, dice):
    delay = RetryPolicy(max_retries=retries + 1, rng=lambda: dice).delay(retries, BROKEN)
    assert FIRST_DELAY / 2 <= delay <= MAX_DELAY


@given(st.integers(0, 20), DICE, DICE)
def test_jitter_shortens_the_backoff_by_up_to_a_half(retries, one, other):
    def delay(dice):
        return RetryPolicy(max_retries=100, rng=lambda: dice).delay(retries, BROKEN)

    assert delay(0.0) / 2 <= delay(one) <= delay(0.0)
    assert delay(max(one, other)) <= delay(min(one, other))
    assert delay(0.75) < delay(0.25)


def test_jitter_is_random_by_default():
    policy = RetryPolicy()
    assert len({policy.delay(0, BROKEN) for _ in range(50)}) > 10


@pytest.mark.parametrize("max_retries", range(5))
def test_there_is_no_backoff_after_the_last_attempt(max_retries):
    policy = RetryPolicy(max_retries=max_retries)
    assert all(policy.delay(n, BROKEN) is not None for n in range(max_retries))
    assert policy.delay(max_retries, BROKEN) is None


@given(asked=st.floats(0, MAX_RETRY_AFTER), retries=st.integers(0, 20), dice=DICE)
def test_retry_after_is_never_shortened(asked, retries, dice):
    delay = RetryPolicy(max_retries=100, rng=lambda: dice).delay(retries, limited(asked))
    assert asked <= delay <= asked + MAX_DELAY


@pytest.mark.parametrize("asked", [MAX_RETRY_AFTER + 0.1, 3600.0, 1e9])
def test_a_retry_after_above_the_limit_is_raised_to_the_caller(asked):
    assert RetryPolicy().delay(0, limited(asked)) is None


def test_retries_with_the_same_retry_after_are_spread():
    assert len({RetryPolicy().delay(0, limited(1.0)) for _ in range(50)}) > 10


@pytest.mark.parametrize("status", range(300, 600))
def test_only_retryable_statuses_are_retried(status):
    error = errors.APIStatusError("no", status_code=status)
    assert error.is_retryable is (status in {408, 409, 429} or status >= 500)
    assert (RetryPolicy().delay(0, error) is not None) is error.is_retryable


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errors.APIConnectionError("x"), True),
        (errors.APITimeoutError("x"), True),
        (errors.StreamInterruptedError("x"), True),
        (errors.APIError("x"), False),
        (errors.APIResponseValidationError("x"), False),
        (errors.ResponseTooLargeError("x"), False),
        (errors.APIStatusError("x"), False),
    ],
)
def test_a_failed_connection_is_retried_and_an_invalid_response_is_not(error, expected):
    assert error.is_retryable is expected


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
def test_a_429_and_a_503_with_a_retry_after_pause_all_callers(status, retry_after, delay, pause):
    error = errors.APIStatusError("", status_code=status, retry_after=retry_after)
    assert shared_backoff(error, delay) == pause


def test_a_failed_connection_pauses_only_its_own_call():
    assert shared_backoff(BROKEN, 0.5) is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("0", 0), ("5", 5), (" 7 ", 7), ("1.5", 1.5), ("3600", 3600), ("-3", 0), ("-0", 0), ("-inf", 0)],
)
def test_retry_after_in_seconds_is_read(value, seconds):
    assert parse_retry_after(value, NOW) == seconds


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        " ",
        "soon",
        "5s",
        "0x10",
        "nan",
        "NaN",
        "-nan",
        "1,5",
        "5;6",
        "99 Foo 2020",
        "Fri, 99 Nov 2023 99:99:99 GMT",
    ],
)
def test_an_invalid_retry_after_is_none(value):
    assert parse_retry_after(value, NOW) is None


@pytest.mark.parametrize(
    "value", ["inf", "Infinity", "1e400", "1e308", "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT"]
)
def test_a_huge_retry_after_is_never_slept(value):
    seconds = parse_retry_after(value, NOW)
    assert seconds is not None
    assert MAX_RETRY_AFTER < seconds < float("inf")
    assert RetryPolicy().delay(0, limited(seconds)) is None


@given(st.text(max_size=40))
def test_any_retry_after_is_parsed_without_an_error(value):
    seconds = parse_retry_after(value, NOW)
    assert seconds is None or 0 <= seconds < float("inf")


@given(st.integers(-100_000, 100_000))
def test_a_retry_after_date_is_read_as_seconds_from_now(offset):
    value = formatdate(NOW + offset, usegmt=True)
    assert parse_retry_after(value, NOW) == max(offset, 0)


@pytest.fixture(params=["UTC", "Asia/Tokyo", "America/Los_Angeles"])
def zone(request, monkeypatch):
    monkeypatch.setitem(os.environ, "TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("zone")
@pytest.mark.parametrize(
    "value",
    [
        "Sun, 06 Nov 1994 08:49:37 GMT",
        "Sunday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994",
        "Sun, 06 Nov 1994 08:49:37 -0000",
    ],
)
def test_every_form_of_an_http_date_is_gmt_in_any_time_zone(value):
    # RFC 9110, 5.6.7: a recipient must read all three forms, and the time is always UTC.
    then = datetime(1994, 11, 6, 8, 49, 37, tzinfo=UTC)
    assert parse_retry_after(value, then.timestamp() - 100) == 100
    assert parse_retry_after(format_datetime(then, usegmt=True), then.timestamp() - 100) == 100


@pytest.mark.parametrize("max_retries", [0, 1, 3])
@pytest.mark.parametrize(
    "failure",
    [
        BROKEN,
        ScriptedResponse([b"{}"], 503),
        ScriptedResponse([b""], 408),
    ],
)
def test_max_retries_counts_the_attempts_after_the_first(max_retries, failure):
    harness = FlowHarness(default_settings(max_retries=max_retries, retry_after_send=True), answers=[failure])
    with pytest.raises(errors.APIError):
        harness.complete()
    assert len(harness.sent) == max_retries + 1
    assert harness.sleeps == [0.5, 1.0, 2.0][:max_retries]


def test_a_service_that_recovers_is_retried_successfully():
    answers = [BROKEN, ScriptedResponse([b""], 503), lambda opened: opened.stream()]
    harness = FlowHarness(default_settings(retry_after_send=True), answers=answers)
    assert harness.complete().choices[0].message.content == "Hello"
    assert len(harness.sent) == 3


RATE_LIMITS = [
    ScriptedResponse([b""], 429, {"retry-after": "1"}),
    ScriptedResponse([b"<html>"], 429),
    ScriptedResponse([b""], 503, {"retry-after": "1"}),
]


@pytest.mark.parametrize("limited", RATE_LIMITS)
def test_a_rate_limit_does_not_use_up_max_retries(limited):
    unavailable = ScriptedResponse([b""], 500)
    answers = [limited] * 6 + [unavailable] + [limited] * 3 + [lambda opened: opened.stream()]
    harness = FlowHarness(default_settings(max_retries=1), answers=answers)
    assert harness.complete().choices[0].message.content == "Hello"
    assert len(harness.sent) == 11


def test_a_failed_connection_uses_up_max_retries_between_rate_limits():
    answers = [RATE_LIMITS[0], BROKEN, RATE_LIMITS[0], BROKEN, RATE_LIMITS[0], lambda opened: opened.stream()]
    harness = FlowHarness(default_settings(max_retries=1, retry_after_send=True), answers=answers)
    with pytest.raises(errors.APIConnectionError):
        harness.complete()
    assert len(harness.sent) == 4


@pytest.mark.parametrize("limited", RATE_LIMITS)
def test_with_max_retries_zero_a_rate_limit_is_raised(limited):
    harness = FlowHarness(default_settings(max_retries=0), answers=[limited])
    with pytest.raises(errors.APIStatusError):
        harness.complete()
    assert len(harness.sent) == 1


@pytest.mark.parametrize("limited", RATE_LIMITS)
@pytest.mark.parametrize("request_", ["chat", "models"])
def test_rate_limits_of_more_than_ten_minutes_end_a_call(limited, request_):
    harness = FlowHarness(answers=[limited])
    harness.client = default_settings(clock=lambda: sum(harness.sleeps))
    with pytest.raises(errors.APIStatusError):
        harness.complete() if request_ == "chat" else harness.models()
    assert MAX_RATE_LIMITED < sum(harness.sleeps) < MAX_RATE_LIMITED + 2 * MAX_DELAY


@pytest.mark.parametrize("limited", RATE_LIMITS)
def test_total_timeout_ends_a_call_that_is_rate_limited(limited):
    harness = FlowHarness(answers=[limited])
    harness.client = default_settings(clock=lambda: sum(harness.sleeps), deadline=20.0)
    with pytest.raises(errors.APITimeoutError):
        harness.complete()
    assert sum(harness.sleeps) < 20


def test_a_retry_waits_for_retry_after():
    harness = FlowHarness(
        answers=[ScriptedResponse([b""], 429, {"retry-after": "7"}), lambda opened: opened.stream()]
    )
    harness.complete()
    assert harness.sleeps == [7 + FIRST_DELAY / 4]


def test_a_retry_after_date_counts_from_the_time_of_the_response():
    headers = {"retry-after": formatdate(NOW + 20, usegmt=True)}
    harness = FlowHarness(
        answers=[ScriptedResponse([b""], 503, headers, received=NOW), lambda opened: opened.stream()]
    )
    harness.complete()
    assert harness.sleeps == [20 + FIRST_DELAY / 4]


def test_a_retry_after_of_an_hour_is_raised_and_not_slept():
    harness = FlowHarness(answers=[ScriptedResponse([b""], 429, {"retry-after": "3600"})])
    with pytest.raises(errors.RateLimitError) as caught:
        harness.complete()
    assert caught.value.retry_after == 3600
    assert harness.sleeps == []


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 413, 422, 451])
def test_a_rejected_request_is_not_retried(status):
    harness = FlowHarness(answers=[ScriptedResponse([b"{}"], status)])
    with pytest.raises(errors.APIStatusError):
        harness.complete()
    assert len(harness.sent) == 1


def test_there_is_no_retry_after_the_first_chunk():
    def cut(opened):
        return ScriptedResponse(
            [opened.events({"choices": [{"index": 0, "delta": {"content": "a"}}]}), BROKEN]
        )

    for run in (lambda harness: harness.complete(), lambda harness: list(harness.stream())):
        harness = FlowHarness(default_settings(retry_after_send=True), answers=[cut])
        with pytest.raises(errors.APIConnectionError):
            run(harness)
        assert len(harness.sent) == 1
        assert harness.sleeps == []


def test_a_stream_that_fails_before_its_first_chunk_is_retried_with_retry_after_send():
    harness = FlowHarness(
        default_settings(retry_after_send=True),
        answers=[
            ScriptedResponse([b": hello\n\n", BROKEN]),
            ScriptedResponse([]),
            lambda opened: opened.stream(),
        ],
    )
    assert len(list(harness.stream())) == 5
    assert len(harness.sent) == 3


def test_every_attempt_sends_the_same_parameters():
    answers = [lambda _: BROKEN, lambda _: BROKEN, lambda opened: opened.stream()]
    harness = FlowHarness(default_settings(retry_after_send=True), answers=answers)
    harness.complete(seed=7)
    assert [opened.params for opened in harness.opened] == [{**PARAMS, "seed": 7}] * 3
