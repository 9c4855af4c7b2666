"""`PremWhisperParser` and `PremWhisperLoader`: recordings as LangChain documents, transcribed in Prem's enclave."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import aclosing
from os import PathLike
from pathlib import PurePath
from typing import Any, ClassVar

import httpx
from langchain_core.document_loaders import BaseBlobParser, BaseLoader, BlobLoader
from langchain_core.documents import Document
from langchain_core.documents.base import Blob
from pydantic import Field, field_validator
from typing_extensions import override

from langchain_prem._errors import core_errors, translate
from prem_core import InvalidParameterError, PremError
from prem_core._adapters.audio_settings import (
    AudioSource,
    LoaderSettings,
    TimedText,
    TranscriptionFailedWarning,
    TranscriptionSettings,
    source_of,
    sources_at,
    suffix_of_type,
    without_traceback,
)

__all__ = ["PremWhisperLoader", "PremWhisperParser", "TranscriptionFailedWarning"]

Path_ = str | PathLike[str]


class _Whisper(TranscriptionSettings):
    """What the parser and the loader share."""

    http_client: httpx.Client | None = Field(default=None, exclude=True, repr=False)
    """An httpx client of your own for synchronous calls. Not serialised, not closed."""
    http_async_client: httpx.AsyncClient | None = Field(default=None, exclude=True, repr=False)
    """An httpx client of your own for asynchronous calls. Not serialised, not closed."""

    _http_fields: ClassVar[tuple[str, str]] = ("http_client", "http_async_client")


class PremWhisperParser(_Whisper, BaseBlobParser):
    """Transcribes audio blobs into documents.

    A recording is encrypted in this process to the enclave's key, and its transcript is decrypted here. A recording
    of more than 25 MB is split at pauses and sent in chunks; the documents' times continue across chunks.

    Setup:
        Install ``prem-encrypted[langchain]`` and set ``PREM_API_KEY``. Splitting long recordings other than PCM WAV
        needs ``prem-encrypted[audio]``.

    Key init args — transcription:
        model: str
            Name of the model. Default ``openai/whisper-large-v3``.
        task: "transcribe" | "translate"
            "translate" writes English.
        language: str | None
            The spoken language, an ISO-639-1 code. None lets the model detect it.
        prompt: str | None
            Names and terms to expect.
        temperature: float | None
            0 to 1.
        mode: "document" | "segments"
            A document of each recording, or of each segment.
        max_segment_seconds: float | None
            In mode "segments", joins segments up to this length.

    Key init args — client:
        timeout: float
            Seconds to wait for a transcription. Default 300.
        api_key, gateway_url, limits, max_retries, http_client, ...
            The client settings of `ChatPremEncrypted`.

    Parse:
        .. code-block:: python

            from langchain_core.documents.base import Blob
            from langchain_prem import PremWhisperParser

            parser = PremWhisperParser(mode="segments", max_segment_seconds=60)
            for document in parser.lazy_parse(Blob.from_path("call.mp3")):
                print(document.metadata["start"], document.page_content)

        With a blob loader of langchain-community: ``GenericLoader(blob_loader, parser)``.

    Metadata:
        The blob's own, and source, segment (counted from 0), start, end, duration (seconds), language, model and task.
        Values that the service does not return are left out. A document's id is the same in every run.

    A silent recording gives an empty document. Errors are `prem_core`'s and langchain-core's, and name the source.

    Raises:
        ValueError: A setting is not valid; the message names it.
    """

    @override
    def lazy_parse(self, blob: Blob) -> Iterator[Document]:
        """The blob's documents. The blob is transcribed when the first one is requested."""
        with core_errors():
            source = _blob_source(blob)
            texts = self._transcribe(source)
        yield from _documents(source, texts)

    async def alazy_parse(self, blob: Blob) -> AsyncIterator[Document]:
        """`lazy_parse`, asynchronously."""
        with core_errors():
            source = _blob_source(blob)
            texts = await self._atranscribe(source)
        for document in _documents(source, texts):
            yield document


