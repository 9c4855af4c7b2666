import asyncio
import gzip
import inspect
import json
import ssl
import threading
import tracemalloc
from pathlib import Path

import certifi
import httpx
import pytest
from support.fake_gateway import COMPLETION, PARAMS, FakeEnclave, FakeGateway, error_text, text_of
from support.waiting import SOON

from prem_core import AsyncPremClient, PremClient
from prem_core import _errors as errors
from prem_core._client.options import with_defaults
from prem_core._client.requester import AsyncRequester, Requester
from prem_core._protocol.routes import CHAT_ROUTE
from prem_core._protocol.steps import READ, ResponseHead, Send, Sleep
from prem_core._transport import sync
from prem_core._transport.aio import AsyncDriver
from prem_core._transport.http import HTTPX_ERROR_MAP, POOL_LIMITS, ssl_context, translate
from prem_core._transport.sync import SyncDriver

REQUEST = httpx.Request(
    "POST", "https://gateway", headers={"authorization": "Bearer SECRET"}, content=b"SECRET"
)


def descendants(kind):
    return [kind, *(found for child in kind.__subclasses__() for found in descendants(child))]


#: Every exception httpx exports. CookieConflict alone comes from reading a cookie by name, which is not done here.
FOREIGN = [
    kind
    for kind in vars(httpx).values()
    if inspect.isclass(kind) and issubclass(kind, Exception) and kind is not httpx.CookieConflict
]


def foreign(kind):
    """An instance as httpx would raise it, holding the request and quoting a header."""
    if issubclass(kind, httpx.HTTPStatusError):
        return kind("SECRET", request=REQUEST, response=httpx.Response(500, request=REQUEST))
    if issubclass(kind, httpx.RequestError):
        return kind("SECRET", request=REQUEST)
    if issubclass(kind, httpx.StreamError) and kind is not httpx.StreamError:
        return kind()
    return kind("SECRET")


def options(url="https://gateway", **values):
    given = {"gateway_url": url, "enclave_url": url, "timeout": 5.0, "api_key": "sk_test_SECRET"}
    return with_defaults("PremClient", given | values)


def test_the_table_of_httpx_exceptions_is_not_empty():
    assert len(FOREIGN) > 20
    for base in (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL):
        # Other packages derive errors of their own from these once they are imported.
        assert {kind for kind in descendants(base) if kind.__module__.startswith("httpx.")} <= set(FOREIGN)


