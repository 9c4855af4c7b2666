"""``prem models``: the list as a table, as lines and as JSON."""

from __future__ import annotations

import json
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

from support.prem_program import PREM, Prem, Result, client_environment, environment, run_on_terminal

from prem_core.enclave import LocalEnclave

LISTED = [
    "openai/gpt-oss-120b\tCHAT\tenabled",
    "openai/whisper-large-v3\tAUDIO_TRANSCRIPTION\tenabled",
    "prem-local/quoting\tCHAT\tenabled",
]


def test_in_a_pipe_each_model_is_a_line_with_tabs(prem: Prem, enclave_env: dict[str, str]) -> None:
    assert prem("models", **enclave_env) == Result(0, "".join(f"{line}\n" for line in LISTED), "")


def test_one_type_can_be_selected(prem: Prem, enclave_env: dict[str, str]) -> None:
    assert prem("models", "--type", "audio_transcription", **enclave_env).out == f"{LISTED[1]}\n"
    prem("models", "--type", "video", **enclave_env).assert_error(2, "--type")


def test_an_empty_list_is_reported_on_standard_error(prem: Prem, enclave_env: dict[str, str]) -> None:
    result = prem("models", "--type", "image", **enclave_env)
    assert result == Result(0, "", "prem models: the service lists no such models\n")


def test_json_has_everything_the_service_reports(prem: Prem, enclave_env: dict[str, str]) -> None:
    listed = json.loads(prem("models", "--json", **enclave_env).out)
    assert [each["model"] for each in listed] == [line.split("\t")[0] for line in LISTED]
    assert listed[0]["input_modalities"] == ["text"]


def test_errors_are_one_line_with_the_support_id(prem: Prem, enclave_env: dict[str, str]) -> None:
    prem("models", **{**enclave_env, "PREM_API_KEY": "sk_test_wrong"}).assert_error(
        1, "prem models: ", "support_"
    )
    elsewhere = {**enclave_env, "PREM_GATEWAY_URL": "http://127.0.0.1:9"}
    prem("models", "--max-retries", "0", **elsewhere).assert_error(1, "gateway")


class _Ollama(BaseHTTPRequestHandler):
    """Lists two models. Every completion is an error, and its model is kept."""

    requested: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        models = {"object": "list", "data": [{"id": "llama3.2"}, {"id": "qwen3"}]}
        self._respond(200 if self.path == "/v1/models" else 404, models)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.requested.append(body["model"])
        self._respond(404, {"error": {"message": "no completions here"}})

    def _respond(self, status: int, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """No log."""


def test_local_with_an_upstream_lists_the_upstreams_models_and_chat_uses_the_first(prem: Prem) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Ollama) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        local = ["--local", "--upstream", f"http://127.0.0.1:{server.server_address[1]}"]
        listed = prem(*local, "models")
        prem(*local, "chat", "Hi").assert_error(1, "prem chat: ")
        prem(*local, "chat", "Hi", "--model", "qwen3").assert_error(1, "prem chat: ")
        server.shutdown()
        thread.join()
    assert (listed.status, listed.err) == (0, "")
    assert [line.split("\t")[0] for line in listed.out.splitlines()] == ["llama3.2", "qwen3"]
    assert _Ollama.requested == ["llama3.2", "qwen3"]


def test_on_a_terminal_it_is_a_table_without_markup_or_control_characters() -> None:
    with LocalEnclave(models=["a/[red]b\x1b[31m\n\tc\u202e\u3164"]) as prem:
        shown = run_on_terminal("models", **client_environment(prem))
        piped = run_on_terminal("models", piped="stdout", **client_environment(prem))
    assert shown.status == 0
    head, row = shown.terminal.replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()
    assert head.split() == ["model", "type", "input"]
    assert row.split() == ["a/[red]b", "[31m", "c", "CHAT", "text", "enabled"]
    assert piped.piped.decode() == "a/[red]b [31m c\tCHAT\tenabled\n"  # still one line


def test_a_broken_pipe_ends_it_quietly() -> None:
    names = [f"m/{number}" for number in range(10_000)]  # more lines than a pipe holds
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
