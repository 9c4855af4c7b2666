"""``prem transcribe``: recordings in, text, JSON and subtitles out, and none lost to another one's error."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse
from support.beep_audio import hears_beeps, write
from support.paths import ROOT
from support.prem_program import Prem, Result, TerminalProcess, run, run_on_terminal
from support.scripted_upstream import Heard, Upstream

from prem_core._audio.batch import AUDIO_TIMEOUT
from prem_core._audio.upload import MAX_FILE_BYTES
from prem_core.cli.commands import transcribe

SAMPLE = ROOT / "examples" / "clinic_note.wav"

SAID = {
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
    """A folder with a.wav, b.mp3 and c.flac, which is the current one."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(SAMPLE, "a.wav")
    for name, suffix in (("b", "mp3"), ("c", "flac")):
        shutil.copy(ROOT / "tests" / "data" / "audio" / f"clinic_note.{suffix}", f"{name}.{suffix}")
    return tmp_path


@pytest.fixture(autouse=True)
def hears(upstream: Upstream) -> None:
    upstream.transcribes(SAID)


def by_name(heard: Heard) -> dict[str, Any]:
    return {**SAID, "text": f"This is {heard.name}.", "segments": None}


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
def test_a_recording_is_written_to_standard_output(
    prem: Prem, upstream_env: dict[str, str], recordings: Path, form: list[str], out: str
) -> None:
    assert prem("transcribe", "a.wav", *form, **upstream_env) == Result(0, out, "")


def test_json_has_the_text_and_its_times(prem: Prem, upstream_env: dict[str, str], recordings: Path) -> None:
    result = prem("transcribe", "a.wav", "--format", "json", **upstream_env)
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
    }


def test_text_of_several_has_each_name_above_in_the_order_given(
    prem: Prem, upstream_env: dict[str, str], upstream: Upstream, recordings: Path
) -> None:
    first_may_go = threading.Event()

    def later_first(heard: Heard) -> dict[str, Any]:
        if heard.name == "b.mp3":
            assert first_may_go.wait(10)
        else:
            first_may_go.set()
        return by_name(heard)

    upstream.transcribes(later_first)
    result = prem("transcribe", "b.mp3", "a.wav", **upstream_env)
    assert result == Result(0, "==> b.mp3 <==\nThis is b.mp3.\n\n==> a.wav <==\nThis is a.wav.\n", "")


def test_json_of_several_is_an_object_a_line(
    prem: Prem, upstream_env: dict[str, str], upstream: Upstream, recordings: Path
) -> None:
    upstream.transcribes(by_name)
    result = prem("transcribe", "a.wav", "b.mp3", "c.flac", "--format", "json", **upstream_env)
    objects = [json.loads(line) for line in result.out.splitlines()]
    assert [each["text"] for each in objects] == ["This is a.wav.", "This is b.mp3.", "This is c.flac."]


def test_a_directory_stands_for_its_recordings(
    prem: Prem, upstream_env: dict[str, str], upstream: Upstream, recordings: Path
) -> None:
    (recordings / "note.txt").write_text("no recording")
    assert prem("transcribe", ".", "--format", "json", **upstream_env).out.count("\n") == 3
    assert sorted(each.name for each in upstream.heard) == ["a.wav", "b.mp3", "c.flac"]


def test_standard_input_can_be_a_recording(
    prem: Prem, upstream_env: dict[str, str], upstream: Upstream
) -> None:
    result = prem("transcribe", "-", stdin=SAMPLE.read_bytes(), **upstream_env)
    assert result == Result(0, "Hello there. 1 < 2.\n", "")
    (heard,) = upstream.heard
    assert heard.data == SAMPLE.read_bytes()
    assert heard.name.endswith(".wav")


