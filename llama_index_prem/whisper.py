"""`PremWhisperReader`: recordings as LlamaIndex documents, transcribed in Prem's enclave."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from typing import Any, ClassVar, TypeAlias

import httpx
from llama_index.core.bridge.pydantic import Field
from llama_index.core.readers.base import BasePydanticReader
from llama_index.core.schema import Document
from typing_extensions import override

from prem_core import PremError
from prem_core._adapters.audio_settings import (
    EXCLUDED_METADATA_KEYS,
    WHISPER_SUFFIXES,
    AudioFile,
    AudioSource,
    LoaderSettings,
    TimedText,
    TranscriptionFailedWarning,
    source_of,
)

__all__ = ["WHISPER_SUFFIXES", "PremWhisperReader", "TranscriptionFailedWarning", "whisper_file_extractor"]

#: A recording, or a list of them.
Recordings: TypeAlias = "AudioFile | list[AudioFile]"


class PremWhisperReader(LoaderSettings, BasePydanticReader):
    """Transcribes recordings into documents.

    A recording is encrypted in this process to the enclave's key, and its transcript is decrypted here. A recording
    of more than 25 MB is split at pauses and sent in chunks; the documents' times continue across chunks.

    Install ``prem-encrypted[llama-index]`` and set ``PREM_API_KEY``. Splitting long recordings other than PCM WAV
    needs ``prem-encrypted[audio]``.

    Every setting is a field. `model`, `task`, `language`, `prompt`, `temperature`, `mode`, `max_segment_seconds` and
    `max_chunk_bytes` are those of a transcription, `on_error`, `show_progress` and `max_concurrent_recordings` those of
    a list of recordings, and `api_key`, `gateway_url`, `timeout`, `limits` and others those of the client.

    Raises:
        ValueError: A setting is not valid; the message names it.

    Examples:
        ```python
        from llama_index_prem import PremWhisperReader

        reader = PremWhisperReader(mode="segments", max_segment_seconds=60)
        documents = reader.load_data("call.mp3")
        print(documents[0].metadata["start"], documents[0].text)
        ```

        Many recordings of a directory:

        ```python
        from llama_index.core import SimpleDirectoryReader
        from llama_index_prem import whisper_file_extractor

        reader = SimpleDirectoryReader("calls/", file_extractor=whisper_file_extractor(), raise_on_error=True)
        documents = reader.load_data(num_workers=4)
        ```

        Without ``raise_on_error``, `SimpleDirectoryReader` prints an error and continues. Its workers are processes:
        they read the key from ``PREM_API_KEY``, and the `errors` that their readers collect are lost with them.

    Metadata: the given `extra_info`, and source, segment (counted from 0), start, end, duration (seconds), language,
    model and task. Values that the service does not return are left out. Of these, embedding models and LLMs read only
    source and language. A document's id is the same in every run.

    A silent recording gives an empty document. Errors are `prem_core`'s, and name the source.

    Pickle and copy: pickles do not contain the API key; it is read from the environment again. Connections and `errors`
    are not kept.
    """

    is_remote: bool = True
    """Recordings are sent to a remote service."""
    http_client: httpx.Client | None = Field(default=None, exclude=True, repr=False)
    """An httpx client of your own for synchronous calls. Not serialised, not closed."""
    async_http_client: httpx.AsyncClient | None = Field(default=None, exclude=True, repr=False)
    """An httpx client of your own for asynchronous calls. Not serialised, not closed."""

    # Restated because pydantic would otherwise take the framework base class's looser model_config.
    model_config = LoaderSettings.model_config

    _http_fields: ClassVar[tuple[str, str]] = ("http_client", "async_http_client")

    @classmethod
    @override
    def class_name(cls) -> str:
        return "PremWhisperReader"

    @property
    def errors(self) -> list[tuple[str, PremError]]:
        """With ``on_error="collect"``: each recording that could not be transcribed, and its error.

        The list has the errors of all calls, because `SimpleDirectoryReader` makes one call for every file. Empty it
        with ``errors.clear()``.
        """
        return self._errors

    @override
    def lazy_load_data(
        self, file: Recordings, extra_info: Mapping[str, Any] | None = None, fs: Any = None
    ) -> Iterator[Document]:
        """The documents of a recording or a list; each is transcribed when its first document is requested.

        Args:
            file: A path, bytes, a file open in binary mode, a tuple of a name and one of these, or a list.
            extra_info: More metadata for every document.
            fs: The fsspec file system of the paths; None for the local one.

        Raises:
            InvalidParameterError: A recording cannot be read, or is too long and cannot be split.
            APIError: An error of the service or the network.
            DecryptionError: A response cannot be decrypted.
        """
        sources = _sources(file, extra_info, fs)
        for source, texts in self._transcribe_many(sources, len(sources)):
            yield from _documents(source, texts)

    @override
    def load_data(
        self, file: Recordings, extra_info: Mapping[str, Any] | None = None, fs: Any = None
    ) -> list[Document]:
        """`lazy_load_data`, as a list."""
        return list(self.lazy_load_data(file, extra_info, fs))

    # The base class has a coroutine that returns an iterable, which needs all documents first. An asynchronous iterator
    # is what other lazy asynchronous readers return.
    @override
    async def alazy_load_data(  # type: ignore[override]
        self, file: Recordings, extra_info: Mapping[str, Any] | None = None, fs: Any = None
    ) -> AsyncGenerator[Document, None]:
        """The documents, in the same order; up to `max_concurrent_recordings` are transcribed at once."""
        sources = _sources(file, extra_info, fs)
        async with aclosing(self._atranscribe_many(sources, len(sources))) as found:
            async for source, texts in found:
                for document in _documents(source, texts):
                    yield document

    @override
    async def aload_data(
        self, file: Recordings, extra_info: Mapping[str, Any] | None = None, fs: Any = None
    ) -> list[Document]:
        """`alazy_load_data`, as a list."""
        return [document async for document in self.alazy_load_data(file, extra_info, fs)]


def whisper_file_extractor(**settings: Any) -> dict[str, PremWhisperReader]:
    """One `PremWhisperReader` for every audio suffix: `SimpleDirectoryReader`'s `file_extractor`.

    Args:
        **settings: The reader's settings.
    """
    reader = PremWhisperReader(**settings)
    return dict.fromkeys(WHISPER_SUFFIXES, reader)


def _sources(file: Recordings, extra_info: Mapping[str, Any] | None, fs: Any) -> list[AudioSource]:
    files = file if isinstance(file, list) else [file]
    return [source_of(each, fs=fs, metadata=extra_info) for each in files]


def _documents(source: AudioSource, texts: list[TimedText]) -> Iterator[Document]:
    for text in texts:
        yield Document(
            id_=text.id,
            text=text.text,
            metadata={**source.metadata, **text.metadata},
            excluded_embed_metadata_keys=list(EXCLUDED_METADATA_KEYS),
            excluded_llm_metadata_keys=list(EXCLUDED_METADATA_KEYS),
        )
