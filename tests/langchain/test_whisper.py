"""Recordings as LangChain documents: the parser, the loader, and defects of OpenAIWhisperParser."""

from __future__ import annotations

import asyncio
import builtins
import copy
import pickle
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from langchain_core.document_loaders import BaseBlobParser, BaseLoader, BlobLoader
from langchain_core.documents import Document
from langchain_core.documents.base import Blob
from langchain_core.exceptions import ModelInvalidRequestError, ModelRateLimitError
from langchain_core.indexing import InMemoryRecordManager, index
from langchain_core.vectorstores import InMemoryVectorStore
from starlette.responses import JSONResponse
from support.beep_audio import SHORT_BEEP_TIMES, transcribe_beeps, write_beeps
from support.paths import CLINIC_NOTE
from support.recordings import TRANSCRIPTION, WAV, Overlap, fill_directory, source_names
from support.scripted_upstream import ReceivedRecording, Upstream

from langchain_prem import PremWhisperLoader, PremWhisperParser, TranscriptionFailedWarning
from prem_core import BadRequestError, InvalidParameterError, RateLimitError
from prem_core.enclave import LocalEnclave

Make = Callable[..., Any]


@pytest.fixture
def parser(upstream_enclave: LocalEnclave, upstream: Upstream) -> Make:
    """Makes parsers for an enclave that returns TRANSCRIPTION."""
    upstream.transcribe_with(TRANSCRIPTION)
    return lambda **settings: PremWhisperParser(
        **{**upstream_enclave.client_options, "max_retries": 0, **settings}
    )


@pytest.fixture
def loader(upstream_enclave: LocalEnclave, upstream: Upstream) -> Make:
    """Makes loaders for an enclave that returns TRANSCRIPTION."""
    upstream.transcribe_with(TRANSCRIPTION)
    return lambda *args, **settings: PremWhisperLoader(
        *args, **{**upstream_enclave.client_options, "max_retries": 0, **settings}
    )


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    """A directory with three recordings."""
    return fill_directory(tmp_path)


# --- with the embedded enclave's recogniser


def test_the_parser_transcribes_the_sample(enclave: LocalEnclave) -> None:
    parser = PremWhisperParser(**enclave.client_options, mode="segments")
    first, second = parser.lazy_parse(Blob.from_path(CLINIC_NOTE))
    assert first.page_content == "the doctor will see the patient again on friday"
    assert second.page_content == "the hospital will be open on saturday and sunday"
    assert first.metadata["end"] <= second.metadata["start"] < second.metadata["end"] <= 7.4
    assert second.metadata["source"] == str(CLINIC_NOTE) and second.metadata["language"] == "english"


async def test_the_loader_transcribes_the_sample(enclave: LocalEnclave) -> None:
    loader = PremWhisperLoader(CLINIC_NOTE, **enclave.client_options)
    (document,) = loader.load()
    assert document.page_content.startswith("the doctor will see the patient")
    assert [each async for each in loader.alazy_load()] == [document]


# --- the parser


def test_metadata_is_the_blobs_and_the_transcripts(parser: Make) -> None:
    (document,) = parser().parse(Blob.from_path(CLINIC_NOTE, metadata={"patient": 7}))
    assert document.page_content == "Anna darf nach Hause. Am Freitag."
    assert document.metadata == {
        "patient": 7,
        "source": str(CLINIC_NOTE),
        "segment": 0,
        "start": 0.0,
        "end": 4.5,
        "duration": 4.5,
        "language": "german",
        "model": "openai/whisper-large-v3",
        "task": "transcribe",
    }


def test_mode_segments_makes_a_document_of_each_segment_or_joins_them(parser: Make) -> None:
    blob = Blob.from_path(CLINIC_NOTE)
    segments = parser(mode="segments").parse(blob)
    assert [(each.page_content, each.metadata["start"]) for each in segments] == [
        ("Anna darf nach Hause.", 0.0),
        ("Am Freitag.", 2.5),
    ]
    (group,) = parser(mode="segments", max_segment_seconds=30).parse(blob)
    assert group.page_content == "Anna darf nach Hause. Am Freitag."
    assert len({each.id for each in (*segments, group)}) == 3


