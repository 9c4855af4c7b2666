"""``prem chat``: what goes in, what comes out where, and how it ends."""

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
from support.scripted_upstream import Upstream, chunk, delta, finish, usage

from prem_core import EncryptionKeys, PublicKey
from prem_core._crypto.xwing import PrivateKey
from prem_core.enclave import LocalEnclave

OPENS = "Context: The clinic opens at eight. Question: When does the clinic open?"

#: What a model could say to take a terminal over: colours, a title, a line written over, and CSI as one character.
EVIL = "one\x1b[31m two\x1b]0;mine\x07\rthree \x9b5m\tfour\nfive"


def asked(upstream: Upstream) -> dict[str, Any]:
    """The one request that reached the model."""
    ((_, body),) = upstream.requests
    return body


def test_the_answer_alone_is_on_standard_output(prem: Prem, enclave_env: dict[str, str]) -> None:
    result = prem("chat", OPENS, **enclave_env)
    assert result == Result(0, "Context: The clinic opens at eight.\n", "")


def test_words_are_joined_and_go_to_the_default_model(
    prem: Prem, upstream_env: dict[str, str], upstream: Upstream
) -> None:
    assert prem("chat", "What", "is", "new?", **upstream_env).out == "Hello\n"
    body = asked(upstream)
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
def test_standard_input_is_the_question_or_stands_below_it(
    prem: Prem,
    upstream_env: dict[str, str],
    upstream: Upstream,
    arguments: list[str],
    stdin: str,
    content: str,
) -> None:
    assert prem("chat", *arguments, stdin=stdin, **upstream_env).status == 0
    assert asked(upstream)["messages"][0]["content"] == content


@pytest.mark.parametrize(
    ("arguments", "stdin", "said"),
    [
        ([], b"", "no question"),
        (["-"], b" \n", "no question"),
        (["  "], b"", "no question"),
        ([], b"\xff\xfe", "not text in UTF-8"),
        (["\udcff"], b"", "not text in UTF-8"),
        (["Hi"], b"x" * (16 * 1024**2 + 1), "more than 16 MB"),
        (["Hi", "--temperature", "3"], b"", "temperature"),
        (["Hi", "--max-tokens", "0"], b"", "--max-tokens"),
        (["Hi", "--reasoning-effort", "huge"], b"", "--reasoning-effort"),
        (["Hi", "--timeout", "0"], b"", "--timeout"),
        (["Hi", "--max-retries", "-1"], b"", "--max-retries"),
        (["Hi", "--gateway-url", "ftp://x"], b"", "gateway_url"),
        (["Hi", "--gateway-url", "http://example.org"], b"", "plain http"),
        (["Hi", "--enclave-public-key", "abc"], b"", "1216 bytes"),
        (["Hi", "--api-key-env", "NOT_SET_ANYWHERE"], b"", "NOT_SET_ANYWHERE is not set"),
        (["Hi", "--keys", "k"], b"", "CLIENT_KEK"),
        (["Hi", "--image", "none.png"], b"", "none.png cannot be read"),
        (["Hi", "--image", __file__], b"", "no PNG, JPEG, GIF or WebP"),
    ],
)
def test_what_cannot_be_asked_is_said_in_one_line_and_nothing_is_sent(
    prem: Prem,
    upstream_env: dict[str, str],
    upstream: Upstream,
    arguments: list[str],
    stdin: bytes,
    said: str,
) -> None:
    prem("chat", *arguments, stdin=stdin, **upstream_env).assert_error(2, "prem chat: ", said)
    assert upstream.requests == []


def test_without_a_key_it_says_where_to_put_one(prem: Prem) -> None:
    prem("chat", "Hi").assert_error(2, "PREM_API_KEY", "prem --local")


def test_options_reach_the_model(prem: Prem, upstream_env: dict[str, str], upstream: Upstream) -> None:
    options = ["--model", "m", "--system", "Be short.", "--temperature", "0.5", "--max-tokens", "7"]
    assert prem("chat", "Hi", *options, "--reasoning-effort", "low", **upstream_env).status == 0
    body = asked(upstream)
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


