import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prem_core._errors import ResponseTooLargeError
from prem_core._protocol.sse import EventDecoder

MAX = 1 << 20


def decode(pieces, max_buffer_size=MAX):
    """The events of a stream that comes in these pieces, and whether one of them was too large."""
    decoder = EventDecoder(max_buffer_size)
    events = []
    try:
        for piece in pieces:
            for name, data in decoder.feed(piece):
                events.append((name.decode(), data.decode()))
    except ResponseTooLargeError:
        return events, True
    return events, False


def events(stream):
    return decode([stream])[0]


# Each case of the standard's section 9.2 that this protocol could meet, with the events it gives.
CASES = {
    "one event": (b"event: data\ndata: ab\n\n", [("data", "ab")]),
    "two events": (b"event: data\ndata: a\n\nevent: done\ndata: b\n\n", [("data", "a"), ("done", "b")]),
    "crlf": (b"event: data\r\ndata: ab\r\n\r\n", [("data", "ab")]),
    "cr": (b"event: data\rdata: ab\r\r", [("data", "ab")]),
    "lf, cr and crlf mixed": (
        b"event: data\r\ndata: a\rdata: b\n\r\nevent: x\rdata: c\r\n\ndata: d\n\r",
        [("data", "a\nb"), ("x", "c"), ("message", "d")],
    ),
    "lf then cr is two line ends": (b"data: a\n\rdata: b\n\r", [("message", "a"), ("message", "b")]),
    "byte order mark": (b"\xef\xbb\xbfdata: a\n\n", [("message", "a")]),
    "byte order mark before a comment": (b"\xef\xbb\xbf: hi\ndata: a\n\n", [("message", "a")]),
    "only the first byte order mark goes": (
        b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\ndata: b\n\n",
        [("message", "b")],
    ),
    "a byte order mark later is a part of the name": (
        b"data: a\n\n\xef\xbb\xbfdata: b\n\n",
        [("message", "a")],
    ),
    "comment": (b": keep-alive\ndata: a\n: in between\ndata: b\n\n", [("message", "a\nb")]),
    "comments alone": (b":\n\n: ping\n\n::\n\n", []),
    "several data lines": (b"data: a\ndata: b\ndata: c\n\n", [("message", "a\nb\nc")]),
    "empty data lines": (b"data:\ndata:\n\n", [("message", "\n")]),
    "one empty data line": (b"data:\n\n", [("message", "")]),
    "data without a colon": (b"data\n\n", [("message", "")]),
    "data twice without a colon": (b"data\ndata\n\n", [("message", "\n")]),
    "field without a colon": (b"whatever\ndata: a\n\n", [("message", "a")]),
    "data without a space": (b"data:a\n\n", [("message", "a")]),
    "one space goes, the second stays": (b"data:  a\n\n", [("message", " a")]),
    "a tab stays": (b"data:\ta\n\n", [("message", "\ta")]),
    "colons in the value": (b"data: a: b:c\n\n", [("message", "a: b:c")]),
    "event without a space": (b"event:data\ndata:a\n\n", [("data", "a")]),
    "unnamed event": (b"data: a\n\n", [("message", "a")]),
    "empty name": (b"event:\ndata: a\n\n", [("message", "a")]),
    "event without a colon": (b"event\ndata: a\n\n", [("message", "a")]),
    "the last name counts": (b"event: a\nevent: b\ndata: x\n\n", [("b", "x")]),
    "the name may follow the data": (b"data: x\nevent: a\n\n", [("a", "x")]),
    "an event without data is none": (b"event: data\n\ndata: a\n\n", [("message", "a")]),
    "a name does not last": (b"event: a\ndata: x\n\ndata: y\n\n", [("a", "x"), ("message", "y")]),
    "names are case-sensitive": (b"Data: a\nDATA: b\ndata: c\n\n", [("message", "c")]),
    "a space before the colon is a part of the name": (b"data : a\n\n", []),
    "a space before the name is a part of the name": (b" data: a\n\n", []),
    "id and retry": (b"id: 1\nretry: 5\ndata: a\n\n", [("message", "a")]),
    "blank lines": (b"\n\n\r\n\r\rdata: a\n\n\n\n", [("message", "a")]),
    "an unfinished event is none": (b"data: a\n\ndata: b\n", [("message", "a")]),
    "an unfinished line is none": (b"data: a\n\ndata: b", [("message", "a")]),
    "nothing": (b"", []),
    "words outside ascii": ("data: 你好\n\n".encode(), [("message", "你好")]),
}


@pytest.mark.parametrize(("stream", "expected"), CASES.values(), ids=CASES)
def test_events_are_parsed_as_in_the_standard(stream, expected):
    assert events(stream) == expected


@pytest.mark.parametrize(("stream", "expected"), CASES.values(), ids=CASES)
def test_events_are_parsed_the_same_byte_by_byte(stream, expected):
    assert decode(stream[i : i + 1] for i in range(len(stream))) == (expected, False)


@pytest.mark.parametrize(("stream", "expected"), CASES.values(), ids=CASES)
def test_events_are_parsed_the_same_when_split_in_two_anywhere(stream, expected):
    for cut in range(len(stream) + 1):
        assert decode([stream[:cut], stream[cut:]]) == (expected, False)


@pytest.mark.parametrize(("stream", "expected"), CASES.values(), ids=CASES)
def test_empty_reads_change_nothing(stream, expected):
    pieces = [piece for i in range(len(stream)) for piece in (b"", stream[i : i + 1], b"")]
    assert decode(pieces) == (expected, False)


