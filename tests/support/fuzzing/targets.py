"""What is fuzzed, and what must hold of every input.

Each target runs one input and says what it did. Errors that the code documents are outcomes; whatever else is raised,
an `AssertionError` of the target's own included, is a finding.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import os
import pickle
import random
import re
import socket
import sys
import tempfile
import wave
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import h11
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage

from langchain_prem import _responses as lc_answers
from langchain_prem._messages import wire_messages
from llama_index_prem import _responses as li_answers
from prem_core import PremError
from prem_core import _errors as errors
from prem_core._audio.chunking import chunks_of, split
from prem_core._audio.sources import source_of
from prem_core._audio.upload import read_recording
from prem_core._crypto import keyfile
from prem_core._crypto.keys import EncryptionKeys
from prem_core._crypto.xwing import PUBLIC_KEY_BYTES, PrivateKey
from prem_core._protocol.accumulator import CompletionBuilder
from prem_core._protocol.chat_stream import ChatStreamReader
from prem_core._protocol.error_body import is_key_rotation_error, status_error, stream_error
from prem_core._protocol.protection import Protection
from prem_core._protocol.request_schema import audio_plaintext, chat_plaintext
from prem_core._protocol.response_body import parse_public_key, read_public_key, read_transcription
from prem_core._protocol.response_types import ChatCompletion, ChatCompletionChunk, read_json
from prem_core._protocol.retry import MAX_DELAY, MAX_RETRY_AFTER, RetryPolicy
from prem_core._protocol.sse import EventDecoder
from prem_core._protocol.steps import FlowSettings
from prem_core.enclave import LocalEnclave
from prem_core.enclave.engines.base import EngineError
from prem_core.enclave.envelope import EnvelopeError
from prem_core.enclave.opened_request import open_audio, open_chat
from support.fake_gateway import JSON, FlowHarness, ScriptedResponse, open_completion
from support.fuzzing.fuzzer import TIMEOUT, Outcome
from support.fuzzing.mutations import PLAIN
from support.paths import DATA
from support.wire_schemas import PARAMS

# --- fixed values, so that a case has the same meaning in every run

VECTOR: Final = json.loads((DATA / "vectors" / "rvenc-vectors.json").read_text())["vectors"][-1]
PRIVATE: Final = PrivateKey(bytes.fromhex(VECTOR["seed"]))
KEYS: Final = EncryptionKeys(VECTOR["sharedSecret"], VECTOR["cipherText"])
NONCE: Final = bytes.fromhex(VECTOR["nonce"])
SECRETS: Final = (VECTOR["sharedSecret"], repr(KEYS.shared_secret)[2:-1], VECTOR["seed"])

#: A word in plaintexts and parameters that no error may contain.
WORD: Final = "Quillonbury"


def sealed(data: bytes) -> bytes:
    """`data`, its plaintexts sealed, in hex."""
    return PLAIN.sub(lambda match: KEYS.seal(match[1], NONCE).hex().encode(), data)


def error_text(error: BaseException) -> str:
    """Everything a log could show of an error, its cause and its context."""
    texts, pending, seen = [], [error], set()
    while pending:
        each = pending.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        texts += [str(each), repr(each), repr(each.args), repr(getattr(each, "__dict__", None))]
        pending += [other for other in (each.__cause__, each.__context__) if other is not None]
    return "\n".join(texts)


def checked(error: Exception, *secrets: str) -> Outcome:
    """The outcome of a documented error, which must be printable, picklable and free of secrets."""
    text = error_text(error)
    for secret in (*SECRETS, *secrets):
        assert secret not in text, "an error contains a secret"
    str(error).encode()
    assert str(pickle.loads(pickle.dumps(error))) == str(error), "a pickled error has another message"
    assert str(copy.copy(error)) == str(error), "a copied error has another message"
    return Outcome(type(error).__name__, str(error))


def splits(data: bytes) -> list[list[bytes]]:
    """`data` split in several ways that depend on it alone."""
    rng = random.Random(zlib.crc32(data))
    found = [[data]]
    for _ in range(3):
        marks = sorted(rng.randint(0, len(data)) for _ in range(rng.choice((1, 2, 8))))
        found.append([data[a:b] for a, b in zip([0, *marks], [*marks, len(data)], strict=True)])
    if len(data) <= 512:
        found.append([data[i : i + 1] for i in range(len(data))])
    return found


def same(outcomes: Sequence[Outcome]) -> Outcome:
    """The outcome of an input in pieces, which must not depend on how it is split."""
    assert all(each == outcomes[0] for each in outcomes), "the outcome depends on how the input is split"
    return outcomes[0]


# --- event streams


def run_sse(data: bytes) -> Outcome:
    """The first byte says how much of an event may be held."""
    limit = 1 << 20 if data[:1] < b"\x80" else 1 + data[0] - 0x80
    # Whether a line is too long is decided at its end.
    stream = data[1:] + b"\n"

    def decoded(cut: list[bytes]) -> Outcome:
        decoder, events = EventDecoder(limit), []
        try:
            for piece in cut:
                for event in decoder.feed(piece):
                    events.append(event)
        except errors.ResponseTooLargeError:
            return Outcome("too large", events)
        return Outcome(f"{min(len(events), 3)} events", events)

    outcome = same([decoded(cut) for cut in splits(stream)])
    events = outcome.detail
    assert sum(len(name) + len(text) for name, text in events) <= len(stream) + len(b"message") * len(events)
    assert all(len(text) <= limit for _, text in events)
    return outcome


def run_stream(data: bytes) -> Outcome:
    """A stream under `KEYS` and `NONCE`: no chunk comes out that was not sealed in it."""
    plain = {match[1] for match in PLAIN.finditer(data)}
    stream = sealed(data)

    def read(cut: list[bytes]) -> Outcome:
        reader = ChatStreamReader(KEYS, NONCE, 1 << 20)
        builder, chunks = CompletionBuilder(), []
        ended: Outcome = Outcome("whole")
        try:
            for piece in cut:
                for chunk in reader.feed(piece):
                    chunks.append(chunk)
                    builder.add(chunk)
            reader.finish()
        except PremError as error:
            ended = checked(error, *words(error, stream))
        builder.build()
        return Outcome(ended.kind, ([repr(chunk.model_dump()) for chunk in chunks], ended.detail))

    outcome = same([read(cut) for cut in splits(stream)])
    chunks, _ = outcome.detail
    allowed = set()
    for each in plain:
        with contextlib.suppress(PremError):
            allowed.add(repr(read_json(ChatCompletionChunk, each).model_dump()))
    assert set(chunks) <= allowed, "a chunk that was not sealed"
    return outcome


def words(error: PremError, body: bytes) -> tuple[str, ...]:
    """What must not be in an error's text: what was sealed, unless the service says it in the clear or as an error."""
    reported = isinstance(error, errors.APIStatusError) or type(error) is errors.APIError
    return () if reported or WORD.encode() in body else (WORD,)


