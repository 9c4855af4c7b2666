"""The settings of audio loaders, readers and parsers."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from prem_core import ConfigurationError, Limits, PublicKey
from prem_core._adapters.audio_settings import LoaderSettings
from prem_core._protocol.routes import MAX_AUDIO_BYTES


class Settings(LoaderSettings):
    http_client: Any = None
    async_http_client: Any = None
    _http_fields = ("http_client", "async_http_client")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"language": "german"}, "language"),
        ({"language": "de", "task": "translate"}, "language: not available with task='translate'"),
        ({"temperature": 1.5}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"task": "summarise"}, "task"),
        ({"mode": "words"}, "mode"),
        ({"max_segment_seconds": 30}, "max_segment_seconds: set mode='segments' too"),
        ({"max_segment_seconds": 0, "mode": "segments"}, "max_segment_seconds"),
        ({"max_segment_seconds": float("inf"), "mode": "segments"}, "max_segment_seconds"),
        ({"max_chunk_bytes": MAX_AUDIO_BYTES + 1}, "max_chunk_bytes"),
        ({"max_chunk_bytes": 1000}, "max_chunk_bytes"),
        ({"on_error": "skip"}, "on_error"),
        ({"max_concurrency": 0}, "max_concurrency"),
        ({"max_concurrent_recordings": 0}, "max_concurrent_recordings"),
        ({"timeout": 0}, "timeout"),
        ({"max_retries": -1}, "max_retries"),
        ({"model": ""}, "model"),
        ({"langauge": "de"}, "langauge"),
    ],
)
def test_an_invalid_setting_is_rejected_by_name_at_construction(settings, message):
    with pytest.raises(ValidationError, match=message):
        Settings(**settings)


def test_recordings_in_progress_and_requests_in_flight_are_two_settings():
    limits = Limits(9)
    settings = Settings(api_key="k", limits=limits, max_concurrent_recordings=2)
    assert (settings.max_concurrent_recordings, settings._client().limits) == (2, limits)
    settings = Settings(api_key="k", max_concurrency=2)
    assert (settings.max_concurrent_recordings, settings._client().limits.max_concurrency) == (5, 2)
    with pytest.raises(ValidationError, match="max_concurrency"):
        Settings(limits=limits, max_concurrency=2)


def test_an_error_about_a_setting_shows_neither_key_nor_prompt():
    with pytest.raises(ValidationError) as caught:
        Settings(api_key=["sk_live_zebra"], prompt=["Ramipril"])
    assert "zebra" not in str(caught.value) and "Ramipril" not in str(caught.value)


def test_the_repr_shows_neither_key_nor_prompt():
    shown = repr(Settings(api_key="sk_live_zebra", prompt="Ramipril"))
    assert "zebra" not in shown and "Ramipril" not in shown


def test_a_transcription_may_take_five_minutes_and_a_connection_half_a_minute():
    settings = Settings(api_key="sk_test_x")
    assert settings._client_options("http_client")["timeout"] == httpx.Timeout(300, connect=30)
    assert Settings(timeout=5)._client_options("http_client")["timeout"] == httpx.Timeout(5)


def test_a_pinned_key_may_be_a_public_key_object(enclave):
    key: PublicKey = enclave.public_key
    assert Settings(enclave_public_key=key).enclave_public_key == bytes(key).hex()


def test_a_missing_api_key_is_an_error_when_it_is_needed():
    settings = Settings()
    with pytest.raises(ConfigurationError, match="PREM_API_KEY"):
        settings._client()