@pytest.mark.parametrize(
    ("blob", "source", "name"),
    [
        (Blob.from_data(WAV, path="ward/7.wav"), "ward/7.wav", "7.wav"),
        (
            Blob.from_data(WAV, metadata={"source": "https://ward.example/7.wav"}),
            "https://ward.example/7.wav",
            "7.wav",
        ),
        (Blob.from_path(CLINIC_NOTE, metadata={"source": "note 7"}), "note 7", "clinic_note.wav"),
        (Blob.from_data(b"\0" * 50, mime_type="audio/mpeg", metadata={"source": "7"}), "7", "7.mp3"),
    ],
)
def test_every_kind_of_blob_keeps_its_source(
    parser: Make, upstream: Upstream, blob: Blob, source: str, name: str
) -> None:
    (document,) = parser().lazy_parse(blob)
    assert document.metadata["source"] == source
    assert upstream.recordings[0].name == name


def test_data_without_a_source_is_identified_by_its_content(parser: Make, upstream: Upstream) -> None:
    first, again, other = (
        parser().parse(Blob.from_data(data, mime_type="audio/wav"))[0] for data in (WAV, WAV, WAV + b"\0\0")
    )
    assert first.metadata["source"] == again.metadata["source"] != other.metadata["source"]
    assert upstream.recordings[0].name == "audio.wav"
    assert first.id == again.id != other.id


async def test_the_parser_works_asynchronously(parser: Make) -> None:
    blob = Blob.from_path(CLINIC_NOTE)
    made = parser(mode="segments")
    assert [each async for each in made.alazy_parse(blob)] == made.parse(blob)


class Folder(BlobLoader):
    """A blob loader like langchain-community's FileSystemBlobLoader."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def yield_blobs(self) -> Iterator[Blob]:
        for path in sorted(self.path.glob("*.wav")):
            yield Blob.from_path(path)


class Generic(BaseLoader):
    """A loader with the same lazy_load as langchain-community's GenericLoader."""

    def __init__(self, blob_loader: BlobLoader, blob_parser: BaseBlobParser) -> None:
        self.blob_loader = blob_loader
        self.blob_parser = blob_parser

    def lazy_load(self) -> Iterator[Document]:
        for blob in self.blob_loader.yield_blobs():
            yield from self.blob_parser.lazy_parse(blob)


def test_the_parser_composes_with_a_generic_loader(parser: Make, upstream: Upstream, calls: Path) -> None:
    documents = Generic(Folder(calls), parser()).lazy_load()
    assert upstream.recordings == []
    assert Path(next(documents).metadata["source"]).name == "a.wav" and len(upstream.recordings) == 1
    assert [Path(each.metadata["source"]).name for each in documents] == ["b.wav", "c.wav"]


def test_a_parser_rejects_the_settings_of_a_loader() -> None:
    for name in ("on_error", "show_progress"):
        with pytest.raises(ValueError, match=name):
            PremWhisperParser(**{name: True})


# --- the loader


def test_a_loader_takes_one_path_many_paths_a_directory_a_glob_or_blobs(loader: Make, calls: Path) -> None:
    assert source_names(loader(calls / "b.wav").load()) == ["b.wav"]
    assert source_names(loader(str(calls / "b.wav")).load()) == ["b.wav"]
    assert source_names(loader([calls / "c.wav", str(calls / "a.wav")]).load()) == ["c.wav", "a.wav"]
    assert source_names(loader(each for each in [calls / "c.wav"]).load()) == ["c.wav"]
    assert source_names(loader(calls).load()) == ["a.wav", "b.wav", "c.wav"]
    assert source_names(loader(calls, glob="[bc]*").load()) == ["b.wav", "c.wav"]
    assert source_names(loader(calls, suffixes=".wav").load()) == ["a.wav", "b.wav", "c.wav"]
    assert source_names(loader(blobs=Folder(calls)).load()) == ["a.wav", "b.wav", "c.wav"]
    assert source_names(loader(blobs=[Blob.from_path(calls / "b.wav")]).load()) == ["b.wav"]