# Bytes that mean something, so that most streams are more than noise.
STREAMS = st.lists(
    st.sampled_from(
        [
            b"data",
            b"event",
            b":",
            b": ",
            b" ",
            b"\n",
            b"\r",
            b"\r\n",
            b"\n\n",
            b"a",
            b"done",
            b"\xef\xbb\xbf",
            b"id",
        ]
    )
    | st.binary(max_size=3),
    max_size=40,
).map(b"".join)


def cut(stream, places):
    marks = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[a:b] for a, b in itertools.pairwise(marks)]


@given(STREAMS, st.lists(st.integers(0, 10_000), max_size=8))
@settings(max_examples=400, deadline=None)
@example(b"data: a\r\n\r\n", [8, 10])
def test_events_are_the_same_however_the_stream_is_split(stream, places):
    def raw(pieces):
        decoder = EventDecoder(MAX)
        return [event for piece in pieces for event in decoder.feed(piece)]

    assert raw(cut(stream, places)) == raw([stream])


@given(STREAMS, st.lists(st.integers(0, 10_000), max_size=8), st.integers(1, 30))
@settings(max_examples=400, deadline=None)
@example(b": a long comment\ndata: x\n\n", [8], 12)
@example(b"data: 1234\nevent: a\n\n", [14], 12)
def test_the_limit_is_at_the_same_byte_however_the_stream_is_split(stream, places, limit):
    def raw(pieces):
        decoder = EventDecoder(limit)
        found = []
        try:
            for piece in pieces:
                for event in decoder.feed(piece):
                    found.append(event)
        except ResponseTooLargeError:
            return found, True
        return found, False

    # A stream that ends in the middle of a line has not yet shown whether that line is too large.
    stream += b"\n"
    assert raw(cut(stream, places)) == raw([stream])


@given(
    st.lists(
        st.tuples(
            st.from_regex(rb"[a-z]{1,8}", fullmatch=True),
            st.lists(st.binary(max_size=20).map(lambda b: b.hex().encode()), min_size=1, max_size=3),
        ),
        max_size=6,
    ),
    st.sampled_from([b"\n", b"\r", b"\r\n"]),
)
def test_written_events_are_parsed_back(written, end):
    stream = b"".join(
        b"event: " + name + end + b"".join(b"data: " + line + end for line in data) + end
        for name, data in written
    )
    assert list(EventDecoder(MAX).feed(stream)) == [(name, b"\n".join(data)) for name, data in written]


def test_an_event_of_exactly_the_limit_is_parsed():
    stream = b"data: " + b"a" * 94 + b"\n\n"
    assert decode([stream], 100) == ([("message", "a" * 94)], False)
    assert decode([stream[i : i + 1] for i in range(len(stream))], 100) == ([("message", "a" * 94)], False)


@pytest.mark.parametrize("size", [1, 7, 99, 100, 101, 10_000])
@pytest.mark.parametrize(
    "stream",
    [
        b"data: " + b"a" * 95 + b"\n\n",
        b"data:" + b"a" * 96 + b"\n\n",
        b"data: " + b"a" * 1000,
        b"data: aaaa\n" * 11 + b"\n",
        b"data:aaaaa\n" * 11 + b"\n",
        b"data\n" * 26 + b"\n",
        b"data:\n" * 21 + b"\n",
        b"data: aaaa\r\n" * 11 + b"\r\n",
        b"data: " + b"a" * 50 + b"\ndata: " + b"a" * 50,
        b"event: " + b"a" * 1000,
        b":" + b"a" * 1000,
        b"a" * 1000,
        b"\xef\xbb\xbf" + b"a" * 1000,
    ],
)
def test_an_event_larger_than_the_buffer_is_an_error_however_it_is_split(stream, size):
    pieces = [stream[i : i + size] for i in range(0, len(stream), size)]
    assert decode(pieces, 100) == ([], True)


def test_the_events_before_one_that_is_too_large_are_parsed():
    stream = b"data: a\n\ndata: b\n\ndata: " + b"c" * 200 + b"\n\ndata: d\n\n"
    for pieces in ([stream], [stream[i : i + 1] for i in range(len(stream))]):
        assert decode(pieces, 100) == ([("message", "a"), ("message", "b")], True)


def test_many_small_events_are_not_too_large():
    stream = b"event: data\ndata: " + b"a" * 80 + b"\n\n"
    assert decode([stream * 1000], 100)[0] == [("data", "a" * 80)] * 1000


def test_many_small_comments_are_not_too_large():
    assert decode([b": keep-alive\n" * 1000, b"data: a\n\n"], 100) == ([("message", "a")], False)


def test_the_error_names_the_limit_and_not_the_data():
    with pytest.raises(ResponseTooLargeError, match="100 bytes") as caught:
        list(EventDecoder(100).feed(b"data: " + b"secret" * 40))
    assert "secret" not in str(caught.value)


def test_an_event_of_10_mb_in_small_reads_is_parsed():
    data = b"0123456789abcdef" * (10 * 65536)
    stream = b"event: data\ndata: " + data + b"\n\n"
    decoder = EventDecoder(11 << 20)
    found = [event for i in range(0, len(stream), 65536) for event in decoder.feed(stream[i : i + 65536])]
    assert found == [(b"data", data)]


def test_an_event_of_many_lines_is_parsed():
    decoder = EventDecoder(MAX)
    found = [event for _ in range(100_000) for event in decoder.feed(b"data: a\n")]
    assert found == []
    assert list(decoder.feed(b"\n")) == [(b"message", b"\n".join([b"a"] * 100_000))]
