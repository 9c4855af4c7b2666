"""Keys, prompts and responses are in nothing that is displayed, logged, raised, pickled or written.

The tests make real requests with the secrets of `secret_values`, then search everything public, in every representation
of `representations`, for a piece of a secret in every encoding of `encodings`.

- Keys (the API key, the KEK, shared secrets, private keys) are in no representation of anything, and in no local
  variable of this package's frames in a traceback.
- Texts (prompts, tool arguments, files, responses) likewise, except for local variables: a function that gets a prompt
  has it. A response has its text in its fields, in `model_dump` and in pickles, but does not display it.
- Settings of a model or loader that hold text (`prediction`, `system_prompt`, Whisper's `prompt`) are part of its
  pickles and dicts, and are not displayed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import yaml
from llama_index.core import PromptTemplate
from support.cassettes import CASSETTES
from support.scripted_upstream import Upstream
from support.security import secret_values
from support.security.encodings import SecretSearch
from support.security.error_catalogue import (
    ERRORS,
    OTHER_FAILURES,
    REQUEST_FAILURES,
    Enclaves,
    Who,
    capture_error,
    langchain_blob,
    raise_request_failure,
)
from support.security.representations import displayed, package_locals, serialised
from support.security.secret_values import (
    API_KEY,
    CALLERS,
    KEK,
    KEYS,
    LC_MESSAGES,
    LI_MESSAGES,
    MESSAGES,
    PROMPT,
    TOOL,
)
from support.wire_schemas import Opened

import langchain_prem
import llama_index_prem
import prem_core
from langchain_prem import ChatPremEncrypted, PlaintextEgressWarning, PremWhisperLoader, PremWhisperParser
from llama_index_prem import PremEncrypted, PremWhisperReader, whisper_file_extractor
from prem_core import AsyncPremClient, DecryptionError, EncryptionKeys, PremClient
from prem_core import enclave as prem_enclave
from prem_core import proxy as prem_proxy
from prem_core import transport as prem_transport
from prem_core._adapters import plaintext_egress
from prem_core._crypto.xwing import PrivateKey
from prem_core._protocol import nonce_reuse, response_types
from prem_core._protocol.attestation import settings as attestation_settings
from prem_core.attestation import TrustedRoots
from prem_core.enclave import (
    AudioReply,
    EngineError,
    EngineRequest,
    Exchange,
    LocalEnclave,
    QuotingEngine,
    ScriptedEngine,
    reply,
    tool_call,
)
from prem_core.enclave.engines.scripted import ScriptedReply, ScriptedToolCall
from prem_core.enclave.engines.upstream import UpstreamEngine
from prem_core.enclave.quota import BASE, Tier

PACKAGES = (prem_core, langchain_prem, llama_index_prem, prem_enclave, prem_proxy, prem_transport)
PUBLIC = sorted(f"{package.__name__}.{name}" for package in PACKAGES for name in package.__all__)


def is_response(thing: Any) -> bool:
    """Whether its fields are text by design: of a prompt, or of a model's response."""
    kinds = (response_types._Reply, EngineRequest, AudioReply, ScriptedReply, ScriptedToolCall)
    return isinstance(thing[0] if isinstance(thing, list) and thing else thing, kinds)


SEARCH = SecretSearch(**secret_values.SECRET_KEYS, **secret_values.SECRET_TEXTS)
KEY_SEARCH = SecretSearch(**secret_values.SECRET_KEYS)


