"""Settings of the audio loaders, readers and parsers, and how these transcribe."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from typing import Any

import httpx
from pydantic import Field, PrivateAttr, ValidationInfo, field_validator
from typing_extensions import override

from prem_core._adapters.settings import ClientSettings
from prem_core._audio.batch import (
    ErrorCollector,
    OnError,
    TranscriptionFailedWarning,
    atranscribe,
    atranscribe_many,
    transcribe,
    transcribe_many,
)
from prem_core._audio.chunking import MIN_CHUNK_BYTES
from prem_core._audio.sources import WHISPER_SUFFIXES, AudioSource, source_of, sources_at, suffix_of_type
from prem_core._audio.transcripts import (
    EXCLUDED_METADATA_KEYS,
    Mode,
    Task,
    TimedText,
    TranscriptionRequest,
    segments,
)
from prem_core._audio.upload import DEFAULT_MODEL, AudioFile
from prem_core._config import AUDIO_TIMEOUT, DEFAULT_MAX_CONCURRENCY, DEFAULT_TIMEOUT
from prem_core._crypto.redaction import without_traceback
from prem_core._errors import InvalidParameterError, PremError
from prem_core._protocol.request_schema import audio_plaintext
from prem_core._protocol.routes import MAX_AUDIO_BYTES

#: What the adapters need of `prem_core` for recordings.
__all__ = [
    "EXCLUDED_METADATA_KEYS",
    "WHISPER_SUFFIXES",
    "AudioFile",
    "AudioSource",
    "LoaderSettings",
    "TimedText",
    "TranscriptionFailedWarning",
    "TranscriptionSettings",
    "source_of",
    "sources_at",
    "suffix_of_type",
    "without_traceback",
]


class TranscriptionSettings(ClientSettings):
    """How recordings are transcribed, and the settings of the client that sends them."""

    model: str = Field(default=DEFAULT_MODEL, min_length=1)
    """Name of the model."""
    task: Task = "transcribe"
    """"transcribe", or "translate" into English."""
    language: str | None = None
    """The spoken language, an ISO-639-1 code. None lets the model detect it. Transcriptions only."""
    prompt: str | None = Field(default=None, repr=False)
    """Text that guides the model's style: names and terms to expect."""
    temperature: float | None = None
    """Sampling temperature, 0 to 1."""
    mode: Mode = "document"
    """"document" makes one document of a recording, "segments" one of each segment."""
    max_segment_seconds: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """In mode "segments": join segments up to this length. A segment is never split."""
    max_chunk_bytes: int = Field(default=MAX_AUDIO_BYTES, ge=MIN_CHUNK_BYTES, le=MAX_AUDIO_BYTES)
    """A recording of more bytes is split at pauses and sent in chunks."""

    timeout: float = Field(default=AUDIO_TIMEOUT, gt=0, allow_inf_nan=False)
    """Seconds to wait for a transcription, which starts only after the whole recording was processed. Connecting may
    take 30 seconds at most."""

    @field_validator("language", "prompt", "temperature")
    @classmethod
    def _follows_schema(cls, value: Any, info: ValidationInfo) -> Any:
        audio_plaintext("transcribe", {"model": "m", str(info.field_name): value})
        return value

    @override
    def _check(self) -> None:
        super()._check()
        if self.task == "translate" and self.language is not None:
            raise InvalidParameterError(
                "language: not available with task='translate', where the model detects the language",
                param="language",
            )
        if self.max_segment_seconds is not None and self.mode != "segments":
            raise InvalidParameterError(
                "max_segment_seconds: set mode='segments' too", param="max_segment_seconds"
            )

    @override
    def _client_timeout(self) -> httpx.Timeout:
        # Transcribing takes long; connecting to the gateway does not.
        return httpx.Timeout(self.timeout, connect=min(self.timeout, DEFAULT_TIMEOUT))

    def _request(self) -> TranscriptionRequest:
        return TranscriptionRequest(
            model=self.model,
            task=self.task,
            language=self.language,
            prompt=self.prompt,
            temperature=self.temperature,
            mode=self.mode,
            max_segment_seconds=self.max_segment_seconds,
            max_chunk_bytes=self.max_chunk_bytes,
        )

    def _transcribe(self, source: AudioSource) -> list[TimedText]:
        request = self._request()
        return segments(source.source, transcribe(self._client(), source, request), request)

    async def _atranscribe(self, source: AudioSource) -> list[TimedText]:
        request = self._request()
        return segments(source.source, await atranscribe(self._async_client(), source, request), request)


class LoaderSettings(TranscriptionSettings):
    """The settings of a transcription, and of a run over many recordings."""

    on_error: OnError = "raise"
    """"raise" the first error, or "collect": the other recordings are transcribed, `errors` holds a source and an error
    for each that failed, and a `TranscriptionFailedWarning` counts them. A wrong key, permission or setting is always
    raised."""
    show_progress: bool = False
    """Whether to show a progress bar. It needs tqdm."""
    max_concurrent_recordings: int = Field(default=DEFAULT_MAX_CONCURRENCY, ge=1, strict=True)
    """Recordings in progress at once, in asynchronous calls. Each takes about twice its size in memory, and sends one
    request at a time; `max_concurrency` limits the requests."""

    _errors: list[tuple[str, PremError]] = PrivateAttr(default_factory=list)

    def _transcribe_many(
        self, sources: Iterable[AudioSource], total: int | None
    ) -> Iterator[tuple[AudioSource, list[TimedText]]]:
        client, request = self._client(), self._request()
        with self._collector(total) as collector:
            found = transcribe_many(client, sources, request, collector.on_failure, collector.on_progress)
            for source, transcripts in found:
                yield source, segments(source.source, transcripts, request)

    async def _atranscribe_many(
        self, sources: Iterable[AudioSource], total: int | None
    ) -> AsyncGenerator[tuple[AudioSource, list[TimedText]], None]:
        client, request = self._async_client(), self._request()
        with self._collector(total) as collector:
            found = atranscribe_many(
                client,
                sources,
                request,
                collector.on_failure,
                collector.on_progress,
                max_recordings=self.max_concurrent_recordings,
            )
            async with aclosing(found):
                async for source, transcripts in found:
                    yield source, segments(source.source, transcripts, request)

    def _collector(self, total: int | None) -> ErrorCollector:
        return ErrorCollector(self.on_error, self._errors, show_progress=self.show_progress, total=total)