@pytest.mark.parametrize("reading", [False, True])
@pytest.mark.parametrize("party", ["gateway", "enclave"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_every_httpx_error_maps_to_a_prem_error_that_names_the_peer(kind, party, reading):
    error = translate(foreign(kind), party, reading=reading)
    assert isinstance(error, errors.APIConnectionError)
    assert isinstance(error, errors.APITimeoutError) is issubclass(kind, httpx.TimeoutException)
    assert str(error).startswith(f"{party}: ")
    assert "SECRET" not in error_text(error)


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_connection_error_while_reading_is_a_truncated_response(kind):
    error = translate(foreign(kind), "gateway", reading=True)
    assert isinstance(error, errors.APITimeoutError | errors.StreamInterruptedError)
    assert not isinstance(translate(foreign(kind), "gateway", reading=False), errors.StreamInterruptedError)


def test_no_mapping_is_shadowed_by_a_broader_one():
    for place, (kind, *_) in enumerate(HTTPX_ERROR_MAP):
        assert not any(issubclass(kind, earlier) for earlier, *_ in HTTPX_ERROR_MAP[:place])


class Failing(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """A transport on which httpx fails in one way: when sending, or after the first bytes of the answer."""

    def __init__(self, kind, *, reading):
        self.kind, self.reading = kind, reading

    def handle_request(self, request):
        if not self.reading:
            raise foreign(self.kind)
        return httpx.Response(200, stream=Broken(self.kind))

    async def handle_async_request(self, request):
        return self.handle_request(request)


class Broken(httpx.SyncByteStream, httpx.AsyncByteStream):
    def __init__(self, kind):
        self.kind = kind

    def __iter__(self):
        yield b"a"
        raise foreign(self.kind)

    async def __aiter__(self):
        yield b"a"
        raise foreign(self.kind)


def one_request():
    head = yield Send("POST", "gateway", CHAT_ROUTE, b"{}")
    assert isinstance(head, ResponseHead)
    yield (yield from body())


def body():
    data = b""
    while part := (yield READ):
        data += part
    return data


def no_probe(subject):
    raise AssertionError(f"nothing here asks for a probe of {subject}")


def drive(flow, *, transport=None, url="https://gateway", **values):
    """The result of a flow, performed synchronously."""
    with httpx.Client(transport=transport) as client:
        requester = Requester(options(url, http_client=client, **values))
        return SyncDriver(client, requester.build_request, requester.key, requester.fetch_key, no_probe).run(
            flow
        )


def drive_async(flow, *, transport=None, url="https://gateway", **values):
    """The result of a flow, performed asynchronously."""

    async def run():
        async with httpx.AsyncClient(transport=transport) as client:
            requester = AsyncRequester(options(url, http_client=client, **values))
            return await AsyncDriver(
                client, requester.build_request, requester.key, requester.fetch_key, no_probe
            ).run(flow)

    return asyncio.run(run())


both = pytest.mark.parametrize("drive", [drive, drive_async], ids=["sync", "async"])


@both
@pytest.mark.parametrize("reading", [False, True])
@pytest.mark.parametrize("kind", FOREIGN)
def test_an_httpx_error_is_never_raised_or_kept_as_a_cause(kind, reading, drive):
    with pytest.raises(errors.APIConnectionError) as caught:
        drive(one_request(), transport=Failing(kind, reading=reading))
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert "SECRET" not in error_text(caught.value)


@pytest.mark.parametrize("kind", [Requester, AsyncRequester])
def test_a_requester_does_not_show_the_api_key(kind):
    assert "SECRET" not in repr(vars(kind(options())))


# --- what goes out


@both
def test_the_api_key_is_sent_to_the_gateway_only(drive):
    def steps():
        yield Send("POST", "gateway", "/a", b"body", query={"type": "CHAT"})
        yield Send("GET", "enclave", "/b")

    with FakeGateway(other=lambda call: call.reply(b"{}")) as gateway:
        drive(steps(), url=gateway.url)
    posted, got = gateway.calls
    assert (posted.method, posted.path, posted.query, posted.body) == ("POST", "/a", "type=CHAT", b"body")
    assert posted.headers["authorization"] == "Bearer sk_test_SECRET"
    assert posted.headers["content-type"] == "application/json"
    assert (got.method, got.path, got.query, got.body) == ("GET", "/b", "", b"")
    assert "authorization" not in got.headers
    assert "content-type" not in got.headers
    for call in gateway.calls:
        assert call.headers["accept-encoding"] == "identity"
        assert call.headers["user-agent"].startswith("prem-encrypted/")
        assert "text/event-stream" in call.headers["accept"]


@both
def test_the_base_path_of_a_url_is_kept(drive):
    with FakeGateway(other=lambda call: call.reply(b"{}")) as gateway:
        drive(one_request(), url=f"{gateway.url}/base")
    assert gateway.paths() == [f"/base{CHAT_ROUTE}"]


@both
def test_a_response_has_lower_case_headers_and_its_arrival_time(drive):
    def steps():
        yield (yield Send("GET", "gateway", "/x"))

    with FakeGateway(other=lambda call: call.reply(b"{}", 418, {"X-Mixed-Case": "Value"})) as gateway:
        head = drive(steps(), url=gateway.url)
    assert head.status == 418
    assert head.headers["x-mixed-case"] == "Value"
    assert head.received > 1_600_000_000
    assert "Value" not in repr(head)


@both
def test_a_response_is_read_to_its_end(drive):
    content = bytes(range(256)) * 4096
    with FakeGateway(other=lambda call: call.reply(content)) as gateway:
        assert drive(steps_for("/x"), url=gateway.url) == content


def steps_for(path):
    yield Send("GET", "gateway", path)
    yield (yield from body())


@both
def test_no_connection_is_held_while_sleeping(drive):
    idle = []

    def steps():
        yield Send("GET", "gateway", "/x")
        yield Sleep(0.2)
        idle.append(gateway.connections)
        yield from steps_for("/y")

    def other(call):
        call.head(200, {"content-length": "5"})
        if call.path == "/y":
            call.raw(b"hello")
        else:
            call.wait_for_disconnect()

    with FakeGateway(other=other) as gateway:
        assert drive(steps(), url=gateway.url) == b"hello"
    assert idle == [0]


@both
def test_a_transport_error_is_thrown_into_the_flow(drive):
    def steps():
        try:
            yield Send("GET", "gateway", "/x")
        except errors.APIConnectionError as error:
            yield type(error)

    assert drive(steps(), transport=Failing(httpx.ConnectTimeout, reading=False)) is errors.APITimeoutError


@both
def test_a_flow_that_fails_closes_its_connection(drive):
    def steps():
        yield Send("GET", "gateway", "/x")
        raise KeyError("a bug of ours")

    seen = []

    def other(call):
        call.head(200, {"content-length": "5"})
        seen.append(call.wait_for_disconnect())

    with FakeGateway(other=other) as gateway, pytest.raises(KeyError):
        drive(steps(), url=gateway.url)
    assert seen == [True]


@both
def test_reading_without_a_response_gives_its_end(drive):
    def flow():
        yield (yield READ)

    assert drive(flow()) == b""


# --- what can go wrong on a socket


@both
def test_a_closed_port_is_a_connection_error(drive):
    with FakeGateway() as gateway:
        url = gateway.url
    with pytest.raises(errors.APIConnectionError, match="could not be opened") as caught:
        drive(one_request(), url=url)
    assert type(caught.value) is errors.APIConnectionError


@both
def test_no_response_is_a_timeout(drive):
    with (
        FakeGateway(other=lambda call: call.wait_for_disconnect()) as gateway,
        pytest.raises(errors.APITimeoutError),
    ):
        drive(steps_for("/x"), url=gateway.url, timeout=0.1)


@both
def test_a_response_that_stalls_is_a_timeout(drive):
    def other(call):
        call.head(200, {"content-length": "10"})
        call.raw(b"hello")
        call.wait_for_disconnect()

    with FakeGateway(other=other) as gateway, pytest.raises(errors.APITimeoutError):
        drive(steps_for("/x"), url=gateway.url, timeout=0.1)


@both
@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"content-length": "10"}, b"hello"),
        ({"transfer-encoding": "chunked"}, b"5\r\nhello\r\n"),
        ({"transfer-encoding": "chunked"}, b"zz"),
    ],
)
def test_a_disconnect_in_mid_response_is_a_truncated_response(headers, body, drive):
    def other(call):
        call.head(200, headers)
        call.raw(body)
        call.disconnect()

    with FakeGateway(other=other) as gateway, pytest.raises(errors.StreamInterruptedError):
        drive(steps_for("/x"), url=gateway.url)


