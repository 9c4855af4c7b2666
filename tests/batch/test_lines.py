"""The lines of an input, and the form of answers and errors."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from support.batch_files import chat_line

from prem_core import BadRequestError, InternalServerError, RateLimitError
from prem_core.batch import lines
from prem_core.batch.lines import InvalidLineError, parse_request, read_raw_lines


def line(**changes: Any) -> bytes:
    value = {**json.loads(chat_line("a")), **changes}
    return json.dumps({name: each for name, each in value.items() if each is not None}).encode()


def test_a_chat_is_read() -> None:
    request = parse_request(7, line())
    assert (request.number, request.custom_id, request.url) == (7, "a", "/v1/chat/completions")
    assert request.body["model"] == "m"
    assert "Hello" not in repr(request)


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe{", "not"),
        (b"[]", "must be a JSON object"),
        (b"[" * 100_000, "not JSON"),
        (line(custom_id=None), "custom_id"),
        (line(custom_id=7), "custom_id"),
        (line(custom_id=""), "custom_id"),
        (line(method="GET"), "method"),
        (line(url="/v1/embeddings"), "url must be one of /v1/chat/completions"),
        (line(body=[]), "body must be a JSON object"),
        (line(priority=1), "nothing else"),
        (None, "longer than"),
    ],
)
def test_an_invalid_line_is_an_error_with_its_number(raw: bytes | None, problem: str) -> None:
    with pytest.raises(InvalidLineError, match=r"^line 12: ") as caught:
        parse_request(12, raw)
    assert problem in str(caught.value)
    assert caught.value.line == 12


def test_an_error_does_not_quote_the_prompt() -> None:
    with pytest.raises(InvalidLineError) as caught:
        parse_request(1, line(url="x", body={"messages": "secret word"}))
    assert "secret word" not in str(caught.value)
    assert caught.value.custom_id == "a"


def test_empty_lines_and_a_byte_order_mark_are_skipped() -> None:
    file = io.BytesIO(b"\xef\xbb\xbf{}\n\n  \r\n[]")
    assert list(read_raw_lines(file)) == [(1, b"{}\n"), (4, b"[]")]


def test_a_line_that_is_too_long_is_reported_and_the_next_one_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 10)
    file = io.BytesIO(b"x" * 3_000_000 + b"\n{}\n")
    assert list(read_raw_lines(file)) == [(1, None), (2, b"{}\n")]


def test_the_id_is_read_without_parsing_where_that_is_safe() -> None:
    assert lines.id_at_start(b'{"custom_id": "a-1", "method"') == b"a-1"
    for raw in (rb'{"custom_id":"a\u0041",', b'{"method":"POST"', '{"custom_id":"ä",'.encode()):
        assert lines.id_at_start(raw) is None


@pytest.mark.parametrize("name", ["a", 'quote"', "back\\slash", "ä", "\ud800", "new\nline", "\x00"])
def test_the_id_of_a_written_line_is_found_again(name: str) -> None:
    written = lines.answer_line(name, {"text": "\ud800"}, None)
    assert written.isascii()
    assert b"\n" not in written
    found = lines.id_of(written)
    assert found == name or found == name.encode()


def test_an_error_of_the_service_is_a_response_with_its_status() -> None:
    value = json.loads(lines.error_line("a", BadRequestError("no", param="n", support_id="support_1")))
    assert value["error"] is None
    assert value["response"]["status_code"] == 400
    assert value["response"]["request_id"] == "support_1"
    assert value["response"]["body"]["error"]["param"] == "n"


@pytest.mark.parametrize(
    ("error", "final"),
    [
        (BadRequestError("no"), True),
        (BadRequestError("Internal server error"), False),  # also the text for an empty balance
        (RateLimitError(), False),
        (InternalServerError(), False),
        (InvalidLineError(3, "no"), False),
    ],
)
def test_only_what_the_service_would_refuse_again_is_final(error: Any, final: bool) -> None:
    assert lines.is_final(lines.error_line("a", error)) is final
