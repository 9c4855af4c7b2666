"""Any stream, valid or not, yields the same chunks and the same error however it is split.

`tests/protocol/test_sse.py` tests this for events; here it is the whole reader, with streams of every kind, and then
both clients on real sockets.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.fake_gateway import DONE, FakeEnclave, FakeGateway, OpenedRequest, ReceivedRequest, chunk, event
from support.security.conversations import texts, values

from prem_core import AsyncPremClient, PremClient, PremError
from prem_core._crypto.aead import new_nonce
from prem_core._crypto.keys import EncryptionKeys
from prem_core._protocol.chat_stream import ChatStreamReader
from prem_core._protocol.request_body import chat_body

ENCLAVE = FakeEnclave()
KEYS = EncryptionKeys.encapsulate(ENCLAVE.public)
OPENED: OpenedRequest = ENCLAVE.open(chat_body(KEYS, b"{}", new_nonce()))
FINISH = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}

_deltas = st.fixed_dictionaries(
    {}, optional={"content": texts | st.none(), "reasoning_content": texts, "refusal": texts, "role": texts}
)
_tool_deltas = st.builds(
    lambda index, call_id, text: {
        "tool_calls": [{"index": index, "id": call_id, "function": {"arguments": text}}]
    },
    st.integers(0, 3) | st.none(),
    texts | st.none(),
    texts,
)
_choices = st.builds(
    lambda index, delta, reason: {"index": index, "delta": delta, "finish_reason": reason},
    st.integers(0, 2),
    _deltas | _tool_deltas | st.just([]),
    st.sampled_from([None, None, None, "stop", "length"]),
)
#: Contents of a chunk: as in the schema, an error, or anything at all.
_contents = (
    st.builds(lambda choices: {"choices": choices}, st.lists(_choices, max_size=2))
    | st.builds(lambda text: {"error": {"message": text}}, texts)
    | st.dictionaries(texts, values, max_size=2)
)
_sealed = st.builds(lambda content: OPENED.seal(chunk(content)).encode(), _contents)
_data = (
    _sealed
    | st.builds(lambda contents: OPENED.seal(json.dumps(contents).encode()).encode(), values)
    | st.builds(lambda contents: json.dumps({"error": contents}).encode(), values)
    | st.sampled_from([b"[DONE]", b"", b"zz", b"{", b"00" * 30])
)
_events = (
    st.builds(
        lambda name, data, end: b"event: " + name + end + b"data: " + data + end + end,
        st.sampled_from([b"data", b"data", b"data", b"error", b"done", b"ping", b"message"]),
        _data,
        st.sampled_from([b"\n", b"\n", b"\r\n", b"\r"]),
    )
    | st.builds(lambda data: b"data:" + data + b"\n\n", _data)
    | st.sampled_from(
        [b": ping\n\n", b"\n", b"\r\n\r\n", b"id: 1\nretry: 5\n", b"\xef\xbb\xbf", b"data", b"event: data\n"]
    )
    | st.binary(max_size=5)
)
_good = st.builds(lambda contents: event("data", OPENED.seal(chunk(contents))), _contents)

#: Streams that mostly start with valid chunks, and end in every way.
streams = st.builds(
    lambda start, more, end: b"".join([*start, *more, end]),
    st.lists(_good, max_size=4),
    st.lists(_events, max_size=6),
    st.sampled_from([b"", DONE, event("data", OPENED.seal(chunk(FINISH))) + DONE, b"data: [DONE]\n\n"]),
)
places = st.lists(st.integers(0, 1 << 16), max_size=12)


def split(stream: bytes, at: Iterable[int]) -> list[bytes]:
    """`stream`, split at these places."""
    marks = [0, *sorted(each % (len(stream) + 1) for each in at), len(stream)]
    return [stream[a:b] for a, b in itertools.pairwise(marks)]


def read(pieces: Sequence[bytes]) -> tuple[list[Any], Any]:
    """The chunks of a stream in these pieces, and the class and text of its error."""
    reader = ChatStreamReader(KEYS, OPENED.nonce, 1 << 20)
    chunks: list[Any] = []
    try:
        for piece in pieces:
            # One by one, so that the chunks before an error are kept.
            for each in reader.feed(piece):
                chunks.append(each)
        reader.finish()
    except PremError as error:
        return chunks, (type(error), str(error))
    return chunks, None


@given(streams, places)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example(event("data", OPENED.seal(chunk(FINISH))) + DONE, [1, 7, 100])
def test_any_stream_is_read_the_same_however_it_is_split(stream: bytes, at: list[int]) -> None:
    assert read(split(stream, at)) == read([stream])


@given(streams)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_stream_is_read_the_same_byte_by_byte(stream: bytes) -> None:
    assert read([stream[i : i + 1] for i in range(len(stream))]) == read([stream])


# --- on real sockets


class SplitResponse:
    """A chat handler that streams `contents`, split at the places in `at`."""

    def __init__(self) -> None:
        self.contents: list[dict[str, Any]] = []
        self.at: list[int] = []

    def __call__(self, call: ReceivedRequest) -> None:
        stream = call.opened().events(*self.contents, FINISH) + DONE
        # An empty HTTP chunk would end the response.
        call.stream(*filter(None, split(stream, self.at)))


@pytest.fixture(scope="module")
def split_response() -> Iterator[tuple[SplitResponse, str]]:
    made = SplitResponse()
    with FakeGateway(made, enclave=ENCLAVE) as gateway:
        yield made, gateway.url


_parts = st.lists(
    st.builds(
        lambda text: {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}, texts
    ),
    min_size=1,
    max_size=6,
)


@given(_parts, places)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_both_clients_read_the_same_however_the_network_splits_a_stream(
    split_response: tuple[SplitResponse, str], contents: list[dict[str, Any]], at: list[int]
) -> None:
    handler, url = split_response
    handler.contents, handler.at = contents, at
    options: Any = {"api_key": "k", "gateway_url": url, "enclave_url": url, "max_retries": 0}
    params: Any = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "stream": True}

    async def asynchronously() -> list[Any]:
        async with AsyncPremClient(**options) as client:
            return [each async for each in await client.chat.completions.create(**params)]

    with PremClient(**options) as client:
        chunks = list(client.chat.completions.create(**params))
    text = "".join(choice.delta.content or "" for each in chunks for choice in each.choices)
    assert text == "".join(each["choices"][0]["delta"]["content"] for each in contents)
    assert asyncio.run(asynchronously()) == chunks