async def test_an_asynchronous_load_gives_the_same_documents(loader: Make, calls: Path) -> None:
    for made in (loader(calls, mode="segments"), loader(blobs=Folder(calls))):
        assert await made.aload() == made.load()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, "path"),
        ({"path": "a.wav", "blobs": []}, "path"),
        ({"path": []}, "path"),
        ({"blobs": [], "glob": "*"}, "glob"),
        ({"path": ".", "glob": ""}, "glob"),
        ({"path": ".", "suffixes": ()}, "suffixes"),
        ({"path": 5}, "path"),
        ({"path": "a.wav", "language": "german"}, "language"),
        ({"path": "a.wav", "on_error": "skip"}, "on_error"),
        ({"path": "a.wav", "progress": True}, "progress"),
    ],
)
def test_an_invalid_setting_is_rejected_by_name(settings: dict[str, Any], named: str) -> None:
    with pytest.raises((ValueError, TypeError), match=named):
        PremWhisperLoader(**settings)


def test_a_recording_is_transcribed_when_its_document_is_requested(
    loader: Make, upstream: Upstream, calls: Path
) -> None:
    documents = loader(calls).lazy_load()
    assert upstream.recordings == []
    next(documents)
    assert len(upstream.recordings) == 1


async def test_several_recordings_are_transcribed_at_once_and_keep_their_order(
    loader: Make, upstream: Upstream, calls: Path
) -> None:
    overlap = Overlap(2)
    upstream.transcribe_with(overlap)
    documents = await loader(calls, max_concurrent_recordings=2).aload()
    assert source_names(documents) == ["a.wav", "b.wav", "c.wav"]
    assert overlap.most == 2


def test_one_loader_serves_many_event_loops(loader: Make, calls: Path) -> None:
    made = loader(calls)
    assert [len(asyncio.run(made.aload())) for _ in range(3)] == [3, 3, 3]


def test_errors_are_langchain_core_errors_too_and_name_the_file(
    loader: Make, upstream: Upstream, calls: Path
) -> None:
    upstream.transcribe = lambda recording: JSONResponse({}, 429)
    with pytest.raises(ModelRateLimitError, match=r"a\.wav: ") as caught:
        loader(calls).load()
    assert isinstance(caught.value, RateLimitError)
    with pytest.raises(ModelInvalidRequestError, match=r"there is no such file: .*none\.wav") as missing:
        loader(calls / "none.wav").load()
    assert isinstance(missing.value, InvalidParameterError)
    with pytest.raises(ModelInvalidRequestError, match="no recording in"):
        loader(calls, glob="*.mp3").load()


async def test_every_load_collects_its_own_errors(loader: Make, upstream: Upstream, calls: Path) -> None:
    upstream.transcribe = lambda recording: (
        JSONResponse({}, 400) if recording.name == "b.wav" else TRANSCRIPTION
    )
    made = loader(calls, on_error="collect")
    for load in (made.load, made.load, lambda: asyncio.run(made.aload())):
        with pytest.warns(TranscriptionFailedWarning, match="1 of 3 recordings could not be transcribed"):
            assert source_names(await asyncio.to_thread(load)) == ["a.wav", "c.wav"]
        ((source, error),) = made.errors
        assert Path(source).name == "b.wav"
        assert isinstance(error, BadRequestError) and isinstance(error, ModelInvalidRequestError)
    upstream.transcribe_with(TRANSCRIPTION)
    made.load()
    assert made.errors == []