def test_images_are_sent_by_their_bytes_or_by_their_url(
    prem: Prem, upstream_env: dict[str, str], upstream: Upstream, tmp_path: Path
) -> None:
    unnamed = tmp_path / "scan"  # its content says what it is
    unnamed.write_bytes((MEDIA / "pixels.png").read_bytes())
    url = "https://example.org/a.jpg"
    assert prem("chat", "What?", "--image", str(unnamed), "--image", url, **upstream_env).status == 0
    text, first, second = asked(upstream)["messages"][0]["content"]
    assert text == {"type": "text", "text": "What?"}
    head, _, data = first["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(data) == unnamed.read_bytes()
    assert second == {"type": "image_url", "image_url": {"url": url}}


def test_an_image_of_more_than_20_mb_is_refused(
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


def test_json_is_the_whole_answer_as_one_object(
    prem: Prem, upstream_env: dict[str, str], upstream: Upstream
) -> None:
    upstream.says(delta(reasoning_content="Hm."), delta(content=EVIL), finish(), usage(3, 4, reasoning=1))
    result = prem("chat", "Hi", "--json", **upstream_env)
    assert (result.status, result.err) == (0, "")
    answer = json.loads(result.out)
    assert result.out.count("\n") == 1
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": EVIL, "reasoning_content": "Hm."}
    assert choice["finish_reason"] == "stop"
    assert answer["usage"]["total_tokens"] == 7


def test_reasoning_goes_to_standard_error_where_it_is_wanted(
    prem: Prem, upstream_env: dict[str, str], upstream: Upstream
) -> None:
    upstream.says(
        delta(reasoning_content="Let me"), delta(reasoning_content=" see."), delta(content="Yes."), finish()
    )
    assert prem("chat", "Hi", **upstream_env) == Result(0, "Yes.\n", "")
    assert prem("chat", "Hi", "--no-reasoning", **upstream_env) == Result(0, "Yes.\n", "")
    assert prem("chat", "Hi", "--reasoning", **upstream_env) == Result(0, "Yes.\n", "Let me see.\n\n")


def test_stats_are_a_line_on_standard_error(
    prem: Prem, upstream_env: dict[str, str], upstream: Upstream
) -> None:
    upstream.says(delta(content="Yes."), finish(), usage(12, 34, reasoning=5))
    result = prem("chat", "Hi", "--stats", **upstream_env)
    assert result.out == "Yes.\n"
    result.err = f"prem chat: {result.err}"
    result.assert_error(0, "scripted", "12 + 34 (5 reasoning) tokens", "first token after 0.", "all after 0.")


def test_a_cut_answer_is_an_error_behind_what_came(
    prem: Prem, upstream_env: dict[str, str], upstream: Upstream
) -> None:
    upstream.says(delta(content="Half of"), done=False)
    result = prem("chat", "Hi", **upstream_env)
    assert result.out == "Half of\n"
    result.assert_error(1, "the answer is cut")


def test_nothing_of_a_cut_answer_is_given_as_json(
    prem: Prem, upstream_env: dict[str, str], upstream: Upstream
) -> None:
    upstream.says(delta(content="Half of"), done=False)
    result = prem("chat", "Hi", "--json", **upstream_env)
    assert result.out == ""
    result.assert_error(1, "prem chat: ")


@pytest.mark.parametrize(
    ("reason", "said"), [("length", "token limit"), ("content_filter", "content filter")]
)
def test_an_answer_that_stopped_at_a_limit_has_a_status_of_its_own(
    prem: Prem, upstream_env: dict[str, str], upstream: Upstream, reason: str, said: str
) -> None:
    upstream.says(delta(content="So far"), finish(reason))
    result = prem("chat", "Hi", **upstream_env)
    assert result.out == "So far\n"
    result.assert_error(3, said)


def test_a_refusal_is_no_answer(prem: Prem, upstream_env: dict[str, str], upstream: Upstream) -> None:
    upstream.says(delta(refusal="I will not\n"), delta(refusal="\x1b[2J."), finish())
    result = prem("chat", "Hi", **upstream_env)
    assert result.out == ""
    result.assert_error(1, "the model refused: I will not [2J.")


def test_the_services_error_is_one_line_with_its_support_id(
    prem: Prem, upstream_env: dict[str, str], upstream: Upstream
) -> None:
    prem("chat", "Hi", **{**upstream_env, "PREM_API_KEY": "sk_test_wrong"}).assert_error(1, "support_")
    upstream.refuses(400, {"error": {"message": "no\nsuch\x1b[2Jthing"}})
    result = prem("chat", "Hi", **upstream_env)
    result.assert_error(1, "support_")
    assert "\x1b" not in result.err


def test_an_enclave_that_cannot_be_reached_is_one_line(prem: Prem, upstream_env: dict[str, str]) -> None:
    nowhere = ["--enclave-url", "http://127.0.0.1:9", "--max-retries", "0"]
    prem("chat", "Hi", *nowhere, **upstream_env).assert_error(1, "enclave")


def test_the_key_may_be_in_a_variable_of_another_name(prem: Prem, enclave_env: dict[str, str]) -> None:
    theirs = {**enclave_env, "PREM_API_KEY": "sk_test_wrong", "THEIR_KEY": enclave_env["PREM_API_KEY"]}
    assert prem("chat", OPENS, "--api-key-env", "THEIR_KEY", **theirs).status == 0


def test_a_pinned_key_is_used_and_another_one_is_an_error(
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


# --- as a process -----------------------------------------------------------------------------------------


def test_on_a_terminal_reasoning_is_dim_and_nothing_of_the_models_drives_it(
    upstream_env: dict[str, str], upstream: Upstream
) -> None:
    upstream.says(
        delta(reasoning_content="[bold]Hm\x1b[2J"), delta(content=EVIL[:9]), delta(content=EVIL[9:]), finish()
    )
    shown = run_on_terminal("chat", "Hi", **upstream_env)
    assert shown.status == 0
    assert shown.terminal == "\x1b[2m[bold]Hm[2J\x1b[0m\n\none[31m two]0;minethree 5m\tfour\nfive\n"


@pytest.mark.parametrize("looks", [{"TERM": "dumb"}, {"NO_COLOR": "1"}])
def test_a_terminal_without_colour_gets_none(
    upstream_env: dict[str, str], upstream: Upstream, looks: dict[str, str]
) -> None:
    upstream.says(delta(reasoning_content="Hm."), delta(content="Yes."), finish())
    shown = run_on_terminal("chat", "Hi", **upstream_env, **looks)
    plain = shown.terminal
    if "NO_COLOR" in looks:  # dim is no colour
        plain = plain.replace("\x1b[2m", "").replace("\x1b[0m", "")
    assert plain == "Hm.\n\nYes.\n"


def test_into_a_pipe_goes_the_exact_text_in_utf_8_whatever_the_locale(
    upstream_env: dict[str, str], upstream: Upstream
) -> None:
    upstream.says(delta(reasoning_content="Hm."), delta(content=EVIL + " 5 €"), finish())
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    shown = run_on_terminal("chat", "Hi", piped="stdout", **upstream_env, **plain)
    assert (shown.status, shown.terminal) == (0, "")
    assert shown.piped.decode() == EVIL + " 5 €\n"


def test_ctrl_c_in_the_middle_ends_it_quietly_and_hangs_up(
    upstream_env: dict[str, str], upstream: Upstream
) -> None:
    upstream.stalls(chunk("Once upon"))
    running = TerminalProcess("chat", "Hi", **upstream_env)
    running.wait_for("Once upon")
    running.process.send_signal(signal.SIGINT)
    shown = running.end()
    assert shown.status == 130
    assert shown.terminal == "Once upon\n"
    assert upstream.left.wait(10)


def test_a_reader_that_leaves_ends_it_quietly(upstream_env: dict[str, str], upstream: Upstream) -> None:
    upstream.stalls(chunk("first\n"), *(chunk("x" * 1000) for _ in range(500)))
    running = subprocess.Popen(
        [*PREM, "chat", "Hi"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
        env=environment(upstream_env),
    )  # fmt: skip
    with running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.readline() == b"first\n"
        running.stdout.close()
        assert running.stderr.read() == b""
        assert running.wait(30) == 141


def test_local_answers_on_this_machine_and_sends_no_key_of_the_users() -> None:
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
            b"Context: The clinic opens at eight.\n",
            b"",
        )
        with pytest.raises(BlockingIOError):  # nobody has called
            theirs.accept()


@pytest.mark.parametrize(
    "option", ["--gateway-url", "--enclave-url", "--api-key-env", "--enclave-public-key", "--keys"]
)
def test_local_and_another_place_cannot_both_be_meant(prem: Prem, option: str) -> None:
    prem("--local", "chat", "Hi", option, "x").assert_error(2, "--local", option)


def test_the_settings_of_the_tests_are_what_a_user_exports(enclave: LocalEnclave) -> None:
    result = run("chat", OPENS, **client_environment(enclave))
    assert (result.returncode, result.stdout) == (0, b"Context: The clinic opens at eight.\n")
