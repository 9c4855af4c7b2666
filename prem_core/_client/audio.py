"""``client.audio``: transcriptions and translations."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, Unpack, overload

import httpx

from prem_core._audio.upload import DEFAULT_MODEL, AudioFile, read_recording
from prem_core._client.requester import AsyncRequester, Requester
from prem_core._crypto.redaction import without_locals
from prem_core._protocol import flow
from prem_core._protocol.protection import Protection
from prem_core._protocol.response_body import read_transcription

if TYPE_CHECKING:
    from prem_core._protocol.request_schema import SpeechFormat, TranscriptionOptions, TranslationOptions
    from prem_core._protocol.response_types import Transcription


Task = Literal["transcribe", "translate"]


class Audio:
    """``client.audio``."""

    def __init__(self, requester: Requester) -> None:
        self.transcriptions: Final = Transcriptions(requester)
        self.translations: Final = Translations(requester)


class AsyncAudio:
    """``client.audio``."""

    def __init__(self, requester: AsyncRequester) -> None:
        self.transcriptions: Final = AsyncTranscriptions(requester)
        self.translations: Final = AsyncTranslations(requester)


class _AudioResource:
    """What transcriptions and translations share."""

    def __init__(self, requester: Requester) -> None:
        self._requester = requester

    def _create(
        self,
        task: Task,
        file: AudioFile,
        params: Mapping[str, Any],
        extra_body: Mapping[str, Any] | None,
        timeout: float | httpx.Timeout | None,
    ) -> Transcription | str:
        plaintext = _plaintext(task, params, extra_body)
        request = functools.partial(flow.transcribe, task, params["model"], plaintext, read_recording(file))
        return _transcription(self._requester.run(request, timeout), params["response_format"])


class _AsyncAudioResource:
    """See `_AudioResource`."""

    def __init__(self, requester: AsyncRequester) -> None:
        self._requester = requester

    async def _create(
        self,
        task: Task,
        file: AudioFile,
        params: Mapping[str, Any],
        extra_body: Mapping[str, Any] | None,
        timeout: float | httpx.Timeout | None,
    ) -> Transcription | str:
        plaintext = _plaintext(task, params, extra_body)
        # In a thread: a disk can be slow.
        recording = await asyncio.to_thread(read_recording, file)
        request = functools.partial(flow.transcribe, task, params["model"], plaintext, recording)
        return _transcription(await self._requester.run(request, timeout), params["response_format"])


def _plaintext(task: Task, params: Mapping[str, Any], extra_body: Mapping[str, Any] | None) -> bytes:
    from prem_core._protocol.request_schema import audio_plaintext

    return audio_plaintext(task, params, extra_body)


def _transcription(result: tuple[bytes, Protection], response_format: str | None) -> Transcription | str:
    opened, protection = result
    transcription = read_transcription(opened, response_format)
    return transcription if isinstance(transcription, str) else transcription.with_protection(protection)


class Transcriptions(_AudioResource):
    """``client.audio.transcriptions``."""

    @overload
    def create(
        self,
        *,
        file: AudioFile,
        model: str = DEFAULT_MODEL,
        response_format: Literal["json", "verbose_json"] | None = None,
        extra_body: Mapping[str, Any] | None = None,
        timeout: float | httpx.Timeout | None = None,
        **params: Unpack[TranscriptionOptions],
    ) -> Transcription: ...

    @overload
    def create(
        self,
        *,
        file: AudioFile,
        model: str = DEFAULT_MODEL,
        response_format: Literal["text"],
        extra_body: Mapping[str, Any] | None = None,
        timeout: float | httpx.Timeout | None = None,
        **params: Unpack[TranscriptionOptions],
    ) -> str: ...

    @without_locals
    def create(
        self,
        *,
        file: AudioFile,
        model: str = DEFAULT_MODEL,
        response_format: SpeechFormat | None = None,
        extra_body: Mapping[str, Any] | None = None,
        timeout: float | httpx.Timeout | None = None,
        **params: Unpack[TranscriptionOptions],
    ) -> Transcription | str:
        """Transcribe a recording in its own language.

        Args:
            file: A path, bytes, a file open in binary mode, or a tuple of a name and one of these. 25 MB at most.
            model: The model's name.
            response_format: "json" (the text), "text" (the same, as a string) or "verbose_json" (with language,
                duration
                and times).
            extra_body: Further parameters, sent without a check.
            timeout: Seconds for this call. The response starts only after the whole recording was transcribed.
            **params: `language` (an ISO-639-1 code; the model detects it if it is left out), `prompt` (text that
                sets the
                style, or that the recording continues), `temperature` (0 to 1), `timestamp_granularities` (["segment"],
                ["word"] or both; only with "verbose_json").

        Returns:
            A `Transcription`; a string with ``response_format="text"``.

        Raises:
            InvalidParameterError: A parameter or the file cannot be sent; nothing was sent.
            APIError: The service's error, or the network's.
            DecryptionError: The response does not open.
        """
        given = {**params, "model": model, "response_format": response_format}
        return self._create("transcribe", file, given, extra_body, timeout)


class Translations(_AudioResource):
    """``client.audio.translations``."""

    @overload
    def create(
        self,
        *,
        file: AudioFile,
        model: str = DEFAULT_MODEL,
        response_format: Literal["json", "verbose_json"] | None = None,
        extra_body: Mapping[str, Any] | None = None,
        timeout: float | httpx.Timeout | None = None,
        **params: Unpack[TranslationOptions],
    ) -> Transcription: ...

    @overload
    def create(
        self,
        *,
        file: AudioFile,
        model: str = DEFAULT_MODEL,
        response_format: Literal["text"],
        extra_body: Mapping[str, Any] | None = None,
        timeout: float | httpx.Timeout | None = None,
        **params: Unpack[TranslationOptions],
    ) -> str: ...

    @without_locals
    def create(
        self,
        *,
        file: AudioFile,
        model: str = DEFAULT_MODEL,
        response_format: SpeechFormat | None = None,
        extra_body: Mapping[str, Any] | None = None,
        timeout: float | httpx.Timeout | None = None,
        **params: Unpack[TranslationOptions],
    ) -> Transcription | str:
        """Transcribe a recording of any language in English.

        The arguments are those of `Transcriptions.create`, without `language` and `timestamp_granularities`, which the
        published schema does not have here.
        """
        given = {**params, "model": model, "response_format": response_format}
        return self._create("translate", file, given, extra_body, timeout)


class AsyncTranscriptions(_AsyncAudioResource):
    """``client.audio.transcriptions``."""

    @overload
    async def create(
        self,
        *,
        file: AudioFile,
        model: str = DEFAULT_MODEL,
        response_format: Literal["json", "verbose_json"] | None = None,
        extra_body: Mapping[str, Any] | None = None,
        timeout: float | httpx.Timeout | None = None,
        **params: Unpack[TranscriptionOptions],
    ) -> Transcription: ...

    @overload
    async def create(
        self,
        *,
        file: AudioFile,
        model: str = DEFAULT_MODEL,
        response_format: Literal["text"],
        extra_body: Mapping[str, Any] | None = None,
        timeout: float | httpx.Timeout | None = None,
        **params: Unpack[TranscriptionOptions],
    ) -> str: ...

    @without_locals
    async def create(
        self,
        *,
        file: AudioFile,
        model: str = DEFAULT_MODEL,
        response_format: SpeechFormat | None = None,
        extra_body: Mapping[str, Any] | None = None,
        timeout: float | httpx.Timeout | None = None,
        **params: Unpack[TranscriptionOptions],
    ) -> Transcription | str:
        """See `Transcriptions.create`."""
        given = {**params, "model": model, "response_format": response_format}
        return await self._create("transcribe", file, given, extra_body, timeout)


class AsyncTranslations(_AsyncAudioResource):
    """``client.audio.translations``."""

    @overload
    async def create(
        self,
        *,
        file: AudioFile,
        model: str = DEFAULT_MODEL,
        response_format: Literal["json", "verbose_json"] | None = None,
        extra_body: Mapping[str, Any] | None = None,
        timeout: float | httpx.Timeout | None = None,
        **params: Unpack[TranslationOptions],
    ) -> Transcription: ...

    @overload
    async def create(
        self,
        *,
        file: AudioFile,
        model: str = DEFAULT_MODEL,
        response_format: Literal["text"],
        extra_body: Mapping[str, Any] | None = None,
        timeout: float | httpx.Timeout | None = None,
        **params: Unpack[TranslationOptions],
    ) -> str: ...

    @without_locals
    async def create(
        self,
        *,
        file: AudioFile,
        model: str = DEFAULT_MODEL,
        response_format: SpeechFormat | None = None,
        extra_body: Mapping[str, Any] | None = None,
        timeout: float | httpx.Timeout | None = None,
        **params: Unpack[TranslationOptions],
    ) -> Transcription | str:
        """See `Translations.create`."""
        given = {**params, "model": model, "response_format": response_format}
        return await self._create("translate", file, given, extra_body, timeout)
