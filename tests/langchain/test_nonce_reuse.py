"""`nonce_reuse` in the LangChain classes, and ``response_metadata["prem"]``."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.documents.base import Blob
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from pydantic import BaseModel, ValidationError
from support.recordings import TRANSCRIPTION, WAV
from support.scripted_upstream import Upstream, delta, finish, tool_call, usage
from support.wire_schemas import Opened

from langchain_prem import ChatPremEncrypted, PremWhisperLoader, PremWhisperParser
from prem_core import ConfigurationError, EncryptionKeys, NonceReuseError
from prem_core._protocol.nonce_reuse import is_probe, probe_recording
from prem_core.enclave import LocalEnclave

Make = Callable[..., ChatPremEncrypted]

WAYS = ["invoke", "ainvoke", "stream", "astream", "batch", "abatch"]
ways = pytest.mark.parametrize("way", WAYS)


async def ask(model: ChatPremEncrypted, way: str, prompt: str = "Hello", **kwargs: Any) -> AIMessage:
    """The whole answer, by one of the ways of calling a model."""
    if way in ("stream", "astream"):
        full: AIMessageChunk | None = None
        if way == "stream":
            for chunk in model.stream(prompt, **kwargs):
                full = chunk if full is None else full + chunk
        else:
            async for chunk in model.astream(prompt, **kwargs):
                full = chunk if full is None else full + chunk
        assert full is not None
        return full
    if way == "batch":
        return model.batch([prompt], **kwargs)[0]
    if way == "abatch":
        return (await model.abatch([prompt], **kwargs))[0]
    return await model.ainvoke(prompt, **kwargs) if way == "ainvoke" else model.invoke(prompt, **kwargs)


def requests(seen: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The parameters of the probes and of the prompts."""
    found = [Opened.request(exchange.request_body).params for exchange in seen.chats]
    return [each for each in found if is_probe(each)], [each for each in found if not is_probe(each)]


@pytest.fixture
def streaming() -> Iterator[LocalEnclave]:
    """An enclave that seals every reply under its request's nonce."""
    with LocalEnclave(respond=lambda request: "Hello", whole_replies="stream") as prem:
        yield prem


# --- "error"


@ways
async def test_with_error_no_request_asks_for_a_stream(llm: Make, seen: Any, way: str) -> None:
    model = llm(nonce_reuse="error")
    assert (await ask(model, way)).text
    assert (await ask(model, way)).text
    probes, prompts = requests(seen)
    assert len(probes) == 1
    assert [set(each) for each in prompts] == [{"model", "messages"}] * 2


@ways
async def test_with_error_no_prompt_is_sent_to_a_service_that_reuses_nonces(
    streaming: LocalEnclave, way: str
) -> None:
    model = ChatPremEncrypted(model="m", nonce_reuse="error", **streaming.client_options)
    for _ in range(2):
        with pytest.raises(NonceReuseError, match="nonce_reuse='error'"):
            await ask(model, way, "zebra")
    assert streaming.requests == []


RICH = [
    delta(reasoning_content="Let me think."),
    delta(content="Let me look."),
    delta(
        tool_calls=[tool_call(0, "call_a", "f", '{"x": 1}'), tool_call(1, "call_b", "g", '{"y": 2}')],
    ),
    finish("tool_calls"),
    usage(12, 30, reasoning=7),
]


@pytest.mark.parametrize("output_version", ["v0", "v1"])
@pytest.mark.parametrize("way", ["stream", "astream"])
async def test_with_error_a_stream_adds_up_to_the_same_message(
    scripted: Make, way: str, output_version: str
) -> None:
    found, streamed = [
        await ask(scripted(*RICH, nonce_reuse=mode, output_version=output_version), way)
        for mode in ("error", "allow")
    ]
    assert found.content == streamed.content
    assert found.content_blocks == streamed.content_blocks
    assert found.additional_kwargs == streamed.additional_kwargs
    assert found.tool_calls == streamed.tool_calls
    assert [call["name"] for call in found.tool_calls] == ["f", "g"]
    assert found.usage_metadata == streamed.usage_metadata
    assert found.usage_metadata is not None
    assert found.usage_metadata["total_tokens"] == 42
    different = ("prem", "id")
    assert {name: value for name, value in found.response_metadata.items() if name not in different} == {
        name: value for name, value in streamed.response_metadata.items() if name not in different
    }


async def test_with_error_a_stream_has_refusal_and_log_probabilities(scripted: Make) -> None:
    logprobs = {"content": [{"token": "No", "logprob": -0.5, "bytes": None, "top_logprobs": []}]}
    refusing = delta(refusal="I must not.")
    saying = {
        **delta(content="No"),
        "choices": [{"index": 0, "delta": {"content": "No"}, "logprobs": logprobs}],
    }
    refused = await ask(scripted(refusing, finish(), nonce_reuse="error"), "stream")
    assert refused.additional_kwargs["refusal"] == "I must not."
    said = await ask(scripted(saying, finish(), nonce_reuse="error"), "stream")
    assert said.text == "No"
    (first, *_) = scripted(saying, finish(), nonce_reuse="error")._stream([HumanMessage("?")])
    assert first.generation_info == {"logprobs": logprobs}


@pytest.mark.parametrize(("stream_usage", "reported"), [(True, True), (False, False)])
async def test_with_error_a_stream_reports_usage_only_if_it_is_asked_for(
    scripted: Make, stream_usage: bool, reported: bool
) -> None:
    answer = await ask(scripted(*RICH, nonce_reuse="error", stream_usage=stream_usage), "stream")
    assert (answer.usage_metadata is not None) == reported