def run_completion(data: bytes) -> Outcome:
    """The JSON envelope of a whole response."""
    body = sealed(data).replace(b"NONCE", NONCE.hex().encode())
    try:
        completion = open_completion(KEYS, body)
    except PremError as error:
        return checked(error, *words(error, body))
    assert completion.choices
    assert all(choice.finish_reason is not None for choice in completion.choices)
    assert f"={WORD!r}" not in repr(completion), "a repr contains content"
    return Outcome("an answer", repr(completion.model_dump()))


_PROTECTION = Protection(key_fingerprint=None, key_source="fetched", reply_nonce="own")


def run_answers(data: bytes) -> Outcome:
    """A response in both frameworks. Input: a completion's JSON, a line, and chunks' JSON, each on a line."""
    first, _, rest = data.partition(b"\n")
    outcomes = []
    with contextlib.suppress(ValueError, PremError):
        completion = read_json(ChatCompletion, first)
        for read in (lc_answers.chat_result, li_answers.chat_response):
            outcomes.append(_read_answer(read, completion, json_requested=True))
    chunks = []
    with contextlib.suppress(ValueError, PremError):
        for line in rest.splitlines():
            chunks.append(read_json(ChatCompletionChunk, line))
    for stream in (
        lc_answers.ChunkConverter(_PROTECTION, json_requested=True),
        li_answers.ChunkConverter(_PROTECTION, json_requested=True, first_call_only=False),
    ):

        def streamed(chunks: list[Any], stream: Any = stream) -> object:
            return [*map(stream.convert, chunks), stream.end()][-1]

        outcomes.append(_read_answer(streamed, chunks))
    return Outcome(" ".join(each.kind for each in outcomes), outcomes)