@pytest.fixture(scope="module")
def enclaves(
    enclave: LocalEnclave, upstream_server: list[Upstream], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Enclaves]:
    stub = Upstream(answer=secret_values.respond)
    wrong = {**secret_values.TRANSCRIPTION, "segments": secret_values.TRANSCRIPT}
    stub.transcribe_with(
        lambda transcription: (
            wrong if transcription.params.get("prompt") == "wrong" else secret_values.TRANSCRIPTION
        )
    )
    upstream_server.append(stub)
    same = {"api_key": API_KEY, "private_key": secret_values.PRIVATE}
    with contextlib.ExitStack() as stack:

        def started(**options: Any) -> LocalEnclave:
            return stack.enter_context(LocalEnclave(**same, **options))

        yield Enclaves(
            scripted=started(upstream=upstream_server[0].url),
            default=started(),
            no_scopes=started(scopes={"models.read"}),
            small_body_limit=started(body_limit=100),
            no_concurrency=started(tier=Tier(BASE._replace(concurrent=0))),
            broken_upstream=started(upstream="http://127.0.0.1:9"),
            other_keys=enclave,
            folder=tmp_path_factory.mktemp("secrets"),
        )
    upstream_server.remove(stub)


# --- every public object, after it was used


@pytest.fixture(scope="module")
def public(enclaves: Enclaves) -> Iterator[dict[str, list[Any]]]:
    """Instances of every public class, made and used as users do; and every other public object."""
    things: dict[str, list[Any]] = {name: [] for name in PUBLIC}
    with asyncio.Runner() as runner, contextlib.ExitStack() as stack:
        _use_client(enclaves, things, stack)
        _use_async_client(enclaves, things, stack, runner)
        _use_keys(enclaves, things)
        _use_langchain(enclaves, things, runner)
        _use_llama_index(enclaves, things, runner)
        _use_enclave(enclaves, things)
        _use_proxy(enclaves, things)
        _use_transports(enclaves, things)
        for name, kind in ERRORS.items():
            things[f"prem_core.{name}"] += [kind, *_errors_of(enclaves, kind)]
        for package in ("langchain_prem", "llama_index_prem"):
            things[f"{package}.RefusalError"] = things["prem_core.RefusalError"]
        yield things


def _use_client(enclaves: Enclaves, things: dict[str, list[Any]], stack: contextlib.ExitStack) -> None:
    client = stack.enter_context(PremClient(**enclaves.options()))
    ask = client.chat.completions.create
    whole = ask(model="text", messages=MESSAGES, tools=[TOOL])
    called = ask(model="call", messages=MESSAGES, tools=[TOOL])
    # The message of a response is sent back unchanged.
    ask(model="text", messages=[*MESSAGES, called.choices[0].message])
    half = stack.enter_context(ask(model="text", messages=MESSAGES, stream=True))
    first = next(half)
    read = ask(model="call", messages=MESSAGES, stream=True)
    chunks = list(read)
    transcription = client.audio.transcriptions.create(
        file=(secret_values.FILE_NAME, secret_values.FILE), prompt=PROMPT, response_format="verbose_json"
    )
    translated = client.audio.translations.create(file=secret_values.FILE)
    with contextlib.suppress(prem_core.PremError):
        ask(model="failing", messages=MESSAGES)
    nonce_reuse._warned = False
    with pytest.warns(prem_core.NonceReuseWarning) as warned:
        ask(model="text", messages=MESSAGES, stream=True).close()
    things["prem_core.NonceReuseWarning"] += [each.message for each in warned]
    # The sources of the enclave's own certificates, and no root that trusts them.
    roots = TrustedRoots(sources=enclaves.scripted.attestation_roots.sources)
    unproven = stack.enter_context(
        PremClient(**enclaves.options(attestation="warn", attestation_roots=roots))
    )
    attestation_settings._warned = False
    with pytest.warns(prem_core.AttestationWarning) as failed:
        unproven.chat.completions.create(model="text", messages=MESSAGES)
    things["prem_core.AttestationWarning"] += [each.message for each in failed]
    things["prem_core.PremClient"] += [
        client, client.chat, client.chat.completions, client.audio, client.audio.transcriptions, client.models,
    ]  # fmt: skip
    things["prem_core.ChatCompletionStream"] += [half, read]
    things["prem_core.ChatCompletion"] += [whole, called, whole.choices, whole.choices[0]]
    things["prem_core.Protection"] += [whole.prem, half.prem, transcription.prem]
    things["prem_core.ChatCompletionMessage"] += [whole.choices[0].message, called.choices[0].message]
    things["prem_core.ChatCompletionChunk"] += [first, *chunks, chunks[0].choices[0].delta]
    things["prem_core.Usage"] += [whole.usage]
    things["prem_core.Transcription"] += [transcription, translated]
    things["prem_core.TranscriptionSegment"] += transcription.segments or []
    things["prem_core.TranscriptionWord"] += transcription.words or []
    with PremClient(**enclaves.options("default")) as other:
        things["prem_core.Model"] += other.models.list()
    things["prem_core.Limits"] += [client.limits]
    url = f"rediss://user:{API_KEY}@store.example"
    things["prem_core.SharedLimits"] += [prem_core.SharedLimits(url, name="acme")]
    things["prem_core.Stats"] += [client.stats]
    things["prem_core.__version__"] += [prem_core.__version__]


