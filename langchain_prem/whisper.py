"""`PremWhisperParser` and `PremWhisperLoader`: recordings as LangChain documents, heard in Prem's enclave."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import aclosing
from os import PathLike
from pathlib import PurePath
from typing import Any, ClassVar

import httpx
from langchain_core.document_loaders import BaseBlobParser, BaseLoader, BlobLoader
from langchain_core.documents import Document
from langchain_core.documents.base import Blob
from pydantic import Field, PrivateAttr, field_validator
from typing_extensions import override

from langchain_prem._errors import core_errors, translate
from prem_core import InvalidParameterError
from prem_core._adapters.audio_settings import LoaderSettings, TranscriptionSettings
from prem_core._audio.batch import TranscriptionFailedWarning, Watch, ahear, ahear_all, hear, hear_all
from prem_core._audio.sources import Source, source_of, sources_at, suffix_of_type
from prem_core._audio.transcripts import Passage
from prem_core._crypto.redaction import without_traceback

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
    """Makes documents of recordings given as blobs, whatever loaded them.

    The recording is sealed in this process to a hardware enclave's key, and what was said is opened in it. One
    that is longer than 25 MB is cut at its pauses and sent in parts; the documents' times go on across them.

    Setup:
        Install ``prem-encrypted[langchain]`` and set ``PREM_API_KEY``. Cutting long recordings other than PCM WAV
        needs ``prem-encrypted[audio]``.

    Key init args:
        model: str
            Name of the model. Default ``openai/whisper-large-v3``.
        task: "transcribe" | "translate"
            "translate" gives English.
        language: str | None
            What is spoken, an ISO-639-1 code. None lets the model find out.
        prompt: str | None
            Names and terms to expect.
        temperature: float | None
            0 to 1.
        mode: "full" | "segments"
            A document of each recording, or of each segment.
        group_seconds: float | None
            In mode "segments", joins segments up to this length.
        timeout: float
            Seconds. Default 300: an answer begins when the whole recording was heard.
        api_key, gateway_url, enclave_url, enclave_public_key, encryption_keys, max_retries, total_timeout,
        max_concurrency, requests_per_second, limits, allow_insecure, http_client, ...
            As for `ChatPremEncrypted`.

    Parse:
        .. code-block:: python

            from langchain_core.documents.base import Blob
            from langchain_prem import PremWhisperParser

            parser = PremWhisperParser(mode="segments", group_seconds=60)
            for document in parser.lazy_parse(Blob.from_path("call.mp3")):
                print(document.metadata["start"], document.page_content)

        With a blob loader of langchain-community: ``GenericLoader(blob_loader, parser)``.

    Metadata:
        The blob's own, and source, chunk, start, end, duration (seconds), language, model and task; what the service
        does not say is left out. The document's id is the same for every run.

    A recording always gives a document, if an empty one. Errors are `prem_core`'s and langchain-core's, and name the
    source.

    Raises:
        ValueError: A setting cannot work; the message names it.
    """

    @override
    def lazy_parse(self, blob: Blob) -> Iterator[Document]:
        """The blob's documents. It is heard when the first one is asked for."""
        with core_errors():
            source = _blob_source(blob)
            passages = hear(self._sync(), source, self._hearing())
        yield from _documents(source, passages)

    async def alazy_parse(self, blob: Blob) -> AsyncIterator[Document]:
        """`lazy_parse`, without a thread for the network."""
        with core_errors():
            source = _blob_source(blob)
            passages = await ahear(self._async(), source, self._hearing())
        for document in _documents(source, passages):
            yield document