def _read_answer(read: Callable[..., Any], answer: Any, **options: Any) -> Outcome:
    try:
        return Outcome("read", repr(read(answer, **options)))
    except PremError as error:
        return checked(error, WORD)


def run_transcription(data: bytes) -> Outcome:
    """The first byte selects the requested response format."""
    form = ("text", "json", "verbose_json", None)[data[0] % 4] if data else None
    try:
        found = read_transcription(data[1:], form)
    except errors.APIResponseValidationError as error:
        return checked(error, WORD)
    assert isinstance(found, str) or f"={WORD!r}" not in repr(found), "a repr contains content"
    return Outcome("text" if isinstance(found, str) else "a transcription", repr(found))


# --- errors, models, keys


def run_errors(data: bytes) -> Outcome:
    """A reply that is an error: the status, the Retry-After header, the route, and the body, each on a line."""
    status, header, route, body = (*data.split(b"\n", 3), b"", b"", b"", b"")[:4]
    number = int(status) if re.fullmatch(rb"\d{1,6}", status) else 500
    headers = {"retry-after": header.decode("latin-1")} if header else {}
    error = status_error(number, body, route=route.decode("latin-1"), headers=headers, now=1.7e9)
    outcome = _error(error)
    with contextlib.suppress(ValueError, RecursionError):
        _error(stream_error(json.loads(body)))
    return outcome


def _error(error: errors.APIError) -> Outcome:
    outcome = checked(error)
    assert len(error.args[0]) <= 600, "an error's text has no end"
    assert "\n" not in str(error), "an error's text has more than one line"
    assert len(str(error)) <= 1200
    is_key_rotation_error(error)
    delay = RetryPolicy(max_retries=1, rng=lambda: 0.5).delay(0, error)
    assert delay is None or 0 <= delay <= MAX_RETRY_AFTER + MAX_DELAY, "a wait that is none"
    return outcome


def run_models(data: bytes) -> Outcome:
    """The models list: what the gateway answers."""
    return _fetched(FlowHarness.models, data)


def run_key(data: bytes) -> Outcome:
    """The enclave's key: what the enclave answers, and what a setting holds."""
    outcome = _fetched(FlowHarness.public_key, data)
    for read in (
        lambda: read_public_key(data), lambda: parse_public_key(data), lambda: parse_public_key(data.decode("latin-1"))
    ):  # fmt: skip
        try:
            key = read()
        except errors.EnclaveKeyError as error:
            checked(error)
        else:
            assert len(bytes(key)) == PUBLIC_KEY_BYTES
    return outcome


_SETTINGS: Final = FlowSettings(retry=RetryPolicy(max_retries=0), max_buffer_size=1 << 20)


def _fetched(fetch: Callable[[FlowHarness], Any], body: bytes) -> Outcome:
    """Run a request whose response has this body."""
    harness = FlowHarness(_SETTINGS, answers=[ScriptedResponse([body], headers=dict(JSON))])
    try:
        return Outcome("found", repr(fetch(harness)))
    except PremError as error:
        return checked(error)


# --- files

KEK: Final = bytes(range(32))
_FOLDER: list[Path] = []


@contextlib.contextmanager
def folder() -> Iterator[None]:
    """A folder for the inputs that are files."""
    with tempfile.TemporaryDirectory() as name:
        _FOLDER.append(Path(name))
        try:
            yield
        finally:
            _FOLDER.pop()


@contextlib.contextmanager
def _file(data: bytes) -> Iterator[Path]:
    if not _FOLDER:
        with folder(), _file(data) as path:
            yield path
        return
    path = _FOLDER[-1] / "input"
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    path.chmod(0o600)
    yield path


#: A key file made once; any other bytes that open are a forgery.
KEY_FILE: Final = bytes.fromhex(
    "5052454d4b455953" "0001" "0000000065920080" + "ab" * 32 + VECTOR["cipherText"] + "11" * 24
)  # fmt: skip


