"""Keys, prompts and replies are in nothing that is shown, logged, raised, pickled or written.

Real exchanges are made with marked keys and words, and then everything public is looked at in every way that
`showing` knows, for a piece of a secret in any spelling that `spellings` knows.

What is held of whom:

- Keys (the API key, the KEK, shared secrets, private keys): in no form of anything, and in no local variable of this
  package's frames that an error passes through.
- Words (prompts, tool arguments, files, replies): likewise, but for local variables: a frame that is given a prompt
  has it. An answer holds its words in its fields, in `model_dump` and in pickles. That is what it is for; it does not
  show them.
- What is set on a model or loader for every call (`prediction`, `system_prompt`, Whisper's `prompt`) goes with its
  pickles and dicts, which would make another model without it. It is not shown.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import httpx
import pytest
import yaml
from llama_index.core import PromptTemplate
from support.cassettes import CASSETTES
from support.scripted_upstream import Upstream
from support.security import secret_values as marked
from support.security.encodings import Search
from support.security.error_catalogue import (
    ERRORS,
    OTHERS,
    TROUBLES,
    Who,
    World,
    caught,
    langchain_blob,
    raised,
)
from support.security.representations import kept, our_locals, shown
from support.security.secret_values import (
    API_KEY,
    KEK,
    LC_MESSAGES,
    LI_MESSAGES,
    MESSAGES,
    PAIR,
    PROMPT,
    TOOL,
    WAYS,
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
from prem_core._crypto.xwing import PrivateKey
from prem_core._protocol import response_types
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

PACKAGES = (prem_core, langchain_prem, llama_index_prem, prem_enclave, prem_proxy)
PUBLIC = sorted(f"{package.__name__}.{name}" for package in PACKAGES for name in package.__all__)


def is_answer(thing: Any) -> bool:
    """Whether its fields are content by design: a prompt, or a model's answer."""
    kinds = (response_types._Reply, EngineRequest, AudioReply, ScriptedReply, ScriptedToolCall)
    return isinstance(thing[0] if isinstance(thing, list) and thing else thing, kinds)


SEARCH = Search(**marked.KEYS, **marked.WORDS)
KEY_SEARCH = Search(**marked.KEYS)


def found(forms: Iterable[tuple[str, str | bytes]], search: Search = SEARCH) -> list[str]:
    """Which secret stands where."""
    return [f"{secret} in {form}" for form, text in forms for secret in sorted(search(text))]


