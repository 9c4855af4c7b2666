"""Every error class, raised by a real failure of a call whose keys and texts are those of `secret_values`."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
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
from prem_core.attestation import verify_snp_report
from prem_core.enclave import LocalEnclave
from prem_core.proxy import LocalProxy
from support.fake_gateway import DONE, FakeGateway, ReceivedRequest, event
from support.security import secret_values as secret_values
from support.security.secret_values import API_KEY, CALLERS, FILE, KEK, KEYS, PROMPT

#: The public error classes by name.
ERRORS = {
    name: kind
    for name in prem_core.__all__
    if isinstance(kind := getattr(prem_core, name), type) and issubclass(kind, PremError)
}


@dataclass(frozen=True)
class Enclaves:
    """Enclaves with one private key and one API key, each with its own fault."""

    scripted: LocalEnclave  # has an upstream that responds with `MODEL_CHUNKS`
    default: LocalEnclave  # has the built-in engine
    no_scopes: LocalEnclave
    small_body_limit: LocalEnclave
    no_concurrency: LocalEnclave
    broken_upstream: LocalEnclave
    other_keys: LocalEnclave
    folder: Path

    def options(self, at: str = "scripted", **changed: Any) -> dict[str, Any]:
        """Settings of a client or model."""
        prem: LocalEnclave = getattr(self, at)
        urls = {"gateway_url": prem.gateway_url, "enclave_url": prem.enclave_url}
        return {**urls, "api_key": API_KEY, "encryption_keys": KEYS, "max_retries": 0, **changed}


@dataclass(frozen=True)
class Failure:
    """A request that fails.

    Args:
        kind: The class of its error.
        at: The enclave that gets the request.
        options: Settings of the client or model.
        params: Parameters of the request.
        gateway: Responds instead of an enclave.
        ways: The `CALLERS` that can make this request.
    """

    kind: type[Exception]
    at: str = "scripted"
    options: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    gateway: Callable[[ReceivedRequest], None] | None = None
    ways: tuple[str, ...] = tuple(CALLERS)


def _flipped(call: ReceivedRequest) -> None:
    sealed = call.opened().events({"choices": []})
    call.stream(sealed[:-3] + bytes([sealed[-3] ^ 1]) + sealed[-2:])


def _truncated(call: ReceivedRequest) -> None:
    chunk = {"choices": [{"index": 0, "delta": {"content": secret_values.REPLY}, "finish_reason": None}]}
    call.stream(call.opened().events(chunk))


def _no_chunk(call: ReceivedRequest) -> None:
    call.stream(call.opened().events({"choices": secret_values.REPLY}) + DONE)


def _transcribing(plaintext: bytes) -> Callable[[ReceivedRequest], None]:
    """A handler that responds to a recording with `plaintext`, sealed."""

    def answer(call: ReceivedRequest) -> None:
        cipher_text = bytes.fromhex(json.loads(call.body)["cipherText"])
        keys = EncryptionKeys(call._enclave.private.decapsulate(cipher_text), cipher_text)
        nonce = new_nonce()
        data = {"encryptedResponse": keys.seal(plaintext, nonce).hex(), "nonce": nonce.hex()}
        call.reply(json.dumps({"status": 200, "data": data}).encode())

    return answer


def _transcribed(plaintext: bytes, **params: Any) -> object:
    with (
        FakeGateway(other=_transcribing(plaintext)) as gateway,
        PremClient(**gateway.settings(api_key=API_KEY)) as client,
    ):
        return client.audio.transcriptions.create(file=FILE, **params)


ADAPTERS = ("LangChain", "LangChain astream", "LlamaIndex", "LlamaIndex astream")
_CLOSED_PORT = "http://127.0.0.1:9"

REQUEST_FAILURES: dict[str, Failure] = {
    "another API key": Failure(prem_core.AuthenticationError, at="other_keys"),
    "a missing scope": Failure(prem_core.PermissionDeniedError, at="no_scopes"),
    "a body above the limit": Failure(prem_core.RequestTooLargeError, at="small_body_limit"),
    "an exceeded rate limit": Failure(prem_core.RateLimitError, at="no_concurrency"),
    "a value the service rejects": Failure(
        prem_core.BadRequestError, at="default", params={"extra_body": {"temperature": PROMPT}}
    ),
    "a name the service rejects": Failure(
        prem_core.BadRequestError, at="default", params={"extra_body": {PROMPT: 1}}
    ),
    "a prompt above the context length": Failure(
        prem_core.ContextLengthExceededError, params={"model": "small"}
    ),
    "an unknown model": Failure(prem_core.NotFoundError, at="default", params={"model": PROMPT}),
    "an engine that fails in mid-stream": Failure(prem_core.InternalServerError, params={"model": "failing"}),
    "an unreachable upstream": Failure(prem_core.InternalServerError, at="broken_upstream"),
    "an unreachable gateway": Failure(prem_core.APIConnectionError, options={"gateway_url": _CLOSED_PORT}),
    "an unreachable enclave": Failure(
        prem_core.APIConnectionError, options={"enclave_url": _CLOSED_PORT, "encryption_keys": None}
    ),
    "a response that does not start": Failure(
        prem_core.APITimeoutError, options={"timeout": 0.2}, params={"model": "slow"}
    ),
    "a call above its total timeout": Failure(
        prem_core.APITimeoutError, options={"total_timeout": 0.2}, params={"model": "slow"}
    ),
    "a response above the limit": Failure(prem_core.ResponseTooLargeError, options={"max_buffer_size": 10}),
    "a rotated enclave key": Failure(
        prem_core.EnclaveKeyError,
        options={
            "enclave_public_key": bytes(PrivateKey(bytes(32)).public_key()).hex(),
            "encryption_keys": None,
        },
    ),
    "encryption keys from before a key rotation": Failure(
        prem_core.EnclaveKeyError, at="other_keys", options={"api_key": None}
    ),
    "a reply under its request's nonce": Failure(
        prem_core.NonceReuseError,
        options={"nonce_reuse": "error"},
        gateway=lambda call: call.stream(call.opened().stream()),
    ),
    "a truncated stream": Failure(prem_core.StreamInterruptedError, gateway=_truncated),
    "a modified byte": Failure(prem_core.DecryptionError, gateway=_flipped),
    "an invalid chunk": Failure(prem_core.APIResponseValidationError, gateway=_no_chunk),
    "an HTML page": Failure(
        prem_core.APIResponseValidationError,
        gateway=lambda call: call.reply(b"<html>", headers={"content-type": "text/html"}),
    ),
    "a redirect": Failure(
        prem_core.APIStatusError,
        gateway=lambda call: call.reply(b"", 307, {"location": "http://127.0.0.1:9/"}),
    ),
    "an error of an unknown type": Failure(
        prem_core.APIError,
        gateway=lambda call: call.stream(event("error", '{"error": {"message": "it failed"}}')),
    ),
    "a tool call truncated by the token limit": Failure(
        prem_core.LengthFinishReasonError, params={"model": "truncated call"}, ways=ADAPTERS
    ),
    "a parameter of the wrong type": Failure(prem_core.InvalidParameterError, params={"temperature": PROMPT}),
    "a parameter outside its enum": Failure(
        prem_core.InvalidParameterError, params={"reasoning_effort": PROMPT}
    ),
    "a list above its length": Failure(prem_core.InvalidParameterError, params={"stop": [PROMPT] * 5}),
    "an invalid response format": Failure(
        prem_core.InvalidParameterError, params={"response_format": {"type": PROMPT, "json_schema": PROMPT}}
    ),
    "an object that is not JSON": Failure(
        prem_core.InvalidParameterError, params={"extra_body": {"x": {PROMPT}}}
    ),
    "a number that is NaN": Failure(
        prem_core.InvalidParameterError, params={"extra_body": {"x": [PROMPT, float("nan")]}}
    ),
    "a lone surrogate": Failure(
        prem_core.InvalidParameterError, params={"extra_body": {"x": PROMPT + "\ud800"}}
    ),
}


def raise_request_failure(enclaves: Enclaves, name: str, way: str) -> Exception:
    """The error of a failing request, made by one of `CALLERS`."""
    failure = REQUEST_FAILURES[name]
    with contextlib.ExitStack() as stack:
        options = enclaves.options(failure.at, **failure.options)
        if name == "encryption keys from before a key rotation":
            options["api_key"] = enclaves.other_keys.api_key
        if failure.gateway is not None:
            gateway = stack.enter_context(FakeGateway(failure.gateway))
            options |= {"gateway_url": gateway.url, "enclave_url": gateway.url, "encryption_keys": None}
        return capture_error(lambda: CALLERS[way](options, **failure.params), failure.kind)


def capture_error(call: Callable[[], object], kind: type[Exception]) -> Exception:
    """The error that `call` raises, which must be of this class."""
    try:
        call()
    except Exception as error:
        assert isinstance(error, kind), repr(error)
        return error
    raise AssertionError("nothing was raised")


# --- failures of other calls than a chat request


class Who(BaseModel):
    who: str


class Count(BaseModel):
    who: int


def _structured(kind: type[Exception], model: str, wanted: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    def langchain(enclaves: Enclaves) -> object:
        return (
            ChatPremEncrypted(model=model, **enclaves.options()).with_structured_output(wanted).invoke(PROMPT)
        )

    def llama_index(enclaves: Enclaves) -> object:
        return PremEncrypted(model=model, **enclaves.options()).structured_predict(
            wanted, PromptTemplate(PROMPT)
        )

    yield "LangChain", (kind, langchain)
    yield "LlamaIndex", (kind if issubclass(kind, PremError) else ValueError, llama_index)


def _damaged(enclaves: Enclaves) -> Path:
    path = enclaves.folder / "damaged.prem"
    KEYS.save(path, KEK, overwrite=True)
    image = bytearray(path.read_bytes())
    image[-1] ^= 1
    path.write_bytes(image)
    return path


def _kek_file(enclaves: Enclaves, text: bytes, mode: int = 0o600) -> Path:
    path = enclaves.folder / "kek"
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
_TRANSLATION = {"api_key": API_KEY, "task": "translate", "language": "de"}
_FILE_DATA = base64.b64encode(FILE).decode()

Other = tuple[type[Exception], Callable[[Enclaves], object]]

#: By name: the kind, and what raises it.
OTHER_FAILURES: dict[str, Other] = {
    **{f"{who}: a refusal": what for who, what in _structured(prem_core.RefusalError, "refusal", Who)},
    **{f"{who}: another value": what for who, what in _structured(OutputParserException, "json", Count)},
    **{f"{who}: no JSON": what for who, what in _structured(OutputParserException, "text", Who)},
    "LangChain: an unsupported content block": (
        prem_core.InvalidParameterError,
        lambda enclaves: ChatPremEncrypted(model="text", **enclaves.options()).invoke(
            [HumanMessage([{"type": "video", "base64": _FILE_DATA, "text": PROMPT}])]
        ),
    ),
    "LangChain: an image in a system message": (
        prem_core.InvalidParameterError,
        lambda enclaves: ChatPremEncrypted(model="text", **enclaves.options()).invoke(
            [SystemMessage([{"type": "image", "base64": _FILE_DATA, "mime_type": "image/png"}])]
        ),
    ),
    "LlamaIndex: an image in a system message": (
        prem_core.InvalidParameterError,
        lambda enclaves: PremEncrypted(model="text", **enclaves.options()).chat(
            [ChatMessage(role="system", blocks=[ImageBlock(image=_FILE_DATA.encode())])]
        ),
    ),
    "client: a malformed message": (
        prem_core.InvalidParameterError,
        lambda enclaves: PremClient(**enclaves.options()).chat.completions.create(
            model="text", messages=[{"role": "user", "content": {"text": PROMPT}}]
        ),
    ),
    "client: an invalid role": (
        prem_core.InvalidParameterError,
        lambda enclaves: PremClient(**enclaves.options()).chat.completions.create(
            model="text", messages=[{"role": PROMPT, "content": PROMPT}]
        ),
    ),
    "client: a mapping for a recording": (
        prem_core.InvalidParameterError,
        lambda enclaves: PremClient(**enclaves.options()).audio.transcriptions.create(file={PROMPT: FILE}),  # type: ignore[arg-type]
    ),
    "client: an invalid transcription": (
        prem_core.APIResponseValidationError,
        lambda enclaves: PremClient(**enclaves.options()).audio.transcriptions.create(file=FILE, prompt="wrong"),
    ),
    "client: a transcription that is not JSON": (
        prem_core.APIResponseValidationError,
        lambda enclaves: _transcribed(secret_values.TRANSCRIPT.encode()),
    ),
    "client: a transcription that is not UTF-8": (
        prem_core.APIResponseValidationError,
        lambda enclaves: _transcribed(secret_values.TRANSCRIPT.encode() + b"\xff", response_format="text"),
    ),
    "client: a recording without the scope": (
        prem_core.PermissionDeniedError,
        lambda enclaves: PremClient(**enclaves.options("no_scopes")).audio.transcriptions.create(
            file=(secret_values.FILE_NAME, FILE), prompt=PROMPT
        ),
    ),
    "parser: a recording without the scope": (
        prem_core.PermissionDeniedError,
        lambda enclaves: PremWhisperParser(**enclaves.options("no_scopes"), prompt=PROMPT).parse(
            langchain_blob(FILE)
        ),
    ),
    "reader: a recording that cannot be split": (
        prem_core.InvalidParameterError,
        lambda enclaves: PremWhisperReader(
            **enclaves.options(), prompt=PROMPT, max_chunk_bytes=256 * 1024
        ).load_data(FILE * 10_000),
    ),
    # Settings.
    "client: plain http": (prem_core.ConfigurationError, lambda enclaves: PremClient(**_PLAIN_HTTP)),
    "async client: plain http": (prem_core.ConfigurationError, lambda enclaves: AsyncPremClient(**_PLAIN_HTTP)),
    "client: an invalid limit": (
        prem_core.ConfigurationError, lambda enclaves: PremClient(api_key=API_KEY, max_concurrency=0)
    ),
    "client: encryption keys of the wrong type": (
        prem_core.ConfigurationError,
        lambda enclaves: PremClient(api_key=API_KEY, encryption_keys=KEYS.shared_secret),  # type: ignore[arg-type]
    ),
    "client: an unknown argument": (
        TypeError,
        lambda enclaves: PremClient(api_key=API_KEY, apikey="k"),  # type: ignore[call-arg]
    ),
    "client: a malformed API key": (
        prem_core.ConfigurationError, lambda enclaves: PremClient(api_key=API_KEY + "\n")
    ),
    "client: a malformed API key in the environment": (
        prem_core.ConfigurationError,
        lambda enclaves: _from_environment("PREM_API_KEY", API_KEY + "\u00e9", PremClient),
    ),
    "client: an invalid enclave key": (
        prem_core.EnclaveKeyError, lambda enclaves: PremClient(enclave_public_key="no key", api_key=API_KEY)
    ),
    "client: closed": (prem_core.ConfigurationError, lambda enclaves: _use_closed(enclaves)),
    "LangChain: plain http": (
        prem_core.ConfigurationError,
        lambda enclaves: ChatPremEncrypted(model="text", **_PLAIN_HTTP).invoke(PROMPT),
    ),
    "LangChain: a malformed API key": (
        prem_core.ConfigurationError,
        lambda enclaves: ChatPremEncrypted(model="text", api_key=API_KEY + " ").invoke(PROMPT),
    ),
    "LlamaIndex: plain http": (
        prem_core.ConfigurationError,
        lambda enclaves: PremEncrypted(model="text", **_PLAIN_HTTP).complete(PROMPT),
    ),
    "LlamaIndex: an unknown context window": (
        prem_core.ConfigurationError,
        lambda enclaves: PremEncrypted(model="unknown", **enclaves.options("other_keys")).metadata.context_window,
    ),
    "parser: plain http": (
        prem_core.ConfigurationError,
        lambda enclaves: PremWhisperParser(**_PLAIN_HTTP).parse(langchain_blob(FILE)),
    ),
    "loader: plain http": (
        prem_core.ConfigurationError, lambda enclaves: PremWhisperLoader(enclaves.folder, **_PLAIN_HTTP).load()
    ),
    "reader: plain http": (
        prem_core.ConfigurationError, lambda enclaves: PremWhisperReader(**_PLAIN_HTTP).load_data(FILE)
    ),
    "embedded enclave: a malformed API key": (
        prem_core.ConfigurationError, lambda enclaves: LocalEnclave(api_key=API_KEY + " ")
    ),
    "embedded enclave: an invalid upstream": (
        prem_core.ConfigurationError,
        lambda enclaves: LocalEnclave(api_key="sk_test_other", upstream="x", upstream_api_key=API_KEY),
    ),
    "proxy: another machine's address": (
        prem_core.ConfigurationError, lambda enclaves: LocalProxy(api_key=API_KEY, host="192.0.2.1")
    ),
    "proxy: plain http": (prem_core.ConfigurationError, lambda enclaves: LocalProxy(**_PLAIN_HTTP)),
    "proxy: a malformed API key": (
        prem_core.ConfigurationError, lambda enclaves: LocalProxy(api_key=API_KEY + " ")
    ),
    # Keys and their files.
    "keys: a secret of the wrong length": (
        prem_core.ConfigurationError,
        lambda enclaves: EncryptionKeys(KEYS.shared_secret + b"x", bytes(CIPHER_TEXT_BYTES)),
    ),
    "keys: a cipher text of the wrong length": (
        prem_core.ConfigurationError, lambda enclaves: EncryptionKeys(KEYS.shared_secret.hex(), b"")
    ),
    "keys: an invalid fingerprint": (
        prem_core.ConfigurationError,
        lambda enclaves: EncryptionKeys(KEYS.shared_secret, KEYS.cipher_text, enclave_fingerprint="none"),
    ),
    "attestation: a report of the wrong size": (
        prem_core.AttestationError,
        lambda enclaves: verify_snp_report(
            PROMPT.encode(), vcek=b"", chain=b"", crl=None, nonce=bytes(64), now=datetime.now(UTC)
        ),
    ),
    "keys: bytes that do not open": (
        prem_core.DecryptionError, lambda enclaves: KEYS.open(KEYS.seal(b"", bytes(24)), bytes(23) + b"x")
    ),
    "keys: a nonce of the wrong length": (TypeError, lambda enclaves: KEYS.seal(PROMPT.encode(), b"short")),
    "keys: pickled": (TypeError, lambda enclaves: pickle.dumps(KEYS)),
    "client: pickled": (TypeError, lambda enclaves: pickle.dumps(PremClient(**enclaves.options()))),
    "key file: damaged": (
        prem_core.ConfigurationError, lambda enclaves: EncryptionKeys.load(_damaged(enclaves), KEK)
    ),
    "key file: no such folder": (
        prem_core.ConfigurationError, lambda enclaves: KEYS.save(enclaves.folder / "none" / "k", KEK)
    ),
    "KEK: too long": (prem_core.ConfigurationError, lambda enclaves: KEYS.save(enclaves.folder / "k", KEK + b"x")),
    "KEK: not hex": (
        prem_core.ConfigurationError, lambda enclaves: EncryptionKeys.load(_damaged(enclaves), _HEX + "zz")
    ),
    "KEK: not base64": (
        prem_core.ConfigurationError, lambda enclaves: EncryptionKeys.load(_damaged(enclaves), "!" + _BASE64)
    ),
    "KEK: one byte repeated": (
        prem_core.ConfigurationError, lambda enclaves: EncryptionKeys.load(_damaged(enclaves), bytes([7]) * 32)
    ),
    "KEK: malformed in the environment": (
        prem_core.ConfigurationError,
        lambda enclaves: _from_environment("CLIENT_KEK", _HEX[:-1], lambda: KEYS.save(enclaves.folder / "k")),
    ),
    "KEK file: malformed": (
        prem_core.ConfigurationError, lambda enclaves: keyfile.read_kek(_kek_file(enclaves, _HEX[:-1].encode()))
    ),
    "KEK file: readable by others": (
        prem_core.ConfigurationError,
        lambda enclaves: keyfile.read_kek(_kek_file(enclaves, _HEX.encode(), mode=0o644)),
    ),
    # Settings that pydantic rejects.
    **{
        f"{kind.__name__}: {why}": (ValidationError, lambda enclaves, kind=kind, given=given: kind(**given))
        for kind, why, given in (
            (ChatPremEncrypted, "no model", {"api_key": API_KEY}),
            (ChatPremEncrypted, "a value out of range", {"model": "m", "api_key": API_KEY, "temperature": 9}),
            (ChatPremEncrypted, "a secret instead of keys", {
                "model": "m", "encryption_keys": KEYS.shared_secret.hex()}),
            (ChatPremEncrypted, "a misspelt setting", {"model": "m", "apikey": API_KEY}),
            (ChatPremEncrypted, "two limits", {
                "model": "m", "api_key": API_KEY, "limits": Limits(), "max_concurrency": 4}),
            (PremEncrypted, "no model", {"api_key": API_KEY}),
            (PremEncrypted, "a misspelt setting", {"model": "m", "apikey": API_KEY}),
            (PremEncrypted, "an invalid prediction", {"model": "m", "prediction": PROMPT}),
            (PremWhisperParser, "an invalid task", {"api_key": API_KEY, "task": PROMPT}),
            (PremWhisperParser, "a language for a translation", _TRANSLATION),
            (PremWhisperLoader, "no path", {"api_key": API_KEY}),
            (PremWhisperReader, "a language for a translation", _TRANSLATION),
        )
    },
}  # fmt: skip


def langchain_blob(data: bytes) -> Any:
    """A recording without a name."""
    from langchain_core.documents.base import Blob

    return Blob.from_data(data, mime_type="audio/wav")


def _use_closed(enclaves: Enclaves) -> object:
    client = PremClient(**enclaves.options())
    client.close()
    return client.models.list()
