"""``prem chat``: input, output and exit codes."""

from __future__ import annotations

import base64
import json
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.paths import MEDIA
from support.prem_program import (
    PREM,
    Prem,
    Result,
    TerminalProcess,
    client_environment,
    environment,
    run,
    run_on_terminal,
)
from support.screen import screen_rows
from support.scripted_upstream import Upstream, chunk, delta, finish, usage
from support.waiting import eventually

from prem_core import EncryptionKeys, PublicKey
from prem_core._crypto.xwing import PrivateKey
from prem_core.enclave import LocalEnclave

OPENS = "Context:\nThe clinic opens at eight.\n\nQuestion: When does the clinic open?"

#: Control characters that a model could send to a terminal: colours, a title, a carriage return, and CSI as one byte.
CONTROLS = "one\x1b[31m two\x1b]0;mine\x07\rthree \x9b5m\t\u202efour\U000e0041\u2066\nfive"


def received(upstream: Upstream) -> dict[str, Any]:
    """The body of the one request that reached the model."""
    ((_, body),) = upstream.requests
    return body


def test_the_answer_alone_is_on_standard_output(prem: Prem, enclave_env: dict[str, str]) -> None:
    result = prem("chat", OPENS, **enclave_env)
    assert result == Result(0, "The clinic opens at eight.\n", "")


def test_several_words_are_one_question_to_the_default_model(
    prem: Prem, upstream_env: dict[str, str], upstream: Upstream
) -> None:
    assert prem("chat", "What", "is", "new?", **upstream_env).out == "Hello\n"
    body = received(upstream)
    assert body["messages"] == [{"role": "user", "content": "What is new?"}]
    assert body["model"] == "openai/gpt-oss-120b"
    assert "temperature" not in body
    assert "max_tokens" not in body


@pytest.mark.parametrize(
    ("arguments", "stdin", "content"),
    [
        ([], "Piped\nin.\n", "Piped\nin.\n"),
        (["-"], "Piped in.", "Piped in."),
        (["Summarise", "this."], "A letter.\n", "Summarise this.\n\nA letter.\n"),
        (["Alone."], "", "Alone."),
        (["Alone."], " \n", "Alone."),
        ([], "\ufeffA file of Windows\u2019.", "A file of Windows\u2019."),
    ],
)
def test_standard_input_is_the_question_or_is_appended_to_it(
    prem: Prem,
    upstream_env: dict[str, str],
    upstream: Upstream,
    arguments: list[str],
    stdin: str,
    content: str,
) -> None:
    assert prem("chat", *arguments, stdin=stdin, **upstream_env).status == 0
    assert received(upstream)["messages"][0]["content"] == content


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        ([], b"", "no question"),
        (["-"], b" \n", "no question"),
        (["  "], b"", "no question"),
        ([], b"\xff\xfe", "not UTF-8 text"),
        (["\udcff"], b"", "not UTF-8 text"),
        (["Hi"], b"x" * (16 * 1024**2 + 1), "longer than 16 MB"),
        (["Hi", "--temperature", "3"], b"", "--temperature"),
        (["Hi", "--max-tokens", "0"], b"", "--max-tokens"),
        (["Hi", "--reasoning-effort", "huge"], b"", "--reasoning-effort"),
        (["Hi", "--timeout", "0"], b"", "--timeout"),
        (["Hi", "--max-retries", "-1"], b"", "--max-retries"),
        (["Hi", "--gateway-url", "ftp://x"], b"", "--gateway-url must be an http(s) URL"),
        (["Hi", "--gateway-url", "http://example.org"], b"", "--gateway-url is plain http"),
        (["Hi", "--enclave-public-key", "abc"], b"", "--enclave-public-key: "),
        (["Hi", "--api-key-env", "NOT_SET_ANYWHERE"], b"", "NOT_SET_ANYWHERE is not set"),
        (["Hi", "--keys", "k"], b"", "CLIENT_KEK"),
        (["Hi", "--image", "none.png"], b"", "none.png cannot be read"),
        (["Hi", "--image", __file__], b"", "not a PNG, JPEG, GIF or WebP"),
    ],
)
def test_a_usage_error_is_one_line_and_nothing_is_sent(
    prem: Prem,
    upstream_env: dict[str, str],
    upstream: Upstream,
    arguments: list[str],
    stdin: bytes,
    message: str,
) -> None:
    prem("chat", *arguments, stdin=stdin, **upstream_env).assert_error(2, "prem chat: ", message)
    assert upstream.requests == []


