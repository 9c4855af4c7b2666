"""``client.audio``: transcriptions and translations.

The two sides differ in `await` alone: the exchange decides, a driver performs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, overload

import httpx

from prem_core._audio.upload import DEFAULT_MODEL, AudioFile, read_recording
from prem_core._protocol import flow
from prem_core._protocol.response_body import read_transcription

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from prem_core._client.client import AsyncPremClient, PremClient
    from prem_core._protocol.request_schema import SpeechFormat, TranscriptionOptions, TranslationOptions
    from prem_core._protocol.response_types import Transcription


Task = Literal["transcribe", "translate"]


class Audio:
    """``client.audio``."""

    def __init__(self, client: PremClient) -> None:
        self.transcriptions = Transcriptions(client)
        self.translations = Translations(client)


class AsyncAudio:
    """``client.audio``."""

    def __init__(self, client: AsyncPremClient) -> None:
        self.transcriptions = AsyncTranscriptions(client)
        self.translations = AsyncTranslations(client)


class _Hearing:
    """What transcriptions and translations share."""

    def __init__(self, client: PremClient) -> None:
        self._client = client

    def _hear(
        self,
        task: Task,
        file: AudioFile,
        params: Mapping[str, Any],
        extra_body: Mapping[str, Any] | None,
        timeout: float | httpx.Timeout | None,
    ) -> Transcription | str:
        plaintext = _plaintext(task, params, extra_body)
        settings = self._client._call_settings(timeout)
        recording = read_recording(file)
        driver = self._client._driver(timeout, settings.deadline)
        opened = driver.run(flow.hear(task, plaintext, recording, settings))
        driver.close()
        return read_transcription(opened, params["response_format"])


class _AsyncHearing:
    """`_Hearing`, awaited."""

    def __init__(self, client: AsyncPremClient) -> None:
        self._client = client

    async def _hear(
        self,
        task: Task,
        file: AudioFile,
        params: Mapping[str, Any],
        extra_body: Mapping[str, Any] | None,
        timeout: float | httpx.Timeout | None,
    ) -> Transcription | str:
        plaintext = _plaintext(task, params, extra_body)
        settings = self._client._call_settings(timeout)
        # In a thread: a disk can be slow.
        recording = await asyncio.to_thread(read_recording, file)
        driver = await self._client._driver(timeout, settings.deadline)
        opened = await driver.run(flow.hear(task, plaintext, recording, settings))
        await driver.close()
        return read_transcription(opened, params["response_format"])


def _plaintext(task: Task, params: Mapping[str, Any], extra_body: Mapping[str, Any] | None) -> bytes:
    # Here, because it needs pydantic, which doubles what importing the package costs.
    from prem_core._protocol.request_schema import audio_plaintext

    return audio_plaintext(task, params, extra_body)


class Transcriptions(_Hearing):
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
        """Write down what a recording says.

        Args:
            file: A path, bytes, a file open in binary mode, or a tuple of a name and one of these. 25 MB at most.
            model: The model's name.
            response_format: "json" (the text), "text" (the same, as a string) or "verbose_json" (with language,
                duration and times).
            extra_body: Further names, passed through unchecked.
            timeout: Seconds for this call. The answer begins only when the recording has been heard: a long one
                wants more than the client's 30.
            **params: `language` (what is spoken, as an ISO-639-1 code; left
                out, the model finds out), `prompt` (text that leads the style, or that the recording continues),
                `temperature` (0 to 1), `timestamp_granularities` (["segment"], ["word"] or both, with
                "verbose_json" only).

        Returns:
            A `Transcription`; a string with ``response_format="text"``.

        Raises:
            InvalidParameterError: A parameter or the file cannot be sent; nothing was.
            APIError: The service's error, or the network's.
            DecryptionError: The answer does not open.
        """
        given = {**params, "model": model, "response_format": response_format}
        return self._hear("transcribe", file, given, extra_body, timeout)


class Translations(_Hearing):
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
        """Write down, in English, what a recording says in any language.

        The arguments are `Transcriptions.create`'s, without `language` and `timestamp_granularities`, which
        the published schema does not have here.
        """
        given = {**params, "model": model, "response_format": response_format}
        return self._hear("translate", file, given, extra_body, timeout)


class AsyncTranscriptions(_AsyncHearing):
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
        """`Transcriptions.create`, awaited."""
        given = {**params, "model": model, "response_format": response_format}
        return await self._hear("transcribe", file, given, extra_body, timeout)


class AsyncTranslations(_AsyncHearing):
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
        """`Translations.create`, awaited."""
        given = {**params, "model": model, "response_format": response_format}
        return await self._hear("translate", file, given, extra_body, timeout)