def test_the_progress_bar_counts_recordings(
    loader: Make, calls: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loader(calls, show_progress=True).load()
    assert "3/3" in capsys.readouterr().err


# --- copies


def test_a_loader_pickles_without_its_key(
    loader: Make, calls: Path, upstream_enclave: LocalEnclave, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = loader(calls, prompt="Ramipril")
    documents = made.load()
    pickled = pickle.dumps(made)
    assert upstream_enclave.api_key.encode() not in pickled
    again = pickle.loads(pickled)
    with pytest.raises(ValueError, match="PREM_API_KEY"):
        again.load()
    monkeypatch.setenv("PREM_API_KEY", upstream_enclave.api_key)
    assert pickle.loads(pickled).load() == documents
    assert again.prompt == "Ramipril" and again.errors == []


def test_copies_work_and_share_blobs(loader: Make, calls: Path) -> None:
    folder = Folder(calls)
    made = loader(blobs=folder)
    made.load()
    assert copy.deepcopy(made).blobs is folder
    assert source_names(copy.copy(made).load()) == ["a.wav", "b.wav", "c.wav"]


def test_the_callers_http_client_is_used_and_not_pickled(parser: Make) -> None:
    with httpx.Client() as client:
        made = parser(http_client=client)
        made.parse(Blob.from_path(CLINIC_NOTE))
        assert not client.is_closed
        with pytest.raises(TypeError, match="http client"):
            pickle.dumps(made)


def test_nothing_secret_is_shown(upstream_enclave: LocalEnclave) -> None:
    made = PremWhisperLoader(CLINIC_NOTE, **upstream_enclave.client_options, prompt="Ramipril")
    for shown in (repr(made), str(made)):
        assert upstream_enclave.api_key not in shown and "Ramipril" not in shown
    assert upstream_enclave.api_key not in str(made.model_dump())


# --- defects of OpenAIWhisperParser, one by one


def test_unlike_openai_whisper_parser_nothing_is_printed(
    loader: Make, upstream: Upstream, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    upstream.transcribe_with(transcribe_beeps)
    write_beeps(tmp_path / "long.wav", SHORT_BEEP_TIMES, 20)
    (tmp_path / "empty.wav").touch()
    with pytest.warns(TranscriptionFailedWarning):
        loader(tmp_path, max_chunk_bytes=256 * 1024, on_error="collect").load()
    shown = capsys.readouterr()
    assert shown.out == shown.err == ""


def test_unlike_openai_whisper_parser_a_failed_chunk_is_an_error(
    loader: Make, upstream: Upstream, tmp_path: Path
) -> None:
    def fails_in_the_middle(recording: ReceivedRecording) -> Any:
        return JSONResponse({}, 500) if ".part002" in recording.name else transcribe_beeps(recording)

    upstream.transcribe_with(fails_in_the_middle)
    path = write_beeps(tmp_path / "long.wav", SHORT_BEEP_TIMES, 20)
    with pytest.raises(Exception, match=r"long\.wav") as caught:
        loader(path, max_chunk_bytes=256 * 1024).load()
    assert type(caught.value).__name__ == "InternalServerError"
    assert len(upstream.recordings) == 2


def test_unlike_openai_whisper_parser_there_is_no_sleep_between_chunks(
    loader: Make, upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    upstream.transcribe_with(transcribe_beeps)
    path = write_beeps(tmp_path / "long.wav", SHORT_BEEP_TIMES, 20)
    assert len(loader(path, max_chunk_bytes=256 * 1024, mode="segments").load()) == len(SHORT_BEEP_TIMES)
    assert len(upstream.recordings) > 2 and slept == []


def test_unlike_openai_whisper_parser_splitting_wav_needs_only_the_standard_library(
    loader: Make, upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.transcribe_with(TRANSCRIPTION)
    path = write_beeps(tmp_path / "long.wav", SHORT_BEEP_TIMES, 20)
    real = builtins.__import__

    def importing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] in ("pydub", "openai", "soundfile", "numpy", "librosa"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", importing)
    assert loader(CLINIC_NOTE).load() and loader(path, max_chunk_bytes=256 * 1024).load()


def test_unlike_openai_whisper_parser_segments_have_times_in_the_whole_recording(
    loader: Make, upstream: Upstream, tmp_path: Path
) -> None:
    upstream.transcribe_with(transcribe_beeps)
    path = write_beeps(tmp_path / "long.wav", SHORT_BEEP_TIMES, 20)
    documents = loader(path, max_chunk_bytes=256 * 1024, mode="segments").load()
    assert [each.page_content for each in documents] == [f"beep{n}" for n in range(len(SHORT_BEEP_TIMES))]
    assert [each.metadata["start"] for each in documents] == pytest.approx(SHORT_BEEP_TIMES, abs=0.03)


# --- in a vector store


class Letters:
    """Embeddings that count letters."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [[float(text.count(letter)) for letter in "abcdefgh"] for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


def test_documents_are_indexed_once_however_often_they_are_loaded(loader: Make, calls: Path) -> None:
    store: Any = InMemoryVectorStore(Letters())  # type: ignore[arg-type]
    records = InMemoryRecordManager("calls")
    records.create_schema()
    made = loader(calls, mode="segments")
    options: dict[str, Any] = {"cleanup": "incremental", "source_id_key": "source", "key_encoder": "sha256"}
    assert index(made, records, store, **options)["num_added"] == 6
    assert index(made, records, store, **options)["num_skipped"] == 6
    store.add_documents(made.load())
    store.add_documents(made.load())
    assert len({each.id for each in made.load()}) == 6