def _use_async_client(
    enclaves: Enclaves, things: dict[str, list[Any]], stack: contextlib.ExitStack, runner: asyncio.Runner
) -> None:
    async def use() -> None:
        client = AsyncPremClient(**enclaves.options())
        stack.callback(lambda: runner.run(client.close()))
        ask: Any = client.chat.completions.create
        whole = await ask(model="text", messages=MESSAGES)
        half = await ask(model="text", messages=MESSAGES, stream=True)
        stack.callback(lambda: runner.run(half.close()))
        await anext(half)
        read = await ask(model="text", messages=MESSAGES, stream=True)
        async for _ in read:
            pass
        things["prem_core.AsyncPremClient"] += [
            client,
            client.chat,
            client.audio.transcriptions,
            client.models,
        ]
        things["prem_core.AsyncChatCompletionStream"] += [half, read]
        things["prem_core.ChatCompletion"] += [whole]

    runner.run(use())


def _use_keys(enclaves: Enclaves, things: dict[str, list[Any]]) -> None:
    path = enclaves.folder / "keys.prem"
    KEYS.save(path, KEK)
    raw = EncryptionKeys(KEYS.shared_secret.hex(), KEYS.cipher_text)
    things["prem_core.EncryptionKeys"] += [KEYS, raw, EncryptionKeys.load(path, KEK.hex())]
    things["prem_core.PublicKey"] += [enclaves.scripted.public_key]
    fetched = prem_core.generate_encryption_keys(enclave_url=enclaves.scripted.enclave_url)
    things["prem_core.generate_encryption_keys"] += [prem_core.generate_encryption_keys, fetched]
    made = asyncio.run(prem_core.agenerate_encryption_keys(enclave_url=enclaves.scripted.enclave_url))
    things["prem_core.agenerate_encryption_keys"] += [prem_core.agenerate_encryption_keys, made]
    with pytest.warns(UserWarning, match="endpoints"):
        endpoints = prem_core.discover_endpoints("https://127.0.0.1:9/endpoints.json")
    things["prem_core.discover_endpoints"] += [prem_core.discover_endpoints, endpoints]