async def test_with_error_an_agent_and_structured_output_work(llm: Make, seen: Any) -> None:
    def get_weather(location: str) -> str:
        """Get the weather at a location."""
        return f"It is sunny in {location}."

    class Person(BaseModel):
        """A person."""

        name: str

    agent = create_agent(llm(nonce_reuse="error"), [get_weather])
    question = {"messages": [("human", "Get the weather in Paris.")]}
    assert "sunny in Paris" in agent.invoke(question)["messages"][-1].text
    states = [state async for state in agent.astream(question, stream_mode="values")]
    assert "sunny in Paris" in states[-1]["messages"][-1].text
    found = llm(nonce_reuse="error").with_structured_output(Person).invoke("The name is Ada.")
    assert isinstance(found, Person)
    probes, prompts = requests(seen)
    assert len(probes) == 1
    assert not any("stream" in each for each in prompts)


# --- settings


async def test_the_mode_comes_from_the_environment_and_an_argument_wins(
    streaming: LocalEnclave, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREM_NONCE_REUSE", "error")
    with pytest.raises(NonceReuseError):
        ChatPremEncrypted(model="m", **streaming.client_options).invoke("zebra")
    assert ChatPremEncrypted(model="m", nonce_reuse="allow", **streaming.client_options).invoke("Hello").text


def test_a_model_that_was_used_follows_a_change_of_its_mode(streaming: LocalEnclave) -> None:
    model = ChatPremEncrypted(model="m", **streaming.client_options)
    assert model.invoke("Hello").text
    model.nonce_reuse = "error"
    with pytest.raises(NonceReuseError):
        model.invoke("zebra")


@pytest.mark.parametrize("value", ["yes", "", True])
@pytest.mark.parametrize("make", [lambda **o: ChatPremEncrypted(model="m", **o), PremWhisperParser])
def test_a_bad_mode_is_refused(make: Any, value: Any) -> None:
    with pytest.raises(ValidationError, match="nonce_reuse"):
        make(nonce_reuse=value)


def test_error_cannot_be_combined_with_encryption_keys(streaming: LocalEnclave) -> None:
    keys = EncryptionKeys.encapsulate(streaming.public_key)
    model = ChatPremEncrypted(
        model="m", nonce_reuse="error", encryption_keys=keys, **streaming.client_options
    )
    with pytest.raises(ConfigurationError, match=r"encryption_keys.*nonce_reuse"):
        model.invoke("zebra")
    assert streaming.requests == []


@pytest.mark.parametrize(
    "again",
    [
        copy.copy,
        copy.deepcopy,
        lambda model: pickle.loads(pickle.dumps(model)),
        lambda model: model.model_copy(update={"temperature": 0.5}),
    ],
    ids=["copy", "deepcopy", "pickle", "model_copy"],
)
def test_a_copy_of_a_model_keeps_its_mode(
    streaming: LocalEnclave, monkeypatch: pytest.MonkeyPatch, again: Callable[[Any], ChatPremEncrypted]
) -> None:
    monkeypatch.setenv("PREM_API_KEY", streaming.api_key)
    model = ChatPremEncrypted(model="m", nonce_reuse="error", **streaming.client_options)
    with pytest.raises(NonceReuseError):
        again(model).invoke("zebra")
    assert streaming.requests == []


# --- loaders


def test_with_error_a_parser_and_a_loader_send_a_probe_first(
    upstream_enclave: LocalEnclave, upstream: Upstream, tmp_path: Path
) -> None:
    upstream.transcribe_with(TRANSCRIPTION)
    options = {**upstream_enclave.client_options, "nonce_reuse": "error"}
    text = TRANSCRIPTION["text"]
    assert (
        PremWhisperParser(**options).parse(Blob.from_data(WAV, mime_type="audio/wav"))[0].page_content == text
    )
    (tmp_path / "call.wav").write_bytes(WAV)
    documents = PremWhisperLoader(tmp_path / "call.wav", **options).load()
    assert [document.page_content for document in documents] == [text]
    silent, *recordings = upstream.recordings
    assert silent.data == probe_recording()
    assert [each.data for each in recordings] == [WAV, WAV]


# --- response_metadata["prem"]


@ways
@pytest.mark.parametrize(
    ("mode", "nonces"),
    [("allow", {"stream": "request's", "astream": "request's"}), ("error", {})],
    ids=["allow", "error"],
)
@pytest.mark.parametrize("output_version", ["v0", "v1"])
async def test_every_answer_says_once_how_it_was_protected(
    llm: Make, enclave: LocalEnclave, way: str, mode: str, nonces: dict[str, str], output_version: str
) -> None:
    answer = await ask(llm(nonce_reuse=mode, output_version=output_version), way)
    found = dict(answer.response_metadata["prem"])
    support_id = found.pop("support_id")
    assert found == {
        "key_fingerprint": enclave.public_key.fingerprint(),
        "key_source": "fetched",
        "attested": False,
        "key_bound": False,
        "reply_nonce": nonces.get(way, "own"),
    }
    assert support_id is None or isinstance(support_id, str)


async def test_only_the_last_chunk_has_the_protection(llm: Make) -> None:
    chunks = list(llm().stream("Hello"))
    assert ["prem" in chunk.response_metadata for chunk in chunks].count(True) == 1


def test_every_choice_says_how_it_was_protected(scripted: Make) -> None:
    chunks = [
        {**delta(), "choices": [{"index": index, "delta": {"content": "a"}, "finish_reason": "stop"}]}
        for index in (0, 1)
    ]
    (generations,) = scripted(*chunks, n=2).generate([[HumanMessage("?")]]).generations
    assert [each.message.response_metadata["prem"]["reply_nonce"] for each in generations] == ["own"] * 2  # type: ignore[union-attr]
