"""Splitting long recordings: nothing is lost, times continue, and errors name the recording."""

from __future__ import annotations

import builtins
import io
import struct
import tracemalloc
import wave
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from support.beep_audio import BEEP_TIMES, RATE, beeps, write_beeps

from prem_core import InvalidParameterError
from prem_core._audio.chunking import MIN_CHUNK_SECONDS, AudioChunk, split
from prem_core._protocol.routes import MAX_AUDIO_BYTES

LIMIT = 256 * 1024  # 8 s of 16 kHz mono


def chunks_of(path: Path, limit: int = LIMIT) -> list[AudioChunk]:
    with path.open("rb") as file:
        return list(split(path.name, file, limit))


def audio_of(chunks: list[AudioChunk]) -> Any:
    return np.concatenate([soundfile.read(io.BytesIO(chunk.data), dtype="float32")[0] for chunk in chunks])


@pytest.mark.parametrize(
    ("suffix", "subtype", "made", "error"),
    [
        (".wav", "PCM_16", ".wav", 0),
        (".wav", "PCM_U8", ".wav", 0),
        (".wav", "PCM_24", ".wav", 0),
        (".wav", "PCM_32", ".wav", 0),
        (".wav", "FLOAT", ".flac", 1 / 32768),
        (".flac", "PCM_16", ".flac", 0),
        (".ogg", "VORBIS", ".flac", 1 / 32768),
        (".ogg", "OPUS", ".flac", 1 / 32768),
        (".mp3", None, ".flac", 1 / 32768),
        (".aiff", "PCM_16", ".flac", 0),
    ],
)
def test_chunks_hold_every_sample_once_and_stay_within_the_limit(tmp_path, suffix, subtype, made, error):
    path = write_beeps(tmp_path / f"ward{suffix}", BEEP_TIMES, 40, subtype=subtype)
    chunks = chunks_of(path)
    assert len(chunks) > 1
    assert all(len(chunk.data) <= LIMIT for chunk in chunks)
    assert [chunk.name for chunk in chunks] == [f"ward.part{n:03d}{made}" for n in range(1, len(chunks) + 1)]
    whole = soundfile.read(path, dtype="float32")[0]
    assert len(audio_of(chunks)) == len(whole)
    assert np.abs(audio_of(chunks) - whole).max() <= error


def test_each_chunk_starts_where_the_one_before_ends(tmp_path):
    chunks = chunks_of(write_beeps(tmp_path / "ward.wav", BEEP_TIMES, 40))
    assert chunks[0].offset == 0
    for before, after in pairwise(chunks):
        assert before.seconds is not None
        assert after.offset == pytest.approx(before.offset + before.seconds)
    assert chunks[-1].offset + chunks[-1].seconds == pytest.approx(40)


@pytest.mark.parametrize(
    ("suffix", "subtype"), [(".wav", s) for s in ("PCM_U8", "PCM_16", "PCM_24")] + [(".flac", None)]
)
def test_a_recording_is_split_at_pauses(tmp_path, suffix, subtype):
    chunks = chunks_of(write_beeps(tmp_path / f"ward{suffix}", BEEP_TIMES, 40, subtype=subtype))
    for chunk in chunks[1:]:
        assert not any(start - 0.05 < chunk.offset < start + 0.55 for start in BEEP_TIMES)


def test_a_constant_offset_of_the_microphone_is_not_sound(tmp_path):
    samples = 0.4 + 0.5 * beeps(BEEP_TIMES, 40)
    soundfile.write(tmp_path / "offset.wav", samples, RATE)
    for chunk in chunks_of(tmp_path / "offset.wav")[1:]:
        assert not any(start - 0.05 < chunk.offset < start + 0.55 for start in BEEP_TIMES)


def test_a_recording_without_pauses_is_split_too(tmp_path):
    noise = np.random.default_rng(2).uniform(-0.9, 0.9, RATE * 30)
    for suffix in ("wav", "flac"):
        path = tmp_path / f"noise.{suffix}"
        soundfile.write(path, noise, RATE)
        chunks = chunks_of(path)
        # FLAC cannot compress noise: the hardest case for the limit.
        assert all(len(chunk.data) <= LIMIT for chunk in chunks)
        assert sum(chunk.seconds or 0 for chunk in chunks) == pytest.approx(30)


def test_no_chunk_is_shorter_than_a_second(tmp_path):
    for tenths in range(70, 100, 3):
        path = write_beeps(tmp_path / "ward.wav", [1.0, 3.0], tenths / 10)
        assert min(chunk.seconds or 0 for chunk in chunks_of(path)) >= MIN_CHUNK_SECONDS


def test_channels_and_rate_are_kept(tmp_path):
    stereo = np.random.default_rng(3).uniform(-0.5, 0.5, (44_100 * 8, 2))
    for suffix in ("wav", "flac"):
        path = tmp_path / f"stereo.{suffix}"
        soundfile.write(path, stereo, 44_100)
        chunks = chunks_of(path, 512 * 1024)
        assert len(chunks) > 1
        for chunk in chunks:
            info = soundfile.info(io.BytesIO(chunk.data))
            assert (info.channels, info.samplerate) == (2, 44_100)
        assert np.array_equal(audio_of(chunks), soundfile.read(path, dtype="float32")[0])


def test_pcm_wav_needs_no_extra(tmp_path, monkeypatch):
    path = write_beeps(tmp_path / "ward.wav", BEEP_TIMES, 40)
    without(monkeypatch, "soundfile", "numpy")
    assert len(chunks_of(path)) > 1