def _use_langchain(enclaves: Enclaves, things: dict[str, list[Any]], runner: asyncio.Runner) -> None:
    from langchain_core.caches import BaseCache

    class Cache(BaseCache):
        def lookup(self, prompt: str, llm_string: str) -> None: ...
        def update(self, prompt: str, llm_string: str, return_val: Any) -> None: ...
        def clear(self, **kwargs: Any) -> None: ...

    options = enclaves.options()
    llm = ChatPremEncrypted(model="text", **options)
    plain = ChatPremEncrypted(model="text", **_without_keys(options))
    for each in (llm, plain):
        each.invoke(LC_MESSAGES, tools=[TOOL])
        runner.run(each.ainvoke(LC_MESSAGES))
        list(each.stream(LC_MESSAGES))
        each.batch([LC_MESSAGES, LC_MESSAGES])
    bound = llm.bind_tools([TOOL], tool_choice="any")
    bound.invoke(LC_MESSAGES)
    structured = ChatPremEncrypted(model="json", **options).with_structured_output(Who)
    structured.invoke(LC_MESSAGES)
    things["langchain_prem.ChatPremEncrypted"] += [llm, plain, bound, structured, llm.with_retry()]
    things["langchain_prem.extractor"] += [langchain_prem.extractor(llm, Who, instructions=PROMPT)]
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        plaintext_egress._warned.clear()
        ChatPremEncrypted(model="text", cache=Cache(), **options).invoke(LC_MESSAGES)
    assert [each.category for each in warned] == [PlaintextEgressWarning]
    things["langchain_prem.PlaintextEgressWarning"] += [each.message for each in warned]
    things["llama_index_prem.PlaintextEgressWarning"] += [each.message for each in warned]

    (enclaves.folder / "calls").mkdir()
    recording = enclaves.folder / "calls" / "call.wav"
    recording.write_bytes(secret_values.FILE)
    parsers = [PremWhisperParser(mode="segments", **each) for each in (options, _without_keys(options))]
    for parser in parsers:
        assert parser.parse(langchain_blob(secret_values.FILE))[0].page_content == secret_values.TRANSCRIPT
    paths = [recording, enclaves.folder / "none.wav"]
    loader = PremWhisperLoader(paths, on_error="collect", **_without_keys(options))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        loader.load()
        runner.run(loader.aload())
    things["langchain_prem.PremWhisperParser"] += parsers
    things["langchain_prem.PremWhisperLoader"] += [loader, *(error for _, error in loader.errors)]
    things["langchain_prem.TranscriptionFailedWarning"] += [each.message for each in warned]
    things["llama_index_prem.TranscriptionFailedWarning"] += [each.message for each in warned]
    things["langchain_prem.__version__"] += [langchain_prem.__version__]


def _use_llama_index(enclaves: Enclaves, things: dict[str, list[Any]], runner: asyncio.Runner) -> None:
    options = enclaves.options()
    plain = PremEncrypted(model="text", **_without_keys(options))
    llm = PremEncrypted(model="text", **options)
    for each in (llm, plain):
        each.chat(LI_MESSAGES, tools=[TOOL])
        each.complete(PROMPT)
        list(each.stream_chat(LI_MESSAGES))
        runner.run(each.achat(LI_MESSAGES))
    structured = PremEncrypted(model="json", **options).as_structured_llm(Who)
    structured.complete(PROMPT)
    things["llama_index_prem.PremEncrypted"] += [llm, plain, structured]

    reader = PremWhisperReader(on_error="collect", **_without_keys(options))
    assert reader.load_data((secret_values.FILE_NAME, secret_values.FILE))[0].text == secret_values.TRANSCRIPT
    with pytest.warns(llama_index_prem.TranscriptionFailedWarning):
        reader.load_data([enclaves.folder / "none.wav", secret_values.FILE])
    things["llama_index_prem.PremWhisperReader"] += [reader, reader.errors]
    things["llama_index_prem.whisper_file_extractor"] += [whisper_file_extractor(**options)]
    things["llama_index_prem.WHISPER_SUFFIXES"] += [llama_index_prem.WHISPER_SUFFIXES]
    things["llama_index_prem.__version__"] += [llama_index_prem.__version__]


def _without_keys(options: dict[str, Any]) -> dict[str, Any]:
    """For what is pickled, which encryption keys are not."""
    return {**options, "encryption_keys": None}