@pytest.fixture(scope="module")
def world(
    enclave: LocalEnclave, upstream_server: list[Upstream], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    stub = Upstream(answer=marked.answer)
    wrong = {**marked.TRANSCRIPTION, "segments": marked.SAID}
    stub.transcribes(lambda heard: wrong if heard.params.get("prompt") == "wrong" else marked.TRANSCRIPTION)
    upstream_server.append(stub)
    same = {"api_key": API_KEY, "private_key": marked.PRIVATE}
    with contextlib.ExitStack() as stack:

        def started(**options: Any) -> LocalEnclave:
            return stack.enter_context(LocalEnclave(**same, **options))

        yield World(
            says=started(upstream=upstream_server[0].url),
            quotes=started(),
            forbids=started(scopes={"models.read"}),
            bounds=started(body_limit=100),
            limits=started(tier=Tier(BASE._replace(concurrent=0))),
            fails=started(upstream="http://127.0.0.1:9"),
            stranger=enclave,
            folder=tmp_path_factory.mktemp("secrets"),
        )
    upstream_server.remove(stub)


# --- every public thing, after it was used


@pytest.fixture(scope="module")
def public(world: World) -> Iterator[dict[str, list[Any]]]:
    """Instances of every public class, made and used as users do; and every other public object."""
    things: dict[str, list[Any]] = {name: [] for name in PUBLIC}
    with asyncio.Runner() as runner, contextlib.ExitStack() as stack:
        _use_client(world, things, stack)
        _use_async_client(world, things, stack, runner)
        _use_keys(world, things)
        _use_langchain(world, things, runner)
        _use_llama_index(world, things, runner)
        _use_enclave(world, things)
        _use_proxy(world, things)
        for name, kind in ERRORS.items():
            things[f"prem_core.{name}"] += [kind, *_errors_of(world, kind)]
        for package in ("langchain_prem", "llama_index_prem"):
            things[f"{package}.RefusalError"] = things["prem_core.RefusalError"]
        yield things


def _use_client(world: World, things: dict[str, list[Any]], stack: contextlib.ExitStack) -> None:
    client = stack.enter_context(PremClient(**world.options()))
    ask = client.chat.completions.create
    whole = ask(model="text", messages=MESSAGES, tools=[TOOL])
    called = ask(model="call", messages=MESSAGES, tools=[TOOL])
    # The message of an answer goes back as it is.
    ask(model="text", messages=[*MESSAGES, called.choices[0].message])
    half = stack.enter_context(ask(model="text", messages=MESSAGES, stream=True))
    first = next(half)
    read = ask(model="call", messages=MESSAGES, stream=True)
    chunks = list(read)
    heard = client.audio.transcriptions.create(
        file=(marked.FILE_NAME, marked.FILE), prompt=PROMPT, response_format="verbose_json"
    )
    translated = client.audio.translations.create(file=marked.FILE)
    with contextlib.suppress(prem_core.PremError):
        ask(model="failing", messages=MESSAGES)
    things["prem_core.PremClient"] += [
        client, client.chat, client.chat.completions, client.audio, client.audio.transcriptions, client.models,
    ]  # fmt: skip
    things["prem_core.ChatCompletionStream"] += [half, read]
    things["prem_core.ChatCompletion"] += [whole, called, whole.choices, whole.choices[0]]
    things["prem_core.ChatCompletionMessage"] += [whole.choices[0].message, called.choices[0].message]
    things["prem_core.ChatCompletionChunk"] += [first, *chunks, chunks[0].choices[0].delta]
    things["prem_core.Usage"] += [whole.usage]
    things["prem_core.Transcription"] += [heard, translated]
    things["prem_core.TranscriptionSegment"] += heard.segments or []
    things["prem_core.TranscriptionWord"] += heard.words or []
    with PremClient(**world.options("quotes")) as other:
        things["prem_core.Model"] += other.models.list()
    things["prem_core.Limits"] += [client.limits]
    things["prem_core.Stats"] += [client.stats]
    things["prem_core.__version__"] += [prem_core.__version__]


def _use_async_client(
    world: World, things: dict[str, list[Any]], stack: contextlib.ExitStack, runner: asyncio.Runner
) -> None:
    async def use() -> None:
        client = AsyncPremClient(**world.options())
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


def _use_keys(world: World, things: dict[str, list[Any]]) -> None:
    path = world.folder / "keys.prem"
    PAIR.save(path, KEK)
    raw = EncryptionKeys(PAIR.shared_secret.hex(), PAIR.cipher_text)
    things["prem_core.EncryptionKeys"] += [PAIR, raw, EncryptionKeys.load(path, KEK.hex())]
    things["prem_core.PublicKey"] += [world.says.public_key]
    fetched = prem_core.generate_encryption_keys(enclave_url=world.says.enclave_url)
    things["prem_core.generate_encryption_keys"] += [prem_core.generate_encryption_keys, fetched]
    made = asyncio.run(prem_core.agenerate_encryption_keys(enclave_url=world.says.enclave_url))
    things["prem_core.agenerate_encryption_keys"] += [prem_core.agenerate_encryption_keys, made]
    with pytest.warns(UserWarning, match="endpoints"):
        endpoints = prem_core.discover_endpoints("https://127.0.0.1:9/endpoints.json")
    things["prem_core.discover_endpoints"] += [prem_core.discover_endpoints, endpoints]


def _use_langchain(world: World, things: dict[str, list[Any]], runner: asyncio.Runner) -> None:
    from langchain_core.caches import BaseCache

    class Cache(BaseCache):
        def lookup(self, prompt: str, llm_string: str) -> None: ...
        def update(self, prompt: str, llm_string: str, return_val: Any) -> None: ...
        def clear(self, **kwargs: Any) -> None: ...

    options = world.options()
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
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        langchain_prem._plaintext_egress._warned.clear()
        ChatPremEncrypted(model="text", cache=Cache(), **options).invoke(LC_MESSAGES)
    assert [each.category for each in told] == [PlaintextEgressWarning]
    things["langchain_prem.PlaintextEgressWarning"] += [each.message for each in told]

    (world.folder / "calls").mkdir()
    recording = world.folder / "calls" / "call.wav"
    recording.write_bytes(marked.FILE)
    parsers = [PremWhisperParser(mode="segments", **each) for each in (options, _without_keys(options))]
    for parser in parsers:
        assert parser.parse(langchain_blob(marked.FILE))[0].page_content == marked.SAID
    paths = [recording, world.folder / "none.wav"]
    loader = PremWhisperLoader(paths, on_error="collect", **_without_keys(options))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        loader.load()
        runner.run(loader.aload())
    things["langchain_prem.PremWhisperParser"] += parsers
    things["langchain_prem.PremWhisperLoader"] += [loader, *(error for _, error in loader.errors)]
    things["langchain_prem.TranscriptionFailedWarning"] += [each.message for each in told]
    things["llama_index_prem.TranscriptionFailedWarning"] += [each.message for each in told]
    things["langchain_prem.__version__"] += [langchain_prem.__version__]


def _use_llama_index(world: World, things: dict[str, list[Any]], runner: asyncio.Runner) -> None:
    options = world.options()
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
    assert reader.load_data((marked.FILE_NAME, marked.FILE))[0].text == marked.SAID
    with pytest.warns(llama_index_prem.TranscriptionFailedWarning):
        reader.load_data([world.folder / "none.wav", marked.FILE])
    things["llama_index_prem.PremWhisperReader"] += [reader, reader.errors]
    things["llama_index_prem.whisper_file_extractor"] += [whisper_file_extractor(**options)]
    things["llama_index_prem.WHISPER_SUFFIXES"] += [llama_index_prem.WHISPER_SUFFIXES]
    things["llama_index_prem.__version__"] += [llama_index_prem.__version__]


def _without_keys(options: dict[str, Any]) -> dict[str, Any]:
    """For what is pickled, which encryption keys are not."""
    return {**options, "encryption_keys": None}


def _use_enclave(world: World, things: dict[str, list[Any]]) -> None:
    seen: list[Exchange] = []
    stopped = LocalEnclave(
        api_key=API_KEY, private_key=marked.PRIVATE, upstream=world.says.gateway_url, upstream_api_key=API_KEY
    )
    with LocalEnclave(api_key=API_KEY, private_key=marked.PRIVATE, on_exchange=seen.append) as prem:
        WAYS["client"]({**prem.client_options, "encryption_keys": PAIR}, model="openai/gpt-oss-120b")
        with contextlib.suppress(prem_core.PremError):
            WAYS["client"](
                {**prem.client_options, "encryption_keys": PAIR}, extra_body={"temperature": PROMPT}
            )
    engine = ScriptedEngine([reply(marked.REPLY, error=EngineError("it broke")), reply(marked.SAID)])
    call = tool_call("look_up", who=marked.ARGUMENT)
    with LocalEnclave(api_key=API_KEY, private_key=marked.PRIVATE, engine=engine) as scripted:
        options = {**scripted.client_options, "encryption_keys": PAIR, "max_retries": 0}
        with contextlib.suppress(prem_core.PremError):
            WAYS["client"](options)
        with PremClient(**options) as client:
            client.audio.transcriptions.create(file=(marked.FILE_NAME, marked.FILE))
        scripted.reply(call, reply(marked.REPLY, tool_calls=call))
    things["prem_core.enclave.ScriptedEngine"] += [engine, scripted]
    things["prem_core.enclave.reply"] += [
        reply(marked.REPLY, reasoning=marked.THOUGHT, refusal=marked.REFUSAL)
    ]
    things["prem_core.enclave.tool_call"] += [call]
    things["prem_core.enclave.EngineRequest"] += [*engine.requests, engine.requests]
    things["prem_core.enclave.AudioReply"] += [AudioReply({"text": marked.SAID}, 2.0)]
    things["prem_core.enclave.QuotingEngine"] += [world.quotes.engine]
    things["prem_core.enclave.Engine"] += [world.says.engine, UpstreamEngine("http://127.0.0.1:9", API_KEY)]
    things["prem_core.enclave.EngineError"] += [caught(lambda: asyncio.run(_refused()), EngineError)]
    things["prem_core.enclave.Exchange"] += seen
    things["prem_core.enclave.LocalEnclave"] += [world.says, world.quotes, world.fails, prem, stopped]


async def _refused() -> None:
    request = EngineRequest("chat", {"model": "m", "messages": MESSAGES, "n": 1000})
    async for _ in QuotingEngine().chat(request):
        pass


def _use_proxy(world: World, things: dict[str, list[Any]]) -> None:
    options = {"gateway_url": world.says.gateway_url, "enclave_url": world.says.enclave_url, "max_retries": 0}
    asked = {"model": "text", "messages": MESSAGES, "tools": [TOOL]}
    stopped = prem_proxy.LocalProxy(api_key=API_KEY, encryption_keys=PAIR, **options)
    with prem_proxy.LocalProxy(encryption_keys=PAIR, **options) as proxy:
        changes = proxy.log.subscribe()
        headers = {"Authorization": f"Bearer {API_KEY}"}
        with httpx.Client(base_url=proxy.base_url, headers=headers, trust_env=False, timeout=30) as http:
            for more in ({}, {"stream": True}, {"model": "failing", "stream": True}, {"temperature": PROMPT}):
                with contextlib.suppress(
                    httpx.RemoteProtocolError
                ):  # an answer that breaks off breaks off here too
                    assert http.post("chat/completions", json={**asked, **more}).content
            form = {"file": (marked.FILE_NAME, marked.FILE)}
            heard = http.post("audio/transcriptions", files=form, data={"prompt": PROMPT, "model": "whisper"})
            assert heard.content
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


def _errors_of(world: World, kind: type[Exception]) -> Iterator[Exception]:
    for name, trouble in TROUBLES.items():
        if trouble.kind is kind:
            yield raised(world, name, trouble.ways[0])
    for other, call in OTHERS.values():
        if other is kind:
            yield caught(lambda call=call: call(world), kind)  # type: ignore[misc]


def test_every_public_name_is_looked_at(public: dict[str, list[Any]]) -> None:
    assert sorted(public) == PUBLIC
    assert [name for name, things in public.items() if not things] == []


@pytest.mark.parametrize("name", PUBLIC)
def test_nothing_public_shows_a_secret(name: str, public: dict[str, list[Any]]) -> None:
    for thing in public[name]:
        forms = [form for form in shown(thing) if not (is_answer(thing) and form[0] == "public attributes")]
        assert found(forms) == []


@pytest.mark.parametrize("name", PUBLIC)
def test_nothing_public_is_kept_with_a_secret_in_it(name: str, public: dict[str, list[Any]]) -> None:
    for thing in public[name]:
        if not is_answer(thing):
            assert found(kept(thing)) == []


@pytest.mark.parametrize(
    "name",
    [
        "langchain_prem.ChatPremEncrypted",
        "langchain_prem.PremWhisperParser",
        "langchain_prem.PremWhisperLoader",
        "llama_index_prem.PremEncrypted",
        "llama_index_prem.PremWhisperReader",
        *(f"prem_core.{name}" for name in (*ERRORS, "Limits", "PublicKey")),
    ],
)
def test_what_users_pickle_was_looked_at_pickled(name: str, public: dict[str, list[Any]]) -> None:
    assert any(form.startswith("pickle") for thing in public[name] for form, _ in kept(thing))


# --- what is set on a model for every call


WORDS_ON_MODELS: list[Any] = [
    (ChatPremEncrypted, {"prediction": {"type": "content", "content": PROMPT}}),
    (ChatPremEncrypted, {"extra_body": {"documents": [PROMPT]}}),
    (PremEncrypted, {"prediction": {"type": "content", "content": PROMPT}}),
    (PremEncrypted, {"extra_body": {"documents": [PROMPT]}}),
    (PremEncrypted, {"additional_kwargs": {"functions": [{"name": "f", "description": PROMPT}]}}),
    (PremEncrypted, {"system_prompt": marked.SYSTEM}),
    (PremEncrypted, {"query_wrapper_prompt": PromptTemplate(PROMPT)}),
    (PremWhisperParser, {"prompt": PROMPT}),
    (lambda **settings: PremWhisperLoader("calls", **settings), {"prompt": PROMPT}),
    (PremWhisperReader, {"prompt": PROMPT}),
]


@pytest.mark.parametrize(
    ("make", "words"),
    WORDS_ON_MODELS,
    ids=lambda value: (
        next(iter(value), None) if isinstance(value, dict) else getattr(value, "__name__", None)
    ),
)
def test_words_that_are_set_on_a_model_are_not_shown(make: Callable[..., Any], words: dict[str, Any]) -> None:
    named = {"model": "m"} if make in (ChatPremEncrypted, PremEncrypted) else {}
    made = make(**named, **words)
    assert found(form for form in shown(made) if form[0] != "public attributes") == []


# --- errors


SERVICE = [(name, way) for name, trouble in TROUBLES.items() for way in trouble.ways]


def test_every_error_of_the_tree_is_raised_in_real_circumstances() -> None:
    kinds = {trouble.kind for trouble in TROUBLES.values()} | {kind for kind, _ in OTHERS.values()}
    assert kinds.issuperset(set(ERRORS.values()) - {prem_core.PremError})


@pytest.mark.parametrize(("name", "way"), SERVICE)
def test_an_error_of_a_request_shows_no_secret(name: str, way: str, world: World) -> None:
    error = raised(world, name, way)
    assert found(shown(error)) == []
    assert found(kept(error)) == []
    assert found(our_locals(error), KEY_SEARCH) == []


#: Cases in which the value of another kind that was given happens to be a key: it is the caller's argument.
GIVEN_AS_SOMETHING_ELSE = {"client: keys of another kind", "keys: pickled"}


@pytest.mark.parametrize("name", OTHERS)
def test_another_error_shows_no_secret(name: str, world: World) -> None:
    kind, call = OTHERS[name]
    error = caught(lambda: call(world), kind)
    assert found(shown(error)) == []
    assert found(kept(error)) == []


@pytest.mark.parametrize("name", sorted(OTHERS.keys() - GIVEN_AS_SOMETHING_ELSE))
def test_no_frame_of_ours_that_an_error_passes_holds_a_key(name: str, world: World) -> None:
    kind, call = OTHERS[name]
    error = caught(lambda: call(world), kind)
    assert found(our_locals(error), KEY_SEARCH) == []


def test_a_url_with_credentials_is_refused_and_not_quoted() -> None:
    for where in ("gateway_url", "enclave_url"):
        for url in (f"https://user:{API_KEY}@gateway.example", f"https://{API_KEY}@gateway.example"):
            for make in (PremClient, AsyncPremClient):
                error = caught(
                    lambda make=make, url=url, where=where: make(api_key="k", **{where: url}),  # type: ignore[misc]
                    prem_core.ConfigurationError,
                )
                assert found(shown(error)) == []


# --- logs, warnings and what is printed


@pytest.fixture
def every_logger(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[tuple[str, str]]]]:
    """All loggers at their lowest level; gives what they were told, in every form that a handler has of it."""
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


