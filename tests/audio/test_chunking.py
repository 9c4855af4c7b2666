"""Cutting long recordings: nothing is lost, times go on, and what cannot be cut is said by name."""

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
from support.beep_audio import RATE, beeps, write

from prem_core import InvalidParameterError
from prem_core._audio import chunking as splitting
from prem_core._audio.chunking import Piece, split
from prem_core._audio.upload import MAX_FILE_BYTES

LIMIT = 256 * 1024  # 8 s of 16 kHz mono
#: Beeps of half a second at uneven times, over 40 s; in between it is quiet.
AT = [
    0.2,
    1.1,
    3.0,
    4.4,
    6.0,
    7.3,
    9.1,
    11.0,
    12.5,
    15.0,
    17.7,
    19.0,
    22.2,
    25.0,
    27.1,
    30.3,
    33.0,
    36.6,
    39.4,
]


def parts_of(path: Path, limit: int = LIMIT) -> list[Piece]:
    with path.open("rb") as file:
        return list(split(path.name, file, limit))


def sound_of(parts: list[Piece]) -> Any:
    return np.concatenate([soundfile.read(io.BytesIO(part.data), dtype="float32")[0] for part in parts])


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
def test_parts_hold_every_sample_once_and_are_under_the_limit(tmp_path, suffix, subtype, made, error):
    path = write(tmp_path / f"ward{suffix}", AT, 40, subtype=subtype)
    parts = parts_of(path)
    assert len(parts) > 1
    assert all(len(part.data) <= LIMIT for part in parts)
    assert [part.name for part in parts] == [f"ward.part{n:03d}{made}" for n in range(1, len(parts) + 1)]
    whole = soundfile.read(path, dtype="float32")[0]
    assert len(sound_of(parts)) == len(whole)
    assert np.abs(sound_of(parts) - whole).max() <= error


def test_each_part_begins_where_the_one_before_ends(tmp_path):
    parts = parts_of(write(tmp_path / "ward.wav", AT, 40))
    assert parts[0].offset == 0
    for before, after in pairwise(parts):
        assert before.seconds is not None
        assert after.offset == pytest.approx(before.offset + before.seconds)
    assert parts[-1].offset + parts[-1].seconds == pytest.approx(40)


@pytest.mark.parametrize(
    ("suffix", "subtype"), [(".wav", s) for s in ("PCM_U8", "PCM_16", "PCM_24")] + [(".flac", None)]
)
def test_cuts_fall_into_pauses(tmp_path, suffix, subtype):
    parts = parts_of(write(tmp_path / f"ward{suffix}", AT, 40, subtype=subtype))
    for part in parts[1:]:
        assert not any(start - 0.05 < part.offset < start + 0.55 for start in AT)


def test_an_offset_of_the_microphone_is_no_sound(tmp_path):
    samples = 0.4 + 0.5 * beeps(AT, 40)
    soundfile.write(tmp_path / "offset.wav", samples, RATE)
    for part in parts_of(tmp_path / "offset.wav")[1:]:
        assert not any(start - 0.05 < part.offset < start + 0.55 for start in AT)


def test_without_a_pause_it_is_cut_all_the_same(tmp_path):
    noise = np.random.default_rng(2).uniform(-0.9, 0.9, RATE * 30)
    for suffix in ("wav", "flac"):
        path = tmp_path / f"noise.{suffix}"
        soundfile.write(path, noise, RATE)
        parts = parts_of(path)
        # Noise is what FLAC cannot make smaller: the case that the limit must be kept in.
        assert all(len(part.data) <= LIMIT for part in parts)
        assert sum(part.seconds or 0 for part in parts) == pytest.approx(30)


def test_no_part_is_next_to_nothing(tmp_path):
    for tenths in range(70, 100, 3):
        path = write(tmp_path / "ward.wav", [1.0, 3.0], tenths / 10)
        assert min(part.seconds or 0 for part in parts_of(path)) >= splitting.LEAST_SECONDS


def test_channels_and_rate_are_kept(tmp_path):
    stereo = np.random.default_rng(3).uniform(-0.5, 0.5, (44_100 * 8, 2))
    for suffix in ("wav", "flac"):
        path = tmp_path / f"stereo.{suffix}"
        soundfile.write(path, stereo, 44_100)
        parts = parts_of(path, 512 * 1024)
        assert len(parts) > 1
        for part in parts:
            info = soundfile.info(io.BytesIO(part.data))
            assert (info.channels, info.samplerate) == (2, 44_100)
        assert np.array_equal(sound_of(parts), soundfile.read(path, dtype="float32")[0])


def test_pcm_wav_needs_no_extra(tmp_path, monkeypatch):
    path = write(tmp_path / "ward.wav", AT, 40)
    without(monkeypatch, "soundfile", "numpy")
    assert len(parts_of(path)) > 1