def _use_enclave(enclaves: Enclaves, things: dict[str, list[Any]]) -> None:
    seen: list[Exchange] = []
    stopped = LocalEnclave(
        api_key=API_KEY,
        private_key=secret_values.PRIVATE,
        upstream=enclaves.scripted.gateway_url,
        upstream_api_key=API_KEY,
    )
    with LocalEnclave(api_key=API_KEY, private_key=secret_values.PRIVATE, on_exchange=seen.append) as prem:
        CALLERS["client"]({**prem.client_options, "encryption_keys": KEYS}, model="openai/gpt-oss-120b")
        with contextlib.suppress(prem_core.PremError):
            CALLERS["client"](
                {**prem.client_options, "encryption_keys": KEYS},
                extra_body={"temperature": PROMPT},
            )
    engine = ScriptedEngine(
        [reply(secret_values.REPLY, error=EngineError("it broke")), reply(secret_values.TRANSCRIPT)]
    )
    call = tool_call("look_up", who=secret_values.ARGUMENT)
    with LocalEnclave(api_key=API_KEY, private_key=secret_values.PRIVATE, engine=engine) as scripted:
        options = {**scripted.client_options, "encryption_keys": KEYS, "max_retries": 0}
        with contextlib.suppress(prem_core.PremError):
            CALLERS["client"](options)
        with PremClient(**options) as client:
            client.audio.transcriptions.create(file=(secret_values.FILE_NAME, secret_values.FILE))
        scripted.reply(call, reply(secret_values.REPLY, tool_calls=call))
    things["prem_core.enclave.ScriptedEngine"] += [engine, scripted]
    things["prem_core.enclave.reply"] += [
        reply(secret_values.REPLY, reasoning=secret_values.REASONING, refusal=secret_values.REFUSAL)
    ]
    things["prem_core.enclave.tool_call"] += [call]
    things["prem_core.enclave.EngineRequest"] += [*engine.requests, engine.requests]
    things["prem_core.enclave.AudioReply"] += [AudioReply({"text": secret_values.TRANSCRIPT}, 2.0)]
    things["prem_core.enclave.QuotingEngine"] += [enclaves.default.engine]
    things["prem_core.enclave.Engine"] += [
        enclaves.scripted.engine,
        UpstreamEngine("http://127.0.0.1:9", API_KEY),
    ]
    things["prem_core.enclave.EngineError"] += [capture_error(lambda: asyncio.run(_reject()), EngineError)]
    things["prem_core.enclave.Exchange"] += seen
    things["prem_core.enclave.LocalEnclave"] += [
        enclaves.scripted,
        enclaves.default,
        enclaves.broken_upstream,
        prem,
        stopped,
    ]


async def _reject() -> None:
    request = EngineRequest("chat", {"model": "m", "messages": MESSAGES, "n": 1000})
    async for _ in QuotingEngine().chat(request):
        pass


def _use_proxy(enclaves: Enclaves, things: dict[str, list[Any]]) -> None:
    options = {
        "gateway_url": enclaves.scripted.gateway_url,
        "enclave_url": enclaves.scripted.enclave_url,
        "max_retries": 0,
    }
    params = {"model": "text", "messages": MESSAGES, "tools": [TOOL]}
    stopped = prem_proxy.LocalProxy(api_key=API_KEY, encryption_keys=KEYS, **options)
    with prem_proxy.LocalProxy(api_key=API_KEY, encryption_keys=KEYS, **options) as proxy:
        changes = proxy.log.subscribe()
        headers = {"Authorization": f"Bearer {API_KEY}"}
        with httpx.Client(base_url=proxy.base_url, headers=headers, trust_env=False, timeout=30) as http:
            for more in ({}, {"stream": True}, {"model": "failing", "stream": True}, {"temperature": PROMPT}):
                assert http.post("chat/completions", json={**params, **more}).content
            form = {"file": (secret_values.FILE_NAME, secret_values.FILE)}
            transcription = http.post(
                "audio/transcriptions", files=form, data={"prompt": PROMPT, "model": "whisper"}
            )
            assert transcription.content
            assert http.get("models").status_code == 200
        exchanges = proxy.log.latest()
    assert len(exchanges) == 6
    assert any(exchange.gateway_response.head for exchange in exchanges)
    things["prem_core.proxy.LocalProxy"] += [proxy, stopped]
    things["prem_core.proxy.RequestLog"] += [proxy.log]
    things["prem_core.proxy.Subscription"] += [changes]
    things["prem_core.proxy.RequestRecord"] += [*exchanges, *(exchange.as_dict() for exchange in exchanges)]
    things["prem_core.proxy.WireCapture"] += [exchange.gateway_request for exchange in exchanges]
    things["prem_core.proxy.WireCapture"] += [exchange.gateway_response for exchange in exchanges]