def test_without_an_api_key_the_error_says_how_to_set_one(prem: Prem) -> None:
    prem("chat", "Hi").assert_error(2, "PREM_API_KEY", "prem --local")


def test_options_reach_the_model(prem: Prem, upstream_env: dict[str, str], upstream: Upstream) -> None:
    options = ["--model", "m", "--system", "Be short.", "--temperature", "0.5", "--max-tokens", "7"]
    assert prem("chat", "Hi", *options, "--reasoning-effort", "low", **upstream_env).status == 0
    body = received(upstream)
    assert body["messages"] == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Hi"},
    ]
    assert {name: body[name] for name in ("model", "temperature", "max_tokens", "reasoning_effort")} == {
        "model": "m",
        "temperature": 0.5,
        "max_tokens": 7,
        "reasoning_effort": "low",
    }


def test_images_are_sent_as_bytes_or_as_a_url(
    prem: Prem, upstream_env: dict[str, str], upstream: Upstream, tmp_path: Path
) -> None:
    unnamed = tmp_path / "scan"  # the content determines the type
    unnamed.write_bytes((MEDIA / "pixels.png").read_bytes())
    url = "https://example.org/a.jpg"
    assert prem("chat", "What?", "--image", str(unnamed), "--image", url, **upstream_env).status == 0
    text, first, second = received(upstream)["messages"][0]["content"]
    assert text == {"type": "text", "text": "What?"}
    head, _, data = first["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(data) == unnamed.read_bytes()
    assert second == {"type": "image_url", "image_url": {"url": url}}


def test_an_image_of_more_than_20_mb_is_a_usage_error(
    prem: Prem, upstream_env: dict[str, str], upstream: Upstream, tmp_path: Path
) -> None:
    large = tmp_path / "large.png"
    with large.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        file.truncate(20 * 1024**2 + 1)
    prem("chat", "What?", "--image", str(large), **upstream_env).assert_error(
        2, "large.png is larger than 20 MB"
    )
    assert upstream.requests == []


def test_json_is_the_complete_response_as_one_object(
    prem: Prem, upstream_env: dict[str, str], upstream: Upstream, upstream_enclave: LocalEnclave
) -> None:
    upstream.respond_with(
        delta(reasoning_content="Hm."), delta(content=CONTROLS), finish(), usage(3, 4, reasoning=1)
    )
    result = prem("chat", "Hi", "--json", **upstream_env)
    assert (result.status, result.err) == (0, "")
    answer = json.loads(result.out)
    assert result.out.count("\n") == 1
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": CONTROLS, "reasoning_content": "Hm."}
    assert choice["finish_reason"] == "stop"
    assert answer["usage"]["total_tokens"] == 7
    assert answer["prem"] == {
        "key_fingerprint": upstream_enclave.public_key.fingerprint(),
        "key_source": "fetched",
        "attested": False,
        "key_bound": False,
        "reply_nonce": "own",
        "support_id": None,
    }


def test_reasoning_goes_to_standard_error_on_request(
    prem: Prem, upstream_env: dict[str, str], upstream: Upstream
) -> None:
    upstream.respond_with(
        delta(reasoning_content="Let me"), delta(reasoning_content=" see."), delta(content="Yes."), finish()
    )
    assert prem("chat", "Hi", **upstream_env) == Result(0, "Yes.\n", "")
    assert prem("chat", "Hi", "--no-reasoning", **upstream_env) == Result(0, "Yes.\n", "")
    assert prem("chat", "Hi", "--reasoning", **upstream_env) == Result(0, "Yes.\n", "Let me see.\n\n")


def test_stats_on_standard_error_count_tokens_and_say_how_the_answer_was_protected(
    prem: Prem, upstream_env: dict[str, str], upstream: Upstream, upstream_enclave: LocalEnclave
) -> None:
    upstream.respond_with(delta(content="Yes."), finish(), usage(12, 34, reasoning=5))
    result = prem("chat", "Hi", "--stats", **upstream_env)
    assert (result.status, result.out) == (0, "Yes.\n")
    counts, protection = result.err.splitlines()
    assert counts.startswith("scripted, 12 input and 34 output (5 for reasoning) tokens, total ")
    key = f"sha256:{upstream_enclave.public_key.fingerprint()}"
    assert protection == f"sealed to the key {key} (fetched, not attested); the answer has a nonce of its own"
    streamed = run_on_terminal("chat", "Hi", "--stats", PREM_NONCE_REUSE="allow", **upstream_env).terminal
    assert "tokens, first token after " in streamed
    assert streamed.endswith("the answer has the request's nonce (the gateway can read and replace it)\n")


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_whole_answer_that_breaks_off_is_an_error_and_nothing_is_written(
    prem: Prem, upstream_env: dict[str, str], upstream: Upstream, options: list[str]
) -> None:
    upstream.respond_with(delta(content="Half of"), done=False)
    result = prem("chat", "Hi", *options, **upstream_env)
    assert result.out == ""
    result.assert_error(1, "prem chat: ")


@pytest.mark.parametrize(
    ("reason", "message"), [("length", "token limit"), ("content_filter", "content filter")]
)
def test_a_truncated_answer_has_its_own_exit_code(
    prem: Prem, upstream_env: dict[str, str], upstream: Upstream, reason: str, message: str
) -> None:
    upstream.respond_with(delta(content="So far"), finish(reason))
    result = prem("chat", "Hi", **upstream_env)
    assert result.out == "So far\n"
    result.assert_error(3, message)


def test_a_refusal_is_an_error(prem: Prem, upstream_env: dict[str, str], upstream: Upstream) -> None:
    upstream.respond_with(delta(refusal="I will not\n"), delta(refusal="\x1b[2J."), finish())
    result = prem("chat", "Hi", **upstream_env)
    assert result.out == ""
    result.assert_error(1, "the model refused: I will not [2J.")


def test_an_error_of_the_service_is_one_line_with_its_support_id(
    prem: Prem, upstream_env: dict[str, str], upstream: Upstream
) -> None:
    prem("chat", "Hi", **{**upstream_env, "PREM_API_KEY": "sk_test_wrong"}).assert_error(1, "support_")
    upstream.refuses(400, {"error": {"message": "no\nsuch\x1b[2Jthing"}})
    result = prem("chat", "Hi", **upstream_env)
    result.assert_error(1, "support_")
    assert "\x1b" not in result.err


def test_an_unreachable_enclave_is_an_error_on_one_line(prem: Prem, upstream_env: dict[str, str]) -> None:
    nowhere = ["--enclave-url", "http://127.0.0.1:9", "--max-retries", "0"]
    prem("chat", "Hi", *nowhere, **upstream_env).assert_error(1, "enclave")


def test_the_api_key_can_be_in_another_variable(prem: Prem, enclave_env: dict[str, str]) -> None:
    theirs = {**enclave_env, "PREM_API_KEY": "sk_test_wrong", "THEIR_KEY": enclave_env["PREM_API_KEY"]}
    assert prem("chat", OPENS, "--api-key-env", "THEIR_KEY", **theirs).status == 0


def test_a_pinned_enclave_key_is_used_and_a_wrong_one_is_an_error(
    prem: Prem, enclave_env: dict[str, str], enclave: LocalEnclave
) -> None:
    def pinned(key: PublicKey) -> list[str]:
        return ["--enclave-public-key", bytes(key).hex()]

    elsewhere = {**enclave_env, "PREM_ENCLAVE_URL": "http://127.0.0.1:9"}  # it is not asked
    assert prem("chat", OPENS, *pinned(enclave.public_key), **elsewhere).status == 0
    other = PrivateKey(bytes(32)).public_key()
    prem("chat", OPENS, *pinned(other), **elsewhere).assert_error(1, "key")


def test_keys_from_a_file_are_used(
    prem: Prem, enclave_env: dict[str, str], enclave: LocalEnclave, tmp_path: Path
) -> None:
    kek = bytes(range(32)).hex()
    EncryptionKeys.encapsulate(enclave.public_key).save(tmp_path / "k", kek)
    elsewhere = {**enclave_env, "PREM_ENCLAVE_URL": "http://127.0.0.1:9"}
    assert prem("chat", OPENS, "--keys", str(tmp_path / "k"), CLIENT_KEK=kek, **elsewhere).status == 0
    wrong = prem("chat", OPENS, "--keys", str(tmp_path / "k"), CLIENT_KEK=kek[::-1], **elsewhere)
    wrong.assert_error(2, "does not open")


# --- as a program of its own --------------------------------------------------------------------------------


def test_a_streamed_answer_that_breaks_off_is_an_error_after_the_part_that_arrived(
    streaming_env: dict[str, str], upstream: Upstream
) -> None:
    upstream.respond_with(delta(content="Half of"), done=False)
    shown = run_on_terminal("chat", "Hi", **streaming_env)
    answer, error = shown.terminal.split("\n", 1)
    assert (shown.status, answer) == (1, "Half of")
    assert error.startswith("prem chat: the answer above is incomplete: ")


@pytest.fixture
def streaming_env(upstream_env: dict[str, str]) -> dict[str, str]:
    """`upstream_env` without the warning about streamed answers."""
    return {**upstream_env, "PREM_NONCE_REUSE": "allow"}


def test_on_a_terminal_reasoning_is_dim_and_control_characters_are_removed(
    streaming_env: dict[str, str], upstream: Upstream
) -> None:
    upstream.respond_with(
        delta(reasoning_content="[bold]Hm\x1b[2J\u202e"),
        delta(content=CONTROLS[:9]),
        delta(content=CONTROLS[9:]),
        finish(),
    )
    shown = run_on_terminal("chat", "Hi", **streaming_env)
    assert shown.status == 0
    assert shown.terminal == "\x1b[2m[bold]Hm[2J\x1b[0m\n\none[31m two]0;minethree 5m\tfour\nfive\n"


@pytest.mark.parametrize("looks", [{"TERM": "dumb"}, {"NO_COLOR": "1"}])
def test_a_terminal_without_colours_gets_none(
    streaming_env: dict[str, str], upstream: Upstream, looks: dict[str, str]
) -> None:
    upstream.respond_with(delta(reasoning_content="Hm."), delta(content="Yes."), finish())
    shown = run_on_terminal("chat", "Hi", **streaming_env, **looks)
    plain = shown.terminal
    if "NO_COLOR" in looks:  # dim is no colour
        plain = plain.replace("\x1b[2m", "").replace("\x1b[0m", "")
    assert plain == "Hm.\n\nYes.\n"


def test_a_pipe_gets_the_exact_text_in_utf_8_in_any_locale(
    upstream_env: dict[str, str], upstream: Upstream
) -> None:
    upstream.respond_with(delta(reasoning_content="Hm."), delta(content=CONTROLS + " 5 €"), finish())
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    shown = run_on_terminal("chat", "Hi", piped="stdout", **upstream_env, **plain)
    assert (shown.status, shown.terminal) == (0, "")
    assert shown.piped.decode() == CONTROLS + " 5 €\n"


def test_ctrl_c_stops_the_stream_quietly_and_disconnects(
    streaming_env: dict[str, str], upstream: Upstream
) -> None:
    upstream.stalls(chunk("Once upon"))
    running = TerminalProcess("chat", "Hi", **streaming_env)
    running.wait_for("Once upon")
    running.process.send_signal(signal.SIGINT)
    shown = running.end()
    assert shown.status == 130
    assert shown.terminal == "Once upon\n"
    assert upstream.left.wait(10)


def test_ctrl_c_while_a_whole_answer_is_awaited_removes_the_spinner_and_disconnects(
    upstream_env: dict[str, str], upstream: Upstream
) -> None:
    upstream.stalls(chunk("Once upon"))
    running = TerminalProcess("chat", "Hi", "--json", **upstream_env)
    running.wait_for("waiting for the answer")
    assert eventually(lambda: bool(upstream.requests))
    running.process.send_signal(signal.SIGINT)
    shown = running.end()
    assert shown.status == 130
    assert "".join(screen_rows(shown.terminal, 100)).isspace()
    assert upstream.left.wait(10)


def test_a_broken_pipe_ends_it_quietly(upstream_env: dict[str, str], upstream: Upstream) -> None:
    upstream.respond_with(delta(content="first\n"), delta(content="x" * 500_000), finish())
    running = subprocess.Popen(
        [*PREM, "chat", "Hi"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
        env=environment(upstream_env),
    )  # fmt: skip
    with running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.readline() == b"first\n"  # the rest is more than a pipe holds
        running.stdout.close()
        assert running.stderr.read() == b""
        assert running.wait(30) == 141


def test_local_answers_on_this_machine_and_does_not_use_the_users_api_key() -> None:
    with socket.socket() as theirs:
        theirs.bind(("127.0.0.1", 0))
        theirs.listen()
        theirs.settimeout(0)
        url = f"http://127.0.0.1:{theirs.getsockname()[1]}"
        result = run(
            "--local", "chat", OPENS, PREM_API_KEY="sk_live_of_the_user", PREM_GATEWAY_URL=url, PREM_ENCLAVE_URL=url,
            HTTP_PROXY=url, HTTPS_PROXY=url, ALL_PROXY=url,
        )  # fmt: skip
        assert (result.returncode, result.stdout, result.stderr) == (
            0,
            b"The clinic opens at eight.\n",
            b"",
        )
        with pytest.raises(BlockingIOError):  # no connection was made
            theirs.accept()


@pytest.mark.parametrize(
    "option", ["--gateway-url", "--enclave-url", "--api-key-env", "--enclave-public-key", "--keys"]
)
def test_local_cannot_be_combined_with_another_service(prem: Prem, option: str) -> None:
    prem("--local", "chat", "Hi", option, "x").assert_error(2, "--local", option)


@pytest.mark.parametrize(
    ("variable", "url", "message"),
    [
        ("PREM_GATEWAY_URL", "http://example.org", "PREM_GATEWAY_URL is plain http"),
        ("PROXY_URL", "http://example.org", "PROXY_URL is plain http"),
        ("ENCLAVE_URL", "example.org", "ENCLAVE_URL must be an http(s) URL"),
    ],
)
@pytest.mark.filterwarnings("ignore:PROXY_URL")
def test_an_error_names_the_variable_that_a_wrong_setting_comes_from(
    prem: Prem, variable: str, url: str, message: str
) -> None:
    result = prem("chat", "Hi", PREM_API_KEY="sk_test_1", **{variable: url})
    result.assert_error(2, f"prem chat: {message}")
    assert "allow_insecure" not in result.err
    assert "_url" not in result.err


def test_local_with_an_upstream_answers_from_the_upstream(prem: Prem, upstream: Upstream) -> None:
    local = ["--local", "--upstream", upstream.url, "--upstream-api-key-env", "UPSTREAM_KEY"]
    assert prem(*local, "chat", "Hi", UPSTREAM_KEY="sk-up") == Result(0, "Hello\n", "")
    ((headers, body),) = upstream.requests
    assert headers["authorization"] == "Bearer sk-up"
    assert body["messages"] == [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--upstream", "http://127.0.0.1:9"], "--upstream needs --local"),
        (["--local", "--upstream-api-key-env", "KEY"], "--upstream-api-key-env needs --upstream"),
        (["--local", "--upstream", "localhost:11434"], "--upstream must be an http or https URL"),
        (
            ["--local", "--upstream", "http://127.0.0.1:9", "--upstream-api-key-env", "NOT_SET_ANYWHERE"],
            "NOT_SET_ANYWHERE is not set",
        ),
    ],
)
def test_a_wrong_upstream_is_a_usage_error(prem: Prem, options: list[str], message: str) -> None:
    prem(*options, "chat", "Hi").assert_error(2, "prem chat: ", message)


def test_the_environment_variables_alone_select_the_enclave(enclave: LocalEnclave) -> None:
    result = run("chat", OPENS, **client_environment(enclave))
    assert (result.returncode, result.stdout) == (0, b"The clinic opens at eight.\n")