def test_options_reach_the_model(
    prem: Prem, upstream_env: dict[str, str], upstream: Upstream, recordings: Path
) -> None:
    options = ["--language", "de", "--prompt", "Ramipril", "--temperature", "0.25", "--model", "m"]
    assert prem("transcribe", "a.wav", *options, **upstream_env).status == 0
    assert prem("transcribe", "a.wav", "--translate", **upstream_env).status == 0
    first, second = upstream.heard
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
    ("arguments", "said"),
    [
        ([], "FILE"),
        (["a.wav", "--format", "doc"], "--format"),
        (["a.wav", "b.mp3", "--format", "srt"], "--output-dir"),
        (["a.wav", "--translate", "--language", "de"], "--translate and --language"),
        (["a.wav", "--temperature", "2"], "temperature"),
        (["a.wav", "--jobs", "0"], "--jobs"),
        (["a.wav", "--force"], "--output-dir"),
        (["-", "-"], "once"),
        (["empty"], "no recording in empty"),
        (["a.wav", "x/a.mp3", "--output-dir", "out"], "would both be written to out/a.txt"),
        (["a.wav", "b.mp3", "--output-dir", "taken"], "taken/b.txt already exists"),
        (["a.wav", "--output-dir", "a.wav"], "cannot be made"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line_and_nothing_is_sent(
    prem: Prem,
    upstream_env: dict[str, str],
    upstream: Upstream,
    recordings: Path,
    arguments: list[str],
    said: str,
) -> None:
    (recordings / "empty").mkdir()
    (recordings / "taken").mkdir()
    (recordings / "taken" / "b.txt").write_text("mine")
    prem("transcribe", *arguments, **upstream_env).assert_error(2, "prem transcribe: ", said)
    assert upstream.heard == []
    assert (recordings / "taken" / "b.txt").read_text() == "mine"


def test_each_gets_a_file_of_its_own_with_the_permissions_of_the_umask(
    upstream_env: dict[str, str], recordings: Path, tmp_path: Path
) -> None:
    before = os.umask(0o027)
    try:
        result = run(
            "transcribe", "a.wav", "b.mp3", "--format", "srt", "--output-dir", "new/subs", **upstream_env
        )
    finally:
        os.umask(before)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
    written = sorted((tmp_path / "new" / "subs").iterdir())
    assert [path.name for path in written] == ["a.srt", "b.srt"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in written} == {0o640}
    assert written[0].read_text().startswith("1\n00:00:00,000 --> ")


def test_a_file_that_is_there_is_replaced_only_by_force(
    prem: Prem, upstream_env: dict[str, str], recordings: Path
) -> None:
    (recordings / "a.txt").write_text("mine")
    prem("transcribe", "a.wav", "--output-dir", ".", **upstream_env).assert_error(
        2, "a.txt already exists", "--force"
    )
    assert (recordings / "a.txt").read_text() == "mine"
    assert prem("transcribe", "a.wav", "--output-dir", ".", "--force", **upstream_env) == Result(0, "", "")
    assert (recordings / "a.txt").read_text() == "Hello there. 1 < 2.\n"


def test_a_file_that_appears_meanwhile_is_not_replaced(
    prem: Prem, upstream_env: dict[str, str], upstream: Upstream, recordings: Path
) -> None:
    def meanwhile(heard: Heard) -> dict[str, Any]:
        (recordings / "a.txt").write_text("mine")
        return SAID

    upstream.transcribes(meanwhile)
    result = prem("transcribe", "a.wav", "--output-dir", ".", **upstream_env)
    assert result.status == 1
    assert "a.txt already exists" in result.err
    assert (recordings / "a.txt").read_text() == "mine"
    assert [path.name for path in recordings.iterdir() if path.name.startswith(".")] == []


def test_one_that_fails_does_not_lose_the_others_and_has_a_line(
    prem: Prem, upstream_env: dict[str, str], upstream: Upstream, recordings: Path
) -> None:
    def refuses_b(heard: Heard) -> Any:
        if heard.name == "b.mp3":
            return JSONResponse({"error": {"message": "too\nnoisy\x1b[2J"}}, 400)
        return by_name(heard)

    upstream.transcribes(refuses_b)
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
    assert last == "prem transcribe: 3 of 5 recordings could not be heard"


def test_an_error_of_all_is_said_once(prem: Prem, upstream_env: dict[str, str], recordings: Path) -> None:
    wrong = {**upstream_env, "PREM_API_KEY": "sk_test_wrong"}
    prem("transcribe", "a.wav", "b.mp3", **wrong).assert_error(1, "support_")
    prem("transcribe", "a.wav", "b.mp3", PREM_API_KEY="").assert_error(2, "PREM_API_KEY")


def test_subtitles_without_times_are_an_error(
    prem: Prem, upstream_env: dict[str, str], upstream: Upstream, recordings: Path
) -> None:
    upstream.transcribes({"text": "Hello."})
    result = prem("transcribe", "a.wav", "--format", "srt", **upstream_env)
    assert (result.status, result.out) == (1, "")
    assert "prem transcribe: a.wav: the service gave no times" in result.err


def test_no_more_than_the_jobs_are_heard_at_once(
    prem: Prem, upstream_env: dict[str, str], upstream: Upstream, recordings: Path
) -> None:
    busy, most, lock = 0, 0, threading.Lock()

    def counts(heard: Heard) -> dict[str, Any]:
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        time.sleep(0.05)
        with lock:
            busy -= 1
        return SAID

    upstream.transcribes(counts)
    names = [shutil.copy("a.wav", f"{number}.wav") for number in range(6)]
    assert prem("transcribe", *names, "--jobs", "2", **upstream_env).status == 0
    assert most == 2


def test_the_default_timeout_is_the_loaders() -> None:
    assert transcribe.TIMEOUT == AUDIO_TIMEOUT


# --- as a process -----------------------------------------------------------------------------------------


def test_a_bar_is_on_the_terminal_and_the_text_alone_in_the_pipe(
    upstream_env: dict[str, str], recordings: Path
) -> None:
    os.rename("a.wav", "a\x1b[31m.wav")
    shown = run_on_terminal("transcribe", "a\x1b[31m.wav", "b.mp3", piped="stdout", **upstream_env)
    assert shown.status == 0
    assert shown.piped.decode() == (
        "==> a\x1b[31m.wav <==\nHello there. 1 < 2.\n\n==> b.mp3 <==\nHello there. 1 < 2.\n"
    )
    assert "recordings" in shown.terminal
    assert "━" in shown.terminal
    assert "b.mp3" in shown.terminal
    assert "\x1b[31m" not in shown.terminal
    assert shown.terminal.endswith("\x1b[2K")  # and it is gone at the end
    piped = run_on_terminal("transcribe", "b.mp3", piped="stderr", **upstream_env)
    assert (piped.terminal, piped.piped) == ("Hello there. 1 < 2.\n", b"")


def test_a_recording_of_more_than_25_mb_is_cut_its_times_go_on_and_the_bar_says_how_far_it_is(
    upstream_env: dict[str, str], upstream: Upstream, tmp_path: Path
) -> None:
    def slowly(heard: Heard) -> dict[str, Any]:
        if len(upstream.heard) == 2:
            time.sleep(0.3)  # a bar is drawn ten times a second
        return hears_beeps(heard)

    upstream.transcribes(slowly)
    long = write(tmp_path / "long.wav", [3.0, 400.0, 770.0, 835.25, 850.5], 860)
    assert long.stat().st_size > MAX_FILE_BYTES
    shown = run_on_terminal("transcribe", str(long), "--format", "srt", piped="stdout", **upstream_env)
    assert shown.status == 0
    assert len(upstream.heard) == 2
    cues = shown.piped.decode().split("\n\n")
    assert cues[3] == "4\n00:13:55,250 --> 00:13:55,750\nbeep3"
    assert [cue.split()[-1] for cue in cues] == [f"beep{n}" for n in range(5)]
    assert re.search(r" 9\d%", shown.terminal)  # the first part was nearly all of it


def test_ctrl_c_ends_it_quietly(upstream_env: dict[str, str], upstream: Upstream, recordings: Path) -> None:
    heard, over = threading.Event(), threading.Event()

    def never(recording: Heard) -> dict[str, Any]:
        heard.set()
        over.wait(20)
        return SAID

    upstream.transcribes(never)
    running = TerminalProcess("transcribe", "a.wav", "b.mp3", piped="stderr", **upstream_env)
    try:
        assert heard.wait(20)
        running.process.send_signal(signal.SIGINT)
        shown = running.end()
    finally:
        over.set()
    assert (shown.status, shown.terminal, shown.piped) == (130, "", b"")


def test_local_hears_on_this_machine() -> None:
    result = run("--local", "transcribe", str(SAMPLE), "--format", "vtt")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(b"WEBVTT\n\n00:00:00.")
    assert b"friday" in result.stdout