def _use_transports(enclaves: Enclaves, things: dict[str, list[Any]]) -> None:
    options = {
        "gateway_url": enclaves.scripted.gateway_url,
        "enclave_url": enclaves.scripted.enclave_url,
        "max_retries": 0,
    }
    params = {"model": "text", "messages": MESSAGES, "tools": [TOOL]}
    transport = prem_transport.PremTransport(api_key=API_KEY, encryption_keys=KEYS, **options)
    others_key = prem_transport.PremTransport(**options)
    for each in (transport, others_key):
        headers = {"authorization": f"Bearer {API_KEY}"}
        with httpx.Client(transport=each, base_url="https://prem.invalid/v1", headers=headers) as http:
            for more in ({}, {"stream": True}, {"model": "failing", "stream": True}, {"temperature": PROMPT}):
                assert http.post("/chat/completions", json={**params, **more}).content
    things["prem_core.transport.PremTransport"] += [transport, others_key]
    unused = prem_transport.AsyncPremTransport(api_key=API_KEY, encryption_keys=KEYS, **options)
    things["prem_core.transport.AsyncPremTransport"] += [unused]


def _errors_of(enclaves: Enclaves, kind: type[Exception]) -> Iterator[Exception]:
    for name, failure in REQUEST_FAILURES.items():
        if failure.kind is kind:
            yield raise_request_failure(enclaves, name, failure.ways[0])
    for other, call in OTHER_FAILURES.values():
        if other is kind:
            yield capture_error(lambda call=call: call(enclaves), kind)  # type: ignore[misc]


def test_every_public_name_is_searched(public: dict[str, list[Any]]) -> None:
    assert sorted(public) == PUBLIC
    assert [name for name, things in public.items() if not things] == []


@pytest.mark.parametrize("name", PUBLIC)
def test_no_public_object_displays_a_secret(name: str, public: dict[str, list[Any]]) -> None:
    for thing in public[name]:
        forms = [
            form for form in displayed(thing) if not (is_response(thing) and form[0] == "public attributes")
        ]
        assert SEARCH.find(forms) == []


@pytest.mark.parametrize("name", PUBLIC)
def test_no_public_object_is_serialised_with_a_secret(name: str, public: dict[str, list[Any]]) -> None:
    for thing in public[name]:
        if not is_response(thing):
            assert SEARCH.find(serialised(thing)) == []


@pytest.mark.parametrize(
    "name",
    [
        "langchain_prem.ChatPremEncrypted",
        "langchain_prem.PremWhisperParser",
        "langchain_prem.PremWhisperLoader",
        "llama_index_prem.PremEncrypted",
        "llama_index_prem.PremWhisperReader",
        *(f"prem_core.{name}" for name in (*ERRORS, "Limits", "PublicKey", "SharedLimits")),
    ],
)
def test_the_objects_that_users_pickle_were_searched_pickled(name: str, public: dict[str, list[Any]]) -> None:
    assert any(form.startswith("pickle") for thing in public[name] for form, _ in serialised(thing))


# --- text in the settings of a model


TEXT_SETTINGS: list[Any] = [
    (ChatPremEncrypted, {"prediction": {"type": "content", "content": PROMPT}}),
    (ChatPremEncrypted, {"extra_body": {"documents": [PROMPT]}}),
    (PremEncrypted, {"prediction": {"type": "content", "content": PROMPT}}),
    (PremEncrypted, {"extra_body": {"documents": [PROMPT]}}),
    (PremEncrypted, {"additional_kwargs": {"functions": [{"name": "f", "description": PROMPT}]}}),
    (PremEncrypted, {"system_prompt": secret_values.SYSTEM}),
    (PremEncrypted, {"query_wrapper_prompt": PromptTemplate(PROMPT)}),
    (PremWhisperParser, {"prompt": PROMPT}),
    (lambda **settings: PremWhisperLoader("calls", **settings), {"prompt": PROMPT}),
    (PremWhisperReader, {"prompt": PROMPT}),
]