def test_nothing_is_logged_warned_of_or_printed_that_is_secret(
    world: World,
    every_logger: Callable[[], list[tuple[str, str]]],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # In debug mode asyncio logs every callback that takes longer than this, with its arguments.
    monkeypatch.setenv("PYTHONASYNCIODEBUG", "1")
    always = property(lambda loop: 0.0, lambda loop, seconds: None)
    monkeypatch.setattr(asyncio.BaseEventLoop, "slow_callback_duration", always, raising=False)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for model in marked.SCRIPT:
            for way in WAYS:
                with contextlib.suppress(prem_core.PremError):
                    WAYS[way](world.options(), model=model)
        for trouble in ("another API key", "a value the service refuses", "an engine that fails midway"):
            for way in WAYS:
                raised(world, trouble, way)
        for name in OTHERS:
            caught(lambda name=name: OTHERS[name][1](world), Exception)  # type: ignore[misc]
        WAYS["client"](world.options("quotes"), model="openai/gpt-oss-120b")
        with LocalEnclave(
            api_key=API_KEY, private_key=marked.PRIVATE
        ) as prem:  # its threads begin at debug level
            WAYS["async client stream"](
                {**prem.client_options, "encryption_keys": PAIR}, model="openai/gpt-oss-120b"
            )
    logged = every_logger()
    assert {"httpcore.http11", "httpx"} <= {name for name, _ in logged}
    assert any(name == "asyncio" and "took" in text for name, text in logged)
    assert found(logged) == []
    assert found(("a warning", str(each.message) + repr(each)) for each in told) == []
    assert found(zip(("stdout", "stderr"), capfd.readouterr(), strict=True)) == []


# --- cassettes


PATHS = sorted(CASSETTES.glob("*"))


def interactions(path: Any) -> list[dict[str, Any]]:
    recorded: list[dict[str, Any]] = yaml.safe_load(path.read_text())["interactions"]
    return recorded


def in_bytes(body: Any) -> bytes:
    said = body.get("string", "") if isinstance(body, dict) else body
    return said.encode() if isinstance(said, str) else said or b""


def chats(path: Any) -> list[tuple[bytes, bytes]]:
    """The bodies of the chat requests and of their answers."""
    return [
        (in_bytes(each["request"]["body"]), in_bytes(each["response"]["body"]))
        for each in interactions(path)
        if each["request"]["method"] == "POST"
    ]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_a_cassette_holds_nothing_of_what_is_sealed_in_it(path: Any) -> None:
    assert chats(path)
    for request, answer in chats(path):
        opened = Opened.request(request)
        asked = [str(message["content"]) for message in opened.params["messages"]]
        said = "".join(
            choice["delta"].get("content") or ""
            for chunk in opened.chunks(answer)
            for choice in chunk["choices"]
        )
        assert said and all(asked)
        secrets = {f"asked {i}": text for i, text in enumerate(asked)} | {
            "said": said, "model": opened.params["model"], "shared secret": opened.keys.shared_secret,
        }  # fmt: skip
        assert Search(**secrets)(path.read_bytes()) == set()


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_a_cassette_holds_no_key_and_no_header_for_one(path: Any) -> None:
    text = path.read_text()
    assert not re.search(r"sk_(live|test)_|bearer", text, re.IGNORECASE)
    for each in interactions(path):
        named = {name.lower() for side in ("request", "response") for name in each[side]["headers"]}
        assert not named & {"authorization", "proxy-authorization", "cookie", "set-cookie", "x-api-key"}


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_a_cassette_opens_with_the_tests_key_and_no_other(path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for request, _ in chats(path):
        assert Opened.request(request).params["model"]
        with monkeypatch.context() as patch, pytest.raises(DecryptionError):
            patch.setattr("wire.TEST_KEY", PrivateKey(bytes(32)))
            Opened.request(request)
