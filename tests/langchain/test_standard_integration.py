"""langchain-tests' integration suite, against the embedded enclave over real HTTP, in all modes of `nonce_reuse`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import httpx
import pytest
from langchain_core.messages import AIMessage
from langchain_tests.integration_tests import ChatModelIntegrationTests
from support.wire_schemas import DATA, Opened

from langchain_prem import ChatPremEncrypted
from prem_core._protocol.nonce_reuse import is_probe
from prem_core.enclave import LocalEnclave

#: The suite downloads its media from the web; these stand in for them, by file type.
MEDIA = {".pdf": "letter.pdf", ".wav": "tone.wav", ".png": "pixels.png"}


class TestIntegration(ChatModelIntegrationTests):
    #: None for the default, "warn".
    nonce_reuse: str | None = None

    @pytest.fixture(autouse=True)
    def connect(self, enclave: LocalEnclave) -> None:
        self.enclave = enclave

    @pytest.fixture(autouse=True)
    def local_media(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LANGCHAIN_TESTS_USER_AGENT", "prem-encrypted tests; nothing is downloaded")

        def get(url: str, **_: Any) -> httpx.Response:
            return httpx.Response(200, content=(DATA / "media" / MEDIA[Path(url).suffix]).read_bytes())

        # `httpx` there is the module the package under test uses too; its `get` is the suite's alone.
        monkeypatch.setattr(httpx, "get", get)

    @property
    def chat_model_class(self) -> type[ChatPremEncrypted]:
        return ChatPremEncrypted

    @property
    def chat_model_params(self) -> dict[str, Any]:
        options = {**self.enclave.client_options, "nonce_reuse": self.nonce_reuse}
        return {"model": "openai/gpt-oss-120b", "temperature": 0, **options}

    @property
    def model_override_value(self) -> str:
        return "prem-local/quoting"

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_image_inputs(self) -> bool:
        return True

    @property
    def supports_image_urls(self) -> bool:
        return True

    @property
    def supports_pdf_inputs(self) -> bool:
        return True

    @property
    def supports_audio_inputs(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def supports_image_tool_message(self) -> bool:
        return True

    @property
    def supports_pdf_tool_message(self) -> bool:
        return True

    @property
    def enable_vcr_tests(self) -> bool:
        return True

    @pytest.fixture
    def vcr_cassette_dir(self) -> str:
        return os.fspath(DATA / "cassettes")

    @property
    def supported_usage_metadata_details(self) -> dict[str, list[str]]:  # type: ignore[override]
        return {"invoke": ["reasoning_output"], "stream": ["reasoning_output"]}

    def invoke_with_reasoning_output(self, *, stream: bool = False) -> AIMessage:
        model = self.chat_model_class(**self.chat_model_params, reasoning_effort="high")
        if not stream:
            return model.invoke("Hello")
        full = None
        for chunk in model.stream("Hello"):
            full = chunk if full is None else full + chunk
        assert full is not None
        return full


class TestIntegrationAllow(TestIntegration):
    nonce_reuse = "allow"

    @pytest.fixture
    def default_cassette_name(self) -> str:
        return "TestIntegration.test_stream_time"  # the requests are the same


class TestIntegrationError(TestIntegration):
    nonce_reuse = "error"

    @property
    def enable_vcr_tests(self) -> bool:
        return False  # no cassette can hold a probe, which is random: test_stream_time is skipped

    def test_a_probe_was_sent_and_no_request_asked_for_a_stream(self, seen: Any) -> None:
        model = self.chat_model_class(**self.chat_model_params)
        assert list(model.stream("Hello"))
        found = [Opened.request(exchange.request_body).params for exchange in seen.chats]
        assert [is_probe(params) for params in found] == [True, False]
        assert not any("stream" in params for params in found)
