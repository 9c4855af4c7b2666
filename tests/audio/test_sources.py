"""Audio sources: paths, directories, bytes and open files, and what identifies each."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import fsspec
import pytest
from support.paths import CLINIC_NOTE
from support.recordings import WAV

from prem_core import InvalidParameterError
from prem_core._audio.chunking import chunks_of
from prem_core._audio.sources import source_of, sources_at, suffix_of_type


class Named(io.BytesIO):
    name = "/ward/7.wav"


class Stream:
    """A stream that can be read only once, such as the body of a response."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self) -> bytes:
        data, self._data = self._data, b""
        return data


@pytest.mark.parametrize(
    ("file", "source", "name"),
    [
        (CLINIC_NOTE, str(CLINIC_NOTE), "clinic_note.wav"),
        (str(CLINIC_NOTE), str(CLINIC_NOTE), "clinic_note.wav"),
        (("7.wav", WAV), "7.wav", "7.wav"),
        (("7.wav", CLINIC_NOTE), "7.wav", "clinic_note.wav"),
        (Named(WAV), "/ward/7.wav", "7.wav"),
        (("7", WAV), "7", "7.wav"),
        (("7.opus", WAV), "7.opus", "7.opus.wav"),
    ],
)
def test_a_recording_keeps_its_name_and_gets_a_suffix_that_the_service_recognises(file, source, name):
    made = source_of(file)
    (chunk,) = chunks_of(made)
    assert (made.source, chunk.name, chunk.data) == (source, name, WAV)


@pytest.mark.parametrize("file", [WAV, bytearray(WAV), memoryview(WAV), io.BytesIO(WAV), Stream(WAV)])
def test_a_recording_without_a_name_is_identified_by_its_content(file):
    made = source_of(file)
    assert made.source == made.name == source_of(WAV).source
    assert made.source.startswith("audio-") and made.source.endswith(".wav")
    assert made.source != source_of(WAV + b"\0").source


def test_an_open_file_is_read_any_number_of_times_from_its_position():
    file = Named(b"before" + WAV)
    file.seek(6)
    made = source_of(file)
    assert [next(chunks_of(made)).data for _ in range(2)] == [WAV, WAV]


def test_the_callers_file_is_not_closed():
    with CLINIC_NOTE.open("rb") as file:
        list(chunks_of(source_of(file)))
        assert not file.closed and file.tell() == 0


def test_fsspec_file_systems_are_read():
    fs = fsspec.filesystem("memory")
    fs.pipe("/ward/7.wav", WAV)
    (chunk,) = chunks_of(source_of("/ward/7.wav", fs=fs))
    assert (chunk.name, chunk.data) == ("7.wav", WAV)


class BrokenFileSystem:
    """A file system with an error class of its own."""

    def open(self, path: str, mode: str) -> Any:
        raise LookupError("the bucket is not there")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda at: source_of(at / "none.wav"), r"there is no such file: .*none\.wav"),
        (lambda at: source_of(at), r"that is a directory: "),
        (lambda at: source_of(("7.wav", b"")), r"the recording is empty: 7\.wav"),
        (lambda at: source_of(("7.wav", io.StringIO("x"))), r"7\.wav must be open in binary mode"),
        (lambda at: source_of("s3://ward/7.wav", fs=BrokenFileSystem()), r"cannot be read \(LookupError\): s3://ward/7"),
        (lambda at: source_of("/none.wav", fs=fsspec.filesystem("memory")), r"there is no such file: /none\.wav"),
    ],
)  # fmt: skip
def test_the_error_for_an_unreadable_recording_names_it(tmp_path, make, message):
    with pytest.raises(InvalidParameterError, match=message) as caught:
        list(chunks_of(make(tmp_path)))
    assert caught.value.param == "file"


@pytest.mark.parametrize("file", [5, ("7.wav",), ("", WAV), ("7.wav", 5), io.StringIO("x")])
def test_an_object_that_is_not_a_recording_is_rejected(file):
    with pytest.raises(InvalidParameterError, match="^file: "):
        source_of(file)


def test_the_error_for_a_closed_file_names_it():
    file = Named(WAV)
    file.close()
    with pytest.raises(InvalidParameterError, match=r"cannot be read \(ValueError\): /ward/7\.wav"):
        source_of(file)


def test_a_directory_gives_its_recordings_sorted(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("c.WAV", "b/a.mp3", "a.ogg", "notes.txt", "d.opus"):
        (tmp_path / name).write_bytes(b"x")

    def found(*args: Any) -> list[str]:
        return [str(Path(each.source).relative_to(tmp_path)) for each in sources_at([tmp_path], *args)]

    assert found() == ["a.ogg", "b/a.mp3", "c.WAV"]
    assert found("*.opus") == ["d.opus"]
    assert found("*", [".ogg", ".OPUS"]) == ["a.ogg", "d.opus"]
    assert found(None, [".mp3"]) == ["b/a.mp3"]
    both = sources_at([tmp_path / "d.opus", tmp_path / "b"])
    assert [each.name for each in both] == ["d.opus", "a.mp3"]


def test_a_directory_without_recordings_is_an_error(tmp_path):
    with pytest.raises(
        InvalidParameterError, match=rf"no recording in {tmp_path} \(glob '\*\.mp3', suffixes"
    ):
        sources_at([tmp_path], "*.mp3")


def test_the_repr_of_a_source_shows_neither_content_nor_metadata():
    shown = repr(source_of(("7.wav", b"zebra"), metadata={"patient": "Anna"}))
    assert shown == "AudioSource(source='7.wav')"


def test_media_types_have_suffixes():
    assert suffix_of_type("audio/mpeg") == ".mp3"
    assert suffix_of_type("audio/none") == suffix_of_type(None) == ""