def key_image() -> bytes:
    """The image of a key file that opens with `KEK`."""
    from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_encrypt as seal

    return KEY_FILE + seal(KEYS.shared_secret, KEY_FILE[:1170], KEY_FILE[1170:], KEK)


def run_keyfile(data: bytes) -> Outcome:
    """A file of encryption keys, and one of a KEK."""
    with _file(data) as path:
        kek: bytes | None = None
        with contextlib.suppress(errors.ConfigurationError):
            kek = keyfile.read_kek(path)
        if kek is not None:
            assert len(kek) == 32
        try:
            file = keyfile.read_header(path)
            secret = file.open(KEK)
        except errors.ConfigurationError as error:
            text = checked(error, KEK.hex()).detail.replace(str(path), "the file")
            return Outcome(f"refused, {'a' if kek else 'no'} KEK", text)
    assert data == key_image(), "a file that was changed opens"
    assert EncryptionKeys(secret, file.cipher_text) == KEYS
    return Outcome("opens", repr(file.created))


# --- recordings


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what the decoders say of themselves: libmpg123 on the standard error, soundfile's callbacks by Python."""

    def unraisable(args: Any) -> None:
        if "cffi" not in (args.err_msg or ""):
            before(args)

    before, sys.unraisablehook = sys.unraisablehook, unraisable
    error = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(error, 2)
        os.close(error)
        os.close(nowhere)
        sys.unraisablehook = before


def run_recording(data: bytes) -> Outcome:
    """A recording that is cut into parts; the first byte says how small these must be.

    Parts of WAV files can be small; those that libsndfile writes are made of larger steps.
    """
    size = data[0] if data else 0
    limit = 6_500 + 50 * size if size < 128 else 70_000 + 500 * size
    recording = data[1:]
    with contextlib.suppress(errors.InvalidParameterError):
        read_recording(("a.wav", recording))
    try:
        parts = list(split("a.wav", io.BytesIO(recording), limit))
    except errors.InvalidParameterError as error:
        return checked(error)
    assert all(0 < len(part.data) <= limit for part in parts), "a part is larger than it may be"
    assert [part.offset for part in parts] == sorted(part.offset for part in parts)
    kinds = {part.name.rpartition(".")[2] for part in parts}
    if kinds == {"wav"}:
        whole, sound = _samples(recording), b"".join(_samples(part.data) for part in parts)
        assert sound == whole[: len(sound)] and len(whole) - len(sound) < 16, "a part of the sound is lost"
    try:
        list(chunks_of(source_of(("a.wav", recording)), limit))
    except errors.InvalidParameterError as error:
        checked(error)
    return Outcome(
        f"{' '.join(sorted(kinds))}, {min(len(parts), 4)} parts", [len(part.data) for part in parts]
    )


def _samples(file: bytes) -> bytes:
    with wave.open(io.BytesIO(file)) as opened:
        return opened.readframes(opened.getnframes())


def run_decode(data: bytes) -> Outcome:
    """A recording that the embedded enclave listens to."""
    from prem_core.enclave.engines.speech.recording import decode

    try:
        recording = decode(data)
    except EngineError as error:
        assert error.status == 400
        return Outcome("refused", str(error))
    assert recording.pcm
    return Outcome("sound", (len(recording.pcm), recording.seconds))


# --- requests


def run_params(data: bytes) -> Outcome:
    """Parameters of a chat and of a transcription. ``{"$": name}`` stands for a value that JSON does not have."""
    try:
        params = _revived(json.loads(data))
    except (ValueError, RecursionError):
        return Outcome("no input")
    if not isinstance(params, dict):
        return Outcome("no input")
    extra = params.pop("extra_body", None)
    # Names are named; values are not.
    secrets = () if any(WORD in name for name in _names(params)) else (WORD,)
    outcomes = []
    for task in ("transcribe", "translate"):
        try:
            audio_plaintext(task, params, extra)  # type: ignore[arg-type]
        except errors.InvalidParameterError as error:
            outcomes.append(checked(error, *secrets).kind)
    try:
        plaintext = chat_plaintext(params, extra)
    except errors.InvalidParameterError as error:
        if not isinstance(extra, dict) or not any(WORD in name for name in _names(extra)):
            checked(error, *secrets)
        return Outcome("refused", (error.param, str(error), outcomes))
    found = json.loads(plaintext)
    if extra is None:
        assert next(PARAMS.iter_errors(found), None) is None, "accepted, and not what the schema allows"
    return Outcome("accepted", (repr(found), outcomes))


