"""The proxy's web page: its files, its event stream, and what a real browser shows."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from support.paths import CLINIC_NOTE
from support.proxies import StartProxy

from prem_core import RateLimitError
from prem_core.enclave import LocalEnclave, ScriptedEngine
from prem_core.proxy import LocalProxy

MODEL = "openai/gpt-oss-120b"
PROMPT = "Context: The violet heron nests at Marrow Quay. Question: Where does the violet heron nest?"
#: Words that only the prompt and the response contain.
WORDS = ("violet", "heron", "Marrow")

RECORDING = CLINIC_NOTE

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
#: The browser makes no requests of its own.
QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


def page_events(proxy: LocalProxy, count: int) -> list[tuple[str, Any]]:
    """The first `count` events of the page's stream."""
    events: list[tuple[str, Any]] = []
    with httpx.stream("GET", f"{proxy.page_url}requests", trust_env=False, timeout=20) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        name = "message"
        for line in response.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                events.append((name, json.loads(line.removeprefix("data: "))))
                name = "message"
                if len(events) == count:
                    break
    return events


def ask(client: openai.OpenAI, **params: Any) -> str:
    answer = client.chat.completions.create(
        **{"model": MODEL, "messages": [{"role": "user", "content": PROMPT}], **params}
    )
    return answer.choices[0].message.content or ""


@pytest.mark.parametrize(("path", "kind"), [("", "html"), ("page.css", "css"), ("page.js", "javascript")])
def test_the_page_is_served_with_a_strict_content_security_policy(
    http: httpx.Client, proxy: LocalProxy, path: str, kind: str
) -> None:
    response = http.get(proxy.page_url + path)
    assert response.status_code == 200
    assert kind in response.headers["content-type"]
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http:" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert "http://" not in response.text
    assert "https://" not in response.text


@pytest.mark.parametrize("path", ["", "requests"])
@pytest.mark.parametrize(
    "headers",
    [{"host": "evil.example"}, {"origin": "http://evil.example"}, {"host": "evil.example:3000"}],
)
def test_a_foreign_host_and_a_foreign_origin_are_rejected(
    http: httpx.Client, proxy: LocalProxy, path: str, headers: dict[str, str]
) -> None:
    response = http.get(proxy.page_url + path, headers=headers)
    assert response.status_code == 403
    assert response.headers["content-type"] == "application/json"


def test_a_page_of_another_site_cannot_read_the_records(http: httpx.Client, proxy: LocalProxy) -> None:
    headers = {"sec-fetch-site": "cross-site"}
    assert http.get(f"{proxy.page_url}requests", headers=headers).status_code == 403


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/page/",
        "/page/wrong/",
        "/page/wrong/requests",
        "/page/w%C3%BCrg/page.js",
        "/page//requests",
    ],
)
def test_without_the_token_the_page_is_403_and_states_where_its_url_is_printed(
    http: httpx.Client, proxy: LocalProxy, path: str
) -> None:
    response = http.get(path)
    assert response.status_code == 403
    assert "prints the page's URL" in response.text
    assert proxy.page_url.split("/")[-2] not in response.text
    assert "event: latest" not in response.text


def test_the_records_are_not_served_without_the_token(http: httpx.Client) -> None:
    for path in ("/requests", "/exchanges", "/page.js"):
        assert http.get(path).status_code == 404


def test_each_proxy_has_its_own_token_and_keeps_it_out_of_its_repr(
    start_proxy: StartProxy, proxy: LocalProxy, enclave: LocalEnclave
) -> None:
    other = start_proxy(enclave)
    token, others = (each.page_url.split("/")[-2] for each in (proxy, other))
    assert len(token) >= 32
    assert token != others
    assert token not in repr(proxy)


