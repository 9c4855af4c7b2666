"""Neither requests nor logs contain plaintext or a key."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.exceptions import ModelNotFoundError
from langchain_core.tools import tool

from langchain_prem import ChatPremEncrypted
from prem_core.enclave import LocalEnclave

#: Words that occur in the conversation below and nowhere else.
PROMPT_WORD, REPLY_WORD, TOOL_WORD = "Quillonbury", "Mardlestone", "vexlograph"


@tool
def vexlograph(city: str) -> str:
    """Run the vexlograph on a city."""
    return f"{REPLY_WORD} in {city}"


async def converse(llm: Callable[..., ChatPremEncrypted]) -> None:
    model = llm()
    question = f"Context: The ward of {PROMPT_WORD} closes at nine. Question: When does {PROMPT_WORD} close?"
    assert PROMPT_WORD in model.invoke(question).text
    assert PROMPT_WORD in "".join(chunk.text for chunk in model.stream(question))
    assert PROMPT_WORD in (await model.ainvoke(question)).text
    called = model.bind_tools([vexlograph], tool_choice="any").invoke(f"Use the vexlograph in {PROMPT_WORD}")
    assert called.tool_calls
    with pytest.raises(ValueError, match="temperature"):
        model.invoke(question, temperature=9)
    with pytest.raises(ModelNotFoundError):
        model.invoke(question, model=f"no/such-model-{TOOL_WORD}")


async def test_neither_the_gateway_nor_the_logs_contain_plaintext_or_the_key(
    llm: Callable[..., ChatPremEncrypted],
    enclave: LocalEnclave,
    seen: Any,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    await converse(llm)

    assert len(seen.chats) >= 5
    for exchange in seen.exchanges:
        for sent in (exchange.request_body, exchange.response_body, repr(exchange).encode()):
            for word in (PROMPT_WORD, REPLY_WORD, TOOL_WORD, "closes at nine"):
                assert word.encode().lower() not in sent.lower()
                assert word.encode().hex().encode() not in sent.lower()
    assert caplog.records
    logged = "\n".join(record.getMessage() for record in caplog.records) + "".join(capfd.readouterr())
    for word in (PROMPT_WORD, REPLY_WORD, TOOL_WORD, enclave.api_key):
        assert word.lower() not in logged.lower()


async def test_only_the_enclaves_key_opens_what_the_gateway_recorded(
    llm: Callable[..., ChatPremEncrypted], seen: Any
) -> None:
    from support.wire_schemas import CHUNK, Opened

    list(llm().stream(f"Hello {PROMPT_WORD}"))
    exchange = seen.chats[-1]
    opened = Opened.request(exchange.request_body)
    assert opened.params["messages"][0]["content"] == f"Hello {PROMPT_WORD}"
    chunks = opened.chunks(exchange.response_body)
    assert [list(CHUNK.iter_errors(chunk)) for chunk in chunks] == [[]] * len(chunks)
    assert PROMPT_WORD in "".join(
        c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"]
    )


def test_every_request_has_a_secret_and_a_nonce_of_its_own(
    llm: Callable[..., ChatPremEncrypted], seen: Any
) -> None:
    import json

    llm().batch(["Hello"] * 5)
    bodies = [json.loads(exchange.request_body) for exchange in seen.chats]
    assert len({body["cipherText"] for body in bodies}) == 5
    assert len({body["nonce"] for body in bodies}) == 5