class PremWhisperLoader(_Whisper, LoaderSettings, BaseLoader):
    """Loads recordings from paths, directories or blobs, and transcribes them into documents.

    It takes every setting of `PremWhisperParser`, and these fields: `path` or `blobs`, `glob` and `suffixes` select the
    recordings; `on_error`, `show_progress` and `max_concurrent_recordings` say what happens with many of them.

    Load:
        .. code-block:: python

            from langchain_prem import PremWhisperLoader

            loader = PremWhisperLoader("calls/", glob="2026-*.mp3", mode="segments", max_segment_seconds=60)
            for document in loader.lazy_load():
                print(document.metadata["source"], document.metadata["start"], document.page_content)

    Async:
        .. code-block:: python

            async for document in loader.alazy_load():
                ...

        Several recordings are transcribed at once; documents keep the order of the recordings.

    Attributes:
        errors: With ``on_error="collect"``: a source and an error for each recording of the latest load that failed.

    Raises:
        ValueError: A setting is not valid; the message names it.
    """

    path: Path_ | list[Path_] | None = None
    """A file, a directory, or a list of them."""
    glob: str | None = Field(default=None, min_length=1)
    """Selects the files of a directory; ``**/*`` if None. A directory without a matching file is an error."""
    suffixes: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Selects files of a directory by the end of their names. If None: the formats that Whisper accepts, or any with a
    `glob`."""
    blobs: Any = Field(default=None, exclude=True, repr=False)
    """Blobs, or a blob loader, instead of `path`."""

    _shared: ClassVar[frozenset[str]] = frozenset({"blobs"})

    @without_traceback
    def __init__(self, path: Path_ | Iterable[Path_] | None = None, **settings: Any) -> None:
        settings["path"] = path
        super().__init__(**settings)

    @field_validator("path", mode="before")
    @classmethod
    def _iterable_to_list(cls, value: Any) -> Any:
        return list(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes) else value

    @field_validator("suffixes", mode="before")
    @classmethod
    def _one_to_tuple(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @override
    def _check(self) -> None:
        super()._check()
        if (self.path is None) == (self.blobs is None):
            raise InvalidParameterError("path: set either path or blobs", param="path")
        if self.path is None and (self.glob is not None or self.suffixes is not None):
            raise InvalidParameterError(
                "glob, suffixes: they select files of a path, not blobs", param="glob"
            )
        if isinstance(self.path, list) and not self.path:
            raise InvalidParameterError("path: the list is empty", param="path")

    @property
    def errors(self) -> list[tuple[str, PremError]]:
        """The recordings of the latest load that could not be transcribed: each source, and its error."""
        return [(source, translate(error)) for source, error in self._errors]

    @override
    def lazy_load(self) -> Iterator[Document]:
        """The documents, recording by recording; each is transcribed when its first document is requested."""
        with core_errors():
            for source, texts in self._transcribe_many(*self._sources()):
                yield from _documents(source, texts)

    @override
    async def alazy_load(self) -> AsyncIterator[Document]:
        """The documents, in the same order; up to `max_concurrent_recordings` are transcribed at once."""
        with core_errors():
            async with aclosing(self._atranscribe_many(*self._sources())) as found:
                async for source, texts in found:
                    for document in _documents(source, texts):
                        yield document

    def _sources(self) -> tuple[Iterable[AudioSource], int | None]:
        """The recordings, and how many they are, if that is known."""
        # A new list for every load: two loads may run at once.
        self._errors = []
        if self.path is not None:
            sources = sources_at(
                self.path if isinstance(self.path, list) else [self.path], self.glob, self.suffixes
            )
            return sources, len(sources)
        blobs = self.blobs.yield_blobs() if isinstance(self.blobs, BlobLoader) else self.blobs
        return map(_blob_source, blobs), len(blobs) if isinstance(blobs, list | tuple) else None


def _blob_source(blob: Blob) -> AudioSource:
    if blob.data is None and blob.path is not None:
        return source_of(blob.path, source=blob.source, name=PurePath(blob.path).name, metadata=blob.metadata)
    name = PurePath(blob.path or blob.source or "").name
    if not PurePath(name).suffix:
        # The media type of a blob without a name may be all that tells its format.
        name = (name or "audio") + suffix_of_type(blob.mimetype)
    return source_of(blob.as_bytes(), source=blob.source, name=name, metadata=blob.metadata)


def _documents(source: AudioSource, texts: Iterable[TimedText]) -> Iterator[Document]:
    for text in texts:
        yield Document(text.text, id=text.id, metadata={**source.metadata, **text.metadata})
