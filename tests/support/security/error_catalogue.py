"""Every error of the tree, raised where users meet it, with marked keys and words at hand."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import HumanMessage, SystemMessage
from llama_index.core import PromptTemplate
from llama_index.core.llms import ChatMessage, ImageBlock
from pydantic import BaseModel, ValidationError

import prem_core
from langchain_prem import ChatPremEncrypted, PremWhisperLoader, PremWhisperParser
from llama_index_prem import PremEncrypted, PremWhisperReader
from prem_core import AsyncPremClient, EncryptionKeys, Limits, PremClient, PremError
from prem_core._crypto import keyfile
from prem_core._crypto.aead import new_nonce
from prem_core._crypto.xwing import CIPHER_TEXT_BYTES, PrivateKey
from prem_core.enclave import LocalEnclave
from prem_core.proxy import LocalProxy
from support.fake_gateway import DONE, FakeGateway, ReceivedRequest, event
from support.security import secret_values as marked
from support.security.secret_values import API_KEY, FILE, KEK, PAIR, PROMPT, WAYS

#: The error classes, whose own names say where they come from.
ERRORS = {
    name: kind
    for name in prem_core.__all__
    if isinstance(kind := getattr(prem_core, name), type) and issubclass(kind, PremError)
}


@dataclass(frozen=True)
class World:
    """Enclaves of one private key and one API key, each in a state of its own."""

    says: LocalEnclave  # has an upstream, which says what is marked
    quotes: LocalEnclave  # answers with the built-in engine
    forbids: LocalEnclave  # grants the API key no scope
    bounds: LocalEnclave  # takes next to nothing
    limits: LocalEnclave  # is used up
    fails: LocalEnclave  # has an upstream that is not there
    stranger: LocalEnclave  # has other keys
    folder: Path

    def options(self, at: str = "says", **changed: Any) -> dict[str, Any]:
        """Settings of a client or model."""
        prem: LocalEnclave = getattr(self, at)
        urls = {"gateway_url": prem.gateway_url, "enclave_url": prem.enclave_url}
        return {**urls, "api_key": API_KEY, "encryption_keys": PAIR, "max_retries": 0, **changed}


@dataclass(frozen=True)
class Trouble:
    """What happens to a request.

    Args:
        kind: The error it ends with.
        at: Which enclave of the world is asked.
        options: Settings of the client or model that asks.
        params: What it asks for.
        gateway: Answers instead of an enclave, in its own way.
        ways: In which ways it is asked.
    """

    kind: type[Exception]
    at: str = "says"
    options: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    gateway: Callable[[ReceivedRequest], None] | None = None
    ways: tuple[str, ...] = tuple(WAYS)


def _flipped(call: ReceivedRequest) -> None:
    sealed = call.opened().events({"choices": []})
    call.stream(sealed[:-3] + bytes([sealed[-3] ^ 1]) + sealed[-2:])


def _cut(call: ReceivedRequest) -> None:
    said = {"choices": [{"index": 0, "delta": {"content": marked.REPLY}, "finish_reason": None}]}
    call.stream(call.opened().events(said))


def _no_chunk(call: ReceivedRequest) -> None:
    call.stream(call.opened().events({"choices": marked.REPLY}) + DONE)


def _heard(plaintext: bytes) -> Callable[[ReceivedRequest], None]:
    """Answers a recording with `plaintext`, sealed."""

    def answer(call: ReceivedRequest) -> None:
        cipher_text = bytes.fromhex(json.loads(call.body)["cipherText"])
        keys = EncryptionKeys(call._enclave.private.decapsulate(cipher_text), cipher_text)
        nonce = new_nonce()
        data = {"encryptedResponse": keys.seal(plaintext, nonce).hex(), "nonce": nonce.hex()}
        call.reply(json.dumps({"status": 200, "data": data}).encode())

    return answer


def _transcribed(plaintext: bytes, **params: Any) -> object:
    with (
        FakeGateway(other=_heard(plaintext)) as gateway,
        PremClient(**gateway.settings(api_key=API_KEY)) as client,
    ):
        return client.audio.transcriptions.create(file=FILE, **params)


ADAPTERS = ("LangChain", "LangChain astream", "LlamaIndex", "LlamaIndex astream")
_NOBODY = "http://127.0.0.1:9"

TROUBLES: dict[str, Trouble] = {
    "another API key": Trouble(prem_core.AuthenticationError, at="stranger"),
    "a scope that is missing": Trouble(prem_core.PermissionDeniedError, at="forbids"),
    "a body that is too large": Trouble(prem_core.RequestTooLargeError, at="bounds"),
    "a limit that is reached": Trouble(prem_core.RateLimitError, at="limits"),
    "a value the service refuses": Trouble(
        prem_core.BadRequestError, at="quotes", params={"extra_body": {"temperature": PROMPT}}
    ),
    "a name the service refuses": Trouble(
        prem_core.BadRequestError, at="quotes", params={"extra_body": {PROMPT: 1}}
    ),
    "a prompt that is too long": Trouble(prem_core.ContextLengthExceededError, params={"model": "small"}),
    "a model that is not there": Trouble(prem_core.NotFoundError, at="quotes", params={"model": PROMPT}),
    "an engine that fails midway": Trouble(prem_core.InternalServerError, params={"model": "failing"}),
    "an upstream that is not there": Trouble(prem_core.InternalServerError, at="fails"),
    "a gateway that is not there": Trouble(prem_core.APIConnectionError, options={"gateway_url": _NOBODY}),
    "an enclave that is not there": Trouble(
        prem_core.APIConnectionError, options={"enclave_url": _NOBODY, "encryption_keys": None}
    ),
    "an answer that does not begin": Trouble(
        prem_core.APITimeoutError, options={"timeout": 0.2}, params={"model": "slow"}
    ),
    "a call that takes too long": Trouble(
        prem_core.APITimeoutError, options={"total_timeout": 0.2}, params={"model": "slow"}
    ),
    "an answer that is too large": Trouble(prem_core.ResponseTooLargeError, options={"max_buffer_size": 10}),
    "a key that was turned": Trouble(
        prem_core.EnclaveKeyError,
        options={
            "enclave_public_key": bytes(PrivateKey(bytes(32)).public_key()).hex(),
            "encryption_keys": None,
        },
    ),
    "keys that were turned": Trouble(prem_core.EnclaveKeyError, at="stranger", options={"api_key": None}),
    "a stream that is cut": Trouble(prem_core.StreamInterruptedError, gateway=_cut),
    "a byte that was changed": Trouble(prem_core.DecryptionError, gateway=_flipped),
    "a chunk that is none": Trouble(prem_core.APIResponseValidationError, gateway=_no_chunk),
    "a page for people": Trouble(
        prem_core.APIResponseValidationError,
        gateway=lambda call: call.reply(b"<html>", headers={"content-type": "text/html"}),
    ),
    "a redirect": Trouble(
        prem_core.APIStatusError,
        gateway=lambda call: call.reply(b"", 307, {"location": "http://127.0.0.1:9/"}),
    ),
    "an error of a new kind": Trouble(
        prem_core.APIError,
        gateway=lambda call: call.stream(event("error", '{"error": {"message": "it failed"}}')),
    ),
    "a call cut by the token limit": Trouble(
        prem_core.LengthFinishReasonError, params={"model": "cut call"}, ways=ADAPTERS
    ),
    "a value of another type": Trouble(prem_core.InvalidParameterError, params={"temperature": PROMPT}),
    "a value that is not listed": Trouble(
        prem_core.InvalidParameterError, params={"reasoning_effort": PROMPT}
    ),
    "a list that is too long": Trouble(prem_core.InvalidParameterError, params={"stop": [PROMPT] * 5}),
    "a form that is none": Trouble(
        prem_core.InvalidParameterError, params={"response_format": {"type": PROMPT, "json_schema": PROMPT}}
    ),
    "an object that is not JSON": Trouble(
        prem_core.InvalidParameterError, params={"extra_body": {"x": {PROMPT}}}
    ),
    "a number that is none": Trouble(
        prem_core.InvalidParameterError, params={"extra_body": {"x": [PROMPT, float("nan")]}}
    ),
    "a lone surrogate": Trouble(
        prem_core.InvalidParameterError, params={"extra_body": {"x": PROMPT + "\ud800"}}
    ),
}


def raised(world: World, name: str, way: str) -> Exception:
    """The error of a trouble, asked for in one of `WAYS`."""
    trouble = TROUBLES[name]
    with contextlib.ExitStack() as stack:
        options = world.options(trouble.at, **trouble.options)
        if name == "keys that were turned":
            options["api_key"] = world.stranger.api_key
        if trouble.gateway is not None:
            gateway = stack.enter_context(FakeGateway(trouble.gateway))
            options |= {"gateway_url": gateway.url, "enclave_url": gateway.url, "encryption_keys": None}
        return caught(lambda: WAYS[way](options, **trouble.params), trouble.kind)


def caught(call: Callable[[], object], kind: type[Exception]) -> Exception:
    """The error that `call` raises; an assertion where it is of another kind."""
    try:
        call()
    except Exception as error:
        assert isinstance(error, kind), repr(error)
        return error
    raise AssertionError("nothing was raised")


# --- what goes wrong with other things than a chat


class Who(BaseModel):
    who: str


class Count(BaseModel):
    who: int


def _structured(kind: type[Exception], model: str, wanted: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    def langchain(world: World) -> object:
        return ChatPremEncrypted(model=model, **world.options()).with_structured_output(wanted).invoke(PROMPT)

    def llama_index(world: World) -> object:
        return PremEncrypted(model=model, **world.options()).structured_predict(
            wanted, PromptTemplate(PROMPT)
        )

    yield "LangChain", (kind, langchain)
    yield "LlamaIndex", (kind if issubclass(kind, PremError) else ValueError, llama_index)


def _damaged(world: World) -> Path:
    path = world.folder / "damaged.prem"
    PAIR.save(path, KEK, overwrite=True)
    image = bytearray(path.read_bytes())
    image[-1] ^= 1
    path.write_bytes(image)
    return path


def _kek_file(world: World, text: bytes, mode: int = 0o600) -> Path:
    path = world.folder / "kek"
    path.unlink(missing_ok=True)
    path.write_bytes(text)
    path.chmod(mode)
    return path


def _from_environment(name: str, value: str, call: Callable[[], object]) -> object:
    os.environ[name] = value
    try:
        return call()
    finally:
        del os.environ[name]


_HEX, _BASE64 = KEK.hex(), base64.b64encode(KEK).decode()
_PLAIN_HTTP = {"gateway_url": "http://gateway.example", "api_key": API_KEY}
_FILE_DATA = base64.b64encode(FILE).decode()

Other = tuple[type[Exception], Callable[[World], object]]

#: By name: the kind, and what raises it.
OTHERS: dict[str, Other] = {
    **{f"{who}: a refusal": what for who, what in _structured(prem_core.RefusalError, "refusal", Who)},
    **{f"{who}: another value": what for who, what in _structured(OutputParserException, "json", Count)},
    **{f"{who}: no JSON": what for who, what in _structured(OutputParserException, "text", Who)},
    "LangChain: a block that cannot be sent": (
        prem_core.InvalidParameterError,
        lambda world: ChatPremEncrypted(model="text", **world.options()).invoke(
            [HumanMessage([{"type": "video", "base64": _FILE_DATA, "text": PROMPT}])]
        ),
    ),
    "LangChain: an image for the system": (
        prem_core.InvalidParameterError,
        lambda world: ChatPremEncrypted(model="text", **world.options()).invoke(
            [SystemMessage([{"type": "image", "base64": _FILE_DATA, "mime_type": "image/png"}])]
        ),
    ),
    "LlamaIndex: an image for the system": (
        prem_core.InvalidParameterError,
        lambda world: PremEncrypted(model="text", **world.options()).chat(
            [ChatMessage(role="system", blocks=[ImageBlock(image=_FILE_DATA.encode())])]
        ),
    ),
    "client: a message of another form": (
        prem_core.InvalidParameterError,
        lambda world: PremClient(**world.options()).chat.completions.create(
            model="text", messages=[{"role": "user", "content": {"text": PROMPT}}]
        ),
    ),
    "client: a role that is none": (
        prem_core.InvalidParameterError,
        lambda world: PremClient(**world.options()).chat.completions.create(
            model="text", messages=[{"role": PROMPT, "content": PROMPT}]
        ),
    ),
    "client: text for a recording": (
        prem_core.InvalidParameterError,
        lambda world: PremClient(**world.options()).audio.transcriptions.create(file={PROMPT: FILE}),  # type: ignore[arg-type]
    ),
    "client: a wrong transcription": (
        prem_core.APIResponseValidationError,
        lambda world: PremClient(**world.options()).audio.transcriptions.create(file=FILE, prompt="wrong"),
    ),
    "client: a transcription that is no JSON": (
        prem_core.APIResponseValidationError,
        lambda world: _transcribed(marked.SAID.encode()),
    ),
    "client: a text that is no UTF-8": (
        prem_core.APIResponseValidationError,
        lambda world: _transcribed(marked.SAID.encode() + b"\xff", response_format="text"),
    ),
    "client: a recording without the scope": (
        prem_core.PermissionDeniedError,
        lambda world: PremClient(**world.options("forbids")).audio.transcriptions.create(
            file=(marked.FILE_NAME, FILE), prompt=PROMPT
        ),
    ),
    "parser: a recording without the scope": (
        prem_core.PermissionDeniedError,
        lambda world: PremWhisperParser(**world.options("forbids"), prompt=PROMPT).parse(
            langchain_blob(FILE)
        ),
    ),
    "reader: a recording that cannot be cut": (
        prem_core.InvalidParameterError,
        lambda world: PremWhisperReader(
            **world.options(), prompt=PROMPT, max_chunk_bytes=256 * 1024
        ).load_data(FILE * 10_000),
    ),
    # Settings.
    "client: plain http": (prem_core.ConfigurationError, lambda world: PremClient(**_PLAIN_HTTP)),
    "async client: plain http": (prem_core.ConfigurationError, lambda world: AsyncPremClient(**_PLAIN_HTTP)),
    "client: no such limit": (
        prem_core.ConfigurationError, lambda world: PremClient(api_key=API_KEY, max_concurrency=0)
    ),
    "client: keys of another kind": (
        prem_core.ConfigurationError,
        lambda world: PremClient(api_key=API_KEY, encryption_keys=PAIR.shared_secret),  # type: ignore[arg-type]
    ),
    "client: a name it does not have": (
        TypeError,
        lambda world: PremClient(api_key=API_KEY, apikey="k"),  # type: ignore[call-arg]
    ),
    "client: a malformed API key": (
        prem_core.ConfigurationError, lambda world: PremClient(api_key=API_KEY + "\n")
    ),
    "client: a malformed API key in the environment": (
        prem_core.ConfigurationError,
        lambda world: _from_environment("PREM_API_KEY", API_KEY + "\u00e9", PremClient),
    ),
    "client: a key for the enclave's": (
        prem_core.EnclaveKeyError, lambda world: PremClient(enclave_public_key="no key", api_key=API_KEY)
    ),
    "client: closed": (prem_core.ConfigurationError, lambda world: _use_closed(world)),
    "LangChain: plain http": (
        prem_core.ConfigurationError,
        lambda world: ChatPremEncrypted(model="text", **_PLAIN_HTTP).invoke(PROMPT),
    ),
    "LangChain: a malformed API key": (
        prem_core.ConfigurationError,
        lambda world: ChatPremEncrypted(model="text", api_key=API_KEY + " ").invoke(PROMPT),
    ),
    "LlamaIndex: plain http": (
        prem_core.ConfigurationError,
        lambda world: PremEncrypted(model="text", **_PLAIN_HTTP).complete(PROMPT),
    ),
    "LlamaIndex: a window that nobody knows": (
        prem_core.ConfigurationError,
        lambda world: PremEncrypted(model="unknown", **world.options("stranger")).metadata.context_window,
    ),
    "parser: plain http": (
        prem_core.ConfigurationError,
        lambda world: PremWhisperParser(**_PLAIN_HTTP).parse(langchain_blob(FILE)),
    ),
    "loader: plain http": (
        prem_core.ConfigurationError, lambda world: PremWhisperLoader(world.folder, **_PLAIN_HTTP).load()
    ),
    "reader: plain http": (
        prem_core.ConfigurationError, lambda world: PremWhisperReader(**_PLAIN_HTTP).load_data(FILE)
    ),
    "embedded enclave: a malformed API key": (
        prem_core.ConfigurationError, lambda world: LocalEnclave(api_key=API_KEY + " ")
    ),
    "embedded enclave: an upstream that is none": (
        prem_core.ConfigurationError,
        lambda world: LocalEnclave(api_key="sk_test_other", upstream="x", upstream_api_key=API_KEY),
    ),
    "proxy: another machine's address": (
        prem_core.ConfigurationError, lambda world: LocalProxy(api_key=API_KEY, host="192.0.2.1")
    ),
    "proxy: plain http": (prem_core.ConfigurationError, lambda world: LocalProxy(**_PLAIN_HTTP)),
    "proxy: a malformed API key": (
        prem_core.ConfigurationError, lambda world: LocalProxy(api_key=API_KEY + " ")
    ),
    # Keys and their files.
    "keys: a secret of another length": (
        prem_core.ConfigurationError,
        lambda world: EncryptionKeys(PAIR.shared_secret + b"x", bytes(CIPHER_TEXT_BYTES)),
    ),
    "keys: a cipher text of another length": (
        prem_core.ConfigurationError, lambda world: EncryptionKeys(PAIR.shared_secret.hex(), b"")
    ),
    "keys: a fingerprint that is none": (
        prem_core.ConfigurationError,
        lambda world: EncryptionKeys(PAIR.shared_secret, PAIR.cipher_text, enclave_fingerprint="none"),
    ),
    "keys: bytes that do not open": (
        prem_core.DecryptionError, lambda world: PAIR.open(PAIR.seal(b"", bytes(24)), bytes(23) + b"x")
    ),
    "keys: a nonce of another length": (TypeError, lambda world: PAIR.seal(PROMPT.encode(), b"short")),
    "keys: pickled": (TypeError, lambda world: pickle.dumps(PAIR)),
    "client: pickled": (TypeError, lambda world: pickle.dumps(PremClient(**world.options()))),
    "key file: damaged": (
        prem_core.ConfigurationError, lambda world: EncryptionKeys.load(_damaged(world), KEK)
    ),
    "key file: no such folder": (
        prem_core.ConfigurationError, lambda world: PAIR.save(world.folder / "none" / "k", KEK)
    ),
    "KEK: too long": (prem_core.ConfigurationError, lambda world: PAIR.save(world.folder / "k", KEK + b"x")),
    "KEK: no hex": (
        prem_core.ConfigurationError, lambda world: EncryptionKeys.load(_damaged(world), _HEX + "zz")
    ),
    "KEK: no base64": (
        prem_core.ConfigurationError, lambda world: EncryptionKeys.load(_damaged(world), "!" + _BASE64)
    ),
    "KEK: malformed in the environment": (
        prem_core.ConfigurationError,
        lambda world: _from_environment("CLIENT_KEK", _HEX[:-1], lambda: PAIR.save(world.folder / "k")),
    ),
    "KEK file: malformed": (
        prem_core.ConfigurationError, lambda world: keyfile.read_kek(_kek_file(world, _HEX[:-1].encode()))
    ),
    "KEK file: open to others": (
        prem_core.ConfigurationError,
        lambda world: keyfile.read_kek(_kek_file(world, _HEX.encode(), mode=0o644)),
    ),
    # Settings that pydantic refuses.
    **{
        f"{kind.__name__}: {why}": (ValidationError, lambda world, kind=kind, given=given: kind(**given))
        for kind, why, given in (
            (ChatPremEncrypted, "no model", {"api_key": API_KEY}),
            (ChatPremEncrypted, "a value out of range", {"model": "m", "api_key": API_KEY, "temperature": 9}),
            (ChatPremEncrypted, "a secret for keys", {"model": "m", "encryption_keys": PAIR.shared_secret.hex()}),
            (ChatPremEncrypted, "a misspelt setting", {"model": "m", "apikey": API_KEY}),
            (ChatPremEncrypted, "two limits", {
                "model": "m", "api_key": API_KEY, "limits": Limits(), "max_concurrency": 4}),
            (PremEncrypted, "no model", {"api_key": API_KEY}),
            (PremEncrypted, "a misspelt setting", {"model": "m", "apikey": API_KEY}),
            (PremEncrypted, "a prediction that is none", {"model": "m", "prediction": PROMPT}),
            (PremWhisperParser, "a task that is none", {"api_key": API_KEY, "task": PROMPT}),
            (PremWhisperParser, "a language too many", {"api_key": API_KEY, "task": "translate", "language": "de"}),
            (PremWhisperLoader, "no path", {"api_key": API_KEY}),
            (PremWhisperReader, "a language too many", {"api_key": API_KEY, "task": "translate", "language": "de"}),
        )
    },
}  # fmt: skip


def langchain_blob(data: bytes) -> Any:
    """A recording that has no name."""
    from langchain_core.documents.base import Blob

    return Blob.from_data(data, mime_type="audio/wav")


def _use_closed(world: World) -> object:
    client = PremClient(**world.options())
    client.close()
    return client.models.list()