@pytest.mark.parametrize(
    ("make", "setting"),
    TEXT_SETTINGS,
    ids=lambda value: (
        next(iter(value), None) if isinstance(value, dict) else getattr(value, "__name__", None)
    ),
)
def test_text_in_the_settings_of_a_model_is_not_displayed(
    make: Callable[..., Any], setting: dict[str, Any]
) -> None:
    named = {"model": "m"} if make in (ChatPremEncrypted, PremEncrypted) else {}
    made = make(**named, **setting)
    assert SEARCH.find(form for form in displayed(made) if form[0] != "public attributes") == []


# --- errors


REQUEST_FAILURE_CASES = [(name, way) for name, failure in REQUEST_FAILURES.items() for way in failure.ways]


def test_every_error_class_is_raised_by_a_real_failure() -> None:
    kinds = {failure.kind for failure in REQUEST_FAILURES.values()} | {
        kind for kind, _ in OTHER_FAILURES.values()
    }
    assert kinds.issuperset(set(ERRORS.values()) - {prem_core.PremError})


@pytest.mark.parametrize(("name", "way"), REQUEST_FAILURE_CASES)
def test_a_request_error_contains_no_secret(name: str, way: str, enclaves: Enclaves) -> None:
    error = raise_request_failure(enclaves, name, way)
    assert SEARCH.find(displayed(error)) == []
    assert SEARCH.find(serialised(error)) == []
    # In the frames of the framework packages are messages, as in those of the frameworks above them.
    search = SEARCH if "client" in way else KEY_SEARCH
    assert search.find(package_locals(error)) == []


#: Cases in which the caller passes a key as the wrong argument, which is then in a local variable.
KEY_IS_THE_WRONG_ARGUMENT = {"client: encryption keys of the wrong type", "keys: pickled"}


@pytest.mark.parametrize("name", OTHER_FAILURES)
def test_any_other_error_contains_no_secret(name: str, enclaves: Enclaves) -> None:
    kind, call = OTHER_FAILURES[name]
    error = capture_error(lambda: call(enclaves), kind)
    assert SEARCH.find(displayed(error)) == []
    assert SEARCH.find(serialised(error)) == []


@pytest.mark.parametrize("name", sorted(OTHER_FAILURES.keys() - KEY_IS_THE_WRONG_ARGUMENT))
def test_no_local_variable_in_a_traceback_holds_a_key(name: str, enclaves: Enclaves) -> None:
    kind, call = OTHER_FAILURES[name]
    error = capture_error(lambda: call(enclaves), kind)
    search = SEARCH if name.startswith("client:") else KEY_SEARCH
    assert search.find(package_locals(error)) == []


def test_a_url_with_credentials_is_rejected_without_quoting_it() -> None:
    for where in ("gateway_url", "enclave_url"):
        for url in (f"https://user:{API_KEY}@gateway.example", f"https://{API_KEY}@gateway.example"):
            for make in (PremClient, AsyncPremClient):
                error = capture_error(
                    lambda make=make, url=url, where=where: make(api_key="k", **{where: url}),  # type: ignore[misc]
                    prem_core.ConfigurationError,
                )
                assert SEARCH.find(displayed(error)) == []


# --- logs, warnings and output


@pytest.fixture
def every_logger(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[tuple[str, str]]]]:
    """Set all loggers to their lowest level; returns all that a handler could write of their records."""
    named = [logging.getLogger(name) for name in logging.root.manager.loggerDict]
    wanted = [
        logging.getLogger(name)
        for name in ("prem_core", "httpx", "httpcore", "asyncio", "langchain", "llama_index")
    ]
    before = [(logger, logger.level, logger.disabled, logger.propagate) for logger in {*named, *wanted}]
    for logger, *_ in before:
        logger.setLevel(logging.DEBUG)
        logger.disabled, logger.propagate = False, True

    def logged() -> list[tuple[str, str]]:
        formatter = logging.Formatter("%(message)s")
        return [(record.name, formatter.format(record) + repr(vars(record))) for record in caplog.records]

    caplog.set_level(1)
    yield logged
    for logger, level, disabled, propagate in before:
        logger.setLevel(level)
        logger.disabled, logger.propagate = disabled, propagate