@both
@pytest.mark.parametrize(
    "raw", [b"", b"\0\0\0\0", b"HTTP/9.9 nope\r\n\r\n", b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n"]
)
def test_a_response_that_is_not_http_is_a_connection_error(raw, drive):
    def other(call):
        call.raw(raw)
        call.disconnect()

    with FakeGateway(other=other) as gateway, pytest.raises(errors.APIConnectionError) as caught:
        drive(steps_for("/x"), url=gateway.url)
    assert not isinstance(caught.value, errors.StreamInterruptedError)


@both
def test_a_chunked_body_with_wrong_line_ends_is_rejected(drive):
    # h11 before 0.16 reads any two bytes as the end of a chunk (CVE-2025-43859).
    def other(call):
        call.head(200, {"transfer-encoding": "chunked"})
        call.raw(b"5\r\nhelloXX0\r\n\r\n")

    with FakeGateway(other=other) as gateway, pytest.raises(errors.StreamInterruptedError):
        drive(steps_for("/x"), url=gateway.url)


def bomb():
    """A gigabyte of zeros as a few hundred bytes of gzip in gzip in gzip."""
    return gzip.compress(gzip.compress(gzip.compress(bytes(1_000_000)) * 1000))


@both
@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "x-unknown", "identity, gzip", "GZIP"])
def test_a_response_with_a_content_coding_is_rejected(drive, coding):
    body = gzip.compress(b"hello")
    with FakeGateway(other=lambda call: call.reply(body, headers={"content-encoding": coding})) as gateway:
        with pytest.raises(errors.APIResponseValidationError, match=f"content encoding '{coding}'"):
            drive(steps_for("/x"), url=gateway.url)


@both
@pytest.mark.parametrize("coding", ["", "identity", "Identity", "identity, identity"])
def test_a_response_with_the_identity_coding_is_read(drive, coding):
    reply = httpx.Response(200, content=b"hello", headers={"content-encoding": coding})
    with FakeGateway(
        other=lambda call: call.reply(b"hello", headers={"content-encoding": coding})
    ) as gateway:
        assert drive(steps_for("/x"), url=gateway.url) == b"hello"
    assert drive(steps_for("/x"), transport=httpx.MockTransport(lambda _: reply)) == b"hello"


@both
@pytest.mark.parametrize("status", [302, 400, 503])
def test_the_body_of_an_error_with_a_content_coding_is_not_read(drive, status):
    def steps():
        head = yield Send("GET", "gateway", "/x")
        yield (head.status, (yield from body()))

    headers = {"content-encoding": "gzip, gzip, gzip"}
    with FakeGateway(other=lambda call: call.reply(bomb(), status, headers)) as gateway:
        assert drive(steps(), url=gateway.url) == (status, b"")


