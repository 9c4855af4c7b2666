"""What is left of a prompt in the tracebacks of the clients' errors: nothing in the frames of `prem_core`.

`test_secrets` searches the tracebacks of every error class. Here are the ways in which a call can end otherwise.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Iterator
from typing import Any

import pytest
from support.client_api import CHUNK, StallingStream
from support.fake_gateway import FakeGateway, ReceivedRequest
from support.security.representations import error_chain, package_locals

from prem_core import APIConnectionError, AsyncPremClient, PremClient, StreamInterruptedError
from prem_core._crypto.redaction import clear_locals

PROMPT = "The zebra is ill."


def params(text: str = PROMPT) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}]}


def search(error: BaseException) -> list[str]:
    """The places in the traceback of `error` that hold the prompt."""
    assert "prem_core" in "".join(traceback.format_exception(error)), "the lines of the code are left"
    return [place for place, text in package_locals(error) if "zebra" in str(text)]


def cut_after_a_chunk(call: ReceivedRequest) -> None:
    call.begin()
    call.piece(call.opened().events(CHUNK))
    call.disconnect()


def large() -> str:
    """A prompt that is read and sealed in a thread."""
    return PROMPT + "x" * 300_000


@pytest.mark.parametrize("text", [PROMPT, large()], ids=["small", "large"])
async def test_a_cancelled_call_leaves_no_prompt(text: str) -> None:
    with FakeGateway(StallingStream(first=None)) as gateway:
        async with AsyncPremClient(**gateway.settings()) as client:
            for seconds in (0.001, 0.2):
                with pytest.raises(TimeoutError) as caught:
                    await asyncio.wait_for(client.chat.completions.create(**params(text)), seconds)
                chain = error_chain(caught.value)
                assert [type(each) for each in chain] == [TimeoutError, asyncio.CancelledError]
                assert [place for place, found in package_locals(caught.value) if "zebra" in str(found)] == []


def test_a_stream_that_is_iterated_leaves_no_prompt() -> None:
    with FakeGateway(cut_after_a_chunk) as gateway, PremClient(**gateway.settings()) as client:
        with pytest.raises(StreamInterruptedError) as caught:
            list(client.chat.completions.create(**params(), stream=True))
    assert search(caught.value) == []


def test_a_stream_that_is_read_with_next_leaves_no_prompt() -> None:
    with FakeGateway(cut_after_a_chunk) as gateway, PremClient(**gateway.settings()) as client:
        stream = client.chat.completions.create(**params(), stream=True)
        next(stream)
        with pytest.raises(StreamInterruptedError) as caught:
            next(stream)
    assert search(caught.value) == []


@pytest.mark.parametrize("with_anext", [False, True])
async def test_an_asynchronous_stream_leaves_no_prompt(with_anext: bool) -> None:
    with FakeGateway(cut_after_a_chunk) as gateway:
        async with AsyncPremClient(**gateway.settings()) as client:
            stream = await client.chat.completions.create(**params(), stream=True)
            with pytest.raises(StreamInterruptedError) as caught:
                if with_anext:
                    while True:
                        await anext(stream)
                async for _ in stream:
                    pass
    assert search(caught.value) == []


def test_a_probe_that_fails_leaves_no_prompt() -> None:
    with FakeGateway(lambda call: call.disconnect()) as gateway:
        with PremClient(**gateway.settings(nonce_reuse="error")) as client:
            with pytest.raises(APIConnectionError) as caught:
                client.chat.completions.create(**params())
    assert search(caught.value) == []


def test_an_error_of_the_callers_own_keeps_its_lines_and_type() -> None:
    def messages() -> Iterator[dict[str, str]]:
        yield {"role": "user", "content": PROMPT}
        raise LookupError("no second message")

    with PremClient(api_key="k") as client, pytest.raises(LookupError, match="no second message") as caught:
        client.chat.completions.create(model="m", messages=messages())
    assert search(caught.value) == []
    assert "no second message" in traceback.format_exception(caught.value)[-2]


def test_the_frames_of_the_caller_keep_their_variables() -> None:
    def caller(kept: str) -> None:
        with FakeGateway(lambda call: call.reply(b"{}", 401)) as gateway:
            with PremClient(**gateway.settings()) as client:
                client.chat.completions.create(**params())

    with pytest.raises(Exception, match="401|API key|error") as caught:
        caller("kept")
    frames = [frame for frame, _ in traceback.walk_tb(caught.value.__traceback__)]
    assert any(frame.f_locals.get("kept") == "kept" for frame in frames)


def test_an_error_that_was_being_handled_keeps_the_callers_variables() -> None:
    def outer(kept: str) -> None:
        raise LookupError(kept)

    with (
        FakeGateway(lambda call: call.reply(b"{}", 401)) as gateway,
        PremClient(**gateway.settings()) as client,
    ):
        with pytest.raises(Exception) as caught:
            try:
                outer("kept")
            except LookupError:
                client.chat.completions.create(**params())
    context = caught.value.__context__
    while not isinstance(context, LookupError):
        assert context is not None
        context = context.__context__
    frames = [frame for frame, _ in traceback.walk_tb(context.__traceback__)]
    assert any(frame.f_locals.get("kept") == "kept" for frame in frames)


def test_a_cause_that_refers_to_itself_ends() -> None:
    error = ValueError("a")
    error.__context__ = other = ValueError("b")
    other.__context__ = error
    clear_locals(error)