def test_no_log_line_contains_the_token(
    http: httpx.Client, proxy: LocalProxy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(1)
    logging.getLogger("httpx").disabled = logging.getLogger("httpcore").disabled = True  # the client's own
    try:
        for path in ("", "page.js", "nothing"):
            http.get(proxy.page_url + path)
        http.post(proxy.page_url)
    finally:
        logging.getLogger("httpx").disabled = logging.getLogger("httpcore").disabled = False
    assert proxy.page_url.split("/")[-2] not in caplog.text


def test_without_the_page_there_is_no_route_to_it(start_proxy: StartProxy, enclave: LocalEnclave) -> None:
    proxy = start_proxy(enclave, page=False)
    for path in ("/", "/page/", "/page/wrong/requests"):
        assert httpx.get(proxy.url + path, trust_env=False).status_code == 404
    with pytest.raises(RuntimeError, match="page=False"):
        _ = proxy.page_url


def test_the_event_stream_starts_with_the_latest_records_and_contains_no_prompt(
    start_proxy: StartProxy, enclave: LocalEnclave
) -> None:
    proxy = start_proxy(enclave)
    with openai.OpenAI(base_url=proxy.base_url, api_key=enclave.api_key) as client:
        assert "Marrow" in ask(client)
        ((name, latest),) = page_events(proxy, 1)
        assert name == "latest"
        (record,) = latest
        assert (record["state"], record["status"], record["model"]) == ("done", 200, MODEL)
        assert record["time_to_first_token"] > 0
        assert record["protection"]["reply_nonce"] == "own"
        assert record["protection"]["key_fingerprint"] == enclave.public_key.fingerprint()
        shown = json.dumps(latest)
        for secret in (*WORDS, enclave.api_key, enclave.api_key[8:]):
            assert secret not in shown


def test_an_open_page_does_not_delay_stop(start_proxy: StartProxy, enclave: LocalEnclave) -> None:
    proxy = start_proxy(enclave)
    with httpx.stream("GET", f"{proxy.page_url}requests", trust_env=False, timeout=20) as response:
        lines = response.iter_lines()
        assert next(lines) == "event: latest"
        proxy.stop()
        list(lines)  # ends


# In a browser


@pytest.fixture
def browse() -> Iterator[Callable[..., Any]]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        try:
            yield browser.new_page
        finally:
            browser.close()


@pytest.mark.browser
def test_a_browser_shows_each_request_live_and_what_the_gateway_saw(
    browse: Callable[..., Any], start_proxy: StartProxy, enclave: LocalEnclave, seen: Any
) -> None:
    proxy = start_proxy(enclave)
    urls, messages = [], []
    page = browse(viewport={"width": 1400, "height": 800})
    page.on("request", lambda request: urls.append(request.url))
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.goto(proxy.page_url)
    page.get_by_text("live", exact=True).wait_for()
    assert page.get_by_text("No requests yet").is_visible()

    with openai.OpenAI(base_url=proxy.base_url, api_key=enclave.api_key, max_retries=0) as client:
        ask(client)
        page.get_by_text("done 200").wait_for()
        text = page.locator("#rows tr").first.inner_text()
        assert MODEL in text
        assert "/v1/chat/completions" in text
        assert " ms" in text

        with pytest.raises(openai.BadRequestError):
            ask(client, temperature=9)
        page.get_by_text("failed 400").wait_for()
        with pytest.raises(openai.APIStatusError):
            ask(client, model="<img src=x onerror=alert(1)>")
        page.get_by_text("<img src=x onerror=alert(1)>").wait_for()
        assert page.locator("table img").count() == 0

        stream = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": PROMPT}], stream=True,
            stream_options={"include_usage": True},
        )  # fmt: skip
        list(stream)
    page.wait_for_function("document.querySelectorAll('#rows .done').length === 2")
    page.wait_for_function("document.getElementById('total').textContent === '4'")

    nonces = page.locator("#rows > tr:not(.details) > td:nth-child(9)").all_inner_texts()
    assert (nonces[0], nonces[-1]) == ("request's", "own")
    fingerprint = enclave.public_key.fingerprint()
    assert page.locator("#key").inner_text() == f"{fingerprint[:8]}, fetched, not attested"

    # The last row is the first request. Its details start with what the gateway saw.
    row = page.locator("#rows > tr:not(.details)").last
    row.get_by_role("button").press("Enter")
    assert row.get_by_role("button").get_attribute("aria-expanded") == "true"
    shown = page.locator("#rows > tr.details").last.locator("pre").first.inner_text().removesuffix(" …")
    assert len(shown) >= 64
    assert seen.chats[0].request_body.decode().startswith(shown)
    assert fingerprint in page.locator("#rows > tr.details").last.inner_text()

    content = page.content()
    for secret in (*WORDS, enclave.api_key):
        assert secret not in content
    assert all(url.startswith((proxy.url, "data:")) for url in urls)
    assert messages == []


@pytest.mark.browser
def test_a_browser_shows_a_rate_limited_request_with_its_status(
    browse: Callable[..., Any],
    scripted_proxy: LocalProxy,
    scripted_enclave: LocalEnclave,
    script: ScriptedEngine,
) -> None:
    script.respond = lambda request: RateLimitError(retry_after=1)
    page = browse()
    page.goto(scripted_proxy.page_url)
    with openai.OpenAI(
        base_url=scripted_proxy.base_url, api_key=scripted_enclave.api_key, max_retries=0
    ) as client:
        with pytest.raises(openai.RateLimitError):
            ask(client)
        page.get_by_text("failed 429").first.wait_for()


@pytest.mark.browser
@pytest.mark.parametrize("width", [360, 1400])
def test_the_page_fits_the_window_and_has_a_light_and_a_dark_theme(
    browse: Callable[..., Any], proxy: LocalProxy, client: openai.OpenAI, width: int
) -> None:
    ask(client)
    with pytest.raises(openai.NotFoundError):
        ask(client, model="none/of-a-long-name-that-has-to-break-somewhere")  # a row with a support id
    client.audio.transcriptions.create(file=RECORDING, model="openai/whisper-large-v3")
    pictures = []
    for scheme in ("light", "dark"):
        page = browse(viewport={"width": width, "height": 700}, color_scheme=scheme)
        page.goto(proxy.page_url)
        page.get_by_text("done 200").first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        pictures.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(set(pictures)) == 2
