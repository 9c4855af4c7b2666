import io
import wave

import pytest

from prem_core._media import audio_seconds
from prem_core._protocol.charge import TOKENS_PER_FILE, estimate_tokens, reported_seconds
from prem_core._protocol.request_json import to_json


def test_the_tokens_of_a_request_are_estimated_from_its_length():
    assert estimate_tokens(b"x" * 4000) == 1000


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}},
        {"type": "input_audio", "input_audio": {"data": "A" * 100_000, "format": "wav"}},
    ],
)
def test_a_file_in_a_request_counts_as_a_thousand_tokens_whatever_its_size(part):
    tokens = estimate_tokens(to_json({"messages": [{"role": "user", "content": [part, part]}]}))
    assert 2 * TOKENS_PER_FILE < tokens < 2 * TOKENS_PER_FILE + 200


def test_an_unfinished_data_url_is_text():
    assert estimate_tokens(b";base64," + b"A" * 392) == 100


def test_the_length_of_a_wav_file_is_in_its_header():
    file = io.BytesIO()
    with wave.open(file, "wb") as recording:
        recording.setnchannels(1)
        recording.setsampwidth(2)
        recording.setframerate(8000)
        recording.writeframes(bytes(2 * 8000 * 3))
    assert audio_seconds(file.getvalue()) == 3


def test_the_length_of_a_flac_file_is_in_its_header():
    fields = (16_000 << 44) | (15 << 36) | 48_000
    assert audio_seconds(b"fLaC" + bytes(14) + fields.to_bytes(8) + bytes(100)) == 3


@pytest.mark.parametrize("start", [b"OggS", b"RIFF", b"fLaC", b"RIFF....WAVEfmt ", b""])
def test_the_length_of_another_recording_is_estimated_from_its_size(start):
    assert audio_seconds(start + bytes(80_000 - len(start))) == 10


@pytest.mark.parametrize(
    ("plaintext", "seconds"),
    [
        (b'{"text": "a", "duration": 2.5}', 2.5),
        (b'{"text": "a", "duration": "2.5"}', 2.5),
        (b'{"text": "a"}', None),
        (b"plain text", None),
        (b'"duration"', None),
        (b'{"duration": "long"}', None),
        (b'{"duration": -1}', None),
        (b'{"duration": NaN}', None),
        (b'{"duration"', None),
    ],
)
def test_the_length_that_the_service_reports_is_read(plaintext, seconds):
    assert reported_seconds(plaintext) == seconds
