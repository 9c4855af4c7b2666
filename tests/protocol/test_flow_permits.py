"""When a request acquires its permit, and how it is released."""

import pytest
from support.client_api import CHUNK
from support.fake_gateway import (
    COMPLETION,
    HELLO,
    JSON,
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


# --- streams


STREAM_REFUSED = ScriptedResponse(
    [b'{"error": "You already have an active chat stream. Please wait for it to complete"}'],
    429,
    {"retry-after": "1", "content-type": "application/json"},
)


def test_a_stream_refused_because_of_another_one_delays_only_streams():
    harness = harness_of(STREAM_REFUSED, whole)
    assert len(list(harness.stream())) == 5
    assert harness.releases == [Release(1.0 + FIRST_DELAY / 4, True, stream_refused=True)]


def test_the_same_message_for_a_request_that_is_no_stream_is_a_rate_limit():
    harness = harness_of(STREAM_REFUSED, whole)
    harness.complete()
    assert harness.releases == [Release(1.0 + FIRST_DELAY / 4, True, 1.0)]


# --- what a request is charged


def charges(harness):
    return [step.charge for step in harness.steps if isinstance(step, Acquire)]


@pytest.mark.parametrize("ask", [FlowHarness.complete, lambda harness, **more: list(harness.stream(**more))])
def test_the_charge_is_an_estimate_and_then_the_usage_of_the_answer(ask):
    harness = harness_of(whole)
    ask(harness, messages=[{"role": "user", "content": "word " * 800}])
    (charge,) = charges(harness)
    assert 1000 < charge.tokens < 1050
    assert charge.used_tokens == 5


def test_a_stream_without_usage_is_charged_a_token_for_each_chunk():
    harness = harness_of(lambda opened: opened.stream(*HELLO[:-1]))
    list(harness.stream())
    (charge,) = charges(harness)
    assert charge.used_tokens == charge.tokens + 4


def test_an_envelope_is_charged_its_usage():
    answer = {**COMPLETION, "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}}
    harness = harness_of(lambda opened: ScriptedResponse([opened.envelope(answer)], headers=dict(JSON)))
    harness.complete()
    assert [charge.used_tokens for charge in charges(harness)] == [5]


def test_a_rejected_request_is_charged_nothing_and_its_retry_anew():
    harness = harness_of(limited(3), whole)
    harness.complete()
    first, second = charges(harness)
    assert (first.used_tokens, second.used_tokens) == (0, 5)


def test_a_truncated_stream_is_charged_its_estimate():
    harness = harness_of(lambda opened: ScriptedResponse([opened.events(CHUNK)]))
    with pytest.raises(errors.StreamInterruptedError):
        list(harness.stream())
    assert [charge.used_tokens for charge in charges(harness)] == [None]