class PremWhisperLoader(_Whisper, LoaderSettings, BaseLoader):
    """Loads recordings from paths, directories or blobs as documents.

    Takes every setting of `PremWhisperParser`, and these:

    Args:
        path: A file, a directory, or many of them.
        glob: Which files of a directory. Default ``**/*``.
        suffixes: How the names of a directory's files must end. Default: the formats that Whisper takes, or any
            where there is a `glob`. A directory without such a file is an error.
        blobs: Blobs, or a blob loader, instead of `path`.
        max_concurrency: Recordings heard at once by `alazy_load` and `aload`. Default 5; each may take more than
            twice its size in memory on its way. Also requests on their way, where no `limits` say otherwise.
        show_progress: Whether to show a progress bar, with tqdm.
        on_error: "raise" the first error. Or "collect": the other recordings are loaded, `errors` holds a source and
            an error for each that was not, and a warning says how many there were. A wrong key or setting is
            raised in any case.

    Load:
        .. code-block:: python

            from langchain_prem import PremWhisperLoader

            loader = PremWhisperLoader("calls/", glob="2026-*.mp3", mode="segments", group_seconds=60)
            for document in loader.lazy_load():
                print(document.metadata["source"], document.metadata["start"], document.page_content)

    Async:
        .. code-block:: python

            async for document in loader.alazy_load():
                ...

        Several recordings are heard at once; documents come in the order of the recordings all the same.

    Attributes:
        errors: With ``on_error="collect"``: a source and an error for each recording of the latest load that could not
            be heard.

    Raises:
        ValueError: A setting cannot work; the message names it.
    """

    path: Path_ | list[Path_] | None = None
    """A file, a directory, or many of them."""
    glob: str | None = Field(default=None, min_length=1)
    """Which files of a directory."""
    suffixes: tuple[str, ...] | None = Field(default=None, min_length=1)
    """How the names of a directory's files must end."""
    blobs: Any = Field(default=None, exclude=True, repr=False)
    """Blobs, or a blob loader, instead of `path`."""

    _shared: ClassVar[frozenset[str]] = frozenset({"blobs"})

    _errors: list[tuple[str, Exception]] = PrivateAttr(default_factory=list)

    @without_traceback
    def __init__(self, path: Path_ | Iterable[Path_] | None = None, **settings: Any) -> None:
        settings["path"] = path
        super().__init__(**settings)

    @field_validator("path", mode="before")
    @classmethod
    def _many_as_list(cls, value: Any) -> Any:
        return list(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes) else value

    @field_validator("suffixes", mode="before")
    @classmethod
    def _one_as_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @override
    def _check(self) -> None:
        super()._check()
        if (self.path is None) == (self.blobs is None):
            raise InvalidParameterError("path: give a path or blobs, and not both", param="path")
        if self.path is None and (self.glob is not None or self.suffixes is not None):
            raise InvalidParameterError("glob, suffixes: choose among a directory's files", param="glob")
        if isinstance(self.path, list) and not self.path:
            raise InvalidParameterError("path: the list is empty", param="path")

    @property
    def errors(self) -> list[tuple[str, Exception]]:
        """The recordings of the latest load that could not be heard: each source, and its error."""
        return self._errors

    @override
    def lazy_load(self) -> Iterator[Document]:
        """The documents, recording by recording; one is heard when its first document is asked for."""
        client = self._sync()
        sources, watch = self._sources_and_watch()
        for source, passages in hear_all(client, sources, self._hearing(), watch):
            yield from _documents(source, passages)

    @override
    async def alazy_load(self) -> AsyncIterator[Document]:
        """The documents, in the same order, with up to `max_concurrency` recordings heard at once."""
        client = self._async()
        sources, watch = self._sources_and_watch()
        heard = ahear_all(client, sources, self._hearing(), watch, self.max_concurrency)
        async with aclosing(heard) as each:
            async for source, passages in each:
                for document in _documents(source, passages):
                    yield document

    def _sources_and_watch(self) -> tuple[Iterable[Source], Watch]:
        sources: Iterable[Source]
        total = None
        if self.path is not None:
            paths = self.path if isinstance(self.path, list) else [self.path]
            with core_errors():
                sources = sources_at(paths, self.glob, self.suffixes)
            total = len(sources)
        elif isinstance(self.blobs, BlobLoader):
            sources = map(_blob_source, self.blobs.yield_blobs())
        else:
            total = len(self.blobs) if isinstance(self.blobs, list | tuple) else None
            sources = map(_blob_source, self.blobs)
        # A list of its own for every load: two may be running.
        self._errors = []
        return sources, Watch(
            self.on_error, self._errors, progress=self.show_progress, total=total, translate=translate
        )


def _blob_source(blob: Blob) -> Source:
    if blob.data is None and blob.path is not None:
        return source_of(blob.path, source=blob.source, name=PurePath(blob.path).name, about=blob.metadata)
    name = PurePath(blob.path or blob.source or "").name
    if not PurePath(name).suffix:
        # Nothing but its type says what a nameless blob is, where its content does not.
        name = (name or "audio") + suffix_of_type(blob.mimetype)
    return source_of(blob.as_bytes(), source=blob.source, name=name, about=blob.metadata)


def _documents(source: Source, passages: Iterable[Passage]) -> Iterator[Document]:
    about: Mapping[str, Any] = source.about
    for passage in passages:
        yield Document(passage.text, id=passage.id, metadata={**about, **passage.metadata})
