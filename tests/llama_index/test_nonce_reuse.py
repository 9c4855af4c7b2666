"""`nonce_reuse` in the LlamaIndex classes, and ``raw["prem"]``."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from pydantic import ValidationError
from support.recordings import TRANSCRIPTION, WAV
from support.scripted_upstream import Upstream, delta, finish, tool_call, usage
from support.wire_schemas import Opened

from llama_index_prem import PremEncrypted, PremWhisperReader
from prem_core import ConfigurationError, EncryptionKeys, NonceReuseError
from prem_core._protocol.nonce_reuse import is_probe, probe_recording
from prem_core.enclave import LocalEnclave

Make = Callable[..., PremEncrypted]
Ask = Callable[..., Any]

WAYS = [f"{prefix}{kind}" for prefix in ("", "a", "stream_", "astream_") for kind in ("chat", "complete")]
ways = pytest.mark.parametrize("way", WAYS)


@pytest.fixture
def streaming() -> Iterator[LocalEnclave]:
    """An enclave that seals every reply under its request's nonce."""
    with LocalEnclave(respond=lambda request: "Hello", whole_replies="stream") as prem:
        yield prem


# --- "error"


@ways
async def test_with_error_no_request_asks_for_a_stream(llm: Make, asked: Ask, seen: Any, way: str) -> None:
    model = llm(nonce_reuse="error")
    for _ in range(2):
        assert await asked(model, way, "Hello")
    found = [Opened.request(exchange.request_body).params for exchange in seen.chats]
    assert [is_probe(each) for each in found] == [True, False, False]
    assert all(set(each) == {"model", "messages"} for each in found[1:])


@ways
async def test_with_error_no_prompt_is_sent_to_a_service_that_reuses_nonces(
    streaming: LocalEnclave, asked: Ask, way: str
) -> None:
    model = PremEncrypted(model="m", nonce_reuse="error", **streaming.client_options)
    for _ in range(2):
        with pytest.raises(NonceReuseError, match="nonce_reuse='error'"):
            await asked(model, way, "zebra")
    assert streaming.requests == []


RICH = [
    delta(reasoning_content="Let me think."),
    delta(content="Let me look."),
    delta(tool_calls=[tool_call(0, "call_a", "f", '{"x": 1}'), tool_call(1, "call_b", "g", '{"y": 2}')]),
    finish("tool_calls"),
    usage(12, 30, reasoning=7),
]


@pytest.mark.parametrize("way", ["stream_chat", "astream_chat"])
async def test_with_error_a_stream_ends_with_the_same_message(scripted: Make, asked: Ask, way: str) -> None:
    found, streamed = [await asked(scripted(*RICH, nonce_reuse=mode), way) for mode in ("error", "allow")]
    assert found[-1].message == streamed[-1].message
    assert found[-1].raw["usage"] == streamed[-1].raw["usage"]
    assert found[-1].additional_kwargs == streamed[-1].additional_kwargs
    assert "".join(each.delta or "" for each in found) == "Let me look."


# Core looks at every attribute of an agent, pydantic's deprecated ones too.
@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")
async def test_with_error_an_agent_works(llm: Make, seen: Any) -> None:
    def get_weather(location: str) -> str:
        """Get the weather at a location."""
        return f"It is sunny in {location}."

    agent = FunctionAgent(tools=[get_weather], llm=llm(nonce_reuse="error"))
    assert "sunny in Paris" in str(await agent.run("Get the weather in Paris."))
    found = [Opened.request(exchange.request_body).params for exchange in seen.chats]
    assert [is_probe(each) for each in found].count(True) == 1
    assert not any("stream" in each for each in found)


# --- settings


def test_the_mode_comes_from_the_environment_and_an_argument_wins(
    streaming: LocalEnclave, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREM_NONCE_REUSE", "error")
    with pytest.raises(NonceReuseError):
        PremEncrypted(model="m", **streaming.client_options).complete("zebra")
    assert PremEncrypted(model="m", nonce_reuse="allow", **streaming.client_options).complete("Hello").text


@pytest.mark.parametrize("value", ["yes", "", True])
@pytest.mark.parametrize("make", [lambda **o: PremEncrypted(model="m", **o), PremWhisperReader])
def test_a_bad_mode_is_refused(make: Any, value: Any) -> None:
    with pytest.raises(ValidationError, match="nonce_reuse"):
        make(nonce_reuse=value)


def test_error_cannot_be_combined_with_encryption_keys(streaming: LocalEnclave) -> None:
    keys = EncryptionKeys.encapsulate(streaming.public_key)
    model = PremEncrypted(model="m", nonce_reuse="error", encryption_keys=keys, **streaming.client_options)
    with pytest.raises(ConfigurationError, match=r"encryption_keys.*nonce_reuse"):
        model.complete("zebra")
    assert streaming.requests == []


@pytest.mark.parametrize(
    "again",
    [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_a_copy_of_a_model_keeps_its_mode(
    streaming: LocalEnclave, monkeypatch: pytest.MonkeyPatch, again: Callable[[Any], PremEncrypted]
) -> None:
    monkeypatch.setenv("PREM_API_KEY", streaming.api_key)
    model = PremEncrypted(model="m", nonce_reuse="error", **streaming.client_options)
    with pytest.raises(NonceReuseError):
        again(model).complete("zebra")
    assert streaming.requests == []


def test_with_error_a_reader_sends_a_probe_first(upstream_enclave: LocalEnclave, upstream: Upstream) -> None:
    upstream.transcribe_with(TRANSCRIPTION)
    reader = PremWhisperReader(**upstream_enclave.client_options, nonce_reuse="error")
    for _ in range(2):
        assert reader.load_data(WAV)[0].text == TRANSCRIPTION["text"]
    assert [each.data for each in upstream.recordings] == [probe_recording(), WAV, WAV]


# --- raw["prem"]


@ways
@pytest.mark.parametrize("mode", ["allow", "error"])
async def test_every_response_says_how_it_was_protected(
    llm: Make, asked: Ask, enclave: LocalEnclave, way: str, mode: str
) -> None:
    responses = await asked(llm(nonce_reuse=mode), way, "Hello")
    nonce = "request's" if "stream" in way and mode == "allow" else "own"
    for response in responses:
        found = dict(response.raw["prem"])
        assert isinstance(found.pop("support_id"), str | None)
        assert found == {
            "key_fingerprint": enclave.public_key.fingerprint(),
            "key_source": "fetched",
            "attested": False,
            "key_bound": False,
            "reply_nonce": nonce,
        }
