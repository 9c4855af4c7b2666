"""When a request acquires its permit, and how it is released."""

import pytest
from support.client_api import CHUNK
from support.fake_gateway import (
    KEY_ROTATED,
    FlowHarness,
    ScriptedResponse,
    default_settings,
    error_reply,
    event,
)

from prem_core import RateLimitError
from prem_core import _errors as errors
from prem_core._protocol.retry import FIRST_DELAY, MAX_RETRY_AFTER
from prem_core._protocol.steps import READ, Acquire, FetchKey, Release, Send, Sleep


def harness_of(*answers, **settings):
    return FlowHarness(default_settings(**settings), answers=answers)


def kinds(harness):
    return [type(step) for step in harness.steps if step is not READ]


#: The steps of each attempt.
ATTEMPT = (Acquire, Send)


def limited(retry_after):
    return ScriptedResponse([b""], 429, {"retry-after": str(retry_after)})


def whole(opened):
    return opened.stream()


def test_an_attempt_acquires_a_permit_and_then_sends():
    harness = harness_of(whole)
    harness.complete()
    assert kinds(harness) == [*ATTEMPT]


def test_a_429_releases_the_permit_with_a_pause_for_all_callers():
    harness = harness_of(limited(3), whole)
    harness.complete()
    assert kinds(harness) == [*ATTEMPT, Release, *ATTEMPT]
    assert harness.releases == [Release(3.0 + FIRST_DELAY / 4, True, 3.0)]


def test_a_503_with_a_retry_after_is_a_pause_for_all_but_no_rate_limit():
    harness = harness_of(ScriptedResponse([b""], 503, {"retry-after": "2"}), whole)
    harness.complete()
    assert kinds(harness) == [*ATTEMPT, Release, *ATTEMPT]
    assert harness.releases == [Release(2.0 + FIRST_DELAY / 4)]


@pytest.mark.parametrize(
    "answer", [error_reply(503, "busy"), error_reply(500, "no"), errors.APITimeoutError("gateway: slow")]
)
def test_another_failure_delays_only_its_own_call(answer):
    harness = harness_of(answer, whole, retry_after_send=True)
    harness.complete()
    assert kinds(harness) == [*ATTEMPT, Release, Sleep, *ATTEMPT]
    assert harness.releases == [Release()]


def test_after_a_key_rotation_the_permit_is_released_once_the_new_key_is_there():
    harness = harness_of(KEY_ROTATED, whole)
    harness.complete()
    assert kinds(harness) == [*ATTEMPT, FetchKey, Release, *ATTEMPT]


def test_the_last_429_pauses_the_other_callers_too():
    harness = harness_of(limited(3), max_retries=0)
    with pytest.raises(RateLimitError):
        harness.complete()
    assert harness.steps[-1] == Release(3.0, True, 3.0)


def test_a_429_with_a_retry_after_above_the_limit_is_counted_and_pauses_no_caller():
    harness = harness_of(limited(MAX_RETRY_AFTER + 1))
    with pytest.raises(RateLimitError):
        harness.complete()
    assert harness.releases == [Release(None, True, None)]


def test_a_rate_limit_in_mid_stream_is_counted():
    def answer(opened):
        error = event("error", '{"error": {"message": "slow down", "type": "rate_limit_error"}}')
        return ScriptedResponse([opened.events(CHUNK), error])

    harness = harness_of(answer)
    with pytest.raises(RateLimitError):
        harness.complete()
    assert len(harness.sent) == 1
    assert harness.releases == [Release(FIRST_DELAY, True, FIRST_DELAY)]
