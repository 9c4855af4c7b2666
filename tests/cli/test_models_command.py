"""``prem models``: the list, for people and for programs."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from support.prem_program import PREM, Prem, Result, client_environment, environment, run_on_terminal

from prem_core.enclave import LocalEnclave

LISTED = [
    "openai/gpt-oss-120b\tCHAT\tenabled",
    "openai/whisper-large-v3\tAUDIO_TRANSCRIPTION\tenabled",
    "prem-local/extractive\tCHAT\tenabled",
]


def test_piped_it_is_a_line_for_each_with_tabs(prem: Prem, enclave_env: dict[str, str]) -> None:
    assert prem("models", **enclave_env) == Result(0, "".join(f"{line}\n" for line in LISTED), "")


def test_one_type_can_be_asked_for(prem: Prem, enclave_env: dict[str, str]) -> None:
    assert prem("models", "--type", "audio_transcription", **enclave_env).out == f"{LISTED[1]}\n"
    prem("models", "--type", "video", **enclave_env).assert_error(2, "--type")


def test_json_has_all_that_the_service_says(prem: Prem, enclave_env: dict[str, str]) -> None:
    listed = json.loads(prem("models", "--json", **enclave_env).out)
    assert [each["model"] for each in listed] == [line.split("\t")[0] for line in LISTED]
    assert listed[0]["input_modalities"] == ["text"]


def test_errors_are_one_line_with_the_support_id(prem: Prem, enclave_env: dict[str, str]) -> None:
    prem("models", **{**enclave_env, "PREM_API_KEY": "sk_test_wrong"}).assert_error(
        1, "prem models: ", "support_"
    )
    elsewhere = {**enclave_env, "PREM_GATEWAY_URL": "http://127.0.0.1:9"}
    prem("models", "--max-retries", "0", **elsewhere).assert_error(1, "gateway")


def test_on_a_terminal_it_is_a_table_in_which_no_name_can_do_harm() -> None:
    with LocalEnclave(models=["a/[red]b\x1b[31m\n\tc"]) as prem:
        shown = run_on_terminal("models", **client_environment(prem))
        piped = run_on_terminal("models", piped="stdout", **client_environment(prem))
    assert shown.status == 0
    head, row = shown.terminal.replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()
    assert head.split() == ["model", "type", "takes"]
    assert row.split() == ["a/[red]b", "[31m", "c", "CHAT", "text", "enabled"]
    assert piped.piped.decode() == "a/[red]b [31m c\tCHAT\tenabled\n"  # a line is a model


def test_a_reader_that_wants_one_line_gets_it_without_a_complaint(tmp_path: Path) -> None:
    names = [f"m/{number}" for number in range(20_000)]
    with LocalEnclave(models=names) as prem:
        piped = subprocess.Popen(
            [*PREM, "models"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(client_environment(prem)),
        )
        with piped:
            assert piped.stdout is not None
            assert piped.stderr is not None
            assert piped.stdout.readline() == b"m/0\tCHAT\tenabled\n"
            piped.stdout.close()
            assert piped.stderr.read() == b""
            assert piped.wait(30) == 141