class Opaque:
    """A value that is not JSON, with a secret word in its repr."""

    def __repr__(self) -> str:
        return WORD


def _revived(value: Any) -> Any:
    if isinstance(value, list):
        return [_revived(each) for each in value]
    if not isinstance(value, dict):
        return value
    made: dict[Any, Any] = {
        "nan": float("nan"), "bytes": WORD.encode(), "object": Opaque(), "set": {WORD}, "tuple": (WORD,),
        "number": {1: WORD}, "surrogate": WORD + "\ud800", "iterator": iter([WORD]), "generator": (w for w in [WORD]),
    }  # fmt: skip
    if set(value) == {"$"} and isinstance(value["$"], str):
        return made.get(value["$"])
    return {name: _revived(each) for name, each in value.items()}


def _names(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, each in value.items():
            yield str(name)
            yield from _names(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _names(each)


def run_messages(data: bytes) -> Outcome:
    """LangChain messages: a JSON list of objects with a role and what a message of that role has."""
    try:
        given = json.loads(data)
    except (ValueError, RecursionError):
        return Outcome("no input")
    messages = [made for each in given if (made := _message(each))] if isinstance(given, list) else []
    if not messages:
        return Outcome("no input")
    before = repr(messages)
    try:
        wire = wire_messages(messages)
        plaintext = chat_plaintext({"model": "m", "messages": wire})
    except errors.InvalidParameterError as error:
        return checked(error)
    finally:
        assert repr(messages) == before, "the caller's messages were changed"
    assert next(PARAMS.iter_errors(json.loads(plaintext)), None) is None, (
        "sent, and not what the schema allows"
    )
    return Outcome("sent", repr(wire))


def _message(given: Any) -> BaseMessage | None:
    kinds: dict[Any, type[BaseMessage]] = {
        "human": HumanMessage, "ai": AIMessage, "system": SystemMessage, "tool": ToolMessage,
    }  # fmt: skip
    if not isinstance(given, dict) or not isinstance(given.get("role"), str) or given["role"] not in kinds:
        return None
    values = {name: value for name, value in given.items() if name != "role"}
    try:
        return kinds[given["role"]](**values)
    except (ValueError, TypeError, RecursionError, AttributeError, KeyError, AssertionError):
        return None  # LangChain's own classes take no such thing


def nested(data: bytes) -> list[bytes]:
    """`data` as often as ``@NESTED@`` in it may stand for a depth of nesting, near the deepest that Python reads."""
    depths = range(860, 1000) if b"@NESTED@" in data else [0]
    return [data.replace(b"@NESTED@", b"[" * depth + b"]" * depth) for depth in depths]


def run_enclave(data: bytes) -> Outcome:
    """A request's body at the enclave, its plaintexts sealed to it."""
    return [_opened(each) for each in nested(data)][-1]


def _opened(data: bytes) -> Outcome:
    body = (
        sealed(data).replace(b"NONCE", NONCE.hex().encode()).replace(b"CIPHER", VECTOR["cipherText"].encode())
    )
    kinds = []
    for opened in (
        lambda: open_chat(PRIVATE, body), lambda: open_audio(PRIVATE, "transcribe", body),
        lambda: open_audio(PRIVATE, "translate", body),
    ):  # fmt: skip
        try:
            opened()
        except EnvelopeError as error:
            assert error.status in (400, 413)
            envelope = json.dumps(error.envelope())
            assert WORD not in envelope, "a plaintext response contains a secret word"
            assert all(secret not in envelope for secret in SECRETS)
            kinds.append(error.error[:24])
        else:
            kinds.append("opened")
    return Outcome(" ".join("opened" if kind == "opened" else "refused" for kind in kinds), kinds)


# --- the embedded enclave, over HTTP


class Served:
    """An embedded enclave, and what it logs."""

    def __init__(self) -> None:
        self.prem: LocalEnclave | None = None
        self.runs = 0
        self.logged: list[str] = []


SERVED: Final = Served()


@contextlib.contextmanager
def served() -> Iterator[None]:
    """An embedded enclave that listens."""

    class LogRecorder(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            SERVED.logged.append(record.getMessage())

    errors_logged = LogRecorder(logging.ERROR)
    loggers = [logging.getLogger(name) for name in ("prem_core.enclave", "uvicorn.error", "asyncio")]
    with LocalEnclave(private_key=PRIVATE, api_key="sk_test_fuzz", body_limit=64 * 1024) as SERVED.prem:
        for logger in loggers:
            logger.addHandler(errors_logged)
        try:
            yield
        finally:
            SERVED.prem = None
            for logger in loggers:
                logger.removeHandler(errors_logged)


def run_http(data: bytes) -> Outcome:
    """The bytes of a request, to the gateway or (``@ENCLAVE@``) to the enclave.

    ``@HOST@``, ``@KEY@``, ``@LENGTH@``: what a good request has there.
    """
    if SERVED.prem is None:
        with served():
            return run_http(data)
    return [_served(each, SERVED.prem) for each in nested(data)][-1]


def _served(data: bytes, prem: LocalEnclave) -> Outcome:
    url = urlsplit(prem.enclave_url if b"@ENCLAVE@" in data else prem.gateway_url)
    host = f"127.0.0.1:{url.port}".encode()
    head, blank, body = data.replace(b"@ENCLAVE@", b"").partition(b"\r\n\r\n")
    body = (
        sealed(body).replace(b"NONCE", NONCE.hex().encode()).replace(b"CIPHER", VECTOR["cipherText"].encode())
    )
    for name, value in ((b"@HOST@", host), (b"@KEY@", b"sk_test_fuzz"), (b"@LENGTH@", b"%d" % len(body))):
        head = head.replace(name, value)
    outcome = _asked(url.port or 0, head + blank + body)
    SERVED.runs += 1
    if SERVED.runs % 8 == 0:
        good = b"GET /models HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAuthorization: sk_test_fuzz\r\n\r\n"
        port = urlsplit(prem.gateway_url).port or 0
        assert _asked(port, good % port).kind == "200", "the server no longer responds"
    logged, SERVED.logged[:] = SERVED.logged[:], []
    assert logged == [], f"it logs that {logged[0].replace(':', ',')}"
    assert outcome.kind < "5" or not outcome.kind.isdigit(), "the server responds with a server error"
    return outcome


def _asked(port: int, request: bytes) -> Outcome:
    whole = _is_whole(request)
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT - 1) as sock:
        try:
            sock.sendall(request)
            if not whole:
                sock.shutdown(socket.SHUT_WR)  # nothing more will come
            answer = b""
            while piece := sock.recv(65536):
                answer += piece
                if whole and _answered(answer, request):
                    break
        except ConnectionError:
            return Outcome(
                "hung up"
            )  # in the middle of a request, as it may: the rest of it undoes the answer
    if not answer:
        assert not whole, "a whole request is not answered"
        return Outcome("no answer")
    status: bytes = re.findall(rb"^HTTP/1\.1 (\d{3})", answer)[0]
    assert WORD.encode() not in answer, "a plaintext response contains a secret word"
    return Outcome(status.decode())


def _is_whole(request: bytes) -> bool:
    """Whether the request is complete."""
    connection = h11.Connection(h11.SERVER)
    try:
        connection.receive_data(request)
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA or isinstance(event, h11.ConnectionClosed):
                return False
            if isinstance(event, h11.EndOfMessage):
                return True
    except h11.RemoteProtocolError:
        return True


def _answered(answer: bytes, request: bytes) -> bool:
    """Whether `answer` is whole."""
    connection = h11.Connection(h11.CLIENT)
    method = request.partition(b" ")[0]
    connection.send(
        h11.Request(method=b"HEAD" if method == b"HEAD" else b"GET", target=b"/", headers=[("Host", "h")])
    )
    connection.send(h11.EndOfMessage())
    connection.receive_data(answer)
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            return False
        if isinstance(event, h11.EndOfMessage):
            return True
