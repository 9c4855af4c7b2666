"""The settings of recording loaders and parsers."""

from __future__ import annotations

from typing import Any

import httpx
from pydantic import Field, ValidationInfo, field_validator
from typing_extensions import override

from prem_core._adapters.settings import ClientSettings
from prem_core._audio.batch import AUDIO_TIMEOUT, LEAST_PART_BYTES, MAX_CONCURRENCY, OnError
from prem_core._audio.transcripts import Hearing, Mode, Task
from prem_core._audio.upload import DEFAULT_MODEL, MAX_FILE_BYTES
from prem_core._config import (
    DEFAULT_MAX_CONCURRENCY,
    DEFAULT_TIMEOUT,
)
from prem_core._errors import InvalidParameterError
from prem_core._protocol.request_schema import audio_plaintext

# --- settings ---------------------------------------------------------------------------------------------


class TranscriptionSettings(ClientSettings):
    """How recordings are heard, and the settings of the client that hears them."""

    model: str = Field(default=DEFAULT_MODEL, min_length=1)
    """Name of the model."""
    task: Task = "transcribe"
    """"transcribe" what is said, or "translate" it into English."""
    language: str | None = None
    """What is spoken, an ISO-639-1 code. None lets the model find out. Transcriptions only."""
    prompt: str | None = Field(default=None, repr=False)
    """Text that leads the model's style: names and terms to expect."""
    temperature: float | None = None
    """0 to 1."""
    mode: Mode = "full"
    """"full" makes one document of a recording, "segments" one of each segment."""
    group_seconds: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """In mode "segments": join segments up to this length, never splitting one."""
    max_part_bytes: int = Field(default=MAX_FILE_BYTES, ge=LEAST_PART_BYTES, le=MAX_FILE_BYTES)
    """A recording of more bytes is sent in parts, cut at pauses."""

    timeout: float = Field(default=AUDIO_TIMEOUT, gt=0, allow_inf_nan=False)
    """Seconds to wait for an answer, which begins when the whole recording was heard; 30 at most to connect."""

    @field_validator("language", "prompt", "temperature")
    @classmethod
    def _as_published(cls, value: Any, info: ValidationInfo) -> Any:
        audio_plaintext("transcribe", {"model": "m", str(info.field_name): value})
        return value

    @override
    def _check(self) -> None:
        super()._check()
        if self.task == "translate" and self.language is not None:
            raise InvalidParameterError(
                "language: a translation finds out by itself; the schema has it for transcriptions only",
                param="language",
            )
        if self.group_seconds is not None and self.mode != "segments":
            raise InvalidParameterError("group_seconds: needs mode='segments'", param="group_seconds")

    def _hearing(self) -> Hearing:
        return Hearing(
            model=self.model,
            task=self.task,
            language=self.language,
            prompt=self.prompt,
            temperature=self.temperature,
            mode=self.mode,
            group_seconds=self.group_seconds,
            max_part_bytes=self.max_part_bytes,
        )

    @override
    def _client_timeout(self) -> httpx.Timeout:
        # It is the hearing that takes long, not finding the gateway.
        return httpx.Timeout(self.timeout, connect=min(self.timeout, DEFAULT_TIMEOUT))


class LoaderSettings(TranscriptionSettings):
    """... and what is done with many of them."""

    on_error: OnError = "raise"
    """"raise" the first error, or "collect" them in `errors` and go on."""
    show_progress: bool = False
    """Whether to show a progress bar (tqdm's)."""
    max_concurrency: int | None = Field(default=MAX_CONCURRENCY, ge=1, strict=True)
    """Recordings heard at once, in asynchronous calls; and requests on their way, where no `limits` say otherwise. None
    for the default, and any number of requests."""

    @override
    def _limited_to(self) -> int | None:
        return DEFAULT_MAX_CONCURRENCY  # here it says how many recordings are held in memory, too