@both
def test_a_decompression_bomb_uses_no_memory(drive):
    body, headers = bomb(), {"content-encoding": "gzip, gzip, gzip"}
    assert len(body) < 20_000
    with FakeGateway(other=lambda call: call.reply(body, headers=headers)) as gateway:
        tracemalloc.start()
        try:
            with pytest.raises(errors.APIResponseValidationError):
                drive(steps_for("/x"), url=gateway.url)
            assert tracemalloc.get_traced_memory()[1] < 10_000_000
        finally:
            tracemalloc.stop()


@both
@pytest.mark.parametrize("coding", ["gzip", "identity, gzip"])
def test_a_coded_response_that_a_transport_read_is_rejected(drive, coding):
    def answer(_):
        return httpx.Response(200, content=gzip.compress(b"hello"), headers={"content-encoding": coding})

    with pytest.raises(errors.APIResponseValidationError):
        drive(steps_for("/x"), transport=httpx.MockTransport(answer))


def test_a_late_timer_cannot_shut_down_a_connection_that_serves_another_request(monkeypatch):
    entered, resume = threading.Event(), threading.Event()
    shut_down_socket = sync._shut_down_socket

    def slowly(response):
        entered.set()
        assert resume.wait(SOON)
        shut_down_socket(response)

    monkeypatch.setattr(sync, "_shut_down_socket", slowly)
    with FakeGateway(other=lambda call: call.reply(b"{}")) as gateway, httpx.Client() as client:
        requester = Requester(options(gateway.url, http_client=client))
        driver = SyncDriver(client, requester.build_request, requester.key, requester.fetch_key, no_probe)
        driver._send(Send("GET", "gateway", "/x"))
        timer = threading.Thread(target=driver._shut_down)
        timer.start()
        assert entered.wait(SOON)
        # The timer found the response open. Its connection must not return to the pool before the timer is done.
        assert not driver._lock.acquire(blocking=False)
        resume.set()
        timer.join()
        driver.close()
        driver._shut_down()  # a timer that fires now finds nothing
        assert client.get(f"{gateway.url}/y").content == b"{}"


# --- transports of the caller's


def answer_all(request):
    """What users' own tests put in place of the network."""
    enclave = FakeEnclave()
    if request.url.path == "/publicKey":
        return httpx.Response(200, json={"publicKey": bytes(enclave.public).hex()})
    opened = enclave.open(request.content)
    if opened.params.get("stream"):
        return httpx.Response(200, content=opened.stream(), headers={"content-type": "text/event-stream"})
    return httpx.Response(200, json=json.loads(opened.envelope()))


def test_a_transport_with_whole_responses_works():
    with httpx.Client(transport=httpx.MockTransport(answer_all)) as http:
        client = PremClient(api_key="k", http_client=http)
        assert client.chat.completions.create(**PARAMS).id == COMPLETION["id"]
        assert text_of(client.chat.completions.create(**PARAMS, stream=True)) == "Hello"


async def test_an_async_transport_with_whole_responses_works():
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer_all)) as http:
        client = AsyncPremClient(api_key="k", http_client=http)
        assert (await client.chat.completions.create(**PARAMS)).id == COMPLETION["id"]
        stream = await client.chat.completions.create(**PARAMS, stream=True)
        assert text_of([chunk async for chunk in stream]) == "Hello"


# --- TLS and limits


def test_certificates_are_verified_and_loaded_once():
    context = ssl_context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert ssl_context() is context


def test_certificates_come_from_the_environments_file(monkeypatch, tmp_path):
    ours = tmp_path / "ours.pem"
    first = Path(certifi.where()).read_text().partition("-----END CERTIFICATE-----")
    ours.write_text(first[0][first[0].index("-----BEGIN") :] + first[1])
    monkeypatch.setenv("SSL_CERT_FILE", str(ours))
    assert len(ssl_context.__wrapped__().get_ca_certs()) == 1
    monkeypatch.delenv("SSL_CERT_FILE")
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    assert ssl_context.__wrapped__().get_ca_certs() == []  # looked up there, when a server's is checked
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    with pytest.raises(errors.ConfigurationError, match="could not read certificates from SSL_CERT_FILE"):
        ssl_context.__wrapped__()


def test_more_concurrent_streams_than_the_httpx_default_run_at_once():
    count = 105
    with (
        FakeGateway(lambda call: hold(call)) as gateway,
        PremClient(**gateway.settings(timeout=5, max_concurrency=None)) as client,
    ):
        streams = [client.chat.completions.create(**PARAMS, stream=True) for _ in range(count)]
        assert gateway.connections == count
        for stream in streams:
            stream.close()
    assert POOL_LIMITS.max_connections is None or POOL_LIMITS.max_connections >= count


def hold(call):
    """Send the first chunk, and keep the connection until the client leaves."""
    opened = call.opened()
    call.begin()
    call.piece(opened.events({"choices": [{"index": 0, "delta": {"content": "a"}}]}))
    call.wait_for_disconnect()
