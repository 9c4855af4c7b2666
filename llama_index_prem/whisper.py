"""`PremWhisperReader`: recordings as LlamaIndex documents, heard in Prem's enclave."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from typing import Any, ClassVar, TypeAlias

import httpx
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.readers.base import BasePydanticReader
from llama_index.core.schema import Document
from typing_extensions import override

from prem_core._adapters.audio_settings import LoaderSettings
from prem_core._audio.batch import TranscriptionFailedWarning, Watch, ahear_all, hear_all
from prem_core._audio.sources import WHISPER_SUFFIXES, Source, source_of
from prem_core._audio.transcripts import NUMBERS, Passage
from prem_core._audio.upload import AudioFile

__all__ = ["WHISPER_SUFFIXES", "PremWhisperReader", "TranscriptionFailedWarning", "whisper_file_extractor"]

#: A recording, or a list of them.
Recordings: TypeAlias = "AudioFile | list[AudioFile]"

#: Metadata that says where and how, not what: kept out of what is embedded, and out of what an LLM reads.
UNREAD_KEYS = (*NUMBERS, "model", "task")


class PremWhisperReader(LoaderSettings, BasePydanticReader):
    """Makes documents of recordings.

    The recording is sealed in this process to a hardware enclave's key, and what was said is opened in it. One
    that is longer than 25 MB is cut at its pauses and sent in parts; the documents' times go on across them.

    Install ``prem-encrypted[llama-index]`` and set ``PREM_API_KEY``. Cutting long recordings other than PCM WAV
    needs ``prem-encrypted[audio]``.

    Args:
        model: Name of the model.
        task: "transcribe", or "translate" into English.
        language: What is spoken, an ISO-639-1 code. None lets the model find out.
        prompt: Names and terms to expect.
        temperature: 0 to 1.
        mode: "full" for a document of each recording, "segments" for one of each segment.
        group_seconds: In mode "segments", joins segments up to this length, never splitting one.
        on_error: "raise" the first error. Or "collect": the other recordings of a list are read, `errors` holds a
            source and an error for each that was not, and a warning says how many there were. A wrong key or
            setting is raised in any case.
        show_progress: Whether to show a progress bar, with tqdm, while a list is read.
        max_concurrency: Recordings heard at once by `aload_data` and `alazy_load_data`; each may take more than twice
            its size in memory on its way. Also requests on their way, where no `limits` say otherwise.
        requests_per_second: Requests that begin, in the long run.
        limits: A `prem_core.Limits` to share with other readers, models and clients of the organisation.
        max_part_bytes: A recording of more bytes is sent in parts. At most, and by default, 25 MB.
        timeout: Seconds. Default 300: an answer begins when the whole recording was heard.
        api_key: Begins with ``sk_live`` or ``sk_test``; else read from ``PREM_API_KEY``.
        gateway_url: The gateway; else ``PREM_GATEWAY_URL``, else Prem's.
        enclave_url: The enclave; else ``PREM_ENCLAVE_URL``, else Prem's.
        enclave_public_key: The enclave's key, pinned (hex, base64 or bytes), instead of a fetched one.
        encryption_keys: One KEM result for every request, instead of a fresh one each.
        max_retries: Tries after the first.
        total_timeout: Seconds for a whole request: its turn's wait and every try included.
        stream_chunk_timeout: Seconds between the bytes of an answer that has begun; else `timeout`.
        allow_insecure: Allow plain http to another machine.
        http_client: An ``httpx.Client`` of your own. Not closed here.
        async_http_client: An ``httpx.AsyncClient`` of your own.

    Raises:
        ValueError: A setting cannot work; the message names it.

    Examples:
        ```python
        from llama_index_prem import PremWhisperReader

        reader = PremWhisperReader(mode="segments", group_seconds=60)
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

        Without ``raise_on_error``, `SimpleDirectoryReader` prints an error and goes on. Its workers are processes: they
        read the key from ``PREM_API_KEY``, and what their readers collect in `errors` stays with them.

    Metadata: what is given as `extra_info`, and source, chunk, start, end, duration (seconds), language, model and
    task; what the service does not say is left out. Of these, only source and language are read by embedding models
    and LLMs. A document's id is the same for every run.

    A recording always gives a document, if an empty one. Errors are `prem_core`'s, and name the source.

    Pickle and copy: the API key is not written into pickles; it is read from the environment again. Connections and
    `errors` are not carried over.
    """

    is_remote: bool = True
    """Recordings go to a remote service."""
    http_client: httpx.Client | None = Field(default=None, exclude=True, repr=False)
    """An httpx client of your own for synchronous calls. Not serialised, not closed."""
    async_http_client: httpx.AsyncClient | None = Field(default=None, exclude=True, repr=False)
    """An httpx client of your own for asynchronous calls. Not serialised, not closed."""

    # Said again: the framework's base class has a looser one, and stands last.
    model_config = LoaderSettings.model_config

    _http_fields: ClassVar[tuple[str, str]] = ("http_client", "async_http_client")

    _errors: list[tuple[str, Exception]] = PrivateAttr(default_factory=list)

    @classmethod
    @override
    def class_name(cls) -> str:
        return "PremWhisperReader"

    @property
    def errors(self) -> list[tuple[str, Exception]]:
        """With ``on_error="collect"``: each recording that could not be heard, and its error.

        Those of all calls, since `SimpleDirectoryReader` makes one for every file; ``errors.clear()`` forgets them.
        """
        return self._errors

    @override
    def lazy_load_data(
        self, file: Recordings, extra_info: Mapping[str, Any] | None = None, fs: Any = None
    ) -> Iterator[Document]:
        """The documents of a recording or a list of them; each is heard when its first document is asked for.

        Args:
            file: A path, bytes, a file open in binary mode, a tuple of a name and one of these, or a list.
            extra_info: Further metadata for every document.
            fs: The fsspec file system that paths belong to; this machine's where None.

        Raises:
            InvalidParameterError: A recording cannot be read, or is too long and cannot be cut.
            APIError: The service's error, or the network's.
            DecryptionError: An answer does not open.
        """
        client = self._sync()
        sources, watch = self._sources_and_watch(file, extra_info, fs)
        for source, passages in hear_all(client, sources, self._hearing(), watch):
            yield from _documents(source, passages)

    @override
    def load_data(
        self, file: Recordings, extra_info: Mapping[str, Any] | None = None, fs: Any = None
    ) -> list[Document]:
        """`lazy_load_data`, as a list."""
        return list(self.lazy_load_data(file, extra_info, fs))

    # The base's is a coroutine for an iterable, which must have everything first; readers that are lazy and
    # asynchronous give an asynchronous iterator.
    @override
    async def alazy_load_data(  # type: ignore[override]
        self, file: Recordings, extra_info: Mapping[str, Any] | None = None, fs: Any = None
    ) -> AsyncGenerator[Document, None]:
        """The documents, in the same order, with up to `max_concurrency` recordings heard at once."""
        client = self._async()
        sources, watch = self._sources_and_watch(file, extra_info, fs)
        heard = ahear_all(client, sources, self._hearing(), watch, self.max_concurrency)
        async with aclosing(heard) as each:
            async for source, passages in each:
                for document in _documents(source, passages):
                    yield document

    @override
    async def aload_data(
        self, file: Recordings, extra_info: Mapping[str, Any] | None = None, fs: Any = None
    ) -> list[Document]:
        """`alazy_load_data`, as a list."""
        return [document async for document in self.alazy_load_data(file, extra_info, fs)]

    def _sources_and_watch(
        self, file: Recordings, extra_info: Mapping[str, Any] | None, fs: Any
    ) -> tuple[list[Source], Watch]:
        files = file if isinstance(file, list) else [file]
        sources = [source_of(each, fs=fs, about=extra_info) for each in files]
        return sources, Watch(self.on_error, self._errors, progress=self.show_progress, total=len(sources))


def whisper_file_extractor(**settings: Any) -> dict[str, PremWhisperReader]:
    """A `PremWhisperReader` for every suffix of a recording: `SimpleDirectoryReader`'s `file_extractor`.

    Args:
        **settings: The reader's; all suffixes share one.
    """
    reader = PremWhisperReader(**settings)
    return dict.fromkeys(WHISPER_SUFFIXES, reader)


def _documents(source: Source, passages: list[Passage]) -> Iterator[Document]:
    for passage in passages:
        yield Document(
            id_=passage.id,
            text=passage.text,
            metadata={**source.about, **passage.metadata},
            excluded_embed_metadata_keys=list(UNREAD_KEYS),
            excluded_llm_metadata_keys=list(UNREAD_KEYS),
        )