def test_no_secret_is_logged_printed_or_in_a_warning(
    enclaves: Enclaves,
    every_logger: Callable[[], list[tuple[str, str]]],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # In debug mode asyncio logs every callback that takes longer than this, with its arguments.
    monkeypatch.setenv("PYTHONASYNCIODEBUG", "1")
    always = property(lambda loop: 0.0, lambda loop, seconds: None)
    monkeypatch.setattr(asyncio.BaseEventLoop, "slow_callback_duration", always, raising=False)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for model in secret_values.MODEL_CHUNKS:
            for way in CALLERS:
                with contextlib.suppress(prem_core.PremError):
                    CALLERS[way](enclaves.options(), model=model)
        for failure in (
            "another API key",
            "a value the service rejects",
            "an engine that fails in mid-stream",
        ):
            for way in CALLERS:
                raise_request_failure(enclaves, failure, way)
        for name in OTHER_FAILURES:
            capture_error(lambda name=name: OTHER_FAILURES[name][1](enclaves), Exception)  # type: ignore[misc]
        CALLERS["client"](enclaves.options("default"), model="openai/gpt-oss-120b")
        with LocalEnclave(
            api_key=API_KEY, private_key=secret_values.PRIVATE
        ) as prem:  # its threads start at debug level
            CALLERS["async client stream"](
                {**prem.client_options, "encryption_keys": KEYS}, model="openai/gpt-oss-120b"
            )
    logged = every_logger()
    assert {"httpcore.http11", "httpx"} <= {name for name, _ in logged}
    assert any(name == "asyncio" and "took" in text for name, text in logged)
    assert SEARCH.find(logged) == []
    assert SEARCH.find(("a warning", str(each.message) + repr(each)) for each in warned) == []
    assert SEARCH.find(zip(("stdout", "stderr"), capfd.readouterr(), strict=True)) == []


# --- cassettes


PATHS = sorted(CASSETTES.glob("*"))


def interactions(path: Any) -> list[dict[str, Any]]:
    recorded: list[dict[str, Any]] = yaml.safe_load(path.read_text())["interactions"]
    return recorded


def in_bytes(body: Any) -> bytes:
    text = body.get("string", "") if isinstance(body, dict) else body
    return text.encode() if isinstance(text, str) else text or b""


def chats(path: Any) -> list[tuple[bytes, bytes]]:
    """The bodies of the chat requests and of their responses."""
    return [
        (in_bytes(each["request"]["body"]), in_bytes(each["response"]["body"]))
        for each in interactions(path)
        if each["request"]["method"] == "POST"
    ]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_a_cassette_contains_no_plaintext(path: Any) -> None:
    assert chats(path)
    for request, answer in chats(path):
        opened = Opened.request(request)
        prompts = [str(message["content"]) for message in opened.params["messages"]]
        content = "".join(
            choice["delta"].get("content") or ""
            for chunk in opened.chunks(answer)
            for choice in chunk["choices"]
        )
        assert content and all(prompts)
        secrets = {f"prompt {i}": text for i, text in enumerate(prompts)} | {
            "content": content, "model": opened.params["model"], "shared secret": opened.keys.shared_secret,
        }  # fmt: skip
        assert SecretSearch(**secrets)(path.read_bytes()) == set()


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_a_cassette_contains_no_api_key_and_no_credentials_header(path: Any) -> None:
    text = path.read_text()
    assert not re.search(r"sk_(live|test)_|bearer", text, re.IGNORECASE)
    for each in interactions(path):
        named = {name.lower() for side in ("request", "response") for name in each[side]["headers"]}
        assert not named & {"authorization", "proxy-authorization", "cookie", "set-cookie", "x-api-key"}


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_a_cassette_opens_with_the_test_key_only(path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for request, _ in chats(path):
        assert Opened.request(request).params["model"]
        with monkeypatch.context() as patch, pytest.raises(DecryptionError):
            patch.setattr("support.wire_schemas.TEST_KEY", PrivateKey(bytes(32)))
            Opened.request(request)