@pytest.mark.parametrize("suffix", [".flac", ".ogg", ".mp3"])
def test_without_the_extra_the_error_names_the_file_and_the_install_command(tmp_path, monkeypatch, suffix):
    path = write(tmp_path / f"ward{suffix}", AT, 40)
    without(monkeypatch, "soundfile")
    with pytest.raises(
        InvalidParameterError, match=f'ward{suffix}.*pip install "prem-encrypted\\[audio\\]"'
    ) as caught:
        parts_of(path, 1)
    assert caught.value.param == "file"


@pytest.mark.parametrize(
    ("head", "name"), [(b"\0\0\0\x20ftypM4A ", "ward.m4a"), (b"\x1a\x45\xdf\xa3", "ward.webm")]
)
def test_a_format_nobody_here_decodes_is_named_and_to_be_split_elsewhere(tmp_path, monkeypatch, head, name):
    (tmp_path / name).write_bytes(head + bytes(1000))
    # The extra would not help, so nobody is told to install it.
    without(monkeypatch, "soundfile")
    with pytest.raises(InvalidParameterError, match=f"{name}.*cannot be cut here; split it") as caught:
        parts_of(tmp_path / name)
    assert "pip" not in str(caught.value)


def test_what_is_no_recording_is_named(tmp_path):
    (tmp_path / "ward.mp3").write_bytes(b"no recording" * 100)
    with pytest.raises(InvalidParameterError, match=r"ward\.mp3: .*cannot be decoded"):
        parts_of(tmp_path / "ward.mp3")


def test_errors_use_the_name_they_are_given():
    with pytest.raises(InvalidParameterError, match="^file: s3://ward/1: "):
        list(split("1", io.BytesIO(b"nothing"), called="s3://ward/1"))


def test_a_recording_that_breaks_off_is_an_error_and_not_a_short_one(tmp_path):
    path = write(tmp_path / "ward.flac", AT, 40)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    with pytest.raises(InvalidParameterError, match=r"ward\.flac: it (breaks off|cannot be decoded)"):
        parts_of(path)


def test_a_header_without_a_length_is_read_to_the_end_of_the_file(tmp_path):
    # What ffmpeg and recorders write into a pipe.
    path = write(tmp_path / "ward.wav", AT, 40)
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(data)
    assert sum(part.seconds or 0 for part in parts_of(path)) == pytest.approx(40, abs=0.01)


@pytest.mark.parametrize("seconds", [0, 1])
def test_a_header_that_counts_too_little_is_an_error(tmp_path, seconds):
    path = write(tmp_path / "ward.wav", AT, 80)
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", RATE * 2 * seconds)
    path.write_bytes(data)
    with pytest.raises(
        InvalidParameterError, match=r"ward\.wav: its header counts less sound than the file holds"
    ):
        parts_of(path)


def test_a_wav_file_that_ends_within_a_frame_is_cut_to_whole_ones(tmp_path):
    path = write(tmp_path / "ward.wav", AT, 40)
    path.write_bytes(path.read_bytes()[:-1])
    parts = parts_of(path)
    assert sum(part.seconds or 0 for part in parts) == pytest.approx(40, abs=0.001)


def test_a_file_without_sound_is_an_error(tmp_path):
    soundfile.write(tmp_path / "ward.wav", np.zeros(0), RATE)
    with pytest.raises(InvalidParameterError, match=r"ward\.wav: there is no sound"):
        parts_of(tmp_path / "ward.wav")


def test_a_limit_that_holds_next_to_nothing_is_an_error(tmp_path):
    with pytest.raises(InvalidParameterError, match=r"ward\.flac: a part of 20,000 bytes"):
        parts_of(write(tmp_path / "ward.flac", AT, 40), 20_000)


def test_more_channels_than_flac_has_are_an_error_that_says_so(tmp_path):
    soundfile.write(tmp_path / "ward.wav", np.zeros((RATE * 30, 9), "float32"), RATE, subtype="FLOAT")
    with pytest.raises(InvalidParameterError, match=r"ward\.wav: .*9 channels"):
        parts_of(tmp_path / "ward.wav", 4_000_000)


def test_an_mp3_is_decoded_as_in_one_go(tmp_path):
    # A SoundFile seeks after every block it reads, and an MP3 decoder that is sought forgets what it needs.
    path = write(tmp_path / "ward.mp3", [n * 0.9 for n in range(130)], 120)
    assert np.abs(sound_of(parts_of(path)) - soundfile.read(path, dtype="float32")[0]).max() < 1e-4


def test_hours_are_cut_without_being_held(tmp_path):
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
            lengths = [len(part.data) for part in split(path.name, file)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(lengths) == 4 and max(lengths) <= MAX_FILE_BYTES
    # The part that is written, while it grows, and what is held back for the search.
    assert peak < 2.2 * MAX_FILE_BYTES, peak / MAX_FILE_BYTES


def test_a_piece_shows_nothing_of_itself():
    assert repr(Piece("ward.wav", b"zebra", 1.0, 2.0)) == "Piece(offset=1.0, seconds=2.0)"


def without(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """As if these packages were not installed."""
    real = builtins.__import__

    def importing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] in modules:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", importing)
