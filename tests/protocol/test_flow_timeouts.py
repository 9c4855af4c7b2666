"""`total_timeout` and `stream_chunk_timeout`, on a clock of the test's own."""

import pytest
from support.client_api import CHUNK
from support.fake_gateway import FlowHarness, ScriptedResponse, default_settings

from prem_core import RateLimitError
from prem_core import _errors as errors


class TimeoutHarness(FlowHarness):
    """A `FlowHarness` whose clock shows the given times, one at each look and the last one for ever."""

    def __init__(self, *times, answers=(), **values):
        self.times = list(times)
        super().__init__(default_settings(clock=self.clock, **values), answers=answers)

    def clock(self):
        return self.times.pop(0) if len(self.times) > 1 else self.times[0]


def test_a_retry_that_would_start_after_the_deadline_is_a_timeout_at_once():
    answer = ScriptedResponse([b""], 429, {"retry-after": "3"})
    harness = TimeoutHarness(8.0, deadline=10.0, answers=[answer])
    with pytest.raises(errors.APITimeoutError, match="total_timeout") as caught:
        harness.complete()
    assert isinstance(caught.value.__cause__, RateLimitError)
    assert len(harness.sent) == 1
    assert harness.sleeps == []


def test_a_timeout_at_the_deadline_is_raised_as_it_is():
    failure = errors.APITimeoutError("the call took longer than total_timeout")
    harness = TimeoutHarness(10.0, deadline=10.0, answers=[failure])
    with pytest.raises(errors.APITimeoutError) as caught:
        harness.complete()
    assert caught.value is failure
    assert len(harness.sent) == 1


@pytest.mark.parametrize("ask", [lambda harness: harness.complete(), lambda harness: list(harness.stream())])
def test_keep_alive_comments_without_a_chunk_are_a_timeout(ask):
    answer = ScriptedResponse([b": keep-alive\n\n"] * 50)
    harness = TimeoutHarness(*range(100), chunk_timeout=5.0, max_retries=0, answers=[answer])
    with pytest.raises(errors.APITimeoutError, match="next chunk"):
        ask(harness)
    assert 5 <= harness.reads <= 7


def test_chunks_in_time_are_no_timeout_however_long_the_answer_takes():
    def slow(opened):
        return ScriptedResponse([opened.events(CHUNK)] * 50 + [opened.stream()])

    harness = TimeoutHarness(*range(1000), chunk_timeout=5.0, answers=[slow])
    assert harness.complete().choices[0].message.content.startswith("a" * 50)


def test_the_bytes_of_a_stream_are_waited_for_no_longer_than_its_chunks():
    harness = TimeoutHarness(0.0, chunk_timeout=5.0)
    harness.complete()
    assert [send.read_timeout for send in harness.sent] == [5.0]
