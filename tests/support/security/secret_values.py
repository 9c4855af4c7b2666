"""Recognisable secrets, and a conversation that contains each of them.

No piece of one occurs anywhere by accident (see `encodings`). Each text has a letter and a quote that some encodings
escape.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import Callable
from typing import Any, Final

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from llama_index.core.base.llms.types import ChatMessage, DocumentBlock, TextBlock, ToolCallBlock
from starlette.responses import Response, StreamingResponse

from langchain_prem import ChatPremEncrypted
from llama_index_prem import PremEncrypted
from prem_core import AsyncPremClient, EncryptionKeys, PremClient
from prem_core._crypto.xwing import PrivateKey
from support.scripted_upstream import delta, finish, tool_call, usage

# --- the secrets

_RANDOM: Final = "Vk3hT9wQzLr2mXb8NcYp5sJd7fGa4uEo"
API_KEY: Final = "sk_test_" + _RANDOM
KEK: Final = hashlib.sha256(b"the KEK of these tests").digest()
SEED: Final = hashlib.sha256(b"the seed of these tests' enclave").digest()

PROMPT: Final = 'Quillonbüry "zwölf" asks for Wexlotháren'
SYSTEM: Final = 'Brämblewick "önly" speaks of Tarnivolés'
ARGUMENT: Final = 'Ferrändolo "ünder" Oskiburrów'
RESULT: Final = 'Mardlestöne "ïnside" Pelicówether'
FILE: Final = 'Drummagrève "äbove" Solventöwn'.encode() * 3
FILE_NAME: Final = "Nörthavenly-Cluppedrow.txt"
REPLY: Final = 'Hollinstrøm "évery" Garrowpéth'
REASONING: Final = 'Vintlecröft "ûnless" Sabberlány'
REFUSAL: Final = 'Yarrowmünd "ícily" Clotterbéck'
TRANSCRIPT: Final = 'Pendlewhïsk "àgain" Orranthómley'

#: The private key of the enclaves, and encryption keys for it.
PRIVATE: Final = PrivateKey(SEED)
KEYS: Final = EncryptionKeys.encapsulate(PRIVATE.public_key())

#: Keys, which must not even be in a local variable of a traceback.
SECRET_KEYS: Final = {
    "API key": _RANDOM,
    "KEK": KEK,
    "private key": SEED,
    "shared secret": KEYS.shared_secret,
}
#: Texts, which must not be in anything that is displayed.
SECRET_TEXTS: Final = {
    "prompt": PROMPT, "system text": SYSTEM, "tool argument": ARGUMENT, "tool result": RESULT, "file": FILE,
    "file name": FILE_NAME, "reply": REPLY, "reasoning": REASONING, "refusal": REFUSAL, "transcript": TRANSCRIPT,
}  # fmt: skip

# --- the chunks of the model, by its name

_CALL = [delta(tool_calls=[tool_call(0, "call_1", "look_up", json.dumps({"who": ARGUMENT}))])]
MODEL_CHUNKS: Final[dict[str, list[Any]]] = {
    "text": [delta(reasoning_content=REASONING), delta(content=REPLY), finish(), usage(9, 9)],
    "call": [*_CALL, finish("tool_calls")],
    "refusal": [delta(refusal=REFUSAL), finish()],
    "json": [delta(content=json.dumps({"who": REPLY})), finish()],
    "truncated call": [
        delta(tool_calls=[tool_call(0, "c", "look_up", json.dumps({"who": ARGUMENT})[:-4])]),
        finish("length"),
    ],
    "failing": [delta(content=REPLY), {"error": {"message": "it failed", "type": "server_error"}}],
}

TRANSCRIPTION: Final = {
    "text": TRANSCRIPT,
    "language": "english",
    "duration": 2.0,
    "segments": [{"id": 0, "start": 0.0, "end": 2.0, "text": TRANSCRIPT}],
    "words": [{"word": TRANSCRIPT, "start": 0.0, "end": 2.0}],
}


def respond(body: dict[str, Any]) -> Response:
    """The response of the upstream to a request; 400 for the model "small"."""
    if body["model"] == "small":
        return Response('{"error": {"code": "context_length_exceeded", "message": "too long"}}', 400)

    async def events() -> Any:
        if body["model"] == "slow":
            await asyncio.sleep(30)
        for chunk in MODEL_CHUNKS.get(body["model"], MODEL_CHUNKS["text"]):
            yield f"data: {json.dumps(chunk)}\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


# --- the request, in the forms of the client and of both frameworks

TOOL: Final = {
    "type": "function",
    "function": {
        "name": "look_up",
        "parameters": {"type": "object", "properties": {"who": {"type": "string"}}, "required": ["who"]},
    },
}
_FILE_DATA = base64.b64encode(FILE).decode()

MESSAGES: Final[list[dict[str, Any]]] = [
    {"role": "system", "content": SYSTEM},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": PROMPT},
            {
                "type": "file",
                "file": {"file_data": f"data:text/plain;base64,{_FILE_DATA}", "filename": FILE_NAME},
            },
        ],
    },
    {
        "role": "assistant",
        "tool_calls": [
            {
                "id": "call_0",
                "type": "function",
                "function": {"name": "look_up", "arguments": json.dumps({"who": ARGUMENT})},
            }
        ],
    },
    {"role": "tool", "content": RESULT, "tool_call_id": "call_0"},
]

LC_MESSAGES: Final = [
    SystemMessage(SYSTEM),
    HumanMessage(
        [
            {"type": "text", "text": PROMPT},
            {"type": "file", "base64": _FILE_DATA, "mime_type": "text/plain", "filename": FILE_NAME},
        ]
    ),
    AIMessage("", tool_calls=[{"id": "call_0", "name": "look_up", "args": {"who": ARGUMENT}}]),
    ToolMessage(RESULT, tool_call_id="call_0"),
]

LI_MESSAGES: Final = [
    ChatMessage(role="system", content=SYSTEM),
    ChatMessage(
        role="user",
        blocks=[
            TextBlock(text=PROMPT),
            DocumentBlock(data=_FILE_DATA.encode(), document_mimetype="text/plain", title=FILE_NAME),
        ],
    ),
    ChatMessage(
        role="assistant",
        blocks=[ToolCallBlock(tool_call_id="call_0", tool_name="look_up", tool_kwargs={"who": ARGUMENT})],
    ),
    ChatMessage(role="tool", content=RESULT, additional_kwargs={"tool_call_id": "call_0"}),
]


# --- the callers: each client and model, sync and async, whole and streamed


def _client(options: dict[str, Any], **params: Any) -> Any:
    with PremClient(**options) as client:
        answered = client.chat.completions.create(
            **{"model": "text", "messages": MESSAGES, "tools": [TOOL], **params}
        )
        return list(answered) if params.get("stream") else answered


def _aclient(options: dict[str, Any], **params: Any) -> Any:
    async def ask() -> Any:
        async with AsyncPremClient(**options) as client:
            create: Any = client.chat.completions.create
            answered = await create(**{"model": "text", "messages": MESSAGES, "tools": [TOOL], **params})
            return [chunk async for chunk in answered] if params.get("stream") else answered

    return asyncio.run(ask())


def _langchain(options: dict[str, Any], model: str = "text", **params: Any) -> Any:
    return ChatPremEncrypted(model=model, **options).invoke(LC_MESSAGES, tools=[TOOL], **params)


def _alangchain_stream(options: dict[str, Any], model: str = "text", **params: Any) -> Any:
    async def ask() -> Any:
        llm = ChatPremEncrypted(model=model, **options)
        return [chunk async for chunk in llm.astream(LC_MESSAGES, tools=[TOOL], **params)]

    return asyncio.run(ask())


def _llama_index(options: dict[str, Any], model: str = "text", **params: Any) -> Any:
    return PremEncrypted(model=model, **options).chat(LI_MESSAGES, tools=[TOOL], **params)


def _allama_index_stream(options: dict[str, Any], model: str = "text", **params: Any) -> Any:
    async def ask() -> Any:
        responses = await PremEncrypted(model=model, **options).astream_chat(
            LI_MESSAGES, tools=[TOOL], **params
        )
        return [response async for response in responses]

    return asyncio.run(ask())


Ask = Callable[..., Any]

#: `CALLERS[name](options, model=…, **params)` makes one request with a client or model of these options.
CALLERS: Final[dict[str, Ask]] = {
    "client": _client,
    "client stream": lambda options, **params: _client(options, stream=True, **params),
    "async client": _aclient,
    "async client stream": lambda options, **params: _aclient(options, stream=True, **params),
    "LangChain": _langchain,
    "LangChain astream": _alangchain_stream,
    "LlamaIndex": _llama_index,
    "LlamaIndex astream": _allama_index_stream,
}