@pytest.mark.parametrize("suffix", [".flac", ".ogg", ".mp3"])
def test_without_the_extra_the_error_names_the_file_and_the_install_command(tmp_path, monkeypatch, suffix):
    path = write_beeps(tmp_path / f"ward{suffix}", BEEP_TIMES, 40)
    without(monkeypatch, "soundfile")
    with pytest.raises(
        InvalidParameterError, match=f'ward{suffix}.*pip install "prem-encrypted\\[audio\\]"'
    ) as caught:
        chunks_of(path, 1)
    assert caught.value.param == "file"


@pytest.mark.parametrize(
    ("head", "name"), [(b"\0\0\0\x20ftypM4A ", "ward.m4a"), (b"\x1a\x45\xdf\xa3", "ward.webm")]
)
def test_the_error_for_a_format_that_is_not_decoded_names_the_file(tmp_path, monkeypatch, head, name):
    (tmp_path / name).write_bytes(head + bytes(1000))
    # The extra would not help, so the error does not mention it.
    without(monkeypatch, "soundfile")
    with pytest.raises(InvalidParameterError, match=f"{name}.*cannot be split here: split it") as caught:
        chunks_of(tmp_path / name)
    assert "pip" not in str(caught.value)


def test_the_error_for_a_file_that_is_not_a_recording_names_it(tmp_path):
    (tmp_path / "ward.mp3").write_bytes(b"not a recording" * 100)
    with pytest.raises(InvalidParameterError, match=r"ward\.mp3: .*cannot be decoded"):
        chunks_of(tmp_path / "ward.mp3")


def test_errors_use_the_label():
    with pytest.raises(InvalidParameterError, match="^file: s3://ward/1: "):
        list(split("1", io.BytesIO(b"nothing"), label="s3://ward/1"))


def test_a_truncated_recording_is_an_error(tmp_path):
    path = write_beeps(tmp_path / "ward.flac", BEEP_TIMES, 40)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    with pytest.raises(InvalidParameterError, match=r"ward\.flac: (truncated|it cannot be decoded)"):
        chunks_of(path)


def test_a_header_without_a_length_is_read_to_the_end_of_the_file(tmp_path):
    # ffmpeg and recorders write this into a pipe.
    path = write_beeps(tmp_path / "ward.wav", BEEP_TIMES, 40)
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(data)
    assert sum(chunk.seconds or 0 for chunk in chunks_of(path)) == pytest.approx(40, abs=0.01)


@pytest.mark.parametrize("seconds", [0, 1])
def test_a_header_that_states_too_little_audio_is_an_error(tmp_path, seconds):
    path = write_beeps(tmp_path / "ward.wav", BEEP_TIMES, 80)
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", RATE * 2 * seconds)
    path.write_bytes(data)
    with pytest.raises(
        InvalidParameterError, match=r"ward\.wav: its header declares less audio than the file contains"
    ):
        chunks_of(path)


def test_a_wav_file_that_ends_within_a_frame_keeps_its_whole_frames(tmp_path):
    path = write_beeps(tmp_path / "ward.wav", BEEP_TIMES, 40)
    path.write_bytes(path.read_bytes()[:-1])
    chunks = chunks_of(path)
    assert sum(chunk.seconds or 0 for chunk in chunks) == pytest.approx(40, abs=0.001)


def test_a_file_without_audio_is_an_error(tmp_path):
    soundfile.write(tmp_path / "ward.wav", np.zeros(0), RATE)
    with pytest.raises(InvalidParameterError, match=r"ward\.wav: it contains no audio"):
        chunks_of(tmp_path / "ward.wav")


def test_a_limit_that_is_too_small_is_an_error(tmp_path):
    with pytest.raises(
        InvalidParameterError, match=r"ward\.flac: the chunk limit of 20,000 bytes is too small"
    ):
        chunks_of(write_beeps(tmp_path / "ward.flac", BEEP_TIMES, 40), 20_000)


def test_the_error_for_too_many_channels_for_flac_has_their_number(tmp_path):
    soundfile.write(tmp_path / "ward.wav", np.zeros((RATE * 30, 9), "float32"), RATE, subtype="FLOAT")
    with pytest.raises(InvalidParameterError, match=r"ward\.wav: .*9 channels"):
        chunks_of(tmp_path / "ward.wav", 4_000_000)


def test_an_mp3_is_decoded_as_one_stream(tmp_path):
    # A SoundFile seeks after every block that it reads, and an MP3 decoder loses its state then.
    path = write_beeps(tmp_path / "ward.mp3", [n * 0.9 for n in range(130)], 120)
    assert np.abs(audio_of(chunks_of(path)) - soundfile.read(path, dtype="float32")[0]).max() < 1e-4


def test_hours_of_audio_are_split_without_being_in_memory(tmp_path):
    path = tmp_path / "hours.wav"
    with wave.open(str(path), "wb") as made:
        made.setnchannels(1)
        made.setsampwidth(2)
        made.setframerate(RATE)
        for _ in range(4):
            made.writeframes(bytes(RATE * 2 * 800))  # 100 MB in all
    tracemalloc.start()
    try:
        with path.open("rb") as file:
            lengths = [len(chunk.data) for chunk in split(path.name, file)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(lengths) == 4 and max(lengths) <= MAX_AUDIO_BYTES
    # The chunk that is written, while it grows, and what is held back for the search.
    assert peak < 2.2 * MAX_AUDIO_BYTES, peak / MAX_AUDIO_BYTES


def test_the_repr_of_a_chunk_shows_neither_name_nor_content():
    assert repr(AudioChunk("ward.wav", b"zebra", 1.0, 2.0)) == "AudioChunk(offset=1.0, seconds=2.0)"


def without(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """Act as if these packages were not installed."""
    real = builtins.__import__

    def importing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] in modules:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", importing)
