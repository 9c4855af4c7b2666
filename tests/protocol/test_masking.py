"""`request_masking`: the random characters before a request, and its length."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fake_gateway import PARAMS, FlowHarness, default_settings
from support.wire_schemas import PARAMS as PUBLISHED

from prem_core import _errors as errors
from prem_core._protocol.masking import (
    MAX_PAIRS,
    MIN_MASK,
    PADDING_NAME,
    VALUE_LENGTH,
    padme,
    without_padding,
)
from prem_core._protocol.request_schema import chat_request

#: The longest chunk that is expected: one that carries a whole tool call.
LONGEST_CHUNK = 2000

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}

#: Requests with every number of members in the caller's metadata.
METADATA = [None, *({f"name {n}": "v" * 512 for n in range(count)} for count in range(MAX_PAIRS + 1))]
metadata = pytest.mark.parametrize(
    "metadata", METADATA, ids=lambda value: "none" if value is None else str(len(value))
)


def masked(params):
    return chat_request({**PARAMS, **params}).plaintext(masked=True)


def with_metadata(value):
    return {} if value is None else {"metadata": value}


@metadata
def test_a_masked_request_satisfies_the_published_schema(metadata):
    sent = json.loads(masked(with_metadata(metadata)))
    assert [error.message for error in PUBLISHED.iter_errors(sent)] == []


@metadata
def test_the_mask_adds_nothing_but_members_of_metadata_in_front_of_the_callers(metadata):
    given = {**PARAMS, **with_metadata(metadata), "temperature": 0.5}
    sent = json.loads(masked(given))
    assert without_padding(sent) == {name: value for name, value in given.items() if value != {}}
    names = list(sent.get("metadata", {}))
    added = [name for name in names if name.startswith(PADDING_NAME)]
    assert names == [*added, *(metadata or ())]


@metadata
def test_the_first_bytes_of_every_attempt_are_random(metadata):
    one, other = masked(with_metadata(metadata)), masked(with_metadata(metadata))
    assert len(one) == len(other)
    assert json.loads(one) != json.loads(other) or len(metadata or ()) == MAX_PAIRS
    # Within the first 2,000 bytes only the names of the members are the same.
    differing = sum(a != b for a, b in zip(one[:LONGEST_CHUNK], other[:LONGEST_CHUNK], strict=True))
    assert differing > LONGEST_CHUNK * 0.6


def test_the_mask_of_each_attempt_is_fresh():
    harness = FlowHarness(
        default_settings(retry_after_send=True),
        answers=[lambda _: errors.APITimeoutError("x"), lambda opened: opened.stream()],
    )
    harness.complete()
    one, other = (json.loads(opened.plaintext)["metadata"] for opened in harness.opened)
    assert one.keys() == other.keys()
    assert all(one[name] != other[name] for name in one)


def test_the_random_characters_are_of_64_kinds_and_evenly_spread():
    text = "".join(value for _ in range(200) for value in json.loads(masked({}))["metadata"].values())
    assert re.fullmatch("[A-Za-z0-9_-]+", text)
    counts = {letter: text.count(letter) for letter in set(text)}
    assert len(counts) == 64
    assert max(counts.values()) < 1.2 * min(counts.values())


@metadata
def test_no_byte_of_the_callers_is_among_those_that_a_chunk_can_reveal(metadata):
    secret = {"zebra " + name: "zebra" for name in (metadata or {})}
    params = {"model": "zebra", "messages": [{"role": "user", "content": "zebra"}], **with_metadata(secret)}
    plain = chat_request(params).plaintext(masked=True)
    # The first 2,048 bytes of text are random; where the caller's metadata leaves no room, they are whitespace.
    assert plain.index(b"zebra") >= MIN_MASK


@given(st.integers(0, 60_000))
def test_the_length_of_a_masked_request_is_a_bucket_of_padme(size):
    assert _is_bucket(len(masked({"messages": [{"role": "user", "content": "x" * size}]})))


@metadata
def test_the_length_is_a_bucket_with_any_metadata_of_the_callers(metadata):
    for text in ("", "x", "x" * 1000):
        plain = masked({**with_metadata(metadata), "messages": [{"role": "user", "content": text}]})
        assert _is_bucket(len(plain))


def _is_bucket(size):
    return padme(size) == size


@given(st.integers(1, 1 << 30))
def test_padme_adds_at_most_12_percent(size):
    assert size <= padme(size) <= size * 1.12
    assert padme(padme(size)) == padme(size)


@given(st.integers(0, 100_000))
def test_the_mask_costs_at_most_its_minimum_and_12_percent(size):
    params = {**PARAMS, "messages": [{"role": "user", "content": "x" * size}]}
    plain = len(chat_request(params).plaintext())
    largest = (plain + MIN_MASK + 200) * 1.12
    assert MIN_MASK <= len(masked(params)) - plain <= largest - plain


def test_without_masking_the_request_is_sent_as_it_is():
    harness = FlowHarness(default_settings(request_masking=False))
    harness.complete(temperature=0.5)
    assert json.loads(harness.opened[0].plaintext) == {**PARAMS, "temperature": 0.5}


@pytest.mark.parametrize("masking", [True, False])
def test_messages_are_the_last_parameter(masking):
    params = {
        "messages": PARAMS["messages"],
        "model": "m",
        "tools": [TOOL],
        "temperature": 0.5,
        "metadata": {"a": "b"},
    }
    plain = chat_request(params).plaintext(masked=masking)
    assert list(json.loads(plain)) == ["metadata", "model", "tools", "temperature", "messages"]


def test_a_metadata_that_is_no_object_is_sent_as_the_caller_wrote_it():
    # Only `extra_body` is sent without a check.
    plain = chat_request(PARAMS, {"metadata": "zebra"}).plaintext(masked=True)
    assert json.loads(plain) == {**PARAMS, "metadata": "zebra"}
    assert plain.index(b"zebra") >= MIN_MASK
    assert _is_bucket(len(plain))


def test_the_values_are_no_longer_than_the_schema_allows():
    values = json.loads(masked({}))["metadata"].values()
    assert max(map(len, values)) <= VALUE_LENGTH


@pytest.mark.parametrize("value", ["yes", None, 1])
def test_a_bad_request_masking_is_refused(value):
    from prem_core import ConfigurationError, PremClient

    with pytest.raises(ConfigurationError, match="request_masking must be True or False"):
        PremClient(api_key="k", request_masking=value)
