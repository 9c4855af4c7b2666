"""``prem transcribe``: text, JSON and subtitles from recordings, and one failure does not stop the others."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse
from support.beep_audio import transcribe_beeps, write_beeps
from support.paths import CLINIC_NOTE, ROOT
from support.prem_program import Prem, Result, TerminalProcess, run, run_on_terminal
from support.recordings import LastFirst, Overlap
from support.screen import screen_rows
from support.scripted_upstream import ReceivedRecording, Upstream

from prem_core._protocol.routes import MAX_AUDIO_BYTES
from prem_core.enclave import LocalEnclave

TRANSCRIPTION = {
    "task": "transcribe",
    "language": "english",
    "duration": 4.5,
    "text": " Hello there. 1 < 2.",
    "segments": [
        {"id": 0, "start": 0.0, "end": 1.5, "text": " Hello there."},
        {"id": 1, "start": 1.25, "end": 4.5, "text": " 1 < 2."},
    ],
}


@pytest.fixture
def recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a.wav, b.mp3 and c.flac."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(CLINIC_NOTE, "a.wav")
    for name, suffix in (("b", "mp3"), ("c", "flac")):
        shutil.copy(ROOT / "tests" / "data" / "audio" / f"clinic_note.{suffix}", f"{name}.{suffix}")
    return tmp_path


@pytest.fixture(autouse=True)
def transcribes(upstream: Upstream) -> None:
    upstream.transcribe_with(TRANSCRIPTION)


def by_name(recording: ReceivedRecording) -> dict[str, Any]:
    return {**TRANSCRIPTION, "text": f"This is {recording.name}.", "segments": None}


@pytest.mark.parametrize(
    ("form", "out"),
    [
        ([], "Hello there. 1 < 2.\n"),
        (["--format", "text"], "Hello there. 1 < 2.\n"),
        (
            ["--format", "srt"],
            "1\n00:00:00,000 --> 00:00:01,250\nHello there.\n\n2\n00:00:01,250 --> 00:00:04,500\n1 < 2.\n",
        ),
        (
            ["--format", "vtt"],
            "WEBVTT\n\n00:00:00.000 --> 00:00:01.250\nHello there.\n\n00:00:01.250 --> 00:00:04.500\n1 &lt; 2.\n",
        ),
    ],
)
def test_a_transcript_is_written_to_standard_output_in_each_format(
    prem: Prem, upstream_env: dict[str, str], recordings: Path, form: list[str], out: str
) -> None:
    assert prem("transcribe", "a.wav", *form, **upstream_env) == Result(0, out, "")


def test_json_has_the_transcript_its_segments_and_how_it_was_protected(
    prem: Prem, upstream_env: dict[str, str], recordings: Path, upstream_enclave: LocalEnclave
) -> None:
    result = prem("transcribe", "a.wav", "--format", "json", "--nonce-reuse", "error", **upstream_env)
    assert (result.status, result.err) == (0, "")
    assert json.loads(result.out) == {
        "file": "a.wav",
        "task": "transcribe",
        "model": "openai/whisper-large-v3",
        "language": "english",
        "duration": 4.5,
        "text": "Hello there. 1 < 2.",
        "segments": [
            {"start": 0.0, "end": 1.5, "text": "Hello there."},
            {"start": 1.25, "end": 4.5, "text": "1 < 2."},
        ],
        "prem": [
            {
                "key_fingerprint": upstream_enclave.public_key.fingerprint(),
                "key_source": "fetched",
                "attested": False,
                "key_bound": False,
                "reply_nonce": "own",
                "support_id": None,
            }
        ],
    }


def test_transcripts_of_several_recordings_have_their_name_above_in_the_given_order(
    prem: Prem, upstream_env: dict[str, str], upstream: Upstream, recordings: Path
) -> None:
    upstream.transcribe_with(LastFirst("b.mp3", "a.wav", by_name))
    result = prem("transcribe", "b.mp3", "a.wav", **upstream_env)
    assert result == Result(0, "==> b.mp3 <==\nThis is b.mp3.\n\n==> a.wav <==\nThis is a.wav.\n", "")


def test_json_of_several_recordings_is_one_object_per_line(
    prem: Prem, upstream_env: dict[str, str], upstream: Upstream, recordings: Path
) -> None:
    upstream.transcribe_with(by_name)
    result = prem("transcribe", "a.wav", "b.mp3", "c.flac", "--format", "json", **upstream_env)
    objects = [json.loads(line) for line in result.out.splitlines()]
    assert [each["text"] for each in objects] == ["This is a.wav.", "This is b.mp3.", "This is c.flac."]


def test_a_directory_stands_for_its_recordings(
    prem: Prem, upstream_env: dict[str, str], upstream: Upstream, recordings: Path
) -> None:
    (recordings / "note.txt").write_text("no recording")
    assert prem("transcribe", ".", "--format", "json", **upstream_env).out.count("\n") == 3
    assert sorted(each.name for each in upstream.recordings) == ["a.wav", "b.mp3", "c.flac"]


def test_standard_input_can_be_a_recording(
    prem: Prem, upstream_env: dict[str, str], upstream: Upstream
) -> None:
    result = prem("transcribe", "-", stdin=CLINIC_NOTE.read_bytes(), **upstream_env)
    assert result == Result(0, "Hello there. 1 < 2.\n", "")
    (recording,) = upstream.recordings
    assert recording.data == CLINIC_NOTE.read_bytes()
    assert recording.name.endswith(".wav")


def test_options_are_sent_with_the_transcription_request(
    prem: Prem, upstream_env: dict[str, str], upstream: Upstream, recordings: Path
) -> None:
    options = ["--language", "de", "--prompt", "Ramipril", "--temperature", "0.25", "--model", "m"]
    assert prem("transcribe", "a.wav", *options, **upstream_env).status == 0
    assert prem("transcribe", "a.wav", "--translate", **upstream_env).status == 0
    first, second = upstream.recordings
    assert first.task == "transcribe"
    assert {name: first.params[name] for name in ("language", "prompt", "temperature", "model")} == {
        "language": "de",
        "prompt": "Ramipril",
        "temperature": "0.25",
        "model": "m",
    }
    assert second.task == "translate"
    assert second.params["model"] == "openai/whisper-large-v3"
    assert "language" not in second.params


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "FILE"),
        (["a.wav", "--format", "doc"], "--format"),
        (["a.wav", "b.mp3", "--format", "srt"], "--output-dir"),
        (["a.wav", "--translate", "--language", "de"], "--language cannot be combined with --translate"),
        (["a.wav", "--temperature", "2"], "temperature"),
        (["a.wav", "--jobs", "0"], "--jobs"),
        (["a.wav", "--force"], "--output-dir"),
        (["-", "-"], "once"),
        (["empty"], "no recording in empty"),
        (["a.wav", "x/a.mp3", "--output-dir", "out"], "would both be written to out/a.txt"),
        (["a.wav", "b.mp3", "--output-dir", "taken"], "taken/b.txt already exists"),
        (["a.wav", "--output-dir", "a.wav"], "cannot be created"),
    ],
)
def test_invalid_arguments_are_one_line_and_no_recording_is_sent(
    prem: Prem,
    upstream_env: dict[str, str],
    upstream: Upstream,
    recordings: Path,
    arguments: list[str],
    message: str,
) -> None:
    (recordings / "empty").mkdir()
    (recordings / "taken").mkdir()
    (recordings / "taken" / "b.txt").write_text("mine")
    prem("transcribe", *arguments, **upstream_env).assert_error(2, "prem transcribe: ", message)
    assert upstream.recordings == []
    assert (recordings / "taken" / "b.txt").read_text() == "mine"


def test_output_dir_gets_one_file_per_recording_that_only_its_owner_can_read(
    upstream_env: dict[str, str], recordings: Path, tmp_path: Path
) -> None:
    before = os.umask(0o022)
    try:
        result = run(
            "transcribe", "a.wav", "b.mp3", "--format", "srt", "--output-dir", "new/subs", **upstream_env
        )
    finally:
        os.umask(before)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
    written = sorted((tmp_path / "new" / "subs").iterdir())
    assert [path.name for path in written] == ["a.srt", "b.srt"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in written} == {0o600}
    assert written[0].read_text().startswith("1\n00:00:00,000 --> ")


def test_an_existing_file_is_replaced_only_with_force(
    prem: Prem, upstream_env: dict[str, str], recordings: Path
) -> None:
    (recordings / "a.txt").write_text("mine")
    prem("transcribe", "a.wav", "--output-dir", ".", **upstream_env).assert_error(
        2, "a.txt already exists", "--force"
    )
    assert (recordings / "a.txt").read_text() == "mine"
    assert prem("transcribe", "a.wav", "--output-dir", ".", "--force", **upstream_env) == Result(0, "", "")
    assert (recordings / "a.txt").read_text() == "Hello there. 1 < 2.\n"


def test_a_file_that_appears_during_the_transcription_is_not_replaced(
    prem: Prem, upstream_env: dict[str, str], upstream: Upstream, recordings: Path
) -> None:
    def meanwhile(recording: ReceivedRecording) -> dict[str, Any]:
        (recordings / "a.txt").write_text("mine")
        return TRANSCRIPTION

    upstream.transcribe_with(meanwhile)
    result = prem("transcribe", "a.wav", "--output-dir", ".", **upstream_env)
    assert result.status == 1
    assert "a.txt already exists" in result.err
    assert (recordings / "a.txt").read_text() == "mine"
    assert [path.name for path in recordings.iterdir() if path.name.startswith(".")] == []


def test_a_failed_recording_is_one_line_and_the_others_are_transcribed(
    prem: Prem, upstream_env: dict[str, str], upstream: Upstream, recordings: Path
) -> None:
    def rejects_b(recording: ReceivedRecording) -> Any:
        if recording.name == "b.mp3":
            return JSONResponse({"error": {"message": "too\nnoisy\x1b[2J"}}, 400)
        return by_name(recording)

    upstream.transcribe_with(rejects_b)
    (recordings / "empty.wav").write_bytes(b"")
    result = prem(
        "transcribe", "none.wav", "a.wav", "b.mp3", "empty.wav", "c.flac", "--format", "json", **upstream_env
    )
    assert result.status == 1
    assert [json.loads(line)["file"] for line in result.out.splitlines()] == ["a.wav", "c.flac"]
    none, b, empty, last = result.err.splitlines()
    assert none == "prem transcribe: there is no such file: none.wav"
    assert b.startswith("prem transcribe: b.mp3: ")
    assert "support_" in b
    assert "\x1b" not in b
    assert empty == "prem transcribe: the recording is empty: empty.wav"
    assert last == "prem transcribe: 3 of 5 recordings could not be transcribed"


def test_a_wrong_key_is_reported_once_for_all_recordings(
    prem: Prem, upstream_env: dict[str, str], recordings: Path
) -> None:
    wrong = {**upstream_env, "PREM_API_KEY": "sk_test_wrong"}
    prem("transcribe", "a.wav", "b.mp3", **wrong).assert_error(1, "support_")
    prem("transcribe", "a.wav", "b.mp3", PREM_API_KEY="").assert_error(2, "PREM_API_KEY")


def test_subtitles_without_times_are_an_error(
    prem: Prem, upstream_env: dict[str, str], upstream: Upstream, recordings: Path
) -> None:
    upstream.transcribe_with({"text": "Hello."})
    result = prem("transcribe", "a.wav", "--format", "srt", **upstream_env)
    assert (result.status, result.out) == (1, "")
    assert "prem transcribe: a.wav: the service returned no timestamps" in result.err


def test_jobs_limits_the_recordings_that_are_transcribed_at_once(
    prem: Prem, upstream_env: dict[str, str], upstream: Upstream, recordings: Path
) -> None:
    overlap = Overlap(2)
    upstream.transcribe_with(overlap)
    names = [shutil.copy("a.wav", f"{number}.wav") for number in range(6)]
    assert prem("transcribe", *names, "--jobs", "2", **upstream_env).status == 0
    assert overlap.most == 2


def test_a_long_recording_does_not_hold_up_the_others(
    prem: Prem, upstream_env: dict[str, str], upstream: Upstream, recordings: Path
) -> None:
    names = [shutil.copy("a.wav", f"{number}.wav") for number in range(6)]
    upstream.transcribe_with(LastFirst("0.wav", "5.wav", by_name))
    result = prem("transcribe", *names, "--jobs", "2", "--format", "json", **upstream_env)
    assert [json.loads(line)["file"] for line in result.out.splitlines()] == names


# --- as a process -----------------------------------------------------------------------------------------


def test_progress_bars_are_on_the_terminal_and_only_transcripts_in_the_file(
    upstream_env: dict[str, str], upstream: Upstream, recordings: Path
) -> None:
    bars_shown = threading.Event()
    upstream.transcribe_with(lambda recording: TRANSCRIPTION if bars_shown.wait(60) else None)
    # The terminal gets neither the escape sequence nor the override of the direction; the file gets the exact name.
    name = "a\x1b[31m\u202e.wav"
    os.rename("a.wav", name)
    out = recordings / "out.txt"
    running = TerminalProcess("transcribe", name, "b.mp3", stdout=out, **upstream_env)
    try:
        running.wait_for("b.mp3")
    finally:
        bars_shown.set()
    shown = running.end()
    assert shown.status == 0
    assert out.read_text() == (f"==> {name} <==\nHello there. 1 < 2.\n\n==> b.mp3 <==\nHello there. 1 < 2.\n")
    assert "recordings" in shown.terminal
    assert "━" in shown.terminal
    assert "\x1b[31m" not in shown.terminal
    assert "\u202e" not in shown.terminal
    assert "".join(screen_rows(shown.terminal, 100)).isspace()  # the bars are removed at the end


def test_no_progress_bars_if_standard_output_or_standard_error_is_a_pipe(
    upstream_env: dict[str, str], recordings: Path
) -> None:
    # The program at the other end may write to the same terminal.
    shown = run_on_terminal("transcribe", "b.mp3", piped="stdout", **upstream_env)
    assert (shown.terminal, shown.piped) == ("", b"Hello there. 1 < 2.\n")
    shown = run_on_terminal("transcribe", "b.mp3", piped="stderr", **upstream_env)
    assert (shown.terminal, shown.piped) == ("Hello there. 1 < 2.\n", b"")


def test_a_recording_of_more_than_25_mb_is_split_its_times_continue_and_its_bar_shows_how_much_is_done(
    upstream_env: dict[str, str], upstream: Upstream, tmp_path: Path
) -> None:
    bar_shown = threading.Event()

    def waits_for_bar(recording: ReceivedRecording) -> dict[str, Any]:
        if len(upstream.recordings) == 2:
            assert bar_shown.wait(60)
        return transcribe_beeps(recording)

    upstream.transcribe_with(waits_for_bar)
    long = write_beeps(tmp_path / "long.wav", [3.0, 400.0, 770.0, 835.25, 850.5], 860)
    assert long.stat().st_size > MAX_AUDIO_BYTES
    out = tmp_path / "out.srt"
    running = TerminalProcess("transcribe", str(long), "--format", "srt", stdout=out, **upstream_env)
    try:
        running.wait_for(" 95%")  # the first chunk, and what was read to find its pause
    finally:
        bar_shown.set()
    assert running.end().status == 0
    assert len(upstream.recordings) == 2
    cues = out.read_text().split("\n\n")
    assert cues[3] == "4\n00:13:55,250 --> 00:13:55,750\nbeep3"
    assert [cue.split()[-1] for cue in cues] == [f"beep{n}" for n in range(5)]


def test_ctrl_c_ends_a_transcription_without_output(
    upstream_env: dict[str, str], upstream: Upstream, recordings: Path
) -> None:
    requested, released = threading.Event(), threading.Event()

    def waits(recording: ReceivedRecording) -> dict[str, Any]:
        requested.set()
        released.wait(20)
        return TRANSCRIPTION

    upstream.transcribe_with(waits)
    running = TerminalProcess("transcribe", "a.wav", "b.mp3", piped="stderr", **upstream_env)
    try:
        assert requested.wait(20)
        running.process.send_signal(signal.SIGINT)
        shown = running.end()
    finally:
        released.set()
    assert (shown.status, shown.terminal, shown.piped) == (130, "", b"")


def test_local_transcribes_with_the_embedded_enclave() -> None:
    result = run("--local", "transcribe", str(CLINIC_NOTE), "--format", "vtt")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(b"WEBVTT\n\n00:00:00.")
    assert b"friday" in result.stdout


@pytest.mark.parametrize("columns", [80, 100])
def test_every_transcript_and_error_stays_on_the_terminal_next_to_progress_bars(
    upstream_env: dict[str, str], upstream: Upstream, recordings: Path, columns: int
) -> None:
    def rejects_b(recording: ReceivedRecording) -> Any:
        if recording.name == "b.mp3":
            return JSONResponse({}, 400)
        return by_name(recording)

    upstream.transcribe_with(rejects_b)
    names = ["a.wav", "missing.wav", "b.mp3", "c.flac", "a.wav"]
    shown = run_on_terminal("transcribe", *names, columns=columns, **upstream_env)
    assert shown.status == 1
    assert "━" in shown.terminal  # there were bars
    screen = "".join(screen_rows(shown.terminal, columns))
    for line in (
        "==> a.wav <==",
        "This is a.wav.",
        "prem transcribe: there is no such file: missing.wav",
        "prem transcribe: b.mp3: ",
        "==> c.flac <==",
        "This is c.flac.",
        "prem transcribe: 2 of 5 recordings could not be transcribed",
    ):
        assert line in screen, line
    assert re.search(r"\(support_[0-9a-f-]{36}\)", screen)  # the end of a line that is wrapped at 80 columns
    assert screen.count("This is a.wav.") == 2
    assert "━" not in screen


def test_one_recording_that_fails_is_one_line_without_a_count(
    prem: Prem, upstream_env: dict[str, str], recordings: Path
) -> None:
    prem("transcribe", "missing.wav", **upstream_env).assert_error(
        1, "prem transcribe: there is no such file: missing.wav"
    )
